"""The default model on the 105 runs of H.E.S.S. DL3 DR1:
held-out score, significance, and one run in gammapy's hands."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from dr1 import exclusion
from gammapy.data import DataStore
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom
from regions import CircleSkyRegion

from gammapy_accmaker import AcceptanceBackgroundMaker, cross_validate

pytestmark = pytest.mark.gammapy_data

REFERENCE = -7_175_462  # BAccMod c5c6535, radial, zenith interpolated linearly, free norm, the same halves
ENERGY = {"min": "0.15 TeV", "max": "25 TeV"}


@pytest.fixture(scope="module")
def data_store():
    return DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")


@pytest.mark.slow
def test_held_out_runs_are_predicted(data_store):
    observations = data_store.get_observations(required_irf=[])
    result = cross_validate(observations, {"default": {"energy": ENERGY}}, exclusion=exclusion(), sky=True)
    assert len(result.scores) == 105
    assert result.table["SCORE"][0] - REFERENCE > 42_000
    # one fold says of the norm of an unseen run what its conditions tell
    assert abs(result.table["LOG_NORM_BIAS"][0]) < 0.05
    assert result.table["LOG_NORM_STD"][0] < 0.35
    table = result.significance
    for frame in ("camera", "sky"):
        bands = table[table["FRAME"] == frame]
        assert np.all(np.abs(bands["MEAN"]) < 0.25)
        # BAccMod: 1.58, 1.36, 1.11, 1.03, 1.04
        assert np.all(bands["WIDTH"] < [1.10, 1.08, 1.06, 1.06, 1.06, 1.06])
        assert np.all(bands["WIDTH"] > 0.9)


@pytest.mark.slow
def test_crab_runs_alone_are_fitted(data_store):
    """Four runs of one source: nothing to tune."""
    ids = [23523, 23526, 23559, 23592]
    observations = data_store.get_observations(ids, required_irf=["aeff"])
    maker = AcceptanceBackgroundMaker({"energy": ENERGY}, exclusion=exclusion()).fit(observations)
    axis = MapAxis.from_energy_bounds("0.5 TeV", "10 TeV", nbin=4)
    source = CircleSkyRegion(SkyCoord(83.633, 22.014, unit="deg"), 0.3 * u.deg)
    for observation in observations:
        geom = WcsGeom.create(skydir=observation.pointing.fixed_icrs, width=5, binsz=0.05, axes=[axis])
        background = maker.make_background(geom, observation)
        image = geom.to_image()
        keep = image.separation(observation.pointing.fixed_icrs).deg < 2.3
        keep &= ~image.region_mask([source], inside=True).data
        counts = MapDatasetMaker.make_counts(geom, observation).data[:, keep].sum(1)
        predicted = background.data[:, keep].sum(1)
        assert np.all(np.abs(predicted - counts) < 4 * np.sqrt(counts) + 2)
    assert list(maker.run_table["OBS_ID"]) == ids
    # the muon efficiency falls over the years, and the runs are of one season
    assert np.all(np.abs(maker.run_table["SHIFT"]) < 0.3)
