"""Parametric models: integrals, known truths, constraints, failures and files."""

import pickle

import astropy.units as u
import numpy as np
import pytest
from astropy.modeling import custom_model
from astropy.modeling.models import ExponentialCutoffPowerLaw1D, Gaussian2D, PowerLaw1D
from scipy.integrate import dblquad, quad, trapezoid
from scipy.stats import chi2
from stores import mean_in_bins

from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.errors import FitError, InputError
from gammapy_accmaker.models.parametric.fit import fit_parametric
from gammapy_accmaker.models.parametric.function import rate_function
from gammapy_accmaker.models.parametric.likelihood import BinNodes, Likelihood, fit_likelihoods
from gammapy_accmaker.models.parametric.model import ParametricModel
from gammapy_accmaker.models.parametric.shapes import READY_SHAPES

EDGES = np.geomspace(0.1, 10, 13)
FOV = FovBins.grid(2.5, 12)
SPECTRUM = {"amplitude": 1.8e-4, "index": 2.7, "low_cutoff": 0.15, "steepness": 6.0, "lambda_high": 0.05}
CAMERA = {"sigma": 1.3, "gradient_lon": 0.05, "gradient_lat": -0.03, "twist": 0.01}
PRODUCT = "power_law_cutoffs * gaussian_gradient"


def spectrum(e, amplitude, index, low_cutoff, steepness, lambda_high):
    return amplitude * e**-index * np.exp(-lambda_high * e) / (1 + (low_cutoff / e) ** steepness)


def camera(x, y, sigma, gradient_lon, gradient_lat, twist):
    return np.exp(-(x**2 + y**2) / (2 * sigma**2)) * (1 + gradient_lon * x + gradient_lat * y + twist * x * y)


def midpoints(edges, n=200):
    """Energies and weights in MeV of a plain midpoint sum over each bin, shapes (bin, n)."""
    fine = np.array([np.linspace(a, b, n + 1) for a, b in zip(edges[:-1], edges[1:], strict=True)])
    return 0.5 * (fine[:, 1:] + fine[:, :-1]), np.diff(fine) * 1e6


def expected(seconds, fov=FOV, edges=EDGES):
    """Counts of the closed-form truth by plain sums, shape (energy, fov.size)."""
    energy, weight = midpoints(edges)
    lon, lat = fov.subpoints(8)
    return (
        np.outer((spectrum(energy, **SPECTRUM) * weight).sum(1), camera(lon, lat, **CAMERA).mean(1) * fov.solid_angle)
        * seconds
    )


def draw(seconds=3e4, seed=0, hole=()):
    exposure = np.full(FOV.size, float(seconds))
    counts = np.random.default_rng(seed).poisson(expected(seconds)).astype(float)
    exposure[list(hole)] = counts[:, list(hole)] = 0
    return counts, exposure


def plain(energy, fov_lon, fov_lat, norm=1e-4, index=2.5, sigma=1.0, low=0.15):
    return norm * energy**-index / (1 + (low / energy) ** 6) * np.exp(-(fov_lon**2 + fov_lat**2) / (2 * sigma**2))


def value(model, name):
    k = model.result.names.index(name)
    return model.result.values[k], model.result.errors[k]


@pytest.mark.parametrize("name", READY_SHAPES)
def test_the_derivatives_of_ready_shapes_are_their_slopes(name):
    function = rate_function(name)
    values = function.start * 1.1 + 0.03
    energy, lon, lat = np.geomspace(0.1, 20, 7), np.linspace(-2, 2, 5), np.linspace(1.5, -1, 5)
    slopes = function.factor_slopes(0, values, energy, lon, lat)
    for k in range(len(values)):
        step = np.eye(len(values))[k] * 1e-6
        above, below = (function.factor_grid(0, values + sign * step, energy, lon, lat) for sign in (1, -1))
        assert np.allclose(slopes[k], (above - below) / 2e-6, rtol=1e-6, atol=1e-9)


