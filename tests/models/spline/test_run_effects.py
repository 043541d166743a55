from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, SimulatedRun, simulate_runs, true_rate

from gammapy_accmaker.models.bsplines import BSplineAxis
from gammapy_accmaker.models.spline.adapt import fit_run, project_run
from gammapy_accmaker.models.spline.cells import camera_modes, gather_counts
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EffectBasis, RunPopulation, update_population
from gammapy_accmaker.models.spline.equations import RateCovariance, RateEquations, moving_directions, quadratic_form
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.likelihood import RateTable, RunSums
from gammapy_accmaker.models.spline.model import zenith_splines
from gammapy_accmaker.models.spline.rate import SplineRate
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis

BINS = (EDGES, LON, LAT, SOLID_ANGLE)


@pytest.fixture(scope="module")
def model():
    return fit_spline(simulate_runs(24, seed=1), *BINS)[0]


def thin(run, share, seed=0):
    counts = np.random.default_rng(seed).binomial(run.counts.toarray().astype(int), share)
    return SimulatedRun(run.obs_id, csr_array(counts.astype(float)), run.exposure * share, run.cos_zenith, run.azimuth)


def test_norm_and_shift_of_new_runs(model):
    runs = simulate_runs(30, seed=77, obs_id=500, zenith=(0.7, 0.98))
    effects = [fit_run(model, r) for r in runs]
    shift = np.array([e.shift for e in effects]) - [r.shift for r in runs]
    norm = np.log([e.norm for e in effects]) - [r.norm for r in runs]
    # the population's own zero point is shared by all runs
    assert np.std(shift) < 0.035
    assert np.std(norm) < 0.09
    assert abs(shift.mean()) < 0.05
    assert abs(norm.mean()) < 0.12
    assert all(e.converged for e in effects)
    assert np.mean([len(e.flags) for e in effects]) < 0.1
    assert abs(np.concatenate([e.pulls for e in effects]).std() - 1) < 0.3


def test_likelihood_derivatives_equal_finite_differences(model):
    run, design = simulate_runs(1, seed=5, zenith=(0.8, 0.85))[0], model.design
    basis = zenith_splines(model.zenith_axis, run.cos_zenith)
    cells = project_run(
        design,
        gather_counts(design.cells, len(design.log_energy), run),
        basis,
        sum(model.covariates.scaling(run.cos_zenith, {})),
    )
    effects = 0.03 * np.random.default_rng(0).normal(size=design.effects.n)
    counts = np.bincount(cells.index, cells.counts, len(design.log_energy) * design.cells.n_cell)

    def log_likelihood(effects, coefficients=model.coefficients):
        table = RateTable.of(design, coefficients, model.asymmetry_cells, cells)
        mu = RunSums.of(design, table, cells, effects).expected.ravel()
        return (counts[mu > 0] * np.log(mu[mu > 0])).sum() - mu.sum()

    table = RateTable.of(design, model.coefficients, model.asymmetry_cells, cells)
    sums = RunSums.of(design, table, cells, effects, full=True)
    for k in range(design.effects.n):
        step = np.eye(design.effects.n)[k] * 1e-5
        numeric = (log_likelihood(effects + step) - log_likelihood(effects - step)) / 2e-5
        scale = np.sqrt(sums.information[k, k]) + 1
        # the slope of the table is smoothed, so that the shift's derivative is not exact
        assert abs(sums.gradient[k] - numeric) < (0.3 if k < design.effects.n_shift else 1e-3) * scale
    for e, t in ((8, 1), (12, 3), (15, 5)):
        step = np.zeros(model.coefficients.shape)
        step[e, t] = 1e-5
        numeric = log_likelihood(effects, model.coefficients + step) - log_likelihood(
            effects, model.coefficients - step
        )
        expected = sums.rate_gradient[e, t] * basis.sum()
        assert numeric / 2e-5 == pytest.approx(expected, abs=1e-2 * (1 + abs(expected)))


