"""A fit to the half of the camera without the source predicts the other half."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, LAT, LON, SOLID_ANGLE, simulate_runs, true_rate

from gammapy_accmaker.models.spline.adapt import fit_run
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate


@pytest.mark.slow
def test_the_half_that_is_not_seen_is_predicted():
    """The edge turns through the cells of the fit, which are then excluded in part."""
    rng, halves = np.random.default_rng(5), []
    for run in simulate_runs(16, 5):
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, np.radians(20), 20)[:, None]
        exposure = 1700.0 * np.mean(LON * np.cos(angle) + LAT * np.sin(angle) < 0, axis=0)
        volume = SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
        mu = true_rate(CENTERS, LON, LAT, run.cos_zenith, run.norm, run.shift) * volume
        counts = csr_array(rng.poisson(mu * exposure).astype(float))
        halves.append((replace(run, counts=counts, exposure=exposure), 1700.0 * mu))
    model = fit_spline([run for run, _ in halves], EDGES, LON, LAT, SOLID_ANGLE)[0]
    sums = np.zeros((2, 2))
    for run, mu in halves:
        rate = SplineRate(model, fit_run(model, run), run.azimuth, run.covariates)
        found = 1700.0 * rate.integral_grid(EDGES, LON, LAT, run.cos_zenith) * SOLID_ANGLE
        unseen = run.exposure == 0
        sums += [[x[:, unseen].sum(), x[:, unseen][CENTERS > 1.2].sum()] for x in (found, mu)]
    # of the counts that are there; those that the fit has seen are as many
    np.testing.assert_array_less(np.abs(sums[0] - sums[1]), 3 * np.sqrt(2 * sums[1]))
    assert abs(sums[0, 0] / sums[1, 0] - 1) < 0.02