def test_trap_centre_of_bin_a_bin_of_half_a_decade_is_integrated():
    """An index of 2.7 is 10 % off at the log centre of 0.5 dex."""
    edges, fov = (
        np.array([0.3, 0.3 * 10**0.5, 3.0, 12.0]),
        FovBins((np.array([-2.0, -1.0, 0.5]), np.array([-0.5, 1.5]))),
    )
    function = rate_function(PRODUCT, {k: {"value": v} for k, v in {**SPECTRUM, **CAMERA}.items()})
    seen = np.ones(fov.size, bool)
    nodes = BinNodes.of_bins(edges, fov, seen)
    got = Likelihood(function, nodes, np.zeros((3, 2)), fov.solid_angle).expected(function.start)
    for k in range(3):
        in_energy = quad(lambda e: spectrum(e, **SPECTRUM), edges[k], edges[k + 1], epsrel=1e-10)[0] * 1e6
        for p in range(2):
            lon, lat = fov.edges[0][p : p + 2], fov.edges[1]
            on_sphere = dblquad(
                lambda y, x: camera(x, y, **CAMERA) * np.cos(np.radians(y)), *lon, *lat, epsrel=1e-9
            )[0] * np.radians(1) ** 2  # fmt: skip
            assert got[k, p] == pytest.approx(in_energy * on_sphere, rel=1e-4)
    wide = np.array([0.3, 0.3 * 10**0.5])
    at_centre = wide[0] ** -1.35 * wide[1] ** -1.35 * np.diff(wide)[0]
    assert at_centre / quad(lambda e: e**-2.7, *wide)[0] == pytest.approx(0.9, abs=0.02)


def test_the_model_is_integrated_over_energy():
    counts, exposure = draw()
    for function in (PRODUCT, "gaussian", plain, "power_law"):
        model = fit_parametric(counts, exposure, EDGES, FOV, function)
        lon, lat, edges = np.array([-1.9]), np.array([2.1]), np.array([0.25, 0.25 * 10**0.5, 4.0])
        got = model.integral_grid(edges, lon, lat)
        for b in range(2):
            fine = np.geomspace(edges[b], edges[b + 1], 4001)
            want = trapezoid(model.rate_grid(fine, lon, lat)[:, 0], fine) * 1e6
            assert got[b, 0] == pytest.approx(want, rel=1e-3)


def test_the_truth_is_recovered():
    counts, exposure = draw(3e5, hole=[5, 77, 78])
    model = fit_parametric(counts, exposure, EDGES, FOV, PRODUCT)
    assert model.result.valid and model.result.message == "converged"
    assert model.result.dof == 12 * 141 - 9
    for name, truth in {**SPECTRUM, **CAMERA}.items():
        got, error = value(model, name)
        assert 0 < error < 0.2 * max(abs(truth), 0.05) and abs(got - truth) < 4 * error, name
    assert value(model, "reference") == (1, 0) and value(model, "amplitude_1") == (1, 0)
    seen = exposure > 0
    fitted = mean_in_bins(model, FOV, EDGES) * FOV.solid_angle * exposure
    assert fitted.sum() == pytest.approx(counts.sum(), rel=2e-4)  # a free amplitude conserves them
    many = expected(3e5) > 20
    many &= seen
    pearson = np.sum((counts - fitted)[many] ** 2 / fitted[many])
    assert 1e-3 < chi2.sf(pearson, many.sum() - 9) < 1 - 1e-3
    # no exposure, no counts: the hole is filled by the function
    assert np.allclose((fitted / exposure.clip(1))[:, ~seen], 0)
    assert np.allclose(
        mean_in_bins(model, FOV, EDGES)[:, ~seen] * FOV.solid_angle[~seen] * 3e5, expected(3e5)[:, ~seen], rtol=0.1
    )


