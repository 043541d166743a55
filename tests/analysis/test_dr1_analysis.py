"""Makers, analysis and workflow give the same datasets of the Crab nebula, on H.E.S.S. DL3 DR1."""

import pytest
from analyses import FAST, analysed, assert_same_datasets, made_by_makers

from gammapy_accmaker import AcceptanceWorkflow
from gammapy_accmaker.analysis.workflow import SUPPORTED

CRAB_RUNS = [23523, 23526, 23559, 23592]
CRAB = {"frame": "icrs", "lon": "83.633 deg", "lat": "22.014 deg"}


@pytest.mark.slow
@pytest.mark.gammapy_data
@pytest.mark.parametrize("kind", ["3d", "1d"])
def test_the_three_ways_give_the_same_datasets(kind, tmp_path):
    exclusion = tmp_path / "crab.reg"
    exclusion.write_text("# Region file format: DS9\nicrs\ncircle(83.633, 22.014, 0.35)\n")
    options = {
        "observations": {"datastore": "$GAMMAPY_DATA/hess-dl3-dr1", "obs_ids": CRAB_RUNS},
        "datasets": {
            "type": kind,
            "stack": False,
            "geom": {
                "wcs": {"skydir": CRAB, "binsize": "0.1 deg", "width": {"width": "4 deg", "height": "3 deg"}},
                "axes": {
                    "energy": {"min": "0.6 TeV", "max": "10 TeV", "nbins": 4},
                    "energy_true": {"min": "0.4 TeV", "max": "20 TeV", "nbins": 6},
                },
            },
            "on_region": {**CRAB, "radius": "0.11 deg"},
            "safe_mask": {"methods": ["offset-max"], "parameters": {"offset_max": "2 deg"}},
            "background": {"method": "acceptance", "parameters": FAST, "exclusion": str(exclusion)},
        },
    }
    analysis = analysed(options)
    assert len(analysis.datasets) == 4
    assert_same_datasets(analysis.datasets, made_by_makers(analysis.config, exclusion=exclusion))
    if SUPPORTED:
        workflow = AcceptanceWorkflow(options)
        workflow.run(["observations", "datasets"])
        assert_same_datasets(analysis.datasets, workflow.datasets)
