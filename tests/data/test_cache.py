"""The cache of reduced runs: what is in it is what a reduction gives, and nothing old or damaged is used."""

import logging
import os
import shutil
from dataclasses import fields

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.time import Time
from gammapy.data import GTI, DataStore
from gammapy.maps import Map, WcsGeom
from helpers import Calibrated
from regions import CircleSkyRegion, PolygonSkyRegion, RectangleSkyRegion
from stores import IRFS, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, fit_acceptance
from gammapy_accmaker.acceptance import reduction as runs
from gammapy_accmaker.data.cache import RunCache, fingerprint
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.parallel import Execution

CONFIG = AcceptanceConfig.coerce(options("radial"))
SPLINE = AcceptanceConfig.coerce({"energy": {"min": "0.2 TeV", "max": "20 TeV"}})
CENTER = SkyCoord(100, -21, unit="deg")


@pytest.fixture
def reads(monkeypatch):
    """Numbers of the runs whose events are read."""
    found = []

    def counting(self, observation, reduce=runs.Reduction.reduce):
        found.append(int(observation.obs_id))
        return reduce(self, observation)

    monkeypatch.setattr(runs.Reduction, "reduce", counting)
    return found


def read(folder=None, n=4):
    data_store = DataStore.from_dir(plain_store().path if folder is None else folder)
    return list(data_store.get_observations(sorted(data_store.obs_table["OBS_ID"])[:n], required_irf=IRFS))


def reduce(observations, cache=None, config=CONFIG, exclusion=None, **more):
    return runs.Reduction.of(config, exclusion).reduce_all(observations, cache=cache, **more)


def same(a, b):
    """Whether two lists of runs are equal to the last digit."""
    for here, there in zip(a, b, strict=True):
        assert (here.key, here.dropped, here.covariates) == (there.key, there.dropped, there.covariates)
        assert (here.notes, here.place) == (there.notes, there.place)
        for x, y in zip(here.slices, there.slices, strict=True):
            assert np.array_equal(x.counts.toarray(), y.counts.toarray())
            assert np.array_equal(x.exposure, y.exposure)
            assert np.array_equal(x.displacement, y.displacement)
            for one in fields(x):
                if one.name not in ("counts", "exposure", "displacement"):
                    assert getattr(x, one.name) == getattr(y, one.name), one.name
    return True


@pytest.mark.parametrize("config", [CONFIG, SPLINE], ids=["radial", "spline"])
def test_what_comes_out_is_what_went_in(tmp_path, reads, config):
    region = CircleSkyRegion(CENTER, 0.5 * u.deg)
    first, _ = reduce(read(), tmp_path, config, region)
    assert len(reads) == 4
    again, _ = reduce(read(), tmp_path, config, region)
    assert len(reads) == 4
    assert same(first, again) and same(first, reduce(read(), None, config, region)[0])


def test_only_new_runs_are_read(tmp_path, reads):
    reduce(read(n=4), tmp_path)
    reads.clear()
    found, _ = reduce(read(n=6), tmp_path)
    assert len(found) == 6 and reads == [int(o.obs_id) for o in read(n=6)[4:]]


def test_with_the_same_observations_in_one_session(tmp_path, reads):
    observations = read()
    first, again = (reduce(observations, tmp_path)[0] for _ in range(2))
    assert len(reads) == 4 and same(first, again)


def test_jobs_share_it(tmp_path, reads):
    expected, _ = reduce(read(), tmp_path, execution=Execution(2))
    assert reads == []  # in other processes
    assert same(expected, reduce(read(), tmp_path)[0]) and reads == []
    assert same(expected, reduce(read(), tmp_path, execution=Execution(2))[0])


def test_with_observations_that_were_looked_at_before(tmp_path, reads):
    observations = read(n=2)
    assert all(o.gti.time_sum > 0 and o.pointing is not None and o.meta is not None for o in observations)
    first, _ = reduce(observations, tmp_path)
    assert same(first, reduce(read(n=2), tmp_path)[0]) and len(reads) == 2


def test_maker_and_fit_use_it(tmp_path, reads):
    model = fit_acceptance(read(), CONFIG, cache=tmp_path)
    maker = AcceptanceBackgroundMaker(CONFIG).fit(read(), cache=str(tmp_path))
    assert len(reads) == 4
    assert np.array_equal(maker.model.rate_model.counts, model.rate_model.counts)
    maker.fit(read(n=2), read(n=6)[2:], cache=tmp_path)
    assert len(reads) == 6