def test_pulls_of_the_parameters_have_unit_width():
    edges, fov = np.geomspace(0.3, 3, 6), FovBins.grid(2, 5)
    energy, weight = midpoints(edges)
    lon, lat = fov.subpoints(8)
    truth = np.array([1e-4, 2.6, 1.1])
    mean = np.outer(
        (energy ** -truth[1] * weight).sum(1), np.exp(-(lon**2 + lat**2) / 2 / truth[2] ** 2).mean(1) * fov.solid_angle
    )
    exposure, pulls = np.full(fov.size, 1e4), []
    for seed in range(40):
        counts = np.random.default_rng(seed).poisson(truth[0] * mean * 1e4).astype(float)
        model = fit_parametric(counts, exposure, edges, fov, "power_law * gaussian")
        got = np.array([value(model, name) for name in ("amplitude", "index", "sigma")])
        pulls.append((got[:, 0] - truth) / got[:, 1])
        free = [model.result.names.index(name) for name in ("amplitude", "index", "sigma")]
        covariance = model.result.covariance[np.ix_(free, free)]
        assert np.allclose(covariance, covariance.T) and np.all(np.linalg.eigvalsh(covariance) > 0)
        assert np.allclose(np.sqrt(np.diag(covariance)), got[:, 1])
    assert np.all(np.abs(np.mean(pulls, axis=0)) < 3 / np.sqrt(40))
    assert np.all(np.abs(np.std(pulls, axis=0) - 1) < 0.3)


def test_errors_of_sums_are_those_of_their_counts():
    """Amplitudes of energies are fitted apart: their errors do not go together."""
    counts, exposure = draw()
    model = fit_parametric(counts, exposure, EDGES, FOV, "gaussian")
    energy = np.sqrt(EDGES[1:] * EDGES[:-1])
    rows, own = model.error_rows(energy, FOV.fov_lon, FOV.fov_lat)
    sums = np.einsum("em,kem->k", counts, rows)
    assert len(own) == 0 and model.error_factor(np.nan).shape == (len(rows), len(rows))
    assert np.sqrt((sums**2).sum()) == pytest.approx(np.sqrt(counts.sum()), rel=0.15)
    together = (counts * model.relative_error_grid(energy, FOV.fov_lon, FOV.fov_lat)).sum()
    assert together > 1.5 * np.sqrt(counts.sum())
    moved = model.shifted(0.3, tuple(EDGES[[0, -1]])).error_rows(energy, FOV.fov_lon, FOV.fov_lat)[0]
    np.testing.assert_allclose(moved, model.error_rows(energy * np.exp(0.3), FOV.fov_lon, FOV.fov_lat)[0], atol=1e-6)


def test_errors_of_an_older_file_go_together():
    model = fit_parametric(*draw(), EDGES, FOV, "gaussian")
    arrays = model.to_arrays()
    arrays["relative_error"] = np.sqrt((arrays.pop("error_directions") ** 2).sum(0))
    at = np.array([0.5, 2.0]), FOV.fov_lon, FOV.fov_lat
    older = type(model).from_arrays(arrays)
    assert len(older.error_rows(*at)[0]) == 1
    np.testing.assert_allclose(older.relative_error_grid(*at), model.relative_error_grid(*at), rtol=0.3)


def test_the_relative_error_is_the_spread_of_the_rate():
    at = np.array([0.2, 1.0, 5.0]), np.array([0.0, 1.5]), np.array([0.0, -1.0])
    rates, errors = [], []
    for seed in range(16):
        model = fit_parametric(
            *draw(3e3, seed),
            EDGES,
            FOV,
            "power_law_cutoffs * gaussian_gradient",
            parameters={
                "steepness": {"value": 6, "fixed": True},
                "twist": {"fixed": True},
                "lambda_high": {"fixed": True},
            },
        )
        rates.append(np.log(model.rate_grid(*at)))
        errors.append(model.relative_error_grid(*at))
    assert np.all(np.abs(np.std(rates, axis=0) / np.mean(errors, axis=0) - 1) < 0.6)


