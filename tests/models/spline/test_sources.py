"""Sources beside the background in the likelihood of the spline model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, SimulatedRun, simulate_runs, true_rate

from gammapy_accmaker.models.source_terms import CountsPatch, SourceBands
from gammapy_accmaker.models.spline.adapt import fit_run, project_run
from gammapy_accmaker.models.spline.cells import gather_counts
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.likelihood import RateTable, RunSums
from gammapy_accmaker.models.spline.model import zenith_splines
from gammapy_accmaker.models.spline.rate import SplineRate

BINS = (EDGES, LON, LAT, SOLID_ANGLE)


@dataclass(frozen=True)
class RunWithSources(SimulatedRun):
    signal: CountsPatch | None = None
    sources: tuple[CountsPatch, ...] = ()


def volume(exposure):
    return exposure * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6


def disc(run, distance, radius, ratio, angle):
    """Counts of a disc, hard as gamma rays are, at a distance from the pointing; ``ratio``: to the background in it."""
    inside = np.hypot(LON - distance * np.cos(angle), LAT - distance * np.sin(angle)) < radius
    background = true_rate(CENTERS, LON, LAT, 0.85) * volume(np.full(len(LON), 1700.0))
    spectrum = background.sum(1) * CENTERS**0.5
    spectrum *= ratio * background[:, inside].sum() / spectrum.sum() / max(inside.sum(), 1)
    return spectrum[:, None] * inside * (run.exposure > 0)


def with_discs(runs, discs, true=None, seed=0):
    """Runs with sources that turn with the sky; ``true``: amplitudes, by default 1."""
    rng, out = np.random.default_rng(seed), []
    true = np.ones(len(discs)) if true is None else true
    for run in runs:
        turn = rng.uniform(0, 2 * np.pi)
        units = [disc(run, d, r, ratio, turn + phase) for d, r, ratio, phase in discs]
        added = rng.poisson(sum(a * unit for a, unit in zip(true, units, strict=True)))
        out.append(
            RunWithSources(
                run.obs_id, csr_array(run.counts.toarray() + added), run.exposure, run.cos_zenith, run.azimuth, {},
                run.norm, run.shift, sources=tuple(CountsPatch.of(unit) for unit in units),
            )
        )  # fmt: skip
    return out


def eaten(model, runs, truth):
    """Share of a source's counts that the background holds in excess of that of a fit without it."""
    total = excess = 0.0
    for run, clean in zip(runs, truth, strict=True):
        unit = run.sources[0].toarray()
        own = SplineRate(model, fit_run(model, run)).integral_grid(EDGES, LON, LAT, run.cos_zenith)
        true = true_rate(CENTERS, LON, LAT, clean.cos_zenith, clean.norm, clean.shift) * np.diff(EDGES)[:, None] * 1e6
        excess += ((own - true) * run.exposure * SOLID_ANGLE)[:, unit.any(0)].sum()
        total += unit.sum()
    return excess / total


@pytest.fixture(scope="module")
def model():
    return fit_spline(simulate_runs(12, seed=1), *BINS)[0]


@pytest.fixture(scope="module")
def wobbles():
    """Clean runs, and the same with a disc."""
    clean = simulate_runs(24, seed=5)
    return clean, with_discs(clean, [(0.7, 0.5, 0.3, 0.0)])


def cells_of(model, run):
    design = model.design
    basis, scaling = zenith_splines(model.zenith_axis, run.cos_zenith), model.covariates.scaling(run.cos_zenith, {})
    return project_run(design, gather_counts(design.cells, len(CENTERS), run), basis, sum(scaling))


