"""Data of MAGIC and CTA 1DC, as they are: without options nothing crashes,
and what is wrong in them is named with its remedy."""

import copy

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore, EventList
from gammapy.maps import Map, MapAxis, WcsGeom
from regions import CircleSkyRegion
from scipy.stats import binom, norm

from gammapy_accmaker import AcceptanceBackgroundMaker, fit_acceptance, plan_groups
from gammapy_accmaker.errors import InputError

SITE = {"lon": "-70.3 deg", "lat": "-24.7 deg", "height": "2150 m"}
KINDS = ["spline", "radial", "grid"]
CRAB = CircleSkyRegion(SkyCoord(83.633 * u.deg, 22.014 * u.deg), 0.4 * u.deg)


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")]


@pytest.fixture(scope="module")
def magic():
    return DataStore.from_dir("$GAMMAPY_DATA/magic/rad_max/data").get_observations(required_irf="point-like")


@pytest.fixture(scope="module")
def cta():
    return DataStore.from_dir("$GAMMAPY_DATA/cta-1dc/index/gps").get_observations()


@pytest.fixture(scope="module")
def background(cta):
    """The runs with the events of the simulated background alone: what a fit should find is then known."""
    runs = []
    for observation in cta:
        table, run = observation.events.table, copy.copy(observation)
        run.events = EventList(table[table["MC_ID"] == 1])
        runs.append(run)
    return runs


@pytest.mark.gammapy_data("cta-1dc/index/gps")
@pytest.mark.parametrize("kind", KINDS)
def test_cta_1dc_without_options_names_the_remedy(cta, kind, caplog):
    with pytest.raises(InputError, match="observatory_location"):
        fit_acceptance(cta, {"model": {"type": kind}})
    (text,) = [text for text in messages(caplog) if "left out" in text]
    assert all(str(observation.obs_id) in text for observation in cta)
    assert text.count("below the horizon") == 3 and text.count("all 0") == 1


@pytest.mark.gammapy_data("cta-1dc/index/gps")
def test_cta_1dc_in_radec_without_zenith_needs_no_site(background):
    options = {"model": {"type": "radial"}, "fov_alignment": "radec", "zenith": {"type": "none"}}
    assert fit_acceptance(background, options).run_table["USED"].all()


def significances(maker, runs, bands, offset_max, excluded=None):
    """(n - b) / sqrt(b) of the filled map of each run in each energy band and ring, where more than 10 are expected."""
    found = []
    for run in runs:
        axis = MapAxis.from_energy_edges(bands * u.TeV)
        geom = WcsGeom.create(skydir=run.pointing.fixed_icrs, width=2 * offset_max, binsz=0.05, axes=[axis])
        expected, counts = maker.make_background(geom, run).data, Map.from_geom(geom)
        counts.fill_events(run.events)
        image = geom.to_image()
        kept = np.ones(image.data_shape, bool) if excluded is None else image.region_mask([excluded], inside=False).data
        separation = image.separation(run.pointing.fixed_icrs).deg
        for low, high in ((0, 0.4), (0.4, 0.7), (0.7, 0.95)):
            ring = kept & (separation >= low * offset_max) & (separation < high * offset_max)
            b, n = (values[:, ring].sum(1) for values in (expected, counts.data))
            found.append(((n - b) / np.sqrt(b))[b > 10])
    return np.concatenate(found)


def assert_as_chance_gives(z):
    beyond, chance = np.sum(np.abs(z) > 2.5), 2 * norm.sf(2.5)
    assert binom.sf(beyond - 1, len(z), chance) > 0.01, z
    assert abs(z.mean()) < 3 / np.sqrt(len(z))


@pytest.mark.slow
@pytest.mark.gammapy_data("cta-1dc/index/gps")
@pytest.mark.parametrize("kind", KINDS)
def test_cta_1dc_with_its_site(background, kind, caplog):
    maker = AcceptanceBackgroundMaker({"model": {"type": kind}, "observatory_location": SITE}).fit(background)
    assert maker.run_table["USED"].all() and np.all(maker.run_table["ZENITH"] < 75)
    assert sum("4 runs" in text and "observatory_location" in text for text in messages(caplog)) == 1
    z = significances(maker, background, np.geomspace(0.1, 50, 9), 2.5)
    assert len(z) > 60
    assert_as_chance_gives(z)


@pytest.mark.gammapy_data("cta-1dc/index/gps")
def test_cta_1dc_in_a_plan(background):
    options = {"model": {"type": "radial"}, "zenith": {"type": "binned", "min_observations": 1}}
    with pytest.raises(InputError, match="observatory_location"):
        plan_groups(background, options)
    assert np.all(plan_groups(background, options | {"observatory_location": SITE}).cos_zenith > 0.3)


@pytest.mark.gammapy_data("magic/rad_max/data")
@pytest.mark.parametrize("kind", KINDS)
def test_magic(magic, kind):
    """Two runs on the Crab nebula, without options but for their field of view."""
    maker = AcceptanceBackgroundMaker({"model": {"type": kind}, "offset_max": "1.5 deg"}, exclusion=CRAB).fit(magic)
    assert maker.run_table["USED"].all()
    assert_as_chance_gives(significances(maker, magic, np.geomspace(0.1, 10, 7), 1.5, CRAB))
    assert maker.make_irf(magic[0]).data.max() > 0


@pytest.mark.gammapy_data("magic/rad_max/data")
def test_magic_without_any_option(magic):
    assert fit_acceptance(magic).run_table["USED"].all()