def test_gradient_and_information_of_the_likelihood():
    """Slopes of the deviance, and Fisher's information of a power law: closed forms in narrow bins."""
    counts, exposure = draw()
    function = rate_function(PRODUCT, {k: {"value": 1.1 * v} for k, v in {**SPECTRUM, **CAMERA}.items()})
    nodes = BinNodes.of_bins(EDGES, FOV, exposure > 0)
    likelihood, values = Likelihood(function, nodes, counts, FOV.solid_angle * exposure), function.start
    assert likelihood.has_gradient
    for k, slope in zip(function.free, likelihood.gradient(values), strict=True):
        step = np.where(np.arange(len(values)) == k, 1e-5 * max(abs(values[k]), 1e-2), 0)
        numeric = (likelihood.deviance(values + step) - likelihood.deviance(values - step)) / (2 * step[k])
        assert slope == pytest.approx(numeric, rel=1e-4, abs=0.1)
    narrow = np.geomspace(1, 10, 201)
    power_law = rate_function("power_law")
    nodes = BinNodes.of_bins(narrow, FOV, exposure > 0)
    likelihood = Likelihood(power_law, nodes, np.zeros((200, FOV.size)), FOV.solid_angle * exposure)
    mu, log_energy = likelihood.expected(power_law.start).sum(1), 0.5 * np.log(narrow[1:] * narrow[:-1])
    amplitude = power_law.start[0]
    want = [[mu.sum() / amplitude**2, -mu @ log_energy / amplitude], [-mu @ log_energy / amplitude, mu @ log_energy**2]]
    assert np.allclose(likelihood.information(power_law.start), want, rtol=1e-3)


def test_analytic_and_numerical_gradients_agree():
    counts, exposure = draw()

    def as_plain(energy, fov_lon, fov_lat, amplitude=1e-4, index=2.7, low_cutoff=0.15, sigma=1.0):
        return (
            amplitude
            * energy**-index
            / (1 + (low_cutoff / energy) ** 6)
            * np.exp(-0.5 * (fov_lon**2 + fov_lat**2) / sigma**2)
        )

    fixed = {"steepness": {"value": 6, "fixed": True}, "lambda_high": {"value": 0, "fixed": True}}
    ready = fit_parametric(counts, exposure, EDGES, FOV, "power_law_cutoffs * gaussian", parameters=fixed)
    numeric = fit_parametric(counts, exposure, EDGES, FOV, as_plain)
    assert rate_function("power_law_cutoffs * gaussian").has_slopes(0)
    assert not rate_function(as_plain).has_slopes(0)
    for name in ("amplitude", "index", "low_cutoff", "sigma"):
        (a, error), (b, other) = value(ready, name), value(numeric, name)
        assert abs(a - b) < 0.02 * error and other == pytest.approx(error, rel=0.02)
    assert numeric.result.deviance == pytest.approx(ready.result.deviance, abs=0.01)


def test_fixed_and_bounded_parameters_hold():
    counts, exposure = draw()
    given = {"index": {"value": 2.5, "fixed": True}, "sigma": {"value": 1, "max": 1.2}, "gradient_lat": {"min": -0.01}}
    model = fit_parametric(counts, exposure, EDGES, FOV, PRODUCT, parameters=given)
    assert value(model, "index") == (2.5, 0)
    assert value(model, "sigma")[0] == pytest.approx(1.2, abs=1e-3) and value(model, "sigma")[0] <= 1.2
    assert -0.01 <= value(model, "gradient_lat")[0] < -0.0099
    # what ends at a limit stays there and has no error
    assert value(model, "sigma")[1] == value(model, "gradient_lat")[1] == 0
    assert "limit: " in model.result.message and "sigma" in model.result.message.split("limit: ")[1]
    free = fit_parametric(counts, exposure, EDGES, FOV, PRODUCT)
    assert free.result.deviance < model.result.deviance - 100


def test_a_limit_within_an_error_is_named():
    counts, exposure = draw()
    best, error = value(fit_parametric(counts, exposure, EDGES, FOV, "power_law * gaussian"), "index")
    for distance, named in ((0.5, True), (3.0, False)):
        given = {"index": {"value": best, "max": best + distance * error}}
        model = fit_parametric(counts, exposure, EDGES, FOV, "power_law * gaussian", parameters=given)
        assert value(model, "index") == pytest.approx((best, error), abs=0.05 * error)
        assert ("within an error of a limit: index" in model.result.message) is named