@pytest.mark.parametrize("threshold", [None, 0.6], ids=["all energies", "above a threshold"])
def test_derivatives_equal_finite_differences(model, threshold):
    run = with_discs(simulate_runs(1, seed=5, zenith=(0.8, 0.85)), [(0.7, 0.5, 0.5, 0.0), (0.9, 0.3, 0.2, 2.0)])[0]
    design, effects = model.design, 0.03 * np.random.default_rng(0).normal(size=model.design.effects.n)
    bands, amplitudes = (
        SourceBands.choose(np.array([s.by_energy() for s in run.sources]), 2),
        np.array([0.8, 1.3, 0.4, 0.9]),
    )
    bare = cells_of(model, run)
    if threshold is not None:
        bare = replace(bare, effect_energies=(CENTERS > threshold).astype(float))
    counts = np.bincount(bare.index, bare.counts, len(CENTERS) * design.cells.n_cell).reshape(len(CENTERS), -1)

    def sums(effects, amplitudes, coefficients=model.coefficients, cells=bare):
        table = RateTable.of(design, coefficients, model.asymmetry_cells, cells)
        return RunSums.of(design, table, cells.with_amplitudes(bands, amplitudes), effects, full=True, bands=bands)

    def log_likelihood(effects, amplitudes, coefficients=model.coefficients, told=None):
        signal = bare.with_amplitudes(bands, amplitudes).signal
        mu = sums(effects, amplitudes, coefficients).expected + signal.toarray()
        terms = counts * np.log(np.where(mu > 0, mu, 1)) - mu
        return (terms if told is None else terms * told[:, None]).sum()

    own = sums(effects, amplitudes)
    for k in range(bands.n):
        step = np.eye(bands.n)[k] * 1e-4
        numeric = (log_likelihood(effects, amplitudes + step) - log_likelihood(effects, amplitudes - step)) / 2e-4
        assert own.sources.gradient[k] == pytest.approx(numeric, rel=1e-4, abs=1e-2)
    for k in range(design.effects.n_shift, design.effects.n):
        step = np.eye(design.effects.n)[k] * 1e-5
        ends = [log_likelihood(effects + s, amplitudes, told=bare.effect_energies) for s in (step, -step)]
        assert own.gradient[k] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=0.05)
    for e, t in ((8, 1), (12, 3), (15, 5)):
        step = np.zeros(model.coefficients.shape)
        step[e, t] = 1e-5
        ends = [log_likelihood(effects, amplitudes, model.coefficients + s) for s in (step, -step)]
        expected = own.rate_gradient[e, t] * bare.zenith_basis.sum()
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, abs=1e-2 * (1 + abs(expected)))

    # Fisher's information: minus the change of the gradients, with the expected counts in place of the observed ones
    mu = (own.expected + bare.with_amplitudes(bands, amplitudes).signal.toarray()).ravel()
    asimov = replace(bare, index=np.arange(mu.size, dtype=np.int32), counts=mu)
    for k in range(bands.n):
        step = np.eye(bands.n)[k] * 1e-4
        up, down = (sums(effects, amplitudes + s, cells=asimov) for s in (step, -step))
        exact = sums(effects, amplitudes, cells=asimov).sources
        slope = -(up.sources.gradient - down.sources.gradient) / 2e-4
        np.testing.assert_allclose(exact.information[k], slope, rtol=1e-4, atol=1e-3)
        additive = slice(design.effects.n_shift, None)
        slope = -(up.gradient - down.gradient)[additive] / 2e-4
        np.testing.assert_allclose(exact.with_effects[additive, k], slope, rtol=1e-3, atol=0.05)


def test_the_information_of_the_background_is_that_of_its_share(model):
    """With a source as bright as the background half of the information on its norm is left."""
    run = simulate_runs(1, seed=5, zenith=(0.8, 0.85))[0]
    cells = cells_of(model, run)
    table, effects = (
        RateTable.of(model.design, model.coefficients, model.asymmetry_cells, cells),
        model.mean_effects(0.82),
    )
    alone = RunSums.of(model.design, table, cells, effects, full=True)
    both = RunSums.of(model.design, table, replace(cells, signal=CountsPatch.of(alone.expected)), effects, full=True)
    np.testing.assert_allclose(both.information, 0.5 * alone.information, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(both.rate_information, 0.5 * alone.rate_information, rtol=1e-6, atol=1e-9)


def test_without_sources_nothing_changes(model):
    nothing = [RunWithSources(**vars(run)) for run in simulate_runs(12, seed=1)]
    again, sources = fit_spline(nothing, *BINS)
    assert sources is None
    for name, values in model.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], values)