OTHER_SETTINGS = {
    "energies": {"energy": {"min": "0.2 TeV"}},
    "offsets": {"offset_max": "2 deg"},
    "bins": {"model": {"type": "radial", "offset_bins": 11}},
    "kind": {"model": {"type": "grid"}},
    "frame": {"fov_alignment": "radec"},
    "time step": {"time_step": "2 min"},
    "location": {"observatory_location": {"lon": "16 deg", "lat": "-23 deg", "height": "1800 m"}},
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_other_settings_are_reduced_again(tmp_path, reads, name):
    reduce(read(n=2), tmp_path)
    config = CONFIG.update(OTHER_SETTINGS[name])
    found, _ = reduce(read(n=2), tmp_path, config)
    assert len(reads) == 4 and same(found, reduce(read(n=2), None, config)[0])


def test_an_option_that_does_not_matter_changes_nothing(tmp_path, reads):
    reduce(read(n=2), tmp_path)
    reduce(read(n=2), tmp_path, CONFIG.update({"run_effects": {"type": "none"}}))
    assert len(reads) == 2


def mask(value=0):
    data = np.ones((20, 20), bool)
    data[5, 5] = value
    return Map.from_geom(WcsGeom.create(skydir=CENTER, npix=20, binsz=0.1), data=data)


EXCLUSIONS = {
    "none": lambda: None,
    "circle": lambda: CircleSkyRegion(CENTER, 0.5 * u.deg),
    "larger circle": lambda: CircleSkyRegion(CENTER, 0.5000001 * u.deg),
    "two circles": lambda: [CircleSkyRegion(CENTER, r * u.deg) for r in (0.5, 0.6)],
    "rectangle": lambda: RectangleSkyRegion(CENTER, 1 * u.deg, 2 * u.deg, 10 * u.deg),
    "turned rectangle": lambda: RectangleSkyRegion(CENTER, 1 * u.deg, 2 * u.deg, 10.001 * u.deg),
    "polygon": lambda: PolygonSkyRegion(SkyCoord([100, 101, 100], [-21, -21, -20], unit="deg")),
    "long polygon": lambda: PolygonSkyRegion(SkyCoord(100 + np.cos(np.arange(2000) / 500),
        np.sin(np.arange(2000) / 500), unit="deg")),
    "long polygon, other": lambda: PolygonSkyRegion(SkyCoord(100 + np.cos(np.arange(2000) / 500),
        np.sin(np.arange(2000) / 500) + 1e-6 * (np.arange(2000) == 1000), unit="deg")),
    "compound": lambda: CircleSkyRegion(CENTER, 1 * u.deg) & RectangleSkyRegion(CENTER, 1 * u.deg, 2 * u.deg),
    "other compound": lambda: CircleSkyRegion(CENTER, 1 * u.deg) ^ RectangleSkyRegion(CENTER, 1 * u.deg, 2 * u.deg),
    "mask": mask,
    "mask, one pixel": lambda: mask(1),
    "HEALPix": lambda: Map.create(binsz=10, map_type="hpx", dtype=bool),
}  # fmt: skip


def test_exclusions_have_fingerprints_of_their_own():
    found = {name: fingerprint(Exclusion(make())) for name, make in EXCLUSIONS.items()}
    assert len(set(found.values())) == len(EXCLUSIONS)
    assert found == {name: fingerprint(Exclusion(make())) for name, make in EXCLUSIONS.items()}
    wide = {name: fingerprint(Exclusion(make(), 0.1 * u.deg)) for name, make in EXCLUSIONS.items() if name != "none"}
    assert len(set(wide.values()) - set(found.values())) == len(EXCLUSIONS) - 1


@pytest.mark.parametrize("name", ["circle", "rectangle", "mask", "compound"])
def test_a_fingerprint_does_not_change_with_use(name):
    exclusion = Exclusion(EXCLUSIONS[name](), 0.1 * u.deg)
    before = fingerprint(exclusion)
    exclusion.contains(np.array([[1.0, 0, 0], [0, 0.6, 0.8]]))
    assert fingerprint(exclusion) == before
    bins = runs.make_bins(CONFIG)
    before = fingerprint(bins)
    assert bins.fov.solid_angle.sum() > 0 and fingerprint(bins) == before


@pytest.fixture
def copied(tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(plain_store().path, folder)
    return folder


def test_a_changed_file_is_read_again(tmp_path, copied, reads):
    cache = tmp_path / "cache"
    first, _ = reduce(read(copied, 2), cache)
    path = vars(read(copied, 2)[1])["__events_hdu"].path()
    with fits.open(path, memmap=False) as hdulist:
        hdulist["EVENTS"].data["ENERGY"] *= 2
        hdulist.writeto(path, overwrite=True)
    reads.clear()
    second, _ = reduce(read(copied, 2), cache)
    assert len(reads) == 1 and same(second, reduce(read(copied, 2))[0]) and same(first[:1], second[:1])
    assert not np.array_equal(first[1].counts.toarray(), second[1].counts.toarray())
    assert len(list(cache.iterdir())) == 2  # the old entry is replaced
    os.utime(path, (1, 1))
    reads.clear()
    reduce(read(copied, 2), cache)
    assert len(reads) == 1


def test_what_is_changed_in_memory_is_not_taken_from_the_cache(tmp_path, reads):
    reduce(read(n=1), tmp_path)
    (half,) = read(n=1)
    half.events = type(half.events)(half.events.table[::2])
    (short,) = read(n=1)
    start = short.gti.time_start[0]
    short._gti = GTI.create(0 * u.s, 300 * u.s, start)  # as a user may
    (selected,) = [o.select_time(Time([start, start + 400 * u.s])) for o in read(n=1)]
    (calibrated,) = read(n=1)
    calibrated.__class__ = Calibrated
    found = []
    for observation in (half, short, selected, calibrated):
        reads.clear()
        found_here, _ = reduce([observation], tmp_path)
        assert len(reads) == 1 and same(found_here, reduce([observation])[0])
        found.append(found_here[0].counts.sum())
    whole, _ = reduce(read(n=1), tmp_path)
    assert same(whole, reduce(read(n=1))[0]) and len({whole[0].counts.sum(), *found}) == 5


def damaged(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "bit":
        with fits.open(path, memmap=False) as hdulist:
            content[hdulist["COUNTS"].fileinfo()["datLoc"] + 5] ^= 1
    elif kind == "exposure":
        with fits.open(path, memmap=False) as hdulist:
            hdulist["EXPOSURE"].data[:] *= 2
            hdulist.writeto(path, overwrite=True)
        return
    elif kind == "axes":
        at = content.index(b"NAXIS1  =", 2880)
        content[at : at + 80] = f"NAXIS1  = {10**12:20d}".ljust(80).encode()
    elif kind == "other run":
        shutil.copy(next(p for p in path.parent.iterdir() if p != path), path)
        return
    path.write_bytes({"cut": content[:5000], "empty": b"", "text": b"import os\n" * 500}.get(kind, content))


@pytest.mark.parametrize("kind", ["bit", "exposure", "axes", "cut", "empty", "text"])
def test_a_damaged_entry_is_thrown_away_with_a_warning(tmp_path, reads, caplog, kind):
    expected, _ = reduce(read(n=2), tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    damaged(path, kind)
    reads.clear()
    with caplog.at_level(logging.WARNING, "gammapy_accmaker"):
        found, failures = reduce(read(n=2), tmp_path)
    assert len(reads) == 1 and not failures and same(found, expected)
    assert len(caplog.records) == 1 and path.name in caplog.text and "thrown away" in caplog.text
    reads.clear()
    assert same(reduce(read(n=2), tmp_path)[0], expected) and reads == []


def test_the_entry_of_another_run_is_not_used(tmp_path, reads):
    expected, _ = reduce(read(n=2), tmp_path)
    damaged(sorted(tmp_path.iterdir())[0], "other run")
    reads.clear()
    assert same(reduce(read(n=2), tmp_path)[0], expected) and len(reads) == 1


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache"):
        RunCache.open(tmp_path / "file", "settings", (1, 1))


def test_a_run_that_cannot_be_used_is_not_kept(tmp_path, reads):
    everything = CircleSkyRegion(read(n=1)[0].pointing.fixed_icrs, 6 * u.deg)
    for _ in range(2):
        _, failures = reduce(read(n=1), tmp_path, exclusion=everything)
        assert len(failures) == 1
    assert len(reads) == 2 and list(tmp_path.iterdir()) == []
