"""Energy bins of the fit: merged up to a count target and a width;
the model keeps its own axis, and integrals are kept."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.units import Quantity
from gammapy.data import DataStore
from hypothesis import given
from hypothesis import strategies as st
from regions import CircleSkyRegion
from stores import EDGES, IRFS, expected_in_bins, fov_bins, mean_in_bins, observations, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.camera.bins import merge_bins, split_bins
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.binned import fit_binned

KINDS = ["radial", "grid"]
ADAPTIVE = {"type": "adaptive", "min_counts": 500, "max_width": 0.5}


def summed(counts, edges, merged):
    return np.diff(np.concatenate([[0], np.cumsum(counts)])[np.searchsorted(edges, merged)])


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=25),
    st.integers(1, 2000),
    st.floats(0.01, 3),
    st.integers(0, 2**32 - 1),
)
def test_each_merged_bin_is_rich_or_as_wide_as_it_may_be(counts, min_counts, max_width, seed):
    edges = 10 ** np.cumsum(np.random.default_rng(seed).uniform(0.02, 0.3, len(counts) + 1))
    merged = merge_bins(counts, edges, min_counts, max_width)
    assert np.isin(merged, edges).all() and merged[0] == edges[0] and merged[-1] == edges[-1]
    content = summed(counts, edges, merged)
    assert content.sum() == sum(counts)
    # no bin that was joined is wider than allowed
    width, joined = np.diff(np.log10(merged)), np.diff(np.searchsorted(edges, merged)) > 1
    assert np.all(width[joined] <= max_width + 1e-6)
    for k in np.flatnonzero(content < min_counts):
        for neighbour in (k - 1, k + 1):
            if 0 <= neighbour < len(content):
                assert width[k] + width[neighbour] > max_width
    # nothing more to do
    assert np.array_equal(merge_bins(content, merged, min_counts, max_width), merged)


def test_merging_of_a_falling_spectrum():
    edges = 10.0 ** np.arange(8)
    assert np.array_equal(merge_bins([90, 40, 8, 4, 1, 0, 0], edges, 10, 9), [1, 10, 100, 1e7])
    assert np.array_equal(merge_bins([90, 40, 8, 4, 1, 0, 0], edges, 10, 2), [1, 10, 1e3, 1e5, 1e7])
    assert np.array_equal(merge_bins([90, 40, 8], edges[:4], 10, 0.5), edges[:4])


def test_merging_checks_its_input():
    with pytest.raises(InputError, match="one a bin"):
        merge_bins([1, 2], [1, 2, 3, 4], 10, 1)
    with pytest.raises(InputError, match="increasing"):
        merge_bins([1, 2], [1, 3, 2], 10, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_integrals_of_the_merged_bins_are_kept(kind):
    """At many counts the model has, summed over its own axis, the counts of each merged bin at each position."""
    fov, seconds = fov_bins(kind), 1e11
    counts = expected_in_bins(EDGES, fov, seconds)
    merged = EDGES[[0, 3, 4, 5, 6, 8, 10, 14, 18, 24, 30]]
    model = fit_binned(counts, np.full(fov.size, seconds), EDGES, fov, profile_edges=merged)
    assert np.array_equal(model.energy_edges, merged) and np.array_equal(model.bin_edges, EDGES)
    fine = mean_in_bins(model, fov, EDGES)
    fine = fine * seconds * fov.solid_angle
    rows = np.searchsorted(EDGES, merged)[:-1]
    inside = np.hypot(*np.meshgrid(*fov.centers)).ravel() < 2.2 if kind == "grid" else slice(None)
    got, wanted = (np.add.reduceat(a, rows, axis=0)[:, inside] for a in (fine, counts))
    assert np.allclose(got, wanted, rtol=0.02)
    # the spectrum is that of the fine bins, within the merged ones too
    assert np.allclose(fine.sum(1), counts.sum(1), rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_adaptive_bins_in_a_fit(kind, tmp_path):
    store = plain_store()
    runs = observations(store)
    model = fit_acceptance(runs, options(kind, fit_energy=ADAPTIVE))
    plain = fit_acceptance(runs, options(kind)).rate_model
    rate_model = model.rate_model
    assert np.array_equal(rate_model.bin_edges, plain.bin_edges) and np.array_equal(rate_model.counts, plain.counts)
    content = summed(rate_model.counts.sum(1), rate_model.bin_edges, rate_model.energy_edges)
    width = np.diff(np.log10(rate_model.energy_edges))
    assert len(width) < len(plain.energy_edges) - 1 and width.max() < 0.5 + 1e-6
    assert np.all(content[:-1][width[:-1] < 0.35] >= 500)
    # all counts, and a profile that is near to the truth at high energy, where bins have a few events each
    expected = sum(store.expected_counts(o.obs_id, [0.3, 1, 3, 10, 30], *2 * [np.linspace(-2, 2, 9)]) for o in runs)
    total = sum(o.observation_time_duration.to_value("s") for o in runs)
    x = np.linspace(-2, 2, 81)
    x = 0.5 * (x[1:] + x[:-1])
    lon, lat = (a.ravel() for a in np.meshgrid(x, x, indexing="ij"))
    error = []
    for one in (rate_model, plain):
        got = one.integral_grid(np.array([0.3, 1, 3, 10, 30]), lon, lat) * np.radians(0.05) ** 2 * total
        got = got.reshape(4, 8, 10, 8, 10).sum((2, 4))
        assert np.allclose(got.sum((1, 2)), expected.sum((1, 2)), rtol=4 / np.sqrt(expected.sum((1, 2)).min()))
        error.append(np.sum((got[3] - expected[3]) ** 2 / expected[3]))
    assert max(error) < 4  # of 64 parts of the field
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits").rate_model
    assert np.array_equal(again.integral_grid(EDGES, lon, lat), rate_model.integral_grid(EDGES, lon, lat))


def test_only_unexcluded_events_count():
    store = plain_store()
    runs = observations(store, store.on_obs_ids)
    most = CircleSkyRegion(runs[0].get_pointing_icrs(runs[0].tmid), Quantity("2 deg"))
    config = options("radial", fit_energy=ADAPTIVE)
    edges = [fit_acceptance(runs, config, exclusion=e).rate_model.energy_edges for e in (None, most)]
    assert len(edges[1]) < len(edges[0])


@pytest.mark.parametrize(
    "bad",
    [{"type": "adaptive", "min_counts": 0}, {"type": "adaptive", "max_width": -1}, {"type": "narrow"}, {"width": 1}],
)
def test_bad_options(bad):
    with pytest.raises(InputError, match="fit_energy"):
        AcceptanceConfig.coerce(options("grid", fit_energy=bad))


def test_options_round_trip():
    for fit_energy in (ADAPTIVE, ["0.1 TeV", "1 TeV", "10 TeV"], None):
        config = AcceptanceConfig.coerce(options("grid", fit_energy=fit_energy))
        assert AcceptanceConfig.from_yaml(config.to_yaml()).to_yaml() == config.to_yaml()
    assert AcceptanceConfig.coerce(options("grid", fit_energy={"type": "adaptive"})).fit_energy.min_counts == 500
    with pytest.raises(InputError, match="spline"):
        AcceptanceConfig.coerce({"fit_energy": ADAPTIVE})
    with pytest.raises(InputError, match="'parametric', which groups energies"):
        AcceptanceConfig.coerce({"model": {"type": "parametric", "function": "gaussian"}, "fit_energy": ADAPTIVE})


def test_runs_pooled_by_zenith_have_the_bins_of_all_runs():
    """The counts of all runs decide, not those of each group."""
    runs = observations(plain_store())
    pooled = {"type": "binned", "initial_width": 0.02, "min_observations": 3}
    model = fit_acceptance(runs, options("radial", fit_energy=ADAPTIVE) | {"zenith": pooled}).rate_model
    together = fit_acceptance(runs, options("radial", fit_energy=ADAPTIVE)).rate_model
    assert len(model.models) > 1
    for one in model.models:
        assert np.isin(one.energy_edges[1:-1], together.energy_edges).all()


@pytest.mark.gammapy_data
def test_adaptive_bins_on_dr1():
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    crab = CircleSkyRegion(SkyCoord(83.633, 22.014, unit="deg"), Quantity("0.4 deg"))
    runs = list(store.get_observations([23523, 23526, 23559, 23592], required_irf=IRFS))
    config = options(
        "grid",
        energy={"min": "0.2 TeV", "max": "50 TeV", "nbins_per_decade": 12},
        fit_energy=ADAPTIVE | {"min_counts": 300},
    )
    model = fit_acceptance(runs, config, exclusion=crab).rate_model
    content = summed(model.counts.sum(1), model.bin_edges, model.energy_edges)
    width = np.diff(np.log10(model.energy_edges))
    assert content.sum() == model.counts.sum() > 5000
    assert width.max() < 0.5 + 1e-6 and np.all((content >= 300) | (width > 0.25))
    fov = model.fov
    mean = mean_in_bins(model, fov, model.bin_edges)
    got = (mean * model.exposure * fov.solid_angle).sum(1)
    assert got.sum() == pytest.approx(content.sum(), rel=0.005)
    rows = np.searchsorted(model.bin_edges, model.energy_edges)[:-1]
    pull = (np.add.reduceat(got, rows) - content) / np.sqrt(content + 1)
    assert np.abs(pull).max() < 2


COARSE = np.array([0.3, 0.6, 1.2, 3, 10])  # TeV


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effects", ["none", "norm"])
def test_inside_a_wide_bin_the_spectrum_is_kept(kind, effects):
    """Four bins from 0.3 to 10 TeV: the counts of datasets with other bins, inside of them, are those of the truth."""
    store = plain_store()
    runs = observations(store)
    maker = AcceptanceBackgroundMaker(options(kind, effects, fit_energy=COARSE * u.TeV)).fit(runs)
    model = maker.model.rate_model
    assert np.array_equal(model.bin_edges, COARSE) and np.array_equal(model.energy_edges, COARSE)
    edges, fov = np.geomspace(0.35, 9, 12), model.fov
    pixels = np.linspace(-2.4, 2.4, 25)
    truth, found = 0.0, 0.0
    for run in runs:
        truth = truth + store.expected_counts(run.obs_id, edges, pixels, pixels).sum((1, 2))
    lon, lat = (0.5 * (g[1:] + g[:-1]) for g in (np.linspace(-2.4, 2.4, 97),) * 2)
    lon, lat = (g.ravel() for g in np.meshgrid(lon, lat, indexing="ij"))
    found = model.integral_grid(edges, lon, lat).sum(1) * np.radians(0.05) ** 2
    found = found * sum(run.observation_time_duration.to_value("s") for run in runs)
    assert np.all(np.abs(found / truth - 1) < 0.02 + 3 / np.sqrt(truth))
    # integrals of the bins of the fit are kept
    mean = mean_in_bins(model, fov, COARSE)
    assert np.allclose((mean * fov.solid_angle * model.exposure).sum(1), model.counts.sum(1), rtol=1e-3)
    # what was asked for, read from a file or not, is what errors are of
    error = model.relative_error_grid(np.array([0.31, 2.0]), np.zeros(2), np.array([0.1, 1.0]))
    index = fov.index(np.zeros(2), np.array([0.1, 1.0]))
    assert np.allclose(error, 1 / np.sqrt(model.counts[[0, 2]][:, index] + 1))


def test_a_function_of_position_keeps_the_spectrum_in_wide_bins():
    """Each wide bin has one shape, and all fine bins make the spectrum."""
    runs, store = observations(plain_store()), plain_store()
    config = options("radial", "none", fit_energy=COARSE * u.TeV)
    config["model"] = {"type": "parametric", "function": "radial_profile", "offset_bins": 6}
    model = fit_acceptance(runs, config).rate_model
    assert len(model.group_energy) == 4 and np.array_equal(model.bin_edges, COARSE)
    edges, pixels = np.geomspace(0.35, 9, 12), np.linspace(-2.2, 2.2, 23)
    truth = sum(store.expected_counts(run.obs_id, edges, pixels, pixels).sum((1, 2)) for run in runs)
    middle = 0.5 * (pixels[1:] + pixels[:-1])
    lon, lat = (g.ravel() for g in np.meshgrid(middle, middle, indexing="ij"))
    found = model.integral_grid(edges, lon, lat).sum(1) * np.radians(0.2) ** 2
    found = found * sum(run.observation_time_duration.to_value("s") for run in runs)
    assert np.all(np.abs(found / truth - 1) < 0.03 + 3 / np.sqrt(truth))


def test_bins_are_split_at_their_edges():
    edges = np.array([0.3, 0.31, 0.6, 7.0])
    fine = split_bins(edges, 0.1)
    assert np.isin(edges, fine).all() and np.all(np.diff(fine) > 0)
    assert np.diff(np.log10(fine)).max() <= 0.1 + 1e-9 and len(fine) == 1 + 1 + 3 + 11
    already = 10 ** np.linspace(-1, 2, 31)
    assert np.array_equal(split_bins(already, 0.1), already)


def test_an_empty_wide_bin_and_wide_bins_beyond_the_events():
    """Few events in few bins: finite, and their number is kept to an event's worth."""
    fov = fov_bins("radial")
    fine = split_bins(np.array([0.1, 1, 3, 10, 100]), 0.1)
    counts = np.zeros((len(fine) - 1, fov.size))
    counts[[3, 9], [2, 5]] = 40, 3
    counts[-12, 3] = 1  # nothing from 1 to 3 TeV, one event beyond 3 TeV
    model = fit_binned(counts, np.full(fov.size, 1e3), fine, fov, profile_edges=np.array([0.1, 1, 3, 10, 100]))
    mean = mean_in_bins(model, fov, np.array([0.1, 1, 3, 10, 100]), 3)
    got = (mean * fov.solid_angle * 1e3).sum(1)
    assert np.all(np.isfinite(got)) and np.all(got >= 0)
    assert np.allclose(got, [43, 0, 0, 1], atol=1.5)