def test_few_counts_shrink_to_the_population(model):
    def bright(energy, lon, lat, cos_zenith, norm, shift):
        return true_rate(energy, lon, lat, cos_zenith, norm + 0.4, shift)

    run = simulate_runs(1, seed=12, sd_norm=0.0, sd_shift=0.0, zenith=(0.85, 0.86), rate=bright)[0]
    full, little, nothing = (fit_run(model, thin(run, s)) for s in (1.0, 0.003, 0.0))
    mean = model.mean_effects(run.cos_zenith, run.azimuth)
    assert full.norm > 1.25
    assert abs(np.log(little.norm)) < abs(np.log(full.norm))
    assert "few counts" in little.flags
    assert np.allclose(nothing.coefficients, mean, atol=0.01)
    assert "no exposure" in nothing.flags
    assert min(nothing.norm_error, little.norm_error) > 2 * full.norm_error


def test_a_faint_source_does_not_move_the_effects(model):
    run = simulate_runs(1, seed=21, zenith=(0.85, 0.86))[0]
    counts = run.counts.toarray()
    spot = np.argmin(np.hypot(LON - 0.5, LAT - 0.1))
    # gamma rays pass the same trigger: none below the threshold
    spectrum = CENTERS**-1.3 * (CENTERS > 0.35 * run.cos_zenith**-2.3)
    counts[:, spot] += np.random.default_rng(1).poisson(0.01 * counts.sum() * spectrum / spectrum.sum())
    with_source = SimulatedRun(run.obs_id, csr_array(counts), run.exposure, run.cos_zenith, run.azimuth)
    first, second = fit_run(model, run), fit_run(model, with_source)
    assert abs(second.shift - first.shift) < first.shift_error
    assert abs(second.norm - first.norm) < first.norm_error
    moved = (second.coefficients - first.coefficients) / np.sqrt(np.diag(first.covariance))
    assert np.abs(moved).max() < 1


@pytest.mark.parametrize("kind", ["none", "norm", "tilt", "shift"])
def test_kinds_of_effects(model, kind):
    run = simulate_runs(1, seed=31, sd_norm=0.0, sd_shift=0.0, zenith=(0.85, 0.86))[0]
    brighter = SimulatedRun(1, run.counts * 1.3, run.exposure, run.cos_zenith, run.azimuth)
    effect = fit_run(model, brighter, kind=kind)
    if kind == "none":
        assert np.array_equal(effect.coefficients, model.mean_effects(run.cos_zenith, run.azimuth))
        assert effect.norm_error == 0
    else:
        assert effect.norm == pytest.approx(fit_run(model, run, kind=kind).norm * 1.3, rel=0.06)
    if kind != "shift":
        assert effect.shift == pytest.approx(model.mean_effects(run.cos_zenith, run.azimuth)[0])
    with pytest.raises(ValueError, match="kind"):
        fit_run(model, run, kind="more")


@pytest.mark.parametrize("kind", ["none", "norm", "tilt"])
def test_fit_with_fewer_effects(kind):
    runs = simulate_runs(6, seed=41, sd_norm=0.2, sd_shift=0.0, zenith=(0.85, 0.95))
    model = fit_spline(runs, *BINS, run_effects=kind)[0]
    norms = np.array([e.norm for e in model.effects])
    if kind == "none":
        assert np.array_equal(norms, np.ones(6))
        # a run that is adapted after all takes the default population
        assert fit_run(model, runs[0], kind="norm").norm != 1
    else:
        assert np.corrcoef(np.log(norms), [r.norm for r in runs])[0, 1] > 0.85


def test_effect_basis_terms():
    basis = EffectBasis("shift", True, np.log(0.2), np.log(10.0), 0.0, 2.0)
    assert basis.shift_modes == ("flat", "lon", "lat")
    assert basis.energy_columns(np.zeros(3)).shape == (3, basis.n - 3)
    assert np.linalg.eigvalsh(basis.prior_covariance()).min() > 0
    assert EffectBasis("shift", False, 0.0, 1.0, 0.5, 2.0).modes == ("flat",)
    assert EffectBasis("none", True, 0.0, 1.0, 0.5, 2.0).n == 0
    with pytest.raises(ValueError, match="run effects"):
        EffectBasis("all", True, 0.0, 1.0, 0.5, 2.0)