def test_amplitudes_are_found_and_nothing_is_eaten(wobbles):
    clean, runs = wobbles
    model, fit = fit_spline(runs, *BINS)
    assert fit.converged and fit.bands.n == 3
    pulls = (fit.values - 1) / fit.errors
    assert np.all(np.abs(pulls) < 3.5) and np.all(fit.errors < 0.2)
    assert np.all(fit.share > 0.5)
    told_nothing = [replace(run, sources=()) for run in runs]
    known = [replace(run, signal=run.sources[0].scaled(fit.bands.factors(fit.values)[0])) for run in runs]
    assert eaten(fit_spline(told_nothing, *BINS)[0], [replace(r, sources=r.sources) for r in runs], clean) > 0.1
    assert abs(eaten(model, known, clean)) < 0.05


@pytest.mark.slow
def test_pulls_of_amplitudes():
    pulls = []
    for seed in range(6):
        runs = with_discs(simulate_runs(12, seed=100 + seed), [(0.7, 0.5, 0.3, 0.0)], seed=seed)
        fit = fit_spline(runs, *BINS)[1]
        pulls.append((fit.values - 1) / fit.errors)
    assert abs(np.mean(pulls)) < 3 / np.sqrt(18) and 0.6 < np.std(pulls) < 1.5


def test_a_known_source_is_taken_as_given_and_two_are_told_apart(wobbles):
    clean, _ = wobbles
    runs = with_discs(clean, [(0.7, 0.5, 0.3, 0.0), (1.2, 0.4, 0.4, 2.5)], [2.0, 0.5], seed=3)
    _, both = fit_spline(runs, *BINS, n_band=1)
    assert np.all(np.abs(both.values - [2.0, 0.5]) < 3.5 * both.errors)
    frozen = [
        replace(run, signal=run.sources[0].scaled(np.full(len(CENTERS), 2.0)), sources=run.sources[1:]) for run in runs
    ]
    _, one = fit_spline(frozen, *BINS, n_band=1)
    assert abs(one.values[0] - 0.5) < 3.5 * one.errors[0]
    # all known: no amplitude is left
    known = [
        replace(run, signal=CountsPatch.of(2.0 * run.sources[0].toarray() + 0.5 * run.sources[1].toarray()), sources=())
        for run in runs
    ]
    model, fit = fit_spline(known, *BINS)
    assert len(fit.values) == 0
    assert abs(eaten(model, [replace(k, sources=r.sources) for k, r in zip(known, runs, strict=True)], clean)) < 0.04


def test_a_source_that_looks_like_the_acceptance_is_told():
    """A wide halo at the centre of the camera in all runs."""
    runs = []
    for run in simulate_runs(12, seed=8):
        unit = 0.1 * true_rate(CENTERS, LON, LAT, 0.85) * np.exp(-0.5 * (LON**2 + LAT**2)) * volume(run.exposure)
        counts = run.counts.toarray() + np.random.default_rng(run.obs_id).poisson(unit)
        given = vars(run) | {"counts": csr_array(counts), "sources": (CountsPatch.of(unit),)}
        runs.append(RunWithSources(**given))
    fit = fit_spline(runs, *BINS, n_band=1)[1]
    assert np.all(fit.share < 0.2)
    turning = with_discs(simulate_runs(12, seed=8), [(0.7, 0.5, 0.3, 0.0)])
    assert np.all(fit_spline(turning, *BINS)[1].share > 0.4)


def test_a_source_that_is_not_there_stays_at_zero(wobbles):
    runs = with_discs(wobbles[0], [(0.7, 0.5, 0.3, 0.0)], [0.0])
    fit = fit_spline(runs, *BINS)[1]
    assert fit.converged and np.all(fit.values >= 0) and np.all(fit.values < 3 * fit.errors)
