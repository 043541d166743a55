"""Runs that stand apart: heavy tails of the norm, weights of the runs, flags."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.sparse import csr_array
from scipy.stats import norm as gaussian
from simulated_runs import EDGES, LAT, LON, SOLID_ANGLE, simulate_runs

from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.effects import (
    NORM_TAILS,
    EffectBasis,
    NormTails,
    RunPopulation,
    norm_row,
    update_population,
)
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.model import SplineModel
from gammapy_accmaker.utils.parallel import Execution

BINS = (EDGES, LON, LAT, SOLID_ANGLE)
CLOUDY = 30  # number of the run behind clouds


def thinned(run, share):
    counts = np.random.default_rng(1).binomial(run.counts.toarray().astype(int), share)
    return replace(run, counts=csr_array(counts.astype(float)))


def short_runs(share):
    """60 runs of about 150 counts each, one of which sees a share of its rate only."""
    runs = simulate_runs(60, seed=5, ontime=110.0, sd_norm=0.05, sd_shift=0.03, zenith=(0.85, 0.95))
    runs[CLOUDY] = thinned(runs[CLOUDY], share)
    return runs


@pytest.fixture(scope="module")
def cloudy():
    runs = short_runs(0.55)
    return runs, fit_spline(runs, *BINS)[0]


def mixture_mean(estimate, error, width):
    """Mean of the norm under the mixture, by integration."""

    def prior(x):
        return sum(s * gaussian.pdf(x, 0, width * w) for w, s in zip(*NORM_TAILS, strict=True))

    def moment(k):
        ends = sorted((0.0, estimate))
        return quad(
            lambda x: x**k * prior(x) * gaussian.pdf(estimate, x, error), -5, 5, points=ends, limit=500, epsabs=1e-14
        )[0]

    return moment(1) / moment(0)


@pytest.mark.parametrize("estimate", [0.0, 0.05, -0.2, -0.4, 0.8])
@pytest.mark.parametrize("error", [0.01, 0.09, 0.5])
@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_the_weight_gives_the_mean_of_the_mixture(estimate, error, weight):
    """For counts that tell the norm with a Gaussian error, whatever weight one starts from."""
    width, row = 0.07, np.array([1.0])
    tails = NormTails(np.array([[width**2]]), row)
    posterior = 1 / (1 / error**2 + weight / width**2)
    new, unusual = tails.weight(row * posterior * estimate / error**2, np.array([[posterior]]), weight)
    mean = estimate / error**2 / (1 / error**2 + new / width**2)
    assert mean == pytest.approx(mixture_mean(estimate, error, width), abs=1e-6)
    assert 0 < new <= 1
    assert unusual == (abs(estimate) > 0.3 and error < 0.1) or abs(estimate) == 0.2


def test_the_prior_of_a_run_is_wider_along_the_norm_alone():
    basis = EffectBasis("shift", True, np.log(0.2), np.log(10.0), 0.0, 2.0)
    rng = np.random.default_rng(0)
    root = rng.normal(size=(basis.n, basis.n))
    covariance, row = root @ root.T, norm_row(basis, rng.random(basis.n - basis.n_shift))
    tails = NormTails(covariance, row)
    wide = tails.prior(0.25)
    assert row @ wide @ row == pytest.approx(4 * row @ covariance @ row)
    # what is left when the norm is known is the same
    for prior in (covariance, wide):
        along = prior @ row
        assert np.allclose(
            prior - np.outer(along, along) / (row @ along),
            covariance - np.outer(covariance @ row, covariance @ row) / (row @ covariance @ row),
        )
    assert np.allclose(tails.shorten(0.25) @ wide @ tails.shorten(0.25).T, covariance)
    assert np.allclose(tails.prior(1.0), covariance) and np.allclose(tails.shorten(1.0), np.eye(basis.n))


def test_a_run_behind_clouds_keeps_its_norm_and_is_flagged(cloudy):
    runs, model = cloudy
    effect, counts = model.effects[CLOUDY], runs[CLOUDY].counts.sum()
    assert effect.expected.sum() == pytest.approx(counts, abs=1.5 * np.sqrt(counts))
    assert "unusual norm" in effect.flags and effect.weight < 0.2
    others = [e for k, e in enumerate(model.effects) if k != CLOUDY]
    assert not any("unusual norm" in e.flags for e in others) and np.mean([e.weight for e in others]) > 0.9


def test_the_population_is_what_it_is_without_the_cloud(cloudy):
    without = fit_spline(short_runs(1.0), *BINS)[0]
    assert cloudy[1].population.norm_spread == pytest.approx(without.population.norm_spread, rel=0.1)


def test_a_run_behind_clouds_that_the_fit_has_not_seen(cloudy):
    model = cloudy[1]
    run = simulate_runs(1, seed=77, ontime=1700.0, sd_norm=0.0, sd_shift=0.0, zenith=(0.9, 0.901), obs_id=900)[0]
    usual, behind = fit_run(model, run), fit_run(model, thinned(run, 0.6))
    assert usual.flags == () and usual.weight > 0.8
    assert "unusual norm" in behind.flags and behind.converged
    assert behind.norm == pytest.approx(0.6 * usual.norm, rel=0.03)
    for kind in ("norm", "tilt"):
        fewer = fit_run(model, thinned(run, 0.6), kind=kind)
        assert "unusual norm" in fewer.flags
        assert fewer.norm == pytest.approx(behind.norm, rel=0.05)
    # from its own result on, nothing changes
    again = fit_run(replace(model, effects=(replace(behind, obs_id=900),)), thinned(run, 0.6))
    assert np.allclose(again.coefficients, behind.coefficients, atol=2e-3)
    assert again.weight == pytest.approx(behind.weight, abs=2e-3)


def test_a_run_that_tells_nothing_is_not_unusual(cloudy):
    """Its norm is as uncertain as the whole mixture."""
    model = cloudy[1]
    run = simulate_runs(1, seed=78, ontime=300.0, sd_norm=0.0, sd_shift=0.0, zenith=(0.9, 0.901), obs_id=901)[0]
    effect = fit_run(model, replace(run, counts=csr_array(run.counts.shape), exposure=run.exposure * 1e-9))
    assert effect.converged and "unusual norm" not in effect.flags
    widths, shares = NORM_TAILS
    assert effect.weight == pytest.approx(1 / (shares @ widths**2), rel=0.01)


@pytest.mark.slow
def test_order_of_runs_and_number_of_processes_do_not_matter():
    runs = short_runs(0.55)[10:45]
    first = fit_spline(runs, *BINS, max_rounds=8)[0]
    for again in (
        fit_spline(runs[::-1], *BINS, max_rounds=8)[0],
        fit_spline(runs, *BINS, max_rounds=8, starmap=Execution(2).starmap(""))[0],
        fit_spline(runs, *BINS, max_rounds=8, starmap=itertools.starmap)[0],
    ):
        by_run = {e.obs_id: e.weight for e in again.effects}
        assert [by_run[e.obs_id] for e in first.effects] == pytest.approx([e.weight for e in first.effects], rel=1e-9)
        assert np.allclose(again.coefficients, first.coefficients, rtol=1e-9, atol=1e-9)


def test_weights_are_in_the_file_and_files_from_before_are_read(cloudy):
    model = cloudy[1]
    arrays = model.to_arrays()
    assert [e.weight for e in SplineModel.from_arrays(arrays).effects] == [e.weight for e in model.effects]
    old = {key: a for key, a in arrays.items() if not key.endswith("/weight") and key != "population/norm_row"}
    assert len(old) == len(arrays) - 2
    before = SplineModel.from_arrays(old)
    assert all(e.weight == 1 for e in before.effects)
    run = simulate_runs(1, seed=3, zenith=(0.9, 0.901), obs_id=77)[0]
    assert fit_run(before, run).weight == 1


def test_the_population_takes_outliers_with_their_weight():
    """One of 40 runs far out: the spread that is found is that of the others."""
    basis = EffectBasis("norm", False, 0.0, 1.0, 0.5, 2.0)
    effects = 0.1 * np.random.default_rng(0).normal(size=(40, 1))
    effects[7] = -2.0
    population = RunPopulation(basis, np.zeros((1, 1)), np.array([[0.01]]), norm_row=np.ones(1))
    weights = np.where(np.arange(40) == 7, 1e-4, 1.0)
    arguments = (np.zeros((1, 1)), np.zeros((40, 1)), np.zeros((1, 1), bool), np.ones((40, 1)), 0.0)
    robust, plain = (update_population(population, effects, *arguments, w) for w in (weights, np.ones(40)))
    assert robust.norm_spread == pytest.approx(np.sqrt(np.mean(np.delete(effects, 7) ** 2)), rel=0.02)
    assert np.sqrt(robust.covariance[0, 0]) < 0.12
    assert plain.norm_spread > 0.3
