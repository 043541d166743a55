"""The everyday case, one target at a time: each field of H.E.S.S. DL3 DR1 alone, with the default model.

This work made use of data from the H.E.S.S. DL3 public test data release 1 (HESS DL3 DR1, H.E.S.S. collaboration,
2018).
"""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from dr1 import SOURCES
from gammapy.data import DataStore
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom
from regions import CircleSkyRegion

from gammapy_accmaker import AcceptanceBackgroundMaker

pytestmark = [pytest.mark.gammapy_data, pytest.mark.slow]

WIDER = {"Crab": 0.6, "PKS 2155": 0.6}  # deg; the tails of the bright ones leak beyond the circles of the score
ENERGY = {"min": "0.2 TeV", "max": "50 TeV"}
RADIUS = 2.4  # deg
MIN_RUNS = 3


def sources():
    return [
        CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), WIDER.get(name, radius) * u.deg)
        for name, (ra, dec, radius) in SOURCES.items()
    ]


def off_the_sources(maker, observation, circles):
    """Counts and background of a run outside of the circles."""
    axis = MapAxis.from_energy_bounds(ENERGY["min"], ENERGY["max"], nbin=1)
    geom = WcsGeom.create(skydir=observation.pointing.fixed_icrs, width=2 * RADIUS + 0.2, binsz=0.05, axes=[axis])
    image = geom.to_image()
    kept = (image.separation(observation.pointing.fixed_icrs).deg < RADIUS) & ~image.region_mask(circles).data
    counts = MapDatasetMaker.make_counts(geom, observation).data[0, kept].sum()
    return counts, maker.make_background(geom, observation).data[0, kept].sum()


def test_the_background_of_each_field_alone_is_that_of_its_counts():
    store, circles = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1"), sources()
    objects = np.array([str(name).strip() for name in store.obs_table["OBJECT"]])
    pulls = []
    for name in np.unique(objects):
        ids = store.obs_table["OBS_ID"][objects == name]
        if len(ids) < MIN_RUNS:
            continue
        runs = store.get_observations(ids, required_irf=[])
        maker = AcceptanceBackgroundMaker({"energy": ENERGY}, exclusion=circles).fit(runs, n_jobs=1)
        n, mu = np.array([off_the_sources(maker, run, circles) for run in runs]).T
        pull, ratio = (n - mu) / np.sqrt(mu), mu / n
        total = mu.sum() / n.sum() - 1
        print(
            f"{name:20s} {len(ids):3d} runs, N {n.sum():7.0f}, B/N {1 + total:.4f} "
            f"({(n - mu).sum() / np.sqrt(mu.sum()):+.1f} sigma), runs {ratio.min():.3f} to {ratio.max():.3f}, rms z "
            f"{np.sqrt(np.mean(pull**2)):.2f}",
            flush=True,
        )
        assert abs(total) < max(0.01, 2 / np.sqrt(mu.sum())), name
        pulls.append(pull)
    pulls = np.concatenate(pulls)
    assert len(pulls) >= 70
    assert np.sqrt(np.mean(pulls**2)) <= 1.1
