"""Under which conditions runs were taken, from a table of observations or from the observations,
and how they differ."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import angular_separation
from astropy.table import Table
from astropy.time import Time
from gammapy.data import Observations

from gammapy_accmaker.camera.track import time_nodes
from gammapy_accmaker.data.counts import MUON_EFFICIENCY, header_number, observation_track, run_key
from gammapy_accmaker.data.observations import as_observations, read_files
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.utils.run_key import RunKey, require_runs, run_label, run_names

log = logging.getLogger(__name__)

# criterion: unit of its difference, and the difference that counts as 1 where it has no limit
CRITERIA = {
    "zenith": (u.deg, 5.0),
    "cos_zenith": (u.one, 0.05),
    "azimuth": (u.deg, 45.0),
    "pointing": (u.deg, 5.0),
    "time": (u.d, 30.0),
    "muon_efficiency": (u.one, 0.05),
}
_TRACK_STEP = 300.0  # s


@dataclass(frozen=True)
class _RunConditions:
    """What is known of runs.

    Attributes
    ----------
    keys : list of `RunKey`, shape (n,)
        The start is not known of runs of a table without times.
    names : list of int or str, shape (n,)
        What they are called in messages.
    places : list of int, shape (n,)
        Where they stand in the list or table.
    hours : `~numpy.ndarray`, shape (n,)
        Ontime in h.
    values : dict of `~numpy.ndarray`, shape (n,)
        ``cos_zenith``, ``azimuth`` (deg), ``time`` (MJD), as far as they are asked for, and columns by their names.
    units : dict
        Units of those columns that have one.
    unusable : dict of str
        Why runs are missing here, by name.
    """

    keys: list[RunKey]
    names: list[int | str]
    places: list[int]
    hours: np.ndarray
    values: dict[str, np.ndarray]
    units: dict[str, u.Unit]
    unusable: dict[int | str, str]


def run_conditions(argument: str, runs, names, same, location=None) -> _RunConditions:
    """Conditions of runs.

    Parameters
    ----------
    argument : str
        What the caller calls the runs; for errors.
    runs : `~gammapy.data.Observations` or `~astropy.table.Table`
    names : list of str
        Criteria (the keys of `CRITERIA`) and columns of numbers.
    same : tuple of str
        Other columns that are wanted.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of an observation.
    """
    columns = [name for name in dict.fromkeys((*names, *same)) if name not in CRITERIA]
    if "muon_efficiency" in names:
        columns.append(MUON_EFFICIENCY)
    if isinstance(runs, Table | list | tuple | Observations) and len(runs) == 0:
        raise InputError(
            f"{argument}: got no observations, but at least one is needed; check the selection of the data store"
        )
    if isinstance(runs, Table):
        found = _from_table(argument, runs, names, columns)
    else:
        found = _from_observations(argument, as_observations(runs, argument), columns, same, location)
    for name in columns:
        if name not in same and found.values[name].dtype.kind not in "biuf":
            raise InputError(
                f"column {name!r}: got values such as {found.values[name][0]!r}, but numbers are needed; "
                "give it as `same`"
            )
    return found


def _from_table(argument, table, names, columns):
    needed: dict[str, tuple[str, ...]] = {"OBS_ID": (), "ONTIME": ()}
    if {"zenith", "cos_zenith", "pointing"} & set(names):
        needed["zenith"] = ("ZEN_PNT", "ALT_PNT")
    if {"azimuth", "pointing"} & set(names):
        needed["azimuth"] = ("AZ_PNT",)
    if "time" in names:
        needed["time"] = ("TSTART",)
    needed |= dict.fromkeys(columns, ())
    for name, alternatives in needed.items():
        if not any(c in table.colnames for c in alternatives or (name,)):
            raise InputError(
                f"{argument}: its table has no column {' or '.join(alternatives or (name,))!r}; it has "
                f"{', '.join(table.colnames)}"
            )
    starts, hours = _starts(table), _seconds(table["ONTIME"]) / 3600
    values = {name: _plain(table[name]) for name in columns}
    units = {name: table[name].unit for name in columns if table[name].unit is not None}
    if "zenith" in needed:
        zenith = _angle(table["ZEN_PNT"]) if "ZEN_PNT" in table.colnames else 90 - _angle(table["ALT_PNT"])
        values["cos_zenith"] = np.cos(np.radians(zenith))
    if "azimuth" in needed:
        values["azimuth"] = _angle(table["AZ_PNT"])
    if "time" in needed:
        if np.isnan(starts).all():
            raise InputError(f"{argument}: the times of its table have no reference (MJDREFI, MJDREFF in its header)")
        values["time"] = starts + 0.5 * hours / 24
    labels = [run_label(label) for label in table["OBS_ID"].tolist()]
    names, places = run_names(labels), list(range(len(table)))
    keys = [RunKey(label, start) for label, start in zip(labels, starts, strict=True)]
    return _RunConditions(keys, names, places, hours, values, units, {})


def _starts(table):
    """MJD of the start of each run, by which runs of one number are told apart; NaN where the table does not say."""
    if "TSTART" not in table.colnames:
        return np.full(len(table), np.nan)
    if isinstance(table["TSTART"], Time):
        return table["TSTART"].tt.mjd
    if {"MJDREFI", "MJDREFF"} <= set(table.meta):
        return table.meta["MJDREFI"] + table.meta["MJDREFF"] + _seconds(table["TSTART"]) / 86400
    return np.full(len(table), np.nan)


def _plain(column):
    """Values of a column; NaN where a number is masked."""
    values = np.ma.asarray(getattr(column, "value", column) if isinstance(column, u.Quantity) else column)
    is_number = values.dtype.kind in "iuf"
    return np.asarray(np.ma.filled(values.astype(float), np.nan) if is_number else np.ma.filled(values))


def _angle(column):
    return _plain(column) * (column.unit or u.deg).to("deg")


def _seconds(column):
    return _plain(column) * (column.unit or u.s).to("s")


def _from_observations(argument, observations, columns, same, location):
    rows, places, unusable = [], [], {}
    names = run_names(run_label(observation.obs_id) for observation in observations)
    for place, observation in enumerate(observations):
        try:
            rows.append(_of_observation(argument, read_files(observation), columns, same, location))
        except ObservationError as error:
            unusable[names[place]] = str(error)
        else:
            places.append(place)
    require_runs(rows, unusable.values(), argument)
    if unusable:
        reasons = "\n".join(f"  {reason}" for reason in unusable.values())
        log.warning(f"{argument}: {len(unusable)} observations cannot be matched:\n{reasons}")
    keys, hours, by_run = zip(*rows, strict=True)
    values = {name: np.array([row[name] for row in by_run]) for name in by_run[0]}
    return _RunConditions(list(keys), [names[k] for k in places], places, np.array(hours), values, {}, unusable)


def _of_observation(argument, observation, columns, same, location):
    track = observation_track(observation, "altaz", location, _TRACK_STEP, turning=False)
    nodes, weights = time_nodes(track.intervals, _TRACK_STEP)
    azimuth = track.azimuth_at(nodes)
    row = {
        "cos_zenith": np.average(track.cos_zenith_at(nodes), weights=weights),
        "azimuth": np.average(azimuth, weights=weights) % 360,
        "time": track.start.mjd + np.average(nodes, weights=weights) / 86400,
    }
    header = observation.events.table.meta if columns else {}
    for name in columns:
        value = header.get(name) if name in same else header_number(header, name)
        if value is None:
            what = "no number for" if name in header else "no"
            raise ObservationError(
                f"observation {observation.obs_id}: the header of its events has {what} {name!r}; for a column of the "
                f"observation table, give that table as `{argument}`"
            )
        row[name] = value
    return run_key(observation, track), track.ontime / 3600, row


def difference(name: str, on: _RunConditions, i: int, off: _RunConditions) -> np.ndarray:
    """Difference of run i to each OFF run in one criterion, in its unit; NaN where it is unknown; shape (n_off,)."""

    def pair(key):
        return on.values[key][i], off.values[key]

    if name in ("zenith", "cos_zenith"):
        a, b = pair("cos_zenith")
        return np.abs(a - b) if name == "cos_zenith" else np.abs(np.degrees(np.arccos(a) - np.arccos(b)))
    if name == "azimuth":
        a, b = pair("azimuth")
        return np.abs((a - b + 180) % 360 - 180)
    if name == "pointing":
        (z, zs), (a, b) = pair("cos_zenith"), pair("azimuth")
        return np.degrees(angular_separation(np.radians(a), np.arcsin(z), np.radians(b), np.arcsin(zs)))
    if name == "muon_efficiency":
        a, b = pair(MUON_EFFICIENCY)
        return np.abs(a - b) / (0.5 * (a + b))
    a, b = pair(name)
    return np.abs(a - b)
