"""Predicted backgrounds in a DL3 store that gammapy, or any other reader of the format, opens.

The new store has index tables of its own, one background file for each run, and links to the files of the original
store or copies of them. No original file is changed.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from copy import copy as shallow_copy
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore, Observation
from gammapy.irf import IRF_REGISTRY, Background2D, FoVAlignment
from gammapy.maps import MapAxis

from gammapy_accmaker.acceptance.fit import warn_outside_zenith
from gammapy_accmaker.data.observations import read_files
from gammapy_accmaker.errors import AcceptanceError, InputError
from gammapy_accmaker.products.irf import RATE_UNIT
from gammapy_accmaker.utils.files import as_path, write_atomically
from gammapy_accmaker.utils.parallel import Execution, ProcessDiedError
from gammapy_accmaker.utils.run_key import reason_of

log = logging.getLogger(__name__)

HDU_INDEX, OBS_INDEX = "hdu-index.fits.gz", "obs-index.fits.gz"
_HDU_COLUMNS = ["OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME", "HDU_NAME"]
_BACKGROUND_DIR, _LINK_DIR, _COPY_DIR = "background", "links", "runs"
_BACKGROUND_HDU, _PRIMARY_HDU = "BACKGROUND", fits.PrimaryHDU().header.tostring().encode("ascii")


def attach_background(
    data_store, maker, path, *, obs_ids=None, overwrite: bool = False, n_jobs=None, copy: bool = False
) -> DataStore:
    """Write a data store whose runs have the background that a maker predicts.

    The background of a run is what ``maker.make_irf`` gives, in the frame that gammapy will read it in: for the files
    of H.E.S.S. DL3 DR1 gammapy takes every background as aligned with right ascension and declination, with the
    longitude reversed, whatever its header says. There the field is averaged over time in that frame.

    gammapy joins the rates at the energy edges of a dataset by a power law, which is right for 20 bins a decade between
    the energies of the model; with others ``background_oversampling`` of its `~gammapy.makers.MapDatasetMaker` keeps it
    from cutting the corners of the spectrum.

    Parameters
    ----------
    data_store : `~gammapy.data.DataStore`
        Store with the runs; it is not changed.
    maker : `AcceptanceBackgroundMaker`
        A fitted maker.
    path : str or `~pathlib.Path`
        Folder of the new store; it is made.
    obs_ids : list of int, optional
        Runs of the new store; default: all. Elsewhere numbers are labels; in an index table each run needs its own.
    overwrite : bool
        Replace a store that was written there earlier.
    n_jobs : int, optional
        Processes; gammapy's default.
    copy : bool
        Write files with all of a run in place of links, so that the store can be moved elsewhere.

    Returns
    -------
    data_store : `~gammapy.data.DataStore`
        The new store. A run that cannot be used is named in a warning and stays in it without a background; the columns
        BKG_USED and BKG_FLAG of the observation table say which have one, and why not.

    Raises
    ------
    InputError
        For a path that is taken, or that is the folder of the original store; for unknown runs.
    NotFittedError
        Where the maker has no model.

    Examples
    --------
    >>> from gammapy_accmaker import attach_background
    >>> new_store = attach_background(data_store, maker, "dl3-with-background")  # doctest: +SKIP
    >>> new_store.get_observations([23523], required_irf="full-enclosure")  # doctest: +SKIP
    """
    if not isinstance(data_store, DataStore):
        raise InputError(
            f"data_store: got {type(data_store).__name__}, but a DataStore is needed; use DataStore.from_dir(path)"
        )
    if not hasattr(maker, "make_irf"):
        raise InputError(
            f"maker: got {type(maker).__name__}, but an AcceptanceBackgroundMaker is needed; of a model it is "
            "`AcceptanceBackgroundMaker(model=model)`"
        )
    _ = maker.model  # says what to do where there is none
    obs_ids, execution = _selected(data_store, obs_ids), Execution.of(n_jobs)
    path = _checked_folder(data_store, path, overwrite)

    rows, missing = _rows_with_files(data_store, obs_ids)
    present = [obs_id for obs_id in obs_ids if obs_id in rows]
    tasks = [(obs_id, rows[obs_id]) for obs_id in present]
    results = execution.map(partial(_attach_to_run, data_store, maker, path, copy), tasks, "Backgrounds")
    index, reasons, zenith = [], {}, {}
    for obs_id, result in zip(present, results, strict=True):
        entries, reason, cos_zenith = ([], str(result), None) if isinstance(result, ProcessDiedError) else result
        index += entries
        reasons[obs_id] = reason
        if cos_zenith is not None:
            zenith[obs_id] = cos_zenith
    warn_outside_zenith(maker.model.rate_model, zenith)
    _warn(missing, {obs_id: reason for obs_id, reason in reasons.items() if reason})
    if not index:
        raise InputError(f"data_store: no file of its {len(obs_ids)} runs was found in it; is it complete?")
    _write_index(data_store, path, index, reasons)
    return DataStore.from_dir(path)


def _selected(data_store, obs_ids):
    try:
        known = {int(i) for i in data_store.obs_ids}
    except ValueError as error:
        raise InputError(
            f"data_store: its OBS_ID must be whole numbers, by which the format tells runs apart ({error}); "
            "number the runs"
        ) from error
    try:
        obs_ids = sorted(known) if obs_ids is None else sorted({int(i) for i in np.ravel(obs_ids)})
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"obs_ids: got {obs_ids!r}, but a list of numbers of runs is needed, such as [{min(known)}]"
        ) from error
    unknown = sorted(set(obs_ids) - known)
    if unknown or not obs_ids:
        raise InputError(
            f"obs_ids: got {unknown or 'none'}, but runs of the data store are needed, such as {min(known)}"
        )
    events = [kind.strip() == "events" for kind in data_store.hdu_table["HDU_TYPE"]]
    times = Counter(data_store.hdu_table["OBS_ID"][events].tolist())
    if data_store.obs_table is not None:
        times |= Counter(data_store.obs_table["OBS_ID"].tolist())
    repeated = [k for k in obs_ids if times[k] > 1]
    if repeated:
        raise InputError(
            f"data_store: it names the run {', '.join(map(str, repeated[:5]))} more than once, but index tables tell "
            "runs apart by OBS_ID; give each run a number of its own, "
            "or attach each of the stores that it was made of alone"
        )
    return obs_ids


def _checked_folder(data_store, path, overwrite):
    path = as_path(path).absolute()
    if path.resolve() == data_store.hdu_table.base_dir.resolve() and "BASE_DIR" in data_store.hdu_table.meta:
        raise InputError(f"path: {path} is the folder of the original data store; give another, it is left as it is")
    if path.exists() and not path.is_dir():
        raise InputError(f"path: {path} is a file, but a folder is needed")
    if (path / HDU_INDEX).exists() and not overwrite:
        raise InputError(f"path: {path} holds a data store; pass overwrite=True to replace it")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _rows_with_files(data_store, obs_ids):
    """Index entries with their files, by run, without those of the backgrounds; and files that are missing."""
    table = data_store.hdu_table
    rows: dict[int, list] = {}
    missing: dict[int, set] = {}
    exists = {}
    for k, obs_id in enumerate(table["OBS_ID"]):
        obs_id = int(obs_id)
        if obs_id not in obs_ids or table["HDU_TYPE"][k].strip() == "bkg":
            continue
        location = table.location_info(k)
        file = location.path().absolute()
        if file not in exists:
            exists[file] = file.is_file()
        if exists[file]:
            entry = [str(table[name][k]).strip() for name in ("HDU_TYPE", "HDU_CLASS", "HDU_NAME")]
            rows.setdefault(obs_id, []).append((*entry, file))
        else:
            missing.setdefault(obs_id, set()).add(file)
    return rows, missing


def _attach_to_run(data_store, maker, path, copy, obs_id, rows):
    """Write the files of a run; return its index entries, why it has no background, or else its mean cos zenith."""
    background, reason, cos_zenith = None, "", None
    try:
        background, cos_zenith = _Background.of(data_store, maker, obs_id)
    except (AcceptanceError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        reason = reason_of(error, obs_id)
    if copy:
        return _copied(path, obs_id, rows, background), reason, cos_zenith
    return _linked(data_store, path, obs_id, rows, background), reason, cos_zenith


class _Background(NamedTuple):
    """The background of a run: class and content of its HDU, as it is in a file."""

    hdu_class: str
    content: bytes

    @classmethod
    def of(cls, data_store, maker, obs_id):
        """That of a run, and its mean cos zenith."""
        observation = read_files(data_store.obs(obs_id, required_irf=[]))
        irf, cos_zenith = maker.make_irf_with_zenith(observation, _alignment_read(observation))
        axes = tuple((axis.name, axis.unit, axis.edges.value.tobytes()) for axis in irf.axes)
        header, columns = _before_rates(irf.tag, irf.fov_alignment, axes)
        # written by astropy 8, which turns bytes around one number at a time, it takes as long as to make it
        columns += irf.data.T.astype(">f4").tobytes()  # 1e-7, and half the size
        return cls(irf.tag, header.replace(_card(0), _card(obs_id)) + columns + bytes(-len(columns) % 2880)), cos_zenith


@lru_cache(maxsize=8)
def _before_rates(tag, alignment, axes):
    """Header and first columns, those of the axes, of the table of a background, as they are in its file.

    They are made for the first of the runs that share them: gammapy and astropy take 5 ms for it.
    """
    axes = [MapAxis.from_edges(np.frombuffer(edges), unit=unit, name=name) for name, unit, edges in axes]
    meta = {"FOVALIGN": alignment.value, "OBS_ID": 0, "CREATOR": "gammapy_accmaker"}
    irf = IRF_REGISTRY.get_cls(tag)(axes=axes, unit=RATE_UNIT, fov_alignment=alignment, meta=meta)
    irf.data = irf.data.astype("float32")
    hdu = irf.to_table_hdu()
    hdu.name = _BACKGROUND_HDU
    # gammapy writes the alignment of a 3D background alone, but a reader may look for it in a 2D one too
    hdu.header["FOVALIGN"] = alignment.value
    row = hdu.data.view(np.ndarray)
    columns = row.astype(row.dtype.newbyteorder(">")).tobytes()
    return hdu.header.tostring().encode("ascii"), columns[: -irf.data.nbytes]


def _card(obs_id):
    return fits.Card("OBS_ID", obs_id).image.encode("ascii")


def _alignment_read(observation):
    """The alignment that gammapy forces on any background of this observation;
    None where it keeps that of the header."""
    probe = shallow_copy(_probe())
    seen = Observation(meta=observation.meta, bkg=probe).bkg.fov_alignment
    return None if seen == _probe().fov_alignment else seen.value.lower()


@lru_cache(maxsize=1)
def _probe():
    axes = [
        MapAxis.from_energy_bounds("1 TeV", "2 TeV", 1),
        MapAxis.from_edges([0, 1], unit="deg", name="offset"),
    ]
    return Background2D(axes=axes, data=np.zeros((1, 1)), fov_alignment=FoVAlignment.ALTAZ)


def _background_entry(obs_id, background, folder, name):
    return obs_id, "bkg", background.hdu_class, folder, name, _BACKGROUND_HDU


def _linked(data_store, path, obs_id, rows, background):
    base, entries = data_store.hdu_table.base_dir.absolute(), []
    links = {file: path / _LINK_DIR / _place(base, file) for *_, file in rows}
    for file, link in links.items():
        _make_link(link, file)
    for hdu_type, hdu_class, hdu_name, file in rows:
        folder = links[file].parent.relative_to(path).as_posix()
        entries.append((obs_id, hdu_type, hdu_class, folder, links[file].name, hdu_name))
    if background is not None:
        file = path / _BACKGROUND_DIR / f"background_{obs_id:06d}.fits"
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, lambda t: t.write_bytes(_PRIMARY_HDU + background.content), overwrite=True)
        entries.append(_background_entry(obs_id, background, _BACKGROUND_DIR, file.name))
    return entries


def _place(base, file):
    """Where the link to a file lies: as in the original store, or under its whole path where it is outside."""
    inside = Path(os.path.normpath(file))
    if inside.is_relative_to(base):
        return inside.relative_to(base)
    return Path("outside", *inside.parts[1:])


def _make_link(link, file):
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(file.resolve(), link.parent.resolve())
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.exists() and not link.is_symlink():
        raise InputError(f"path: {link} is a file, but a link would take its place; give another folder")
    try:
        write_atomically(link, lambda temporary: temporary.symlink_to(target), overwrite=True)
    except OSError as error:
        raise InputError(f"path: no link can be made at {link} ({error}); pass copy=True") from error


def _copied(path, obs_id, rows, background):
    """One file with all of a run: the HDUs of its event file, those of other files in the index, and the background."""
    file = path / _COPY_DIR / f"run_{obs_id:06d}.fits"
    sources = {f: [name.upper() for _, _, name, g in rows if g == f] for *_, f in rows}
    event_file = next((f for kind, *_, f in rows if kind == "events"), rows[0][-1])
    elsewhere = {name for source, names in sources.items() if source != event_file for name in names}
    taken, opened = [], []
    try:
        for source in [event_file, *(f for f in sources if f != event_file)]:
            opened.append(fits.open(source, memmap=False))
            for one in opened[-1]:
                is_background = one.header.get("HDUCLAS2", "").strip().upper() == "BKG" or one.name == _BACKGROUND_HDU
                # of the event file all that the index does not take from elsewhere
                wanted = one.name in sources[source] or (source == event_file and one.name not in elsewhere)
                if wanted and not is_background:
                    taken.append(one)
        if background is not None:
            taken.append(fits.BinTableHDU.fromstring(background.content))
        file.parent.mkdir(exist_ok=True)
        # a header of somebody else is copied as it is
        write_atomically(file, lambda t: fits.HDUList(taken).writeto(t, output_verify="ignore"), overwrite=True)
    finally:
        for one in opened:
            one.close()
    entries = [(obs_id, kind, hdu_class, _COPY_DIR, file.name, name) for kind, hdu_class, name, _ in rows]
    return entries if background is None else [*entries, _background_entry(obs_id, background, _COPY_DIR, file.name)]


def _write_index(data_store, path, index, reasons):
    hdu_table = Table(rows=index, names=_HDU_COLUMNS)
    hdu_table.meta = {
        "EXTNAME": "HDU_INDEX",
        "HDUCLASS": "GADF",
        "HDUVERS": "0.3",
        "HDUCLAS1": "INDEX",
        "HDUCLAS2": "HDU",
    }
    tables = {HDU_INDEX: hdu_table}
    if data_store.obs_table is not None:
        # no unit of somebody else is parsed on the way
        obs_table = Table(data_store.obs_table[np.isin(data_store.obs_table["OBS_ID"], list(reasons))], copy=True)
        flags = [reasons[int(i)] for i in obs_table["OBS_ID"]]
        obs_table["BKG_USED"] = [not flag for flag in flags]
        obs_table["BKG_FLAG"] = [flag.encode("ascii", "replace").decode() for flag in flags]
        obs_table.meta["EXTNAME"] = "OBS_INDEX"
        tables[OBS_INDEX] = obs_table
    for name, table in tables.items():
        write_atomically(path / name, partial(table.write, format="fits"), overwrite=True)


def _warn(missing, reasons):
    if missing:
        lines = "\n".join(f"  {obs_id}: {', '.join(map(str, sorted(files)))}" for obs_id, files in missing.items())
        log.warning(f"the index tables name files that are missing; they are left out of the new store:\n{lines}")
    if reasons:
        lines = "\n".join(f"  {obs_id}: {reason}" for obs_id, reason in reasons.items())
        log.warning(f"{len(reasons)} runs have no background in the new store:\n{lines}")
