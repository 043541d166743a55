"""The joint covariance of rate and run effects: against draws from it, closed forms, the truth of simulated runs."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, simulate_runs, true_rate

from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.model import zenith_splines
from gammapy_accmaker.models.spline.rate import SplineRate

BINS = (EDGES, LON, LAT, SOLID_ANGLE)
BANDS = np.searchsorted(EDGES, [0.3, 0.5, 0.9, 2.0, 9.9])
DISC = np.hypot(LON - 0.6, LAT) < 0.5


@pytest.fixture(scope="module")
def model():
    return fit_spline(simulate_runs(20, seed=11), *BINS)[0]


@pytest.fixture(scope="module")
def new_runs():
    return simulate_runs(12, seed=90, obs_id=500, zenith=(0.7, 0.97))


def counts_in(rate, run):
    return rate * run.exposure * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6


def in_bands(values):
    return np.add.reduceat(values, BANDS[:-1], axis=-1)[..., : len(BANDS) - 1]


def changes(adapted, run, weights):
    """Expected counts of a run in bands, summed with weights over the field, and their changes along directions."""
    mu = counts_in(adapted.rate_grid(CENTERS, LON, LAT, run.cos_zenith), run) * weights
    mu = mu[: BANDS[-1]]
    shared, own = (
        in_bands(np.einsum("em,kem->ke", mu, rows[:, : BANDS[-1]]))
        for rows in adapted.error_rows(CENTERS, LON, LAT, run.cos_zenith)
    )
    return in_bands(mu.sum(1)), adapted.error_factor(run.cos_zenith).T @ shared, own


@pytest.mark.parametrize(
    "weights", [pytest.param(np.ones(len(LON)), marks=pytest.mark.slow), DISC * 1.0], ids=["field", "disc"]
)
def test_variance_of_a_sum_is_that_of_draws_from_the_joint_posterior(model, new_runs, weights):
    run = new_runs[0]
    effect = fit_run(model, run)
    _, shared, own = changes(SplineRate(model, effect, run.azimuth), run, weights)
    rng, zenith = np.random.default_rng(0), zenith_splines(model.zenith_axis, run.cos_zenith)
    sums = []
    for _ in range(400):
        step = (model._factor @ rng.normal(size=model.coefficients.size)).reshape(model.coefficients.shape)
        asymmetry = rng.multivariate_normal(np.zeros(model.asymmetry.size), model.asymmetry_covariance)
        followed = effect.coefficients - effect.response.T @ (step @ zenith).ravel()
        drawn = replace(
            model,
            coefficients=model.coefficients + step,
            asymmetry=model.asymmetry + asymmetry.reshape(model.asymmetry.shape),
        )
        of_run = replace(effect, coefficients=rng.multivariate_normal(followed, effect.covariance))
        rate = drawn.rate_grid(CENTERS, LON, LAT, run.cos_zenith, azimuth=run.azimuth, effect=of_run)
        sums.append(in_bands((counts_in(rate, run) * weights)[: BANDS[-1]].sum(1)))
    expected = np.sqrt((shared**2).sum(0) + (own**2).sum(0))
    np.testing.assert_allclose(np.std(sums, axis=0), expected, rtol=0.13)


def test_pulls_of_sums_have_unit_width(model, new_runs):
    """Of the truth itself: no Poisson errors of what is predicted hide that of the prediction."""
    field, pulls = np.ones(len(LON)), []
    for run in new_runs:
        truth = in_bands(
            counts_in(true_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift), run)[: BANDS[-1]].sum(1)
        )
        found, shared, own = changes(SplineRate(model, fit_run(model, run), run.azimuth), run, field)
        pulls.append((found - truth) / np.sqrt((shared**2).sum(0) + (own**2).sum(0)))
    assert 0.75 < np.sqrt(np.mean(np.square(pulls))) < 1.25


def test_the_norm_of_a_run_is_known_as_well_as_its_counts_tell(new_runs):
    """One free norm, wide population: the error of the whole field is that of Poisson, whatever that of the rate."""
    model = fit_spline(
        simulate_runs(10, seed=4, sd_norm=0.3, sd_shift=0.0), *BINS, run_effects="norm", norm_energy=(0.2, 10.0)
    )[0]
    run = new_runs[1]
    adapted = SplineRate(model, fit_run(model, run, norm_energy=(0.2, 10.0)), run.azimuth)
    rows, own = adapted.error_rows(CENTERS, LON, LAT, run.cos_zenith)
    mu = counts_in(adapted.rate_grid(CENTERS, LON, LAT, run.cos_zenith), run)
    assert np.sqrt((np.einsum("em,kem->k", mu, own) ** 2).sum()) == pytest.approx(np.sqrt(mu.sum()), rel=0.02)
    # a change of the rate that scales all of it is made good by the norm
    shared = adapted.error_factor(run.cos_zenith).T @ np.einsum("em,kem->k", mu, rows)
    assert np.sqrt((shared**2).sum()) < 0.1 * np.sqrt(mu.sum())


def test_leading_directions_hold_the_variance_of_wide_sums(model, new_runs):
    run = new_runs[2]
    adapted = SplineRate(model, fit_run(model, run), run.azimuth)
    mu = counts_in(adapted.rate_grid(CENTERS, LON, LAT, run.cos_zenith), run)
    rows, own = adapted.error_rows(CENTERS, LON, LAT, run.cos_zenith)
    full, leading = (adapted.error_factor(run.cos_zenith, leading=way) for way in (False, True))
    assert leading.shape[1] < 0.3 * full.shape[1]
    for weights in (np.ones(len(LON)), DISC * 1.0):
        sums = np.einsum("em,kem->k", mu * weights, rows)
        of_run = (np.einsum("em,kem->k", mu * weights, own) ** 2).sum()
        variance = [((factor.T @ sums) ** 2).sum() + of_run for factor in (full, leading)]
        assert 0.9 * variance[0] < variance[1] < 1.0001 * variance[0]


@pytest.mark.slow
def test_pulls_of_stacked_sums_have_unit_width():
    """Of runs that share the errors of one rate, over many rates."""
    sums = {"field": np.ones(len(LON)), "disc": 1.0 * (np.hypot(LON - 0.8, LAT) < 1)}
    pulls = {name: [] for name in sums}
    for seed in range(12):
        model, _ = fit_spline(simulate_runs(20, seed=1000 + seed), *BINS)
        runs = simulate_runs(8, seed=5000 + seed, obs_id=500, zenith=(0.7, 0.97))
        adapted = [SplineRate(model, fit_run(model, run), run.azimuth) for run in runs]
        for name, weights in sums.items():
            difference, shared, own = 0.0, 0.0, 0.0
            for run, one in zip(runs, adapted, strict=True):
                true = counts_in(true_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift), run)
                found, by_rate, by_run = changes(one, run, weights)
                difference = difference + found - in_bands((true * weights)[: BANDS[-1]].sum(1))
                shared, own = shared + by_rate, own + (by_run**2).sum(0)
            pulls[name].append(difference / np.sqrt((shared**2).sum(0) + own))
    for found in pulls.values():
        # 48 numbers, of which some go together
        assert 0.75 < np.sqrt(np.mean(np.square(found))) < 1.25


@pytest.mark.slow
@pytest.mark.parametrize(("zenith", "n"), [((0.57, 1.0), 40), ((0.85, 0.9), 10)], ids=["wide", "narrow"])
def test_errors_of_norm_and_shift_hold_about_their_means(zenith, n):
    """What all runs share, their zero point, is no error of how they differ.

    What they share over a wide range, the slope by zenith angle, is one number of each fit: of few fits the width of
    the pulls says little, however many their runs.
    """
    pulls = []
    for seed in range(400, 400 + n):
        runs = simulate_runs(30, seed=seed, zenith=zenith)
        effects = fit_spline(runs, *BINS)[0].effects
        for found, truth, error in (
            ([np.log(e.norm) for e in effects], [r.norm for r in runs], [e.norm_error / e.norm for e in effects]),
            ([e.scaling + e.shift for e in effects], [r.shift for r in runs], [e.shift_error for e in effects]),
        ):
            difference = np.subtract(found, truth)
            pulls.append((difference - difference.mean()) / error)
    for widths in (pulls[::2], pulls[1::2]):
        assert 0.85 < np.sqrt(np.mean(np.square(widths))) < 1.2