def test_tied_parameters_hold():
    counts, exposure = draw()
    given = Gaussian2D(amplitude=1, x_mean=0, y_mean=0, x_stddev=1, y_stddev=1)
    given.theta.fixed = given.x_mean.fixed = given.y_mean.fixed = True
    given.y_stddev.tied = lambda model: 1.25 * model.x_stddev
    model = fit_parametric(
        counts,
        exposure,
        EDGES,
        FOV,
        ["power_law_cutoffs", given],
        parameters={"amplitude_1": {"value": 1, "fixed": True}},
    )
    (x, x_error), (y, y_error) = value(model, "x_stddev"), value(model, "y_stddev")
    assert y == pytest.approx(1.25 * x, rel=1e-12) and y_error == pytest.approx(1.25 * x_error, rel=1e-6)
    i, j = (model.result.names.index(name) for name in ("x_stddev", "y_stddev"))
    assert model.result.covariance[i, j] == pytest.approx(1.25 * x_error**2, rel=1e-6)
    assert model.result.dof == counts.size - 6
    # the model that was given is as it was
    assert (given.x_stddev.value, given.y_stddev.value, given.amplitude.value) == (1, 1, 1)


def test_astropy_models_of_one_and_of_compound_kind():
    counts, exposure = draw()
    compound = PowerLaw1D(1e-4, 1, 2.5) * ExponentialCutoffPowerLaw1D(1, 1, 0, 20)
    for name in ("x_0_0", "x_0_1", "amplitude_1", "alpha_1"):
        getattr(compound, name).fixed = True
    compound.x_cutoff_1.bounds = (1, 1000)
    model = fit_parametric(counts[3:], exposure, EDGES[3:], FOV, compound)
    assert model.result.names == compound.param_names and model.result.dof == counts[3:].size - 3
    # a function of energy alone is the same all over the field
    rate = model.rate_grid(np.array([1.0, 3.0]), np.array([0, 2.0]), np.array([0, -2.0]))
    assert np.allclose(rate[:, 0], rate[:, 1], rtol=1e-12)
    totals = (mean_in_bins(model, FOV, EDGES[3:]) * FOV.solid_angle * exposure).sum(1)
    assert totals.sum() == pytest.approx(counts[3:].sum(), rel=3e-4)
    assert np.abs((totals - counts[3:].sum(1)) / np.sqrt(totals)).max() < 4


@pytest.mark.parametrize("function", ["gaussian_gradient", "radial_profile"])
def test_a_function_of_position_keeps_the_counts_of_each_energy(function):
    counts, exposure = draw(hole=[30])
    counts[-2] = 0  # an empty penultimate energy bin
    model = fit_parametric(counts, exposure, EDGES, FOV, function)
    totals = (mean_in_bins(model, FOV, EDGES) * FOV.solid_angle * exposure).sum(1)
    assert totals.sum() == pytest.approx(counts.sum(), rel=2e-3)
    assert np.abs((totals - counts.sum(1)) / np.sqrt(counts.sum(1) + 1)).max() < 3
    rate = model.rate_grid(np.geomspace(0.1001, 9.99, 50), np.array([0.0, 2.9]), np.array([0.0, -2.9]))
    assert np.all(np.isfinite(rate)) and np.all(rate > 0) and rate.max() < 0.1
    n = len(model.shapes)
    assert 3 < n <= 10 and f"amplitude[{n - 1}]" in model.result.names
    if function == "gaussian_gradient":
        pulls = [
            (value(model, f"{name}[{g}]")[0] - CAMERA[name]) / value(model, f"{name}[{g}]")[1]
            for g in range(n)
            for name in CAMERA
        ]
        assert 1e-3 < chi2.sf(np.sum(np.square(pulls)), len(pulls))


def test_the_amplitude_of_a_function_of_position_is_the_mean_rate_of_its_energies():
    counts, exposure = draw()
    edges = EDGES[[3, 8]]
    total = counts[3:8].sum(0, keepdims=True)
    model = fit_parametric(total, exposure, edges, FOV, "gaussian")
    (amplitude, _), (sigma, _) = (value(model, f"{name}[0]") for name in ("amplitude", "sigma"))
    lon, lat = FOV.subpoints(8)
    shape = (np.exp(-(lon**2 + lat**2) / (2 * sigma**2)).mean(1) * FOV.solid_angle * exposure).sum()
    assert amplitude * np.diff(edges)[0] * 1e6 * shape == pytest.approx(total.sum(), rel=1e-3)


