"""Radial and grid without options on real fields: counts over background by run, energy band and ring, as chance has
it.

This work made use of data from the H.E.S.S. DL3 public test data release 1 (HESS DL3 DR1, H.E.S.S. collaboration,
2018).
"""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from dr1 import exclusion
from gammapy.data import DataStore
from regions import CircleSkyRegion
from scipy.stats import binom, norm
from stores import IRFS

from gammapy_accmaker import AcceptanceConfig, fit_acceptance
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.models.base import EffectSettings
from gammapy_accmaker.models.fit_counts import add_up

pytestmark = [pytest.mark.gammapy_data, pytest.mark.slow]

BANDS = np.array([0.1, 0.316, 0.501, 0.794, 1.26, 2, 3.16, 5.01, 7.94, 12.6, 20, 31.6, 50.1, 100])  # TeV
BEYOND, AT_LEAST = 2.5, 10  # standard deviations, and expected counts
PARANAL = {"lon": "-70.3 deg", "lat": "-24.7 deg", "height": "2150 m"}
CRAB = CircleSkyRegion(SkyCoord(83.633, 22.014, unit="deg"), 0.3 * u.deg)


def dr1(target):
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    table = store.obs_table
    ids = table["OBS_ID"] if target is None else table["OBS_ID"][table["OBJECT"] == target]
    return store.get_observations(ids, required_irf=IRFS), {"exclusion": exclusion()}, {}


def magic():
    store = DataStore.from_dir("$GAMMAPY_DATA/magic/rad_max/data")
    return store.get_observations(required_irf=[]), {"exclusion": CRAB}, {"offset_max": "1.5 deg"}


def cta():
    store = DataStore.from_dir("$GAMMAPY_DATA/cta-1dc/index/gps")
    config = {"observatory_location": PARANAL, "offset_max": "4 deg", "exclusion": {"iterative": {}}}
    return store.get_observations(required_irf=[]), {}, config


FIELDS = {
    "MSH 15-52": lambda: dr1("MSH 15-5-02"),
    "3C 273": lambda: dr1("3C 273"),
    "Crab": lambda: dr1("Crab Nebula"),
    "NGC 253": lambda: dr1("NGC 253"),
    "MAGIC": magic,
    "1DC": cta,
}


def pulls(kind, effects, observations, given, options):
    """Of each run and band above the threshold, over the whole field and in three rings."""
    config = AcceptanceConfig.coerce({"model": {"type": kind}, "run_effects": {"type": effects}, **options})
    model = fit_acceptance(observations, config, n_jobs=1, **given)
    reduction = Reduction.of(config, model.exclusion)
    bins, (runs, _) = reduction.bins, reduction.reduce_all(observations)
    theta = np.hypot(bins.fov.fov_lon, bins.fov.fov_lat)
    parts = np.stack([theta >= 0, *((theta >= a) & (theta < b) for a, b in ((0, 0.8), (0.8, 1.6), (1.6, 9)))])
    found = []
    for run in runs:
        adapted = model.rate_model.adapt(run, bins, config.run_effects.settings)
        # thresholds have passed where a norm alone would do
        lowest = model.rate_model.adapt(run, bins, EffectSettings("norm")).norm_energy[0]
        mu, counts = adapted.model.expected_counts(run.slices, bins.energy_edges, bins.fov), add_up(run.slices)
        center = np.sqrt(bins.energy_edges[1:] * bins.energy_edges[:-1])
        for low, high in zip(BANDS[:-1], BANDS[1:], strict=True):
            inside = (center > low) & (center < high)
            if low < 0.99 * lowest or not inside.any():
                continue
            n, m = (values[inside].sum(0) @ parts.T for values in (counts, mu))
            found.append(np.where(m > AT_LEAST, (n - m) / np.sqrt(np.maximum(m, 1)), np.nan))
    found = np.array(found)
    return model, found[:, 0], found[:, 1:].ravel()


@pytest.mark.parametrize("effects", ["norm", "shift"])
@pytest.mark.parametrize("kind", ["radial", "grid"])
@pytest.mark.parametrize("field", FIELDS)
def test_bands_and_rings_of_runs_are_as_chance_has_them(kind, field, effects):
    model, bands, rings = pulls(kind, effects, *FIELDS[field]())
    assert model.run_table["USED"].all() and "zenith" in str(model)
    chance = 2 * norm.sf(BEYOND)
    # sources of the Galactic plane that nobody excluded are in some rings of 1DC
    for values, share in ((bands, 0.99), (rings, 0.9999)):
        values = values[np.isfinite(values)]
        assert len(values) >= 9
        assert np.sum(np.abs(values) > BEYOND) <= max(binom.ppf(share, len(values), chance), 1)
        assert 0.6 < np.std(values) < 1.2
    # a drift that is coherent over energies would show in the mean of a ring over bands and runs
    seen = np.isfinite(rings.reshape(-1, 3))
    by_ring = np.where(seen, rings.reshape(-1, 3), 0).sum(0) / np.sqrt(np.maximum(seen.sum(0), 1))
    assert np.abs(by_ring).max() < 2.6
    # with a shift it is that of the threshold too, whose shape differs from run to run
    assert np.all(model.run_table["DEVIANCE"] < (6 if effects == "norm" else 12)) or field == "1DC"
    if effects == "shift":
        assert np.allclose(model.run_table["EXPECTED"], model.run_table["COUNTS"], rtol=1e-6) or field == "1DC"