def test_camera_modes_are_the_polynomials_of_the_offset():
    lon, lat = np.array([0.0, 1.0, -0.6]), np.array([0.0, 0.5, 2.0])
    modes = camera_modes(lon, lat, 2.0, ("flat", "radial", "lon", "lat"))
    assert np.allclose(modes, np.stack([np.ones(3), (lon**2 + lat**2) / 4 - 0.4, lon / 2, lat / 2], axis=1))
    assert camera_modes(lon, lat, 2.0, ()).shape == (3, 0)


def test_the_prior_counts_as_five_runs():
    """Runs without effects: the covariance is the prior's, in its share of all runs, and that of their posteriors."""
    basis = EffectBasis("shift", True, np.log(0.2), np.log(10.0), 0.0, 2.0)
    prior = basis.prior_covariance()
    deviation = np.concatenate([np.sqrt(np.diag(prior))[:4], np.sqrt(np.diag(prior))[-1:]])
    assert deviation == pytest.approx([0.1, 0.03, 0.03, 0.15, 0.05])  # shift, its gradients, norm, a gradient
    start = RunPopulation(basis, np.zeros((1, basis.n)), prior)
    moments = 7 * np.eye(basis.n)
    found = update_population(
        start,
        np.zeros((15, basis.n)),
        moments,
        np.ones((15, 1)),
        np.ones((1, basis.n), bool),
        np.zeros((15, basis.n)),
        0.6,
        np.ones(15),
    )
    assert np.allclose(found.covariance, (moments + 5 * prior) / 20)
    assert found.shift_spread == pytest.approx(np.sqrt(found.covariance[0, 0]))
    assert found.norm_spread == pytest.approx(0.2)  # the mean variance over the runs, 0.6 / 15
    assert not found.regression.any()


def test_steps_that_would_swing_about_the_maximum_are_shortened():
    """Full Newton steps of one of these runs swing for ever: the likelihood is bent along its energy shift."""
    runs = simulate_runs(5, seed=2, ontime=30.0, sd_norm=0.4, sd_shift=0.2)
    model = fit_spline(runs[:2], *BINS)[0]
    assert all(effect.converged for effect in [*model.effects, *(fit_run(model, run) for run in runs[2:])])


def test_weights_of_runs_with_a_handful_of_counts_converge():
    """Whether such a run is unusual is open, and the weight of one of these creeps."""
    model, rng = fit_spline(simulate_runs(8, seed=3), *BINS)[0], np.random.default_rng(5)
    mu = true_rate(CENTERS, LON, LAT, 0.85, -2, -0.6) * 10 * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
    for _ in range(3):
        run = SimulatedRun(77, csr_array(rng.poisson(mu).astype(float)), np.full(len(LON), 10.0), 0.85, 20.0)
        effect = fit_run(model, run)
        assert effect.converged and 0 < effect.weight <= 1


def test_means_over_the_runs_are_in_the_rate(model):
    """Only gradients in the field of view have a mean and a dependence on zenith; all may depend on the azimuth."""
    odd, regression = model.population.basis.odd, model.population.regression
    assert odd.any() and not regression[[0, -1]][:, ~odd].any()
    assert np.all(regression[:, odd] != 0) and np.all(regression[1:3, ~odd] != 0)


def drawn(model, seed, *, cos_zenith=0.85, change=None):
    """A run that follows the mean of the population of a model, counts changed by a factor of each bin."""
    mu = model.rate_grid(CENTERS, LON, LAT, cos_zenith) * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6 * 1700.0
    mu = mu if change is None else mu * change
    counts = np.random.default_rng(seed).poisson(mu).astype(float)
    return SimulatedRun(900 + seed, csr_array(counts), np.full(len(LON), 1700.0), cos_zenith, np.nan)


def test_deviance_of_a_good_run_is_standard_normal_and_a_bright_spot_is_flagged(model):
    effects = [fit_run(model, drawn(model, seed)) for seed in range(4)]
    deviance = np.concatenate([e.deviance[e.expected > 5] for e in effects])
    assert abs(deviance.mean()) < 0.5 and 0.7 < deviance.std() < 1.4 and deviance.min() < -1
    assert all(e.flags == () for e in effects)
    # many more counts in one place and band of energy, which no effect of a run can follow
    spot = np.where(np.hypot(LON - 1.2, LAT) < 0.4, 1 + 30.0 * ((CENTERS > 1) & (CENTERS < 1.5))[:, None], 1.0)
    odd = fit_run(model, drawn(model, 0, change=spot))
    assert "poor fit" in odd.flags and 1 <= odd.group_edges[np.argmax(odd.deviance)] < 1.5


