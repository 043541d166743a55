"""Zenith interpolation on H.E.S.S. DL3 DR1, each run predicted by a fit to the runs of the other folds.

This work made use of data from the H.E.S.S. DL3 public test data release 1 (HESS DL3 DR1, H.E.S.S. collaboration,
2018).
"""

import numpy as np
import pytest
from gammapy.data import DataStore
from stores import IRFS, options

from gammapy_accmaker.acceptance.fit import fit_runs
from gammapy_accmaker.acceptance.plan import make_plan
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.models.pooled import ZenithInterpolated
from gammapy_accmaker.utils.parallel import Execution

pytestmark = pytest.mark.gammapy_data


def config():
    energy = {"min": "0.2 TeV", "max": "20 TeV", "nbins_per_decade": 8}
    return AcceptanceConfig.coerce(
        options("radial", "none", energy=energy) | {"zenith": {"type": "interpolated", "scale": "log"}}
    )


@pytest.mark.slow
def test_trap_log_interpolation_never_explodes_on_runs_it_has_not_seen():
    """All 105 runs, 5 folds: none is off by more than 3x in total,
    nor 3x too high in an energy bin above its threshold."""
    settings = config()
    reduction = Reduction.of(settings)
    bins = reduction.bins
    observations = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations(required_irf=IRFS)
    runs, failures = reduction.reduce_all(list(observations), Execution(2))
    assert len(runs) == 105 and not failures
    plan = make_plan(runs, settings)
    assert plan.n_groups >= 6 and np.all(plan.table["N_RUNS"] >= 3)
    assert plan.table["COUNTS"].sum() == sum(part.counts.sum() for run in runs for part in run.slices)
    ratios, bands = [], []
    for fold in np.array_split(np.random.default_rng(0).permutation(105), 5):
        model = fit_runs([runs[k] for k in range(105) if k not in set(fold)], bins, settings)[0]
        assert isinstance(model, ZenithInterpolated)
        for k in fold:
            expected = model.expected_counts(runs[k].slices, bins.energy_edges, bins.fov).sum(1)
            counts = sum(np.asarray(part.counts.sum(1)).ravel() for part in runs[k].slices)
            ratios.append(expected.sum() / counts.sum())
            # the trigger threshold differs from run to run: by the energy, the bins from the fullest on
            many = (counts > 20) & (np.arange(len(counts)) >= np.argmax(counts))
            bands.append((expected[many] / counts[many]).max())
    assert len(ratios) == 105
    assert np.exp(np.abs(np.log(ratios)).max()) < 3
    assert np.exp(np.median(np.abs(np.log(ratios)))) < 1.3
    assert max(bands) < 3


def test_a_few_runs_of_dr1():
    """Four runs on two sources: each bin of the plan holds what its runs hold, and the model expects it there."""
    settings = config().update(
        {"zenith": {"type": "binned", "min_livetime": "10 min", "min_observations": None, "split_runs": True}}
    )
    reduction = Reduction.of(settings)
    bins = reduction.bins
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    observations = store.get_observations([33787, 33788, 23523, 23526], required_irf=IRFS)
    runs, _ = reduction.reduce_all(list(observations))
    plan = make_plan(runs, settings)
    assert plan.n_groups >= 2 and len(plan.positions) >= 2
    model = fit_runs(runs, bins, settings)[0]
    for low, high, counts in plan.table["COS_ZENITH_MIN", "COS_ZENITH_MAX", "COUNTS"].iterrows():
        inside = [part for run in runs for part in run.slices if low < part.cos_zenith < high]
        assert sum(part.counts.sum() for part in inside) == counts > 1000
        expected = model.expected_counts(inside, bins.energy_edges, bins.fov).sum()
        assert expected == pytest.approx(counts, rel=0.01)
