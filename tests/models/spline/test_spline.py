import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, SimulatedRun, simulate_runs, true_rate

from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.cells import FovCells, gather_counts
from gammapy_accmaker.models.spline.fit import chunk_starts, fit_spline
from gammapy_accmaker.models.spline.model import SplineModel
from gammapy_accmaker.models.spline.rate import SplineRate
from gammapy_accmaker.utils.parallel import Execution

BINS = (EDGES, LON, LAT, SOLID_ANGLE)
N_RUN = 24
PULL_ENERGY = np.array([0.9, 1.3, 2.5, 4.0])
ENERGY = np.array([1.2, 1.7, 2.5, 5.0])
POSITIONS = (np.array([0.2, 0.8, 1.4, 1.8]), np.array([0.1, -0.6, 0.5, -0.2]))


@pytest.fixture(scope="module")
def runs():
    return simulate_runs(N_RUN, seed=1)


@pytest.fixture(scope="module")
def model(runs):
    return fit_spline(runs, *BINS)[0]


def deviations(model, zeniths):
    """Log of fit over truth and its expected error, above the threshold and within the field of view."""
    out = []
    for z in zeniths:
        log_ratio = np.log(model.rate_grid(ENERGY, *POSITIONS, z) / true_rate(ENERGY, *POSITIONS, z))
        out.append((log_ratio, model.relative_error_grid(ENERGY, *POSITIONS, z, part="coefficients")))
    return np.array(out).transpose(1, 0, 2, 3)


def test_recovers_the_simulated_rate_within_its_error(model):
    assert model.converged
    log_ratio, error = deviations(model, [0.72, 0.8, 0.9, 0.98])
    assert np.abs(log_ratio).mean() < 0.08
    assert 0.01 < np.median(error) < 0.1
    assert np.sqrt(np.mean((log_ratio / error) ** 2)) < 1.8


def test_recovers_the_threshold(model):
    for z in (0.75, 0.95):
        energy = 0.35 * z**-2.3 * np.array([1.05, 1.3])
        ratio = (
            SplineRate(model).rate(energy, 0.3, -0.2, z) / true_rate(energy, np.array([0.3]), np.array([-0.2]), z)[:, 0]
        )
        assert np.abs(np.log(ratio)).max() < 0.35


def test_mean_slope_is_the_derivative_by_the_shift(model):
    """At half the largest offset and the middle of the trained zenith range;
    the log rate is linear within 0.02 of u."""
    basis, step = model.population.basis, 0.02

    def log_rate(shift):
        coefficients = np.zeros(basis.n)
        coefficients[0] = shift
        effect = replace(model.effects[0], coefficients=coefficients, scaling=0.0)
        return model.log_rate_grid(CENTERS, np.array([0.5 * model.offset_max]), np.zeros(1), np.nan, effect=effect)[
            :, 0
        ]

    numeric = (log_rate(step) - log_rate(-step)) / (2 * step)
    assert np.allclose(model.mean_slope[5:-5], numeric[5:-5], rtol=0.02, atol=0.05)


def test_knots_are_as_dense_as_the_runs_can_tell(model, runs):
    assert model.offset_axis.step <= 0.4
    few = fit_spline(runs[:4], *BINS, max_rounds=5)[0]
    assert few.zenith_axis.n == 4 < model.zenith_axis.n


def test_the_rate_of_a_run_has_no_steps_and_its_error_is_the_slope(model):
    """With an error of the energy shift alone, the log of the rate is off by its derivative times that error."""
    basis, effect = model.population.basis, model.effects[3]
    x = np.log(1.0) + 0.003 * np.arange(300)
    log_rate = model.log_rate_grid(np.exp(x), *POSITIONS, 0.9, effect=effect)
    assert np.all(np.diff(log_rate, axis=0) < -0.003)
    step = np.zeros(basis.n)
    step[0] = 0.02
    above, below = (
        model.log_rate_grid(ENERGY, *POSITIONS, 0.9, effect=replace(effect, coefficients=effect.coefficients + s))
        for s in (step, -step)
    )
    sure = replace(effect, covariance=np.diag(step**2 * 25))  # 0.1 in the shift
    error = model.relative_error_grid(ENERGY, *POSITIONS, 0.9, effect=sure, part="run")
    assert np.allclose(error, np.abs(above - below) / 0.04 * 0.1, rtol=0.02)