def test_shared_parameters_are_those_of_all_energies():
    counts, exposure = draw()
    own = fit_parametric(counts, exposure, EDGES, FOV, "gaussian_gradient")
    model = fit_parametric(counts, exposure, EDGES, FOV, "gaussian_gradient", shared=("sigma", "gradient_lon"))
    groups, names = len(model.shapes), model.result.names
    assert [n for n in names if n.startswith(("sigma", "gradient_lon"))] == ["sigma", "gradient_lon"]
    assert sum(n.startswith("gradient_lat") for n in names) == groups
    assert model.result.dof == groups * FOV.size - 2 - 3 * groups
    for name in ("sigma", "gradient_lon"):
        got, error = value(model, name)
        assert abs(got - CAMERA[name]) < 4 * error
        of_groups = [value(own, f"{name}[{g}]") for g in range(len(own.shapes))]
        # weighted mean of those of the groups
        mean = np.average([v for v, _ in of_groups], weights=[e**-2 for _, e in of_groups])
        assert error == pytest.approx(np.sum([e**-2 for _, e in of_groups]) ** -0.5, rel=0.1)
        assert abs(got - mean) < error
    column = rate_function("gaussian_gradient").names.index("sigma")
    assert np.ptp([shape[column] for shape in model.shapes]) == 0


def test_a_python_function_is_kept_as_a_table_and_no_code(tmp_path, caplog):
    counts, exposure = draw()
    model = fit_parametric(counts, exposure, EDGES, FOV, plain)
    rng = np.random.default_rng(3)
    energy, lon, lat = np.exp(rng.uniform(*np.log([0.1, 10]), 40)), *rng.uniform(-2.5, 2.5, (2, 200))
    got = model.rate_grid(energy, lon, lat)
    want = plain(energy[:, None], lon, lat, *model.result.values)
    assert np.abs(got / want - 1).max() < 1e-3
    made = fit_parametric(
        counts,
        exposure,
        EDGES,
        FOV,
        lambda e, lon, lat, norm=1e-4, s=1.0: norm * e**-2.7 * np.exp(-(lon**2 + lat**2) / 2 / s**2),
    )
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again.rate_grid(energy, lon, lat), made.rate_grid(energy, lon, lat))
    assert len(pickle.dumps(made)) < 20e6
    assert not caplog.records


def test_a_function_with_an_edge_is_cut_off_within_a_step(caplog):
    counts, exposure = draw()

    def camera_edge(fov_lon, fov_lat, norm=1.0, sigma=1.0):
        theta = np.hypot(fov_lon, fov_lat)
        return np.where(theta < 2.2, norm * np.exp(-0.5 * theta**2 / sigma**2), 0)

    inside = np.hypot(FOV.fov_lon, FOV.fov_lat) < 1.8
    model = fit_parametric(counts * inside, exposure * inside, EDGES, FOV, camera_edge)
    rate = model.rate_grid(np.array([1.0]), np.array([0.0, 1.0, 2.05, 2.35, 2.45]), np.zeros(5))[0]
    sigma = value(model, "sigma[2]")[0]
    assert rate[1] / rate[0] == pytest.approx(np.exp(-0.5 / sigma**2), rel=0.1)
    assert rate[2] > 0 and np.all(rate[3:] < 1e-20 * rate[0])
    assert "off between its nodes" in caplog.text


