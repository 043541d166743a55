"""The default model on the 105 runs of H.E.S.S. DL3 DR1: held-out score, significance, and one run in gammapy's hands."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom
from regions import CircleSkyRegion

from gammapy_accmaker import AcceptanceBackgroundMaker, cross_validate

pytestmark = pytest.mark.gammapy_data

REFERENCE = -7_175_462  # BAccMod c5c6535, radial, zenith interpolated linearly, free norm, the same halves
ENERGY = {"min": "0.15 TeV", "max": "25 TeV"}
SOURCES = {  # position and radius in deg
    "Crab": (83.633, 22.014, 0.25), "MSH 15-52": (228.53, -59.16, 0.40), "RX J1713": (258.39, -39.76, 0.75),
    "PKS 2155": (329.717, -30.226, 0.25), "SN 1006": (225.70, -41.90, 0.40), "Cen A": (201.365, -43.02, 0.20),
    "PKS 0548": (88.30, -32.27, 0.20), "NGC 253": (11.89, -25.29, 0.20), "HESS J1718-385": (259.53, -38.55, 0.25),
    "J1708-410": (257.05, -41.09, 0.25), "J1713-381": (258.10, -38.20, 0.30), "J1718-374": (259.20, -37.50, 0.30),
    "3C 273": (187.28, 2.05, 0.15), "N 157B": (84.40, -69.17, 0.20), "SN 1987A": (83.90, -69.20, 0.20),
    "J1702-420": (255.00, -42.00, 0.25),
}  # fmt: skip


def exclusion():
    return [CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), r * u.deg) for ra, dec, r in SOURCES.values()]


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