def test_what_is_unusual_is_flagged(model):
    low, high = model.zenith_range
    for cos_zenith, flags in ((high, ()), (low, ()), (low - 0.01, ("zenith outside trained range",))):
        assert fit_run(model, drawn(model, 1, cos_zenith=cos_zenith)).flags == flags
    far = simulate_runs(1, seed=3, zenith=(0.85, 0.86), rate=lambda e, x, y, z, n, s: true_rate(e, x, y, z, n, s + 0.6))
    assert "unusual energy shift" in fit_run(model, far[0]).flags


def test_tilt_spread_is_that_of_the_spectral_index(model):
    """Of a line through the logs of the rates that effects drawn from the population give,
    at the centre of the camera."""
    basis, x = model.population.basis, np.linspace(np.log(0.5), np.log(10.0), 20)
    drawn_effects = np.random.default_rng(0).multivariate_normal(np.zeros(basis.n), model.population.covariance, 3000)
    modes = camera_modes(np.zeros(1), np.zeros(1), model.offset_max, basis.modes)[0]
    change = basis.energy_columns(x) * modes[basis.mode_of_column] @ drawn_effects[:, basis.n_shift :].T
    assert SplineRate(model).tilt_spread == pytest.approx(np.polyfit(x, change, 1)[0].std(), rel=0.05)


def test_equations_of_runs_are_the_dense_ones():
    """Sums over more runs than are held together, and quadratic forms of the covariance at one zenith angle."""
    rng = np.random.default_rng(0)
    n_space, n_zenith = 5, 3
    equations, information, gradient = RateEquations(n_space, n_zenith), 0.0, 0.0
    for _ in range(37):
        zenith, rows = rng.random(n_zenith), rng.normal(size=(6, n_space))
        equations.add(zenith, rows.T @ rows, rows.sum(0))
        dense = np.kron(rows, zenith)
        information, gradient = information + dense.T @ dense, gradient + dense.sum(0)
    assert np.allclose(equations.information(), information) and np.allclose(equations.gradient(), gradient)
    covariance = np.linalg.inv(information)
    zeniths, gain = rng.random((2, n_zenith)), rng.normal(size=(n_space, 4))
    for zenith, matrix in zip(zeniths, RateCovariance(covariance, n_zenith).at(zeniths), strict=True):
        at_zenith = np.kron(np.eye(n_space), zenith)
        want = gain.T @ at_zenith @ covariance @ at_zenith.T @ gain
        assert np.allclose(quadratic_form(matrix, gain), want, rtol=1e-4, atol=1e-6 * np.abs(want).max())
    assert quadratic_form(None, gain) == 0


def test_spreads_of_a_run_are_its_errors(model):
    effect = model.effects[0]
    fitted, mean = SplineRate(model, effect), SplineRate(model)
    assert fitted.norm_spread == effect.norm_error / effect.norm < mean.norm_spread == model.population.norm_spread
    assert fitted.tilt_spread < 0.8 * mean.tilt_spread
    plain = fit_spline(simulate_runs(2, seed=41, zenith=(0.85, 0.86)), *BINS, run_effects="none", max_rounds=5)[0]
    population = replace(plain.population, norm_spread=0.12)
    assert SplineRate(replace(plain, population=population), plain.effects[0]).norm_spread == 0.12


def test_covariates_are_in_standard_deviations_and_clamped():
    values = np.array([0.7, 0.8, 0.84, 0.9])
    runs = [SimulatedRun(k, None, None, 0.9, 30.0 * k, {"MUONEFF": v, "SAME": 1.0}) for k, v in enumerate(values)]
    scale = CovariateScale.of(runs, False, ("MUONEFF", "SAME", "MISSING"))
    assert scale.names == ("MUONEFF", "SAME")  # what no run has is not followed
    standard = np.array([scale.standard(0.9, r.covariates) for r in runs])
    assert np.allclose(standard[:, 0], (values - values.mean()) / values.std()) and not standard[:, 1:].any()
    assert scale.standard(0.9, {"MUONEFF": 5.0, "SAME": 7.0})[0] == standard[:, 0].max()
    assert not scale.standard(0.9, {"MUONEFF": np.nan}).any() and not scale.standard(np.nan, None).any()
    assert scale.regressors(0.9, None, runs[0].covariates).tolist() == [*standard[0], 0.0, 0.0, 1.0]
    by_azimuth = [scale.regressors(0.9, r.azimuth, None)[2:4] for r in runs]
    assert np.allclose(np.mean(by_azimuth, axis=0), 0)
    assert np.hypot(*(by_azimuth[3] - by_azimuth[0])) == pytest.approx(2 * np.sqrt(1 - 0.9**2) * np.sin(np.pi / 4))