def test_the_scaled_energy_follows_the_threshold(model, runs):
    """The true threshold goes with cos zenith to the power of -2.3."""
    moved = model.covariates.scaling(0.98, {})[0] - model.covariates.scaling(0.7, {})[0]
    assert moved == pytest.approx(2.3 * np.log(0.98 / 0.7), rel=0.15)
    scaled = np.log(CENTERS) + np.array([[sum(model.covariates.scaling(r.cos_zenith, {}))] for r in runs])
    # and goes on beyond their ends, for runs that are shifted
    assert (model.energy_axis.lo, model.energy_axis.hi) == pytest.approx((scaled.min() - 0.15, scaled.max() + 0.15))


def test_spread_of_the_runs_is_found(model, runs):
    assert model.population.norm_spread == pytest.approx(np.std([r.norm for r in runs]), rel=0.2)
    assert model.population.shift_spread == pytest.approx(np.std([r.shift for r in runs]), rel=0.2)


def simulated_pulls(n_run, seeds):
    """Pulls of the population's rate, shape (seed, zenith, energy, position), and of norm and shift of new runs."""
    near, some = np.hypot(LON, LAT) < 1.3, slice(15, 70)
    bins = (EDGES[15:71], LON[near], LAT[near], SOLID_ANGLE[near])
    lon, lat, zeniths = np.array([0.1, 0.5, -0.8]), np.array([0.1, -0.6, 0.8]), (0.75, 0.85, 0.95)

    def cut(runs):
        return [replace(r, counts=csr_array(r.counts[some][:, near]), exposure=r.exposure[near]) for r in runs]

    rates, errors, of_runs = [], [], []
    for seed in seeds:
        model = fit_spline(cut(simulate_runs(n_run, seed=seed, zenith=(0.7, 1.0))), *bins)[0]
        for z in zeniths:
            rates.append(np.log(model.rate_grid(PULL_ENERGY, lon, lat, z) / true_rate(PULL_ENERGY, lon, lat, z)))
            errors.append(model.relative_error_grid(PULL_ENERGY, lon, lat, z, part="coefficients"))
        for run in cut(simulate_runs(4, seed=seed + 500, obs_id=500, zenith=(0.72, 0.98))):
            effect = fit_run(model, run)
            total = effect.covariance + effect.covariance_of_rate
            norm_error = np.sqrt(effect.norm_row @ total @ effect.norm_row)
            of_runs.append(
                [(np.log(effect.norm) - run.norm) / norm_error, (effect.shift - run.shift) / np.sqrt(total[0, 0])]
            )
    shape = (len(seeds), len(zeniths), len(PULL_ENERGY), len(lon))
    return np.reshape(rates, shape), np.reshape(np.divide(rates, errors), shape), np.array(of_runs)


def rms(pulls):
    return np.sqrt(np.mean(np.square(pulls)))


@pytest.mark.slow
@pytest.mark.parametrize(("n_run", "seeds"), [(12, range(100, 116)), (40, range(200, 208))])
def test_pulls_have_unit_width(n_run, seeds):
    log_ratio, pulls, of_runs = simulated_pulls(n_run, seeds)
    assert 0.85 < rms(pulls) < 1.15
    # no bias beyond what the scatter of so many runs allows: 0.25 in the log of the rate for each
    assert np.abs(log_ratio.mean((0, 1, 3))).max() < 3 * 0.25 / np.sqrt(n_run * len(seeds))
    # new runs share the error of the population: these are few independent pulls
    assert rms(of_runs[:, 0]) == pytest.approx(1, abs=0.4)
    assert rms(of_runs[:, 1]) == pytest.approx(1, abs=0.4)


def test_order_of_the_runs_does_not_matter(runs):
    some = runs[:5]
    first, second = (
        fit_spline(r, *BINS, max_rounds=7)[0].rate_grid(CENTERS, LON, LAT, 0.9) for r in (some, some[::-1])
    )
    assert np.allclose(first, second, rtol=1e-10)


