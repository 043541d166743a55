"""Reduced runs on disk: a run whose files and settings are the same is not read again.

One FITS file for each run and set of settings. Its name comes from paths and settings alone, and what it holds from
their state: a run that has changed replaces its entry. Entries are numbers with a checksum; one that is damaged is
thrown away. `fingerprint` is one number for what a reduction depends on, the same in every process and session.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord
from astropy.io import fits
from astropy.time import Time
from gammapy.data import GTI, EventList, FixedPointingInfo, Observation, ObservationMetaData
from scipy.sparse import csr_array

from gammapy_accmaker.data.notes import RunNotes
from gammapy_accmaker.data.observations import event_locations
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice
from gammapy_accmaker.data.sky_counts import SkyCounts
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.source_terms import CountsPatch
from gammapy_accmaker.utils.few_bytes import in_few_bytes
from gammapy_accmaker.utils.files import as_path, write_atomically
from gammapy_accmaker.utils.hdu_sizes import check_hdu_sizes
from gammapy_accmaker.utils.run_key import RunKey, run_label

log = logging.getLogger(__name__)


def fingerprint(*values) -> str:
    """SHA-256 of values: numbers, text, arrays, times, regions, maps, and what holds them.

    Arrays count to the last digit; caches that an object fills as it is used do not.
    """
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest, value):
    digest.update(f"<{type(value).__name__}>".encode())
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
        digest.update(repr(value).encode())
    elif isinstance(value, u.Quantity):
        _add(digest, (np.asarray(value.value), str(value.unit)))
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        _add(digest, sorted(value.items()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    elif is_dataclass(value):
        # what does not count in a comparison follows from the rest
        _add(digest, [(f.name, getattr(value, f.name)) for f in fields(value) if f.compare])
    else:
        _add(digest, _content(value))
    digest.update(b";")


def _content(value):
    """What counts of the objects of other packages."""
    if isinstance(value, EarthLocation):
        return [float(x.to_value("m")) for x in value.geocentric]
    if isinstance(value, Time):
        return np.asarray(value.tt.jd1), np.asarray(value.tt.jd2)
    if isinstance(value, SkyCoord):
        data = value.spherical
        return value.frame.name, data.lon.to_value("deg"), data.lat.to_value("deg")
    if isinstance(value, GTI):
        return value.time_start, value.time_stop
    if isinstance(value, FixedPointingInfo):
        return value.fixed_icrs, value.fixed_altaz
    if isinstance(value, ObservationMetaData):
        target = None if value.target is None else value.target.position
        return value.deadtime_fraction, value.location, target
    if isinstance(value, EventList):
        table = value.table
        columns = [(np.ma.getdata(table[key]), np.ma.getmaskarray(table[key])) for key in ("RA", "DEC", "ENERGY")]
        header = sorted((str(key), str(item)) for key, item in table.meta.items())
        return columns, [str(table[key].unit) for key in ("RA", "DEC", "ENERGY")], value.time, header
    if callable(value):
        return value.__module__, value.__qualname__
    return vars(value)


_FORMAT = "gammapy_accmaker run"
_FORMAT_VERSION = 9  # raised when what a reduction gives, or how it is stored, changes
_MAX_BYTES = 2**30
_RESPONSES = ("aeff", "edisp", "psf")  # that the counts of sources follow from
_NUMBERS = ("ontime", "livetime", "cos_zenith", "azimuth", "mjd")


@dataclass(frozen=True)
class RunCache:
    """Reduced runs in a folder, for one set of settings."""

    folder: Path
    settings: str
    shape: tuple[int, int]
    responses: bool = False

    @classmethod
    def open(cls, folder, settings: str, shape: tuple[int, int], responses: bool = False) -> RunCache:
        """A cache in a folder, which is made.

        ``settings``: fingerprint of all that a reduction depends on besides the observation; ``shape``: of the counts
        of a slice; ``responses``: whether the responses of the run are read too.
        """
        folder = as_path(folder, "cache")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cache: {folder} cannot be made a folder ({error}); give one that can be written"
            ) from error
        used = version("gammapy_accmaker"), version("gammapy"), _FORMAT_VERSION, settings
        return cls(folder.absolute(), fingerprint(used), shape, responses)

    def get(self, observation) -> ReducedRun | None:
        """A reduced run, where its files, its settings and what was changed in memory are the same; else None."""
        path = self.path(observation)
        if path is None or not path.is_file():
            return None
        try:
            check_hdu_sizes(path, _MAX_BYTES)
            return self._read(path, observation)
        except Exception as error:  # whatever a damaged file leads to
            log.warning(
                f"cache: {path} is damaged ({error}); it is thrown away and run {observation.obs_id} is read again"
            )
            path.unlink(missing_ok=True)
            return None

    def put(self, observation, run: ReducedRun, held: dict[str, str]) -> None:
        """Store a run that was just reduced; ``held``: what `in_memory` said before.

        Nothing is stored of a run that does not come from its files alone.
        """
        path = self.path(observation)
        if path is None or not held.items() <= (_in_files(observation) if held else {}).items():
            return
        # of what is empty no shape is stored
        arrays = {name: values if values.size else np.zeros(0) for name, values in _to_arrays(run).items()}
        primary = fits.PrimaryHDU()
        state = {"files": self._file_state(observation), "memory": in_memory(observation)}
        primary.header.update({"FORMAT": _FORMAT, "VERSION": _FORMAT_VERSION, "DIGEST": _digest(arrays, state)})
        hdus = [fits.ImageHDU(values if values.size else None, name=name) for name, values in arrays.items()]
        text = np.frombuffer(json.dumps(state).encode(), dtype="u1")
        try:
            hdulist = fits.HDUList([primary, *hdus, fits.ImageHDU(text, name="STATE")])
            write_atomically(path, hdulist.writeto, overwrite=True)
        except OSError as error:
            log.warning(f"cache: run {observation.obs_id} cannot be stored in {self.folder} ({error})")

    def path(self, observation) -> Path | None:
        """File of the entry of an observation; None where it cannot be told what its events are."""
        locations, chosen = event_locations(observation), observation.obs_filter
        # a class of its own may give other events than those of its file
        changed = type(observation) is not Observation or any(
            isinstance(value, EventList) for value in vars(observation).values()
        )
        if not any(one.hdu_class == "events" for one in locations) or changed or chosen.event_filters:
            return None
        if self.responses and any(vars(observation).get(name) is not None for name in _RESPONSES):
            return None
        where = sorted((one.hdu_class, str(one.path().absolute()), str(one.hdu_name)) for one in locations)
        times = chosen.time_filter, getattr(chosen, "inverted_time", False)
        label = str(run_label(observation.obs_id))
        name = fingerprint(self.settings, label, where, times)
        # the label is for whoever looks into the folder; what tells entries apart is the fingerprint
        return self.folder / f"run-{re.sub(r'[^A-Za-z0-9._-]', '_', label)[:40]}-{name[:32]}.fits"

    def _read(self, path, observation):
        with fits.open(path, memmap=False, disable_image_compression=True) as hdulist:
            header = hdulist[0].header
            if header.get("FORMAT") != _FORMAT or header.get("VERSION") != _FORMAT_VERSION:
                raise InputError("it is no entry of this version")
            state = json.loads(hdulist["STATE"].data.tobytes())
            arrays = {}
            for hdu in hdulist[1:-1]:
                values = np.zeros(0) if hdu.data is None else hdu.data
                arrays[hdu.name] = values.astype(values.dtype.newbyteorder("="))
            digest = header["DIGEST"]
        if digest != _digest(arrays, state):
            raise InputError("its checksum does not fit")
        changed = in_memory(observation).items() - state["memory"].items()
        if changed or state["files"] != self._file_state(observation):
            return None
        return _from_arrays(arrays, run_label(observation.obs_id), self.shape)

    def _file_state(self, observation):
        """Size and time of each file that is read."""
        locations = event_locations(observation)
        if self.responses:
            given = (vars(observation).get(f"_{name}_hdu") for name in _RESPONSES)
            locations += [one for one in given if one is not None]
        paths = sorted({one.path().absolute() for one in locations})
        return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def in_memory(observation) -> dict[str, str]:
    """Fingerprints of what the observation holds already, read or set by the user, by its kind."""
    kinds = (GTI, FixedPointingInfo, ObservationMetaData, EarthLocation)
    return {
        type(value).__name__: fingerprint(value) for value in vars(observation).values() if isinstance(value, kinds)
    }


def _in_files(observation):
    """The same of what its files say."""
    loaded = [one.load() for one in event_locations(observation) if one.hdu_class != "events"]
    return {type(value).__name__: fingerprint(value) for value in loaded}


def _digest(arrays, state):
    return fingerprint(arrays, hashlib.sha256(json.dumps(state).encode()).hexdigest())


def _to_arrays(run):
    slices, texts = run.slices, {"covariates": run.covariates, "dropped": run.dropped, "notes": asdict(run.notes)}
    counts = [part.counts.tocoo() for part in slices]
    size = slices[0].counts.shape[1]
    return {
        # FITS has no empty images, and a slice may be without counts
        "NUMBER": np.array([part.nnz for part in counts], dtype="i4"),
        "INDEX": np.concatenate([part.row.astype("i4") * size + part.col for part in counts]).astype("i4"),
        "COUNTS": np.concatenate([part.data for part in counts]).astype("i4"),
        "EXPOSURE": np.array([part.exposure for part in slices], dtype="f8"),
        **_displacements(slices),
        **_patches(slices, slices[0].counts.shape),
        "VALUES": np.array(
            [[*(getattr(part, name) for name in _NUMBERS), *part.pointing, *part.cos_zenith_range] for part in slices],
            dtype="f8",
        ),
        **_sky(run.sky, slices[0].counts.shape[0]),
        "START": np.array([run.key.start, *run.key.pointing], dtype="f8"),
        "TEXTS": np.frombuffer(json.dumps(texts).encode(), dtype="u1"),
    }


def _patches(parts, shape, where=""):
    """What sources add to each slice, or on the sky: of known flux first, then of each that is free; where there are
    some."""
    if all(part.signal is None and not part.sources for part in parts):
        return {}
    patches: list[CountsPatch] = []
    for part in parts:
        patches += [part.signal or CountsPatch.nothing(shape), *part.sources]
    return {
        where + "PATCHES": np.array([len(patch.columns) for patch in patches], dtype="i4"),
        where + "COLUMNS": np.concatenate([patch.columns for patch in patches]).astype("i4"),
        where + "SOURCES": np.concatenate([patch.values for patch in patches], axis=1).astype("f4"),
    }


def _read_patches(arrays, n_slice, shape, where=""):
    """Signal and sources of each slice, or on the sky, the inverse of `_patches`."""
    if where + "PATCHES" not in arrays:
        return [(None, ())] * n_slice
    ends = np.cumsum(arrays[where + "PATCHES"])[:-1]
    values = np.split(arrays[where + "SOURCES"].astype(np.float32).reshape(shape[0], -1), ends, axis=1)
    columns = np.split(arrays[where + "COLUMNS"].astype(np.int32), ends)
    patches = [CountsPatch(c, v, shape[1]) for c, v in zip(columns, values, strict=True)]
    each = len(patches) // n_slice
    own = [patches[k : k + each] for k in range(0, len(patches), each)]
    return [(first if len(first.columns) else None, tuple(others)) for first, *others in own]


def _displacements(slices):
    """Of the bins of each slice, where any has some."""
    some = next((part.displacement for part in slices if part.displacement is not None), None)
    if some is None:
        return {}
    none = np.zeros_like(some)
    values = [none if part.displacement is None else part.displacement for part in slices]
    return {"DISPLACEMENT": np.array(values, dtype="f4")}


def _sky(sky, n_energy):
    """The events on the sky; the side of the grid and the matrix stand before the nodes in time."""
    if sky is None:
        return {}
    nodes = np.column_stack([sky.slices, sky.seconds, sky.turns.reshape(-1, 9)])
    first = np.concatenate([[sky.side, 0.0], sky.matrix.ravel()])
    return {
        "SKYINDEX": sky.index.astype("i4"),
        "SKYCOUNT": sky.counts.astype("i4"),
        "SKYNODES": np.vstack([first, nodes]).astype("f8"),
        **_patches([sky], (n_energy, sky.side**2), "SKY"),
    }


def _sky_of(arrays, n_energy):
    if "SKYNODES" not in arrays:
        return None
    first, *nodes = arrays["SKYNODES"].reshape(-1, 11)
    nodes, side = np.array(nodes), int(first[0])
    ((signal, sources),) = _read_patches(arrays, 1, (n_energy, side**2), "SKY")
    return SkyCounts(
        index=in_few_bytes(arrays["SKYINDEX"]),
        counts=in_few_bytes(arrays["SKYCOUNT"]),
        side=side,
        matrix=first[2:].reshape(3, 3),
        slices=nodes[:, 0].astype(np.int8),
        seconds=nodes[:, 1].copy(),
        turns=nodes[:, 2:].reshape(-1, 3, 3).copy(),
        signal=signal,
        sources=sources,
    )


def _from_arrays(arrays, label, shape):
    index, counts = arrays["INDEX"], arrays["COUNTS"]
    ends = np.cumsum(arrays["NUMBER"])
    texts = json.loads(arrays["TEXTS"].tobytes())
    notes, covariates = texts.pop("notes"), texts["covariates"]
    notes = RunNotes(**notes | {"site": None if notes["site"] is None else tuple(notes["site"])})
    slices, (first, *pointing) = [], arrays["START"].tolist()
    displacements = [own if own.any() else None for own in arrays.get("DISPLACEMENT", [])]
    displacements = displacements or [None] * len(arrays["EXPOSURE"])
    key = RunKey(label, first, tuple(pointing))
    of_sources = _read_patches(arrays, len(ends), shape)
    for start, stop, exposure, displacement, values, (signal, sources) in zip(
        ends - arrays["NUMBER"], ends, arrays["EXPOSURE"], displacements, arrays["VALUES"], of_sources, strict=True
    ):
        row, column = np.divmod(index[start:stop], shape[1])
        matrix = csr_array((counts[start:stop], (row, column)), shape=shape)
        *numbers, lon, lat, low, high = map(float, values)
        given = {
            "exposure": exposure.copy(),
            "displacement": displacement,
            "pointing": (lon, lat),
            "cos_zenith_range": (low, high),
            "covariates": covariates,
            **dict(zip(_NUMBERS, numbers, strict=True)),
        }
        slices.append(RunSlice(key=key, counts=matrix, signal=signal, sources=sources, **given))
    return ReducedRun(key, tuple(slices), notes=notes, sky=_sky_of(arrays, shape[0]), **texts)