@pytest.mark.parametrize("function", [PRODUCT, "radial_profile", plain, ["power_law", Gaussian2D()], "power_law"])
def test_round_trip(function, tmp_path):
    counts, exposure = draw()
    some = {
        "amplitude_1": {"value": 1, "fixed": True},
        "x_mean": {"fixed": True},
        "y_mean": {"fixed": True},
        "theta": {"fixed": True},
    }
    model = fit_parametric(
        counts, exposure, EDGES, FOV, function, parameters=some if isinstance(function, list) else None
    )
    back = ParametricModel.from_arrays(model.to_arrays())
    energy, lon, lat = np.geomspace(0.05, 20, 20), np.linspace(-3, 3, 30), np.linspace(2, -2.6, 30)
    for call in ("rate_grid", "integral_grid", "relative_error_grid"):
        here = getattr(model, call)(energy, lon, lat)
        for other in (back, pickle.loads(pickle.dumps(model))):
            assert np.array_equal(getattr(other, call)(energy, lon, lat), here), call
    assert back.result.names == model.result.names and back.result.message == model.result.message
    for name in ("values", "errors", "covariance", "deviance", "dof", "valid"):
        assert np.array_equal(getattr(back.result, name), getattr(model.result, name))
    outside = (energy < 0.1) | (energy > 10)
    assert np.all(model.rate_grid(energy, lon, lat)[outside] == 0)
    assert np.all(model.rate_grid(energy[~outside], lon, lat)[:, 1:-1] > 0)


def test_a_likelihood_that_is_not_finite_away_from_the_minimum():
    counts, exposure = draw()

    def narrow_is_nan(energy, fov_lon, fov_lat, norm=1e-4, sigma=2.0, index=2.5):
        return np.where(sigma > 1.25, plain(energy, fov_lon, fov_lat, norm, index, sigma), np.nan)

    model = fit_parametric(counts, exposure, EDGES, FOV, narrow_is_nan)
    want = fit_parametric(counts, exposure, EDGES, FOV, plain, parameters={"low": {"fixed": True}})
    got, error = value(model, "sigma")
    assert model.result.valid and abs(got - value(want, "sigma")[0]) < 0.05 * error


def degenerate(energy, fov_lon, fov_lat, one=1.0, two=1e-4):
    """Only the product of its parameters can be told."""
    return one * two * energy**-2.7 * np.exp(-(fov_lon**2 + fov_lat**2) / 3)


@pytest.mark.parametrize("seconds", [1e3, 1e4, 1e5])
def test_a_fit_that_fails_raises_or_is_flagged(seconds, caplog):
    counts, exposure = draw(seconds)
    with pytest.raises(FitError, match="failed.*do not tell one from two.*on_failure"):
        fit_parametric(counts, exposure, EDGES, FOV, degenerate)
    model = fit_parametric(counts, exposure, EDGES, FOV, degenerate, on_failure="flag")
    assert not model.result.valid and "do not tell one from two" in model.result.message
    assert len(caplog.records) == 1 and "flagged" in caplog.text
    assert np.isfinite(model.relative_error_grid(EDGES[:3], FOV.fov_lon, FOV.fov_lat)).all()
    caplog.clear()
    again = ParametricModel.from_arrays(model.to_arrays())
    assert not again.result.valid and "comes from a fit that failed" in caplog.text


def test_energies_whose_fit_fails_leave_the_errors_of_others(monkeypatch):
    counts, exposure = draw()
    whole = fit_parametric(counts, exposure, EDGES, FOV, "gaussian")
    assert len(whole.group_energy) > 2
    fits = []

    def second_fails(*arguments):  # the first is of all energies together
        fits.append(fit_likelihoods(*arguments))
        values, covariance, *rest = fits[-1]
        return values, covariance * (np.nan if len(fits) == 2 else 1), *rest

    monkeypatch.setattr("gammapy_accmaker.models.parametric.fit.fit_likelihoods", second_fails)
    part = fit_parametric(counts, exposure, EDGES, FOV, "gaussian")
    at = whole.energy_edges[[0, -1]], FOV.fov_lon, FOV.fov_lat
    unknown, known = part.relative_error_grid(*at)
    np.testing.assert_allclose(unknown, 1, rtol=1e-6)
    np.testing.assert_allclose(known, whole.relative_error_grid(*at)[1], rtol=1e-5)


def test_counts_are_needed():
    with pytest.raises(FitError, match="no counts"):
        fit_parametric(np.zeros((12, 144)), np.ones(144), EDGES, FOV, "gaussian")


