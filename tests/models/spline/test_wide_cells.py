"""The rate may change a lot within a cell of the fit: what a cell expects is the mean of the rate, not of its log."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, SimulatedRun, true_rate

from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate

STEP = 0.1  # deg
_x = np.arange(-2.5 + STEP / 2, 2.5, STEP)
LON, LAT = (a.ravel() for a in np.meshgrid(_x, _x, indexing="ij"))
_inside = np.hypot(LON, LAT) < 2.5
LON, LAT = LON[_inside], LAT[_inside]
SOLID = np.full(len(LON), np.radians(STEP) ** 2)


def dead_sector(lon, lat):
    """A third of the camera has an eighth of the rate."""
    angle = np.arctan2(lat, lon) - 0.7
    return 1 - 0.875 / (1 + np.exp(-12 * (np.cos(angle) - 0.5)))


CAMERAS = {
    "dead sector": dead_sector,
    "three lobes": lambda lon, lat: np.exp(1.2 * np.cos(3 * np.arctan2(lat, lon)) * np.minimum(np.hypot(lon, lat), 1)),
    "one side": lambda lon, lat: np.exp(0.6 * lon - 0.4 * lat),
    "narrow": lambda lon, lat: np.exp(-1.5 * (lon**2 + lat**2) / 2),
}


def simulate(camera, n_run):
    runs = []
    for k in range(n_run):
        rng = np.random.default_rng([n_run, k])
        exposure = np.full(len(LON), 1700.0)
        rate = 3 * true_rate(CENTERS, LON, LAT, 0.8 + 0.02 * k) * camera(LON, LAT)
        counts = csr_array(rng.poisson(rate * exposure * SOLID * np.diff(EDGES)[:, None] * 1e6).astype(float))
        runs.append(SimulatedRun(k, counts, exposure, 0.8 + 0.02 * k, 40.0 * k))
    return runs


@pytest.mark.parametrize("n_run", [1, 4])
@pytest.mark.parametrize("name", list(CAMERAS))
def test_what_is_fitted_is_the_sum_over_the_pixels(name, n_run):
    runs = simulate(CAMERAS[name], n_run)
    model = fit_spline(runs, EDGES, LON, LAT, SOLID)[0]
    for run, effect in zip(runs, model.effects, strict=True):
        rate = SplineRate(model, effect, run.azimuth, {}).integral_grid(EDGES, LON, LAT, run.cos_zenith)
        slow = (rate * run.exposure * SOLID).sum()
        # the mean of the log was 0.2 to 5 % below
        assert effect.expected.sum() == pytest.approx(slow, rel=1.5e-3)
        assert slow == pytest.approx(run.counts.sum(), rel=0.01)
