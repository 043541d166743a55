"""Binned models: the rates of the bins, the surface between them, and what is filled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2
from stores import EDGES, expected_in_bins, fitted, fov_bins, mean_in_bins

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.base import ScaledModel
from gammapy_accmaker.models.binned import BinnedModel, fit_binned, fit_run_norms

KINDS = ["radial", "grid"]


def draw(kind, seconds, seed=0, hole=None, fov=None):
    """Poisson counts of the truth, exposure (0 in the bins of a hole) and bins."""
    fov = fov or fov_bins(kind)
    exposure = np.full(fov.size, float(seconds))
    counts = np.random.default_rng(seed).poisson(expected_in_bins(EDGES, fov, exposure)).astype(float)
    if hole is not None:
        exposure[hole] = counts[:, hole] = 0
    return counts, exposure, fov


@pytest.mark.parametrize("kind", KINDS)
def test_the_bins_without_exposure_are_known(kind):
    counts, exposure, fov = draw(kind, 1000, hole=[3])
    assert np.array_equal(np.flatnonzero(fit_binned(counts, exposure, EDGES, fov).filled), [3])


def test_the_errors_are_the_scatter_of_fits_to_other_counts():
    log_rates = []
    energy, lon = np.geomspace(0.4, 5, 5), np.array([0.4, 1.0, 1.6])
    for seed in range(40):
        counts, exposure, fov = draw("radial", 1000, seed=seed)
        model = fit_binned(counts, exposure, EDGES, fov)
        log_rates.append(np.log(model.rate_grid(energy, lon, 0 * lon)))
    ratio = np.std(log_rates, axis=0, ddof=1) / model.relative_error_grid(energy, lon, 0 * lon)
    # the errors are those of the counts of a bin; its rate is smoother
    assert ratio.min() > 0.05 and ratio.max() < 1.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [1e3, 1e5])
def test_the_surface_gives_the_counts_back(kind, seconds):
    counts, exposure, fov = draw(kind, seconds)
    model = fit_binned(counts, exposure, EDGES, fov)
    expected = mean_in_bins(model, model.fov, EDGES) * fov.solid_angle * exposure
    assert expected.sum() == pytest.approx(counts.sum(), rel=2e-3)
    in_energy = (expected.sum(1) - counts.sum(1)) / np.sqrt(counts.sum(1) + 1)
    assert np.abs(in_energy).max() < 3
    in_field = (expected.sum(0) - counts.sum(0)) / np.sqrt(expected.sum(0) + 1)
    assert in_field.std() < 1.1 and np.abs(in_field).max() < 4
    # and not only in sums
    many = expected > 3
    pulls = (counts[many] - expected[many]) / np.sqrt(expected[many])
    assert np.abs(pulls).max() < 5.5 and pulls.std() < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_surface_follows_the_truth(kind):
    model = fitted(kind, seconds=1e6)
    fov, edges = fov_bins(kind), EDGES[3:19]
    expected = mean_in_bins(model, model.fov, edges)
    truth = expected_in_bins(edges, fov, 1) / fov.solid_angle
    counts = expected_in_bins(edges, fov, 1e6)
    pulls = (expected - truth) / truth * np.sqrt(counts)
    assert np.mean(pulls**2) < 2
    assert (expected * fov.solid_angle).sum() == pytest.approx((truth * fov.solid_angle).sum(), rel=2e-3)


@pytest.mark.parametrize("seconds", [1e3, 1e4, 1e5, 1e6])
def test_a_grid_is_better_than_its_histogram_at_any_exposure(seconds):
    """Bins with few counts follow their ring, but not against a gradient or the steep edge that all energies show."""
    counts, exposure, fov = draw("grid", seconds)
    expected = (mean_in_bins(fit_binned(counts, exposure, EDGES, fov), fov, EDGES) * fov.solid_angle * exposure).sum(0)
    truth = expected_in_bins(EDGES, fov, exposure).sum(0)
    assert np.std((expected - truth) / np.sqrt(truth)) < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_integral_is_that_of_the_rate(kind):
    """A bin's content is an integral: of the rate over a wide bin, whatever the bins of the fit."""
    model = fitted(kind)
    lon, lat = np.array([0.1, 1.9, -0.7]), np.array([0.3, 0.1, -1.1])
    edges = np.array([0.2, 0.9, 4.0])
    got = model.integral_grid(edges, lon, lat)
    for k in range(3):
        point = lon[k : k + 1], lat[k : k + 1]
        for b in range(2):
            want = quad(lambda e: model.rate_grid(np.array([e]), *point)[0, 0], edges[b], edges[b + 1], limit=200)[0]  # noqa: B023
            assert got[b, k] == pytest.approx(want * 1e6, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_integral_is_additive(kind):
    model = fitted(kind)
    lon, lat = np.linspace(-2, 2, 9), np.linspace(0.5, -0.5, 9)
    fine = model.integral_grid(np.geomspace(0.15, 50, 41), lon, lat)
    assert np.allclose(
        fine.reshape(4, 10, -1).sum(1), model.integral_grid(np.geomspace(0.15, 50, 5), lon, lat), rtol=3e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_broadcasts(kind):
    model = fitted(kind)
    energy = np.array([0.3, 3.0])[:, None, None]
    lon, lat = np.array([-1.0, 0, 2])[:, None], np.array([0.5, -0.2])
    got = model.rate(energy, lon, lat)
    assert got.shape == (2, 3, 2)
    flat_lon, flat_lat = (a.ravel() for a in np.broadcast_arrays(lon, lat))
    assert np.allclose(got.reshape(2, -1), model.rate_grid(np.array([0.3, 3.0]), flat_lon, flat_lat), rtol=1e-12)
    assert np.shape(model.rate(1.0, 0.0, 0.0)) == ()
    scaled = ScaledModel(model, 1.5)
    assert np.allclose(scaled.rate(energy, lon, lat), 1.5 * got)
    assert np.allclose(
        scaled.integral_grid(EDGES, flat_lon, flat_lat), 1.5 * model.integral_grid(EDGES, flat_lon, flat_lat)
    )
    assert (scaled.offset_max, scaled.half_width, scaled.is_radial) == (
        model.offset_max,
        model.half_width,
        model.is_radial,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_of_the_range(kind):
    model = fitted(kind)
    beyond = model.offset_max + 0.01
    assert np.all(model.rate(1.0, np.array([beyond, -beyond, 0, 0]), np.array([0, 0, beyond, -beyond])) == 0)
    assert np.all(model.rate(np.array([0.05, 500.0]), 0.0, 0.0) == 0)
    assert np.all(model.integral_grid(np.array([200.0, 300.0]), np.zeros(1), np.zeros(1)) == 0)
    inside = model.integral_grid(np.array([0.3, 1.0]), np.array([2.4, 0.0]), np.array([0.0, -2.4]))
    assert np.all(inside > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_has_the_right_sign(kind):
    """More counts at positive FOV_LON are a larger rate there, for the grid; a radial model has none."""
    model = fitted(kind)
    right, left = model.rate(0.3, np.array([1.5, -1.5]), 0.0)
    up, down = model.rate(1.0, 0.0, np.array([1.5, -1.5]))
    if kind == "radial":
        assert right == left and up == down
    else:
        assert right > 1.05 * left and up < 0.95 * down


@pytest.mark.parametrize("kind", KINDS)
def test_trap_a_bin_that_is_never_seen_is_finite_flagged_and_near_the_truth(kind):
    """counts x (total / unexcluded exposure) is 0/0 there, and damages the model around it."""
    fov = fov_bins(kind)
    hole = [4] if kind == "radial" else [24 * i + j for i in (14, 15, 16) for j in (9, 10, 11)]
    counts, exposure, fov = draw(kind, 2e4, hole=hole)
    model = fit_binned(counts, exposure, EDGES, fov)
    whole = fit_binned(*draw(kind, 2e4)[:2], EDGES, fov)
    assert np.array_equal(np.flatnonzero(model.filled), hole)
    edges = np.array([0.2, 0.5, 1, 10])
    got = (mean_in_bins(model, model.fov, edges) * fov.solid_angle)[:, hole].sum(1)
    truth = expected_in_bins(edges, fov, 1.0)[:, hole].sum(1)
    neighbours = expected_in_bins(edges, fov, 2e4)[:, hole].sum(1)
    assert np.all(np.isfinite(got)) and np.all(got > 0)
    assert np.all(np.abs(got / truth - 1) < 3 / np.sqrt(neighbours) + 0.02)
    # far from it nothing changes
    far = np.ones(fov.size, bool)
    far[hole] = False
    here, there = mean_in_bins(model, model.fov, edges)[:, far], mean_in_bins(whole, whole.fov, edges)[:, far]
    assert np.median(np.abs(here / there - 1)) < 0.01
    # and its error is that of no counts at all
    assert np.all(model.relative_error_grid(np.array([1.0]), fov.fov_lon[hole], fov.fov_lat[hole]) == 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["penultimate", "middle", "first"])
def test_trap_an_empty_energy_bin_does_not_explode(kind, where):
    """Never interpolate the logarithm of an empty bin: elsewhere this gave 1e46 to 1e156."""
    counts, exposure, fov = draw(kind, 2e4)
    with_counts = np.flatnonzero(counts.sum(1))
    empty = {"penultimate": with_counts[-1] - 1, "middle": with_counts[-6], "first": with_counts[0]}[where]
    counts[empty] = 0
    model = fit_binned(counts, exposure, EDGES, fov)
    expected = mean_in_bins(model, model.fov, EDGES) * fov.solid_angle * exposure
    assert np.all(np.isfinite(expected)) and np.all(expected >= 0)
    assert expected.sum() == pytest.approx(counts.sum(), abs=2 * np.sqrt(counts.sum()))
    others = np.delete(np.arange(30), empty)
    pulls = (expected.sum(1) - counts.sum(1)) / np.sqrt(counts.sum(1) + 1)
    assert np.abs(pulls[others]).max() < 4
    # a smooth spectrum goes on through the hole, no higher than before it
    assert expected[empty].sum() <= 1.1 * expected[empty - 1].sum() + 1


def test_trap_far_bins_of_a_large_hole_take_the_nearest():
    """Half of the camera never seen: no NaN from a triangulation that does not reach."""
    fov = FovBins.grid(2.5, 10)
    hole = np.flatnonzero(fov.fov_lon > 0.2)
    counts, exposure, fov = draw("grid", 2e4, hole=hole, fov=fov)
    model = fit_binned(counts, exposure, EDGES, fov)
    rate = mean_in_bins(model, model.fov, EDGES)
    inside = slice(*np.searchsorted(EDGES, [model.energy_edges[0], model.energy_edges[-1]]))
    assert np.all(np.isfinite(rate)) and np.all(rate[inside] > 0)
    one = fit_binned(counts * (np.arange(fov.size) == 0), np.where(np.arange(fov.size) == 0, 2e4, 0.0), EDGES, fov)
    assert np.all(np.isfinite(mean_in_bins(one, one.fov, EDGES)))


@pytest.mark.parametrize("kind", KINDS)
def test_few_counts(kind):
    fov = fov_bins(kind)
    counts = np.zeros((30, fov.size))
    counts[10, fov.size // 2] = 1
    model = fit_binned(counts, np.full(fov.size, 100.0), EDGES, fov)
    expected = mean_in_bins(model, model.fov, EDGES) * fov.solid_angle * 100
    assert np.all(np.isfinite(expected)) and expected.sum() == pytest.approx(1, rel=0.05)
    assert np.array_equal(np.flatnonzero(expected.sum(1)), [10])


def test_no_counts_at_all():
    fov = fov_bins("radial")
    with pytest.raises(FitError, match="no counts"):
        fit_binned(np.zeros((30, fov.size)), np.ones(fov.size), EDGES, fov)


@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1e6), st.sampled_from(KINDS))
def test_the_rate_is_inverse_to_the_exposure(factor, kind):
    counts, exposure, fov = draw(kind, 3e3, hole=[5])
    here, there = (fit_binned(counts, f * exposure, EDGES, fov) for f in (1, factor))
    lon, lat = np.linspace(-2.4, 2.4, 20), np.linspace(0.3, -0.4, 20)
    assert np.allclose(there.integral_grid(EDGES, lon, lat) * factor, here.integral_grid(EDGES, lon, lat), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_restore_the_model(kind):
    model = fitted(kind)
    arrays = model.to_arrays()
    again = BinnedModel.from_arrays(arrays)
    lon, lat = np.linspace(-2.4, 2.4, 20), np.linspace(0.3, -0.4, 20)
    assert np.array_equal(again.integral_grid(EDGES, lon, lat), model.integral_grid(EDGES, lon, lat))
    assert all(np.array_equal(again.to_arrays()[k], v) for k, v in arrays.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_the_counts(kind):
    model = fitted(kind)
    got = model.relative_error_grid(np.array([0.3, 3.0]), np.array([0.1, 2.2]), np.array([0.1, 0.1]))
    i, j = np.searchsorted(EDGES, [0.3, 3.0]) - 1, model.fov.index(np.array([0.1, 2.2]), np.array([0.1, 0.1]))
    assert np.allclose(got, 1 / np.sqrt(model.counts[np.ix_(i, j)] + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [-0.4, 0.033, 0.3])
def test_the_error_of_a_model_of_shifted_energies_is_that_at_the_energy_of_its_counts(kind, shift):
    model = fitted(kind)
    shifted = model.shifted(shift, tuple(EDGES[[0, -1]]))
    energy, lon, lat = np.sqrt(EDGES[1:] * EDGES[:-1]), np.array([0.1, 2.2]), np.array([0.1, 0.1])
    expected = model.relative_error_grid(energy, lon, lat)
    assert np.allclose(shifted.relative_error_grid(energy * np.exp(-shift), lon, lat), expected)


def test_irregular_edges():
    lon = np.array([-2.0, -1.0, -0.6, -0.1, 0.2, 1.0, 2.0])
    lat = np.array([-1.8, -1.5, -0.3, 0.4, 1.8])
    counts, exposure, fov = draw("grid", 1e5, fov=FovBins((lon, lat)))
    model = fit_binned(counts, exposure, EDGES, fov)
    expected = (mean_in_bins(model, model.fov, EDGES) * fov.solid_angle * exposure).sum(0)
    assert np.all(np.abs(expected / counts.sum(0) - 1) < 4 / np.sqrt(counts.sum(0)))
    # the last bin of an axis is continued by its width
    assert model.half_width == pytest.approx(3.2)
    inside, rim, beyond = model.rate(1.0, np.array([1.95, 2.9, 3.05]), np.zeros(3))
    assert inside > 0
    assert rim == pytest.approx(inside)
    assert beyond == 0
    assert model.rate(1.0, 0.0, 3.25) == 0


def test_run_norms_are_found():
    rng = np.random.default_rng(1)
    norm = np.exp(rng.normal(0, 0.2, 8))
    norm /= np.exp(np.log(norm).mean())
    exposure = rng.uniform(500, 2000, (8, 1)) * (rng.random((8, 40)) > 0.2)
    rate = rng.uniform(0.5, 2, 40)
    got = fit_run_norms(norm[:, None] * exposure * rate, exposure)
    assert np.allclose(got, norm, rtol=1e-8)
    counts = rng.poisson(norm[:, None] * exposure * rate)
    error = 1 / np.sqrt(counts.sum(1))
    assert np.all(np.abs(fit_run_norms(counts, exposure) / norm - 1) < 4 * error)


def test_run_norms_do_not_depend_on_the_order():
    rng = np.random.default_rng(2)
    exposure = rng.uniform(500, 2000, (6, 30)) * (rng.random((6, 30)) > 0.3)
    counts = rng.poisson(exposure * 0.01)
    order = rng.permutation(6)
    assert np.allclose(
        fit_run_norms(counts[order], exposure[order]), fit_run_norms(counts, exposure)[order], rtol=1e-10
    )


def test_a_run_without_counts_has_norm_1():
    counts, exposure = np.array([[5, 6], [0, 0], [9, 11]]), np.full((3, 2), 100.0)
    norm = fit_run_norms(counts, exposure)
    assert norm[1] == 1
    assert norm[0] * norm[2] == pytest.approx(1)
    assert norm[2] / norm[0] == pytest.approx(20 / 11)


def test_pulls_of_many_models_are_those_of_poisson_counts():
    """Summed over the field, the fit follows its counts within the Poisson error, for any seed."""
    probabilities = []
    for seed in range(20):
        counts, exposure, fov = draw("radial", 3e3, seed=seed)
        expected = (
            mean_in_bins(fit_binned(counts, exposure, EDGES, fov), fov, EDGES) * fov.solid_angle * exposure
        ).sum(1)
        truth = expected_in_bins(EDGES, fov, exposure).sum(1)
        many = truth > 5
        probabilities.append(chi2.sf(np.sum((expected - truth)[many] ** 2 / truth[many]), many.sum()))
    assert min(probabilities) > 1e-3