def test_the_counts_given_are_not_changed():
    counts, exposure = draw(hole=[7])
    before = counts.copy(), exposure.copy()
    fit_parametric(counts, exposure, EDGES, FOV, "gaussian")
    assert np.array_equal(before[0], counts) and np.array_equal(before[1], exposure)


def lat_first(fov_lat, fov_lon, norm=1.0):
    return norm + 0 * fov_lat


def bare(energy, index):
    return energy**index


def no_start(energy, norm=np.nan):
    return norm / energy


def not_finite(energy, norm=1.0):
    return norm * np.log(energy - 1)


@custom_model
def energy_last(lon, lat, energy, norm=1.0):
    return norm + 0 * energy


class EnergyLast(type(energy_last())):
    inputs = ("lon", "lat", "energy")


@pytest.mark.parametrize(
    ("function", "more", "named"),
    [
        ("gauss", {}, "gauss.*gaussian_gradient"),
        ("power_law * ", {}, "product"),
        ("gaussian", {"parameters": {"width": {"value": 1}}}, "width.*sigma"),
        ("gaussian", {"parameters": {"sigma": {"tied": "lon_0"}}}, "sigma.*callable"),
        ("gaussian", {"parameters": {"sigma": {"start": 1}}}, "start.*value"),
        ("gaussian", {"parameters": {"sigma": {"value": 100}}}, "sigma.*100.*limits"),
        ("gaussian", {"parameters": {"sigma": {"min": 3, "max": 2}}}, "sigma"),
        ("gaussian", {"parameters": {k: {"fixed": True} for k in ("amplitude", "sigma")}}, "fixed or tied"),
        ("gaussian", {"shared": ("width",)}, "shared.*width"),
        ("power_law * gaussian", {"shared": ("sigma",)}, "shared.*at all energies"),
        (lat_first, {}, "lat_first.*in this order"),
        (bare, {}, "index"),
        (no_start, {}, "norm"),
        (not_finite, {}, "not finite"),
        (EnergyLast(), {}, "in this order"),
        (lambda x, y, z, t, norm=1: norm, {}, "4 inputs"),
        (lambda energy: energy, {}, "no parameters"),
        (lambda energy, norm=1: norm * energy[:-1], {}, "as many plain numbers"),
        (lambda energy, norm=1: norm / energy * u.Unit("s-1 TeV-1 sr-1"), {}, "plain numbers"),
        (lambda energy, *args, norm=1: energy, {}, "args"),
        (Gaussian2D, {}, "class"),
        (PowerLaw1D([1, 2], [1, 1], [2, 2], n_models=2), {}, "one rate"),
        (3, {}, "function: got 3"),
        ([], {}, "empty"),
        ("python: my.function", {}, "holds no code"),
        ("gaussian", {"on_failure": "ignore"}, "on_failure"),
    ],
)  # fmt: skip
def test_bad_input_is_named(function, more, named):
    counts, exposure = draw(100)
    with pytest.raises(InputError, match=named):
        fit_parametric(counts, exposure, EDGES, FOV, function, **more)


def test_a_tie_to_a_text_is_refused():
    given = Gaussian2D()
    with pytest.raises((InputError, TypeError), match="callable"):
        given.x_stddev.tied = "y_stddev"
    with pytest.raises(InputError, match="callable"):
        rate_function("gaussian", {"sigma": {"tied": "lon_0"}})


def test_rings_are_refused():
    with pytest.raises(InputError, match="grid"):
        fit_parametric(np.ones((12, 5)), np.ones(5), EDGES, FovBins.rings(2.5, 5), "gaussian")


def test_the_file_is_exact(tmp_path):
    from astropy.table import Table

    model = AcceptanceModel(fit_parametric(*draw(), EDGES, FOV, "gaussian"), "", Table({"OBS_ID": [1], "USED": [True]}))
    model.write(tmp_path / "model.fits")
    back = AcceptanceModel.read(tmp_path / "model.fits")
    at = np.array([0.5, 2.0]), FOV.fov_lon, FOV.fov_lat
    assert np.array_equal(back.rate_model.rate_grid(*at), model.rate_model.rate_grid(*at))
    assert back.rate_model.result.names == model.rate_model.result.names
    assert "converged" in str(back)