def test_moving_a_spectrum_is_its_derivative_and_by_zenith_its_derivative_times_the_zenith():
    energy, zenith = ScaledEnergyAxis(-1.5, 2.0, -0.5, 0.3), BSplineAxis(-0.4, 0.0, 5)
    spectrum = np.sin(energy.centers)[:, None, None] * np.array([1.0, 2.0])[:, None] * np.ones(5)
    everywhere, by_zenith = moving_directions(spectrum, energy, zenith).T.reshape(2, energy.n, 2, 5)
    inside = np.linspace(-1, 1.5, 50)
    for k, factor in enumerate((1, 2)):
        moved = energy.basis(inside) @ everywhere[:, k, 0]
        assert np.allclose(moved, factor * energy.derivative(inside) @ spectrum[:, 0, 0], atol=0.1)
    tilt = zenith.centers - zenith.centers.mean()
    assert np.allclose(by_zenith, everywhere * tilt, atol=1e-12)
    assert moving_directions(spectrum[..., :1], energy, BSplineAxis(-1.0, 0.0, 1)).shape == (energy.n * 2, 1)


def test_population_update_finds_spread_and_slope():
    basis = EffectBasis("norm", False, 0.0, 1.0, 0.5, 2.0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    effects = 0.3 * x[:, :1] + 0.1 * rng.normal(size=(400, 1))
    start = RunPopulation(basis, np.zeros((2, 1)), basis.prior_covariance())
    allowed = np.array([[True], [False]])
    found = update_population(start, effects, np.zeros((1, 1)), x, allowed, np.ones((400, 1)), 0.0, np.ones(400))
    assert found.regression[:, 0] == pytest.approx([0.3, 0.0], abs=0.02)
    assert found.norm_spread == pytest.approx(0.1, rel=0.1)
    assert np.sqrt(found.covariance[0, 0]) == pytest.approx(0.1, rel=0.1)


def test_energies_with_few_counts_are_left_out(model):
    """Counts where the run has few do not matter, and the fit to the others is what it is without these energies."""
    run = simulate_runs(1, seed=31, zenith=(0.85, 0.86))[0]
    counts = run.counts.toarray()
    plain = fit_run(model, run)
    many = int(np.median(plain.counts)) + 1
    few = (plain.counts < many)[np.searchsorted(plain.group_edges, CENTERS) - 1]
    assert few.any()
    assert not few.all()
    altered = counts.copy()
    altered[few] = np.where(counts[few] > 0, 1, 0) * (np.arange(few.sum()) % 2 == 0)[:, None]
    other = SimulatedRun(run.obs_id, csr_array(altered), run.exposure, run.cos_zenith, run.azimuth)
    first, second = (fit_run(model, r, min_counts=many) for r in (run, other))
    assert np.allclose(first.coefficients, second.coefficients, atol=1e-9)
    assert abs(fit_run(model, other).norm - plain.norm) > 10 * abs(first.norm - second.norm)
    assert first.shift == pytest.approx(plain.shift, abs=4 * first.shift_error)
    assert first.counts.sum() == plain.counts.sum()
    # what is expected is told for all energies
    assert np.all(first.expected[plain.expected > 0] > 0)
    assert first.expected.sum() == pytest.approx(plain.expected.sum(), rel=0.1)
    nothing = fit_run(model, run, min_counts=10**9)
    assert np.allclose(nothing.coefficients, model.mean_effects(run.cos_zenith, run.azimuth), atol=1e-9)
    assert nothing.norm_error > 2 * first.norm_error
