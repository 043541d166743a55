"""A cell of which an exclusion covers a part stands where its other part is."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from simulated_runs import CENTERS, EDGES, SimulatedRun, simulate_runs, true_rate

from gammapy_accmaker.models.spline.adapt import fit_run, project_run
from gammapy_accmaker.models.spline.cells import gather_counts
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.likelihood import RateTable, RunSums
from gammapy_accmaker.models.spline.model import zenith_splines
from gammapy_accmaker.models.spline.rate import SplineRate

STEP = 0.05  # deg
_x = np.arange(-2.0 + STEP / 2, 2, STEP)
FINE_LON, FINE_LAT = (a.ravel() for a in np.meshgrid(_x, _x, indexing="ij"))
_inside = np.hypot(FINE_LON, FINE_LAT) < 2.0
FINE_LON, FINE_LAT = FINE_LON[_inside], FINE_LAT[_inside]
SOLID = np.full(len(FINE_LON), np.radians(STEP) ** 2)
VISIBLE = {
    "half": FINE_LON * np.cos(0.4) + FINE_LAT * np.sin(0.4) > 0.0,
    "beyond a line": FINE_LON * np.cos(0.4) + FINE_LAT * np.sin(0.4) > 1.33,
    "no centre": np.hypot(FINE_LON, FINE_LAT) > 1.55,
    "near a line": FINE_LON * np.cos(1.2) + FINE_LAT * np.sin(1.2) < -1.2,
    "circle": np.hypot(FINE_LON - 1.0, FINE_LAT + 0.8) < 0.6,
}


@pytest.fixture(scope="module")
def model():
    """Of fine pixels, so that the cells alone are in question."""
    fine = [on_fine_pixels(run) for run in simulate_runs(6, seed=1, zenith=(0.8, 0.9))]
    return fit_spline(fine, EDGES, FINE_LON, FINE_LAT, SOLID)[0]


def on_fine_pixels(run, visible=True):
    exposure = np.where(visible, 1700.0, 0.0) * np.ones(len(FINE_LON))
    volume = exposure * SOLID * np.diff(EDGES)[:, None] * 1e6
    mu = true_rate(CENTERS, FINE_LON, FINE_LAT, run.cos_zenith, run.norm, run.shift) * volume
    counts = csr_array(np.random.default_rng(run.obs_id).poisson(mu).astype(float))
    return SimulatedRun(run.obs_id, counts, exposure, run.cos_zenith, run.azimuth, {}, run.norm, run.shift)


def fast_and_slow(model, run):
    """Counts expected of each cell by the sums of the fit, and by adding up the pixels."""
    design, effect = model.design, fit_run(model, run)
    basis = zenith_splines(model.zenith_axis, run.cos_zenith)
    scaling = sum(model.covariates.scaling(run.cos_zenith, {}))
    cells = project_run(design, gather_counts(design.cells, len(CENTERS), run), basis, scaling)
    table = RateTable.of(design, model.coefficients, model.asymmetry_cells, cells)
    fast = RunSums.of(design, table, cells, effect.coefficients).expected
    rate = SplineRate(model, effect, run.azimuth, {}).integral_grid(EDGES, FINE_LON, FINE_LAT, run.cos_zenith)
    return fast, (rate * run.exposure * SOLID) @ design.cells.membership, effect


@pytest.mark.parametrize("name", list(VISIBLE))
def test_cells_are_taken_where_they_were_seen(model, name):
    run = on_fine_pixels(simulate_runs(1, seed=9, zenith=(0.85, 0.86))[0], VISIBLE[name])
    fast, slow, effect = fast_and_slow(model, run)
    seen = model.design.cells.membership.T @ (run.exposure > 0)
    touched = (seen > 0) & (seen < model.design.cells.membership.sum(axis=0))
    for low, high in ((0.2, 0.6), (0.6, 2), (2, 10)):  # the profile is steepest at low energies
        here = (CENTERS > low) & (CENTERS < high)
        found, true = (x[here][:, touched].sum(0) for x in (fast, slow))
        error = np.abs(found / true - 1)  # 2 to 12 % where a cell was taken as a whole
        assert error.max() < 0.016
        assert np.sqrt(np.average(error**2, weights=true)) < 0.006
    assert effect.expected.sum() == pytest.approx(slow.sum(), rel=2.5e-3)


def test_a_run_that_is_seen_evenly_keeps_nothing(model):
    cells = model.design.cells
    some = 1700.0 * (cells.membership.indices % 7 > 0)  # cells that are seen in whole or not at all
    assert cells.displacement(np.full(len(FINE_LON), 1700.0)) is None
    assert cells.displacement(some) is None
    assert cells.displacement(np.zeros(len(FINE_LON))) is None
    half = cells.displacement(np.where(VISIBLE["half"], some, 0))
    assert half.shape == (cells.n_cell, 2) and half.dtype == np.float32
    touched = np.unique(cells.membership.indices[VISIBLE["half"]])
    assert np.all(half[np.setdiff1d(np.arange(cells.n_cell), touched)] == 0)