def test_twice_the_exposure_halves_the_rate(runs):
    some = runs[:3]
    longer = [SimulatedRun(r.obs_id, r.counts, 2 * r.exposure, r.cos_zenith, r.azimuth) for r in some]
    first, second = (fit_spline(r, *BINS)[0].rate_grid(ENERGY, *POSITIONS, 0.9) for r in (some, longer))
    assert np.allclose(first, 2 * second, rtol=1e-3)


def test_serial_form_and_pickle_are_exact(model, runs):
    arrays = model.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in arrays.values())
    for copy in (SplineModel.from_arrays(arrays), pickle.loads(pickle.dumps(model))):
        effect = copy.effects[3]
        assert np.array_equal(
            copy.rate_grid(ENERGY, *POSITIONS, 0.8, effect=effect),
            model.rate_grid(ENERGY, *POSITIONS, 0.8, effect=model.effects[3]),
        )
        assert np.array_equal(
            copy.relative_error_grid(ENERGY, *POSITIONS, 0.8), model.relative_error_grid(ENERGY, *POSITIONS, 0.8)
        )
        assert fit_run(copy, runs[0]).norm == fit_run(model, runs[0]).norm
        assert effect.flags == model.effects[3].flags
    del arrays["coefficients"]
    with pytest.raises(ValueError, match="coefficients"):
        SplineModel.from_arrays(arrays)
    assert len(pickle.dumps(model)) < 20e6


def test_outside_the_trained_range_values_are_clamped(model):
    lo, hi = model.zenith_range
    lon = np.array([0.5])
    assert np.array_equal(model.rate_grid(ENERGY, lon, lon, 0.2), model.rate_grid(ENERGY, lon, lon, lo))
    assert np.array_equal(model.rate_grid(ENERGY, lon, lon, 1.0), model.rate_grid(ENERGY, lon, lon, max(hi, 1.0)))
    beyond, last = model.rate_grid([50.0, EDGES[-1]], [0.0], [0.0], 0.9)[:, 0]
    assert np.allclose(beyond, last)
    beyond, last = model.rate_grid([1.0], [7.0, model.offset_max], [0.0, 0.0], 0.9)[0]
    assert np.allclose(beyond, last)
    wide = model.rate_grid(np.geomspace(0.001, 1000, 50), np.linspace(-9, 9, 30), np.linspace(9, -9, 30), np.nan)
    assert np.all(np.isfinite(wide))
    assert np.all(wide >= 0)


def test_many_positions_are_each_as_one(model):
    lon, lat = np.random.default_rng(0).uniform(-2, 2, (2, 5000))
    many = model.rate_grid(ENERGY, lon, lat, 0.8, effect=model.effects[3])
    for k in (0, 2047, 2048, 4999):
        one = model.rate_grid(ENERGY, lon[k : k + 1], lat[k : k + 1], 0.8, effect=model.effects[3])
        np.testing.assert_allclose(many[:, k], one[:, 0], rtol=1e-12)


def test_rate_broadcasts_and_equals_the_grid(model):
    of_user = SplineRate(model)
    rate = of_user.rate(ENERGY[:, None], *POSITIONS, 0.8)
    assert rate.shape == (4, 4)
    assert np.allclose(rate, model.rate_grid(ENERGY, *POSITIONS, 0.8), rtol=1e-12)
    scattered = of_user.rate(ENERGY, *POSITIONS, np.array([0.7, 0.8, 0.8, 0.9]))
    each = [of_user.rate(e, x, y, z) for e, x, y, z in zip(ENERGY, *POSITIONS, [0.7, 0.8, 0.8, 0.9], strict=True)]
    assert np.allclose(scattered, each, rtol=1e-12)
    # many energies and positions, few pairs
    energy, lon, lat = np.geomspace(0.5, 5, 12), np.linspace(-1, 1, 12), np.linspace(0.5, -0.7, 12)
    whole = model.rate_grid(energy, lon, lat, 0.8)
    assert np.allclose(of_user.rate(energy, lon, lat, 0.8), np.diag(whole), rtol=1e-12)


