"""Damaged input for the readers, from a seed: each function reads one and says what came of it.

Whatever comes, a reader gives a result or an `AcceptanceError`; any other exception is a defect.
"""

from functools import cache

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Column, MaskedColumn, Table
from astropy.time import Time
from gammapy.data import EventList, Observation
from gammapy.maps import Map
from gammapy.utils.fits import HDULocation
from helpers import event_table, make_observation, pointing_at, random_in_cap, tracking
from regions import CircleSkyRegion, RectangleSkyRegion
from stores import fitted, options

from gammapy_accmaker import AcceptanceConfig, AcceptanceModel
from gammapy_accmaker.acceptance.reduction import Reduction, make_bins
from gammapy_accmaker.data.cache import in_memory
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import AcceptanceError

__all__ = ["KINDS", "read_damaged"]

CONFIG = AcceptanceConfig.coerce(options("radial"))
NASTY = [
    "0", "1", "-1", "999", "1e400", "nan", "10000000000000", "-5000000000", "T", "F", "''", "'x'", "'9999999999D'",
    "'PD(9)'",
    "'1PE(99999)'", "'2A'", "'D'", "8", "16", "32", "64", "-32", "-64", "7", "1.5", "(1,2)",
]  # fmt: skip


def read_damaged(kind, number, folder):
    """Read input ``number`` of a kind; returns "read" or "refused"."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    try:
        globals()[f"_{kind}"](rng, folder)
    except AcceptanceError:
        return "refused"
    return "read"


def _damaged_fits(content, rng):
    """Bytes of a FITS file with some cards replaced, bits turned, or parts missing, doubled or moved."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        kind, length = rng.integers(0, 8), len(content)
        if kind < 3:  # the value of a header card
            at = 80 * rng.integers(0, max(length // 80, 1))
            if content[at + 8 : at + 10] == b"= ":
                content[at + 10 : at + 80] = f"{rng.choice(NASTY):>20s}".ljust(70).encode()
        elif kind == 3:
            for at in rng.integers(0, length, rng.integers(1, 20)):
                content[at] ^= 1 << rng.integers(0, 8)
        elif kind == 4:
            del content[rng.integers(0, length) :]
        elif kind == 5:
            start, stop = np.sort(rng.integers(0, length, 2))
            del content[start : min(stop, start + 2880)]
        elif kind == 6:
            a, b = 80 * rng.integers(0, max(length // 80, 1), 2)
            content[a : a + 80], content[b : b + 80] = content[b : b + 80], content[a : a + 80]
        else:
            at = rng.integers(0, length)
            content[at : at + 40] = rng.bytes(40)
        if not content:
            break
    return bytes(content)


@cache
def _model_bytes(folder, kind):
    path = folder / f"{kind}.fits"
    table = Table({"OBS_ID": [1, 2], "USED": [True, False], "FLAG": ["", "broken"], "NORM": [1.0, np.nan]})
    center = SkyCoord(83.63, 22.01, unit="deg")
    mask = Map.create(skydir=center, npix=40, binsz=0.1, dtype=bool)
    mask.data[:, 20:] = True
    circle = CircleSkyRegion(center, 0.3 * u.deg)
    exclusion = Exclusion([circle, circle ^ RectangleSkyRegion(center, 1 * u.deg, 2 * u.deg), mask], 0.1 * u.deg)
    AcceptanceModel(fitted(kind), CONFIG.to_yaml(), table, exclusion=exclusion).write(path, overwrite=True)
    return path.read_bytes()


def _model(rng, folder):
    path = folder / "damaged.fits"
    path.write_bytes(_damaged_fits(_model_bytes(folder, "radial"), rng))
    model = AcceptanceModel.read(path)
    assert str(model) and str(model.exclusion)


WORDS = [
    "model", "type", "spline", "radial", "grid", "energy", "min", "max", "nbins_per_decade", "offset_max", "fit_energy",
    "zenith", "azimuth", "none", "null", "~", "true", "1 TeV", "2.5 deg", "-1 deg", "1e999 TeV", "nan deg", "inf",
    "[1, 2] TeV",
    "exclusion", "regions", "mask", "margin", "/dev/null", "/", "", "\0", "run_effects", "renormalization", "fov",
    "ring",
    "time_step", "1 min", "fit_options", "observatory_location", "hess", "lon", "lat", "height",
    "!!python/object:os.system",
    "&a [*a]", "*a", "{}", "[]", "- -", ": :", "'", '"', "\t", "\n", "é", "\ud7ff", "0x10", "1_0", "2001-01-01", "<<",
    "%TAG", "---",
    "covariates", "offset_bins", "12", "0", "-3", "1e9", "adaptive", "min_counts", "spectral_model", "pl-norm", "prior",
    "..",
]  # fmt: skip


def _config(rng, folder):
    kind = rng.integers(0, 5)
    if kind == 0:  # a file of any bytes
        path = folder / "config.yaml"
        content = bytearray(AcceptanceConfig().to_yaml().encode())
        for at in rng.integers(0, len(content), rng.integers(1, 10)):
            content[at] = rng.integers(0, 256)
        path.write_bytes(bytes(content))
        AcceptanceConfig.read(path)
    elif kind == 1:  # words in place of others
        lines = AcceptanceConfig().to_yaml().splitlines()
        for _ in range(rng.integers(1, 4)):
            k = rng.integers(0, len(lines))
            lines[k] = lines[k].split(":")[0] + ": " + str(rng.choice(WORDS))
        AcceptanceConfig.from_yaml("\n".join(lines))
    elif kind == 2:  # a random tree
        AcceptanceConfig.coerce(_tree(rng, 3))
    elif kind == 3:  # one option of the right name, any value
        AcceptanceConfig.coerce({str(rng.choice(list(AcceptanceConfig.model_fields))): _tree(rng, 2)})
    else:
        deep = int(rng.choice([3, 30, 300, 3000]))
        AcceptanceConfig.from_yaml(str(rng.choice(["[", "{a: ", "- ", "model: {type: "])) * deep)


def _tree(rng, depth):
    kind = rng.integers(0, 7 if depth else 5)
    if kind < 3:
        return str(rng.choice(WORDS))
    if kind < 5:
        return [None, True, 0, -1, 10**30, 1e300, np.nan, np.inf, 1 * u.TeV, b"x", object(), 1 * u.deg][
            rng.integers(0, 12)
        ]
    if kind == 5:
        return [_tree(rng, depth - 1) for _ in range(rng.integers(0, 3))]
    return {str(rng.choice(WORDS)): _tree(rng, depth - 1) for _ in range(rng.integers(0, 4))}


@cache
def _reduction():
    pointing, seconds = tracking(120, 62), np.linspace(1, 1699, 40)
    positions = random_in_cap(pointing_at(pointing, seconds), 2, 40, np.random.default_rng(0))
    return pointing, event_table(seconds, positions, np.geomspace(0.2, 50, 40)), make_bins(CONFIG), Exclusion()


BAD = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e300, -1e300, 1e-300, 1e20]


def _events(rng, folder):
    pointing, table, bins, exclusion = _reduction()
    table = table.copy()
    for _ in range(rng.integers(1, 4)):
        name, kind = str(rng.choice(["RA", "DEC", "ENERGY", "TIME"])), rng.integers(0, 7)
        if name not in table.colnames:
            continue
        column = table[name]
        if kind == 0:
            del table[name]
        elif kind == 1:
            table = table[: rng.integers(0, 3)]
        elif kind in (2, 3) and name != "TIME" and column.dtype.kind == "f":
            where = rng.integers(0, max(len(table), 1), 5)
            column[where[where < len(table)]] = rng.choice(BAD)
        elif kind in (2, 3, 4) and name == "TIME":
            table[name] = Time(rng.choice([0.0, 51544.0, 1e5, 58970.92, -1e4], len(table)), format="mjd", scale="tt")
        elif kind == 4:
            table[name] = Column(
                np.asarray(column), unit=str(rng.choice(["s", "deg", "TeV", "m", "eV", "rad", "", "furlong"]))
            )
        elif kind == 5:
            dtype = rng.choice(["U5", "i2", "bool", "f2", "c16", "O"])
            table[name] = Column(np.zeros(len(table), dtype), unit=getattr(column, "unit", None))
        else:
            table[name] = MaskedColumn(
                np.ones(len(table)), mask=rng.random(len(table)) < 0.5, unit=getattr(column, "unit", None)
            )
    events = EventList.__new__(EventList)  # gammapy's own checks are not what is tested
    events.table, events.meta = table, None
    observation = make_observation(pointing)
    observation.events = events
    for part in Reduction(CONFIG, bins, exclusion).reduce(observation).slices:
        assert 0 < part.counts.sum() <= len(table)
        assert np.isfinite(part.exposure).all() and (part.exposure >= 0).all() and part.exposure.max() <= 1701


@cache
def _stored(folder):
    """A cache with one entry, its observation and its bytes."""
    pointing, table, bins, exclusion = _reduction()
    path = folder / "event-file.fits"
    observation = make_observation(pointing, table=table)
    observation.events.table.meta.update(
        {
            "MJDREFI": 51544,
            "MJDREFF": 0.5,
            "TIMESYS": "tt",
            "TIMEUNIT": "s",
            "TIMEREF": "local",
            "GEOLON": 16.5,
            "GEOLAT": -23.27,
            "ALTITUDE": 1835.0,
            "DEADC": 0.94,
        }
    )
    observation.write(path, overwrite=True, include_irfs=False)
    stored = _lazy(path)
    reduction = Reduction(CONFIG, bins, exclusion)
    run_cache, run = reduction.open_cache(folder / "cache"), reduction.reduce(observation)
    run_cache.put(stored, run, in_memory(stored))
    return run_cache, stored, run, run_cache.path(stored).read_bytes()


def _cache(rng, folder):
    run_cache, observation, run, content = _stored(folder)
    run_cache.path(observation).write_bytes(_damaged_fits(content, rng))
    found = run_cache.get(observation)
    if found is None:
        raise AcceptanceError("not used")
    for here, there in zip(found.slices, run.slices, strict=True):
        assert np.array_equal(here.counts.toarray(), there.counts.toarray())
        assert np.array_equal(here.exposure, there.exposure) and here.livetime == there.livetime


def _event_file(rng, folder):
    _stored(folder)
    path = folder / "damaged-events.fits"
    path.write_bytes(_damaged_fits(_event_bytes(folder), rng))
    _, _, bins, exclusion = _reduction()
    for part in Reduction(CONFIG, bins, exclusion).reduce(_lazy(path)).slices:
        assert np.isfinite(part.exposure).all() and (part.exposure >= 0).all()
        assert np.isfinite(part.counts.data).all() and part.counts.nnz <= 40


def _lazy(path):
    """The observation of a file, which is read when it is needed, as those of a data store."""
    hdus = {"events": "EVENTS", "gti": "GTI", "pointing": "EVENTS", "observation_metadata": "EVENTS"}
    at = {kind: HDULocation(kind, "", str(path.parent), path.name, name) for kind, name in hdus.items()}
    meta = at.pop("observation_metadata")
    return Observation(obs_id=7, meta=meta, **at)


@cache
def _event_bytes(folder):
    return (folder / "event-file.fits").read_bytes()


KINDS = ["model", "config", "events", "event_file", "cache"]