def test_the_model_of_a_run_is_integrated_and_ends_at_its_coverage(model):
    rate, lon, lat = SplineRate(model), *POSITIONS
    low, high = model.energy_edges[[0, -1]]
    energy = np.array([0.99 * low, low, 1.0, high, 1.01 * high])
    got, want = rate.rate_grid(energy, lon, lat, 0.9), model.rate_grid(energy, lon, lat, 0.9)
    assert np.array_equal(got[1:4], want[1:4]) and not got[[0, 4]].any()
    rim = rate.offset_max * np.array([0.999, 1.001])
    assert np.array_equal(rate.rate_grid([1.0], rim, np.zeros(2), 0.9)[0] > 0, [True, False])
    edges = np.array([0.1, low, 0.5, 0.51, 3.0, high, 20.0])
    integral = rate.integral_grid(edges, lon, lat, 0.9)
    for k in (1, 2, 3, 4):
        fine = np.geomspace(edges[k], edges[k + 1], 2001)
        want = np.trapezoid(rate.rate_grid(fine, lon, lat, 0.9), fine, axis=0) * 1e6
        assert np.allclose(integral[k], want, rtol=5e-3)
    assert not integral[[0, 5]].any()


def test_counts_are_given_back(model, runs):
    volume = SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
    for run, effect in zip(runs[:4], model.effects[:4], strict=True):
        mu = model.rate_grid(CENTERS, LON, LAT, run.cos_zenith, azimuth=run.azimuth, effect=effect) * volume
        assert (mu * run.exposure).sum() == pytest.approx(run.counts.sum(), rel=0.02)


@pytest.mark.parametrize("n_run", [1, 4])
def test_few_runs_at_one_zenith(n_run):
    runs = simulate_runs(n_run, seed=8, zenith=(0.85, 0.851))
    model = fit_spline(runs, *BINS)[0]
    ratio = model.rate_grid(ENERGY, *POSITIONS, 0.85) / true_rate(ENERGY, *POSITIONS, 0.85)
    assert np.abs(np.log(ratio)).max() < 0.9
    assert np.all(np.isfinite(model.relative_error_grid(CENTERS, *POSITIONS, 0.85)))
    assert 0.05 < model.population.norm_spread < 0.3
    rate = model.rate_grid(CENTERS, LON, LAT, 0.85)
    assert np.all(np.isfinite(rate))


def test_empty_energies_and_pixels_without_exposure():
    runs = []
    hidden = np.hypot(LON - 1, LAT) < 0.35
    for r in simulate_runs(4, seed=3, zenith=(0.9, 0.95)):
        counts = r.counts.toarray()
        counts[-20:] = 0
        counts[:, hidden] = 0
        runs.append(SimulatedRun(r.obs_id, csr_array(counts), np.where(hidden, 0, r.exposure), r.cos_zenith, r.azimuth))
    model = fit_spline(runs, *BINS)[0]
    ratio = model.rate_grid([1.0], LON, LAT, 0.92) / true_rate(np.array([1.0]), LON, LAT, 0.92)
    assert abs(np.log(ratio[:, hidden]).mean() - np.log(ratio[:, ~hidden]).mean()) < 0.1
    assert np.all(
        model.rate_grid(CENTERS[-5:], LON, LAT, 0.92) < 0.5 * model.rate_grid(CENTERS[-26:-25], LON, LAT, 0.92)
    )


def test_without_zenith_and_with_unknown_zenith(runs):
    unknown = [SimulatedRun(r.obs_id, r.counts, r.exposure, np.nan, np.nan) for r in runs[:4]]
    with pytest.raises(ValueError, match="zenith angle is not known"):
        fit_spline(unknown, *BINS)
    model = fit_spline(unknown, *BINS, zenith=False)[0]
    assert np.array_equal(model.rate_grid(ENERGY, *POSITIONS, 0.7), model.rate_grid(ENERGY, *POSITIONS, np.nan))
    assert fit_run(model, unknown[0]).converged


def test_slices_of_a_run_share_its_effects(runs):
    halves = []
    for r in runs[:4]:
        counts = r.counts.toarray()
        first = np.random.default_rng(r.obs_id).binomial(counts.astype(int), 0.5)
        halves.append([
            SimulatedRun(r.obs_id, csr_array(part.astype(float)), r.exposure / 2, r.cos_zenith, r.azimuth)
            for part in (first, counts - first)
        ])  # fmt: skip
    whole, split = fit_spline(runs[:4], *BINS)[0], fit_spline(halves, *BINS)[0]
    assert len(split.effects) == 4
    assert np.allclose(split.rate_grid(ENERGY, *POSITIONS, 0.9), whole.rate_grid(ENERGY, *POSITIONS, 0.9), rtol=1e-2)
    effect = fit_run(whole, halves[0])
    assert effect.norm == pytest.approx(fit_run(whole, runs[0]).norm, rel=1e-6)


def test_bad_input_is_named(runs):
    with pytest.raises(ValueError, match="finer bins"):
        fit_spline(runs[:1], np.geomspace(0.2, 10, 10), LON, LAT, SOLID_ANGLE)
    with pytest.raises(ValueError, match="do not fit the bins"):
        fit_spline(runs[:1], EDGES[:-1], LON, LAT, SOLID_ANGLE)
    empty = SimulatedRun(1, csr_array(runs[0].counts.shape), runs[0].exposure, 0.9, 0.0)
    with pytest.raises(ValueError, match="counts in the energy range"):
        fit_spline([empty], *BINS)
    with pytest.raises(ValueError, match="run effects"):
        fit_spline(runs[:1], *BINS, run_effects="everything")


def test_inputs_are_not_changed(runs):
    before = [(r.counts.copy(), r.exposure.copy()) for r in runs[:2]]
    fit_spline(runs[:2], *BINS, max_rounds=4)
    for run, (counts, exposure) in zip(runs[:2], before, strict=True):
        assert (run.counts != counts).nnz == 0
        assert np.array_equal(run.exposure, exposure)


def test_number_of_processes_does_not_matter():
    runs = simulate_runs(50, seed=4)
    here = fit_spline(runs, *BINS, max_rounds=5)[0]
    there = fit_spline(runs, *BINS, max_rounds=5, starmap=Execution(2).starmap(""))[0]
    arrays, others = here.to_arrays(), there.to_arrays()
    assert arrays.keys() == others.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, others[name], err_msg=name)  # NaN are equal here


@pytest.mark.parametrize("n_run", [1, 16, 17, 105, 10_000])
def test_chunks_hold_each_run_once(n_run):
    starts = chunk_starts(n_run)
    sizes = np.diff([*starts, n_run])
    assert starts[0] == 0 and sizes.sum() == n_run and np.all(sizes > 0)
    assert sizes.max() <= 256 and (n_run < 200 or len(starts) >= 8)
    # of one size, but for what the last lacks, so that processes end together
    assert len(set(sizes[:-1])) <= 1 and 0 <= sizes[0] - sizes[-1] < len(sizes)
    assert len(sizes) == 1 or sizes[0] >= 18


def test_runs_that_do_not_fit_the_pixels_are_named(runs):
    with pytest.raises(ValueError, match=f"run {runs[0].obs_id}: counts .* do not fit"):
        fit_spline(runs[:1], EDGES, LON[1:], LAT[1:], SOLID_ANGLE[1:])


def test_what_is_kept_of_a_run_is_small(runs):
    cells = FovCells(LON, LAT, SOLID_ANGLE)
    kept = gather_counts(cells, len(EDGES) - 1, runs[0])
    assert kept.index.nbytes + kept.counts.nbytes == 3 * len(kept.index) <= 3 * runs[0].counts.nnz
    assert kept.counts.sum() == runs[0].counts.sum()
    assert kept.exposure.sum() == pytest.approx((runs[0].exposure * SOLID_ANGLE).sum())
    assert np.array_equal(kept.spectrum(len(EDGES) - 1), runs[0].counts.sum(axis=1))
