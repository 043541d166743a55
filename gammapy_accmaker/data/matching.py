"""Which OFF runs were taken under conditions like those of an ON run.

Wach et al. 2024 (A&A 690, A250) take for each ON run the OFF run of the smallest weighted difference of the conditions,
within limits on each of them; pybkgmodel takes the runs near in time and pointing; gammapy-tools fills up requested
hours.
"""

from __future__ import annotations

import logging
from numbers import Real

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation
from astropy.table import Table

from gammapy_accmaker.data.conditions import CRITERIA, difference, run_conditions
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.arguments import check_kind, check_whole
from gammapy_accmaker.utils.run_key import RunKey, find_runs, label_array

log = logging.getLogger(__name__)

_DEFAULT_WEIGHTS = {"cos_zenith": 1.0}
_PRESETS = {
    "nearest": {"time": 1.0, "pointing": 1.0},
    "conditions": {"cos_zenith": 1.0, "azimuth": 0.2, "muon_efficiency": 0.5, "time": 0.1},
}


def match_observations(
    on,
    off,
    *,
    limits=None,
    weights=None,
    hours=None,
    n_runs: int | None = None,
    same=(),
    location=None,
) -> Table:
    """Rank OFF runs for each ON run, and take the best.

    The distance of two runs is ``sqrt(sum_k w_k (d_k / s_k)^2 / sum_k w_k)`` over the criteria k, where ``d_k`` is the
    difference in a criterion, ``w_k`` its weight and ``s_k`` its limit or, without one, a usual scale (0.05 in cos
    zenith and in relative muon efficiency, 45 deg in azimuth, 5 deg in zenith and pointing, 30 d in time; for any other
    column its standard deviation over the OFF runs).

    Criteria are ``zenith`` (difference of the angle in deg), ``cos_zenith``, ``azimuth`` (the shorter way round, in
    deg), ``pointing`` (separation of the horizontal pointings in deg), ``time`` (between the middles, in days),
    ``muon_efficiency`` (of MUONEFF, over their mean) and any numerical column of the observation table, in its own
    unit; for `~gammapy.data.Observations` any keyword of the event header.

    Parameters
    ----------
    on, off : `~gammapy.data.Observations` or `~gammapy.data.ObservationTable`
        Observations, or a table of them, which is faster and knows more columns. They may share runs: a run is never
        matched with itself.
    limits : dict, optional
        Largest difference by criterion: a quantity, or a number in the units above.
    weights : dict or str, optional
        Weight by criterion. A criterion with a limit and no weight has none. A name stands for weights that are ready:
        ``"nearest"`` (in time and pointing), ``"conditions"`` (cos zenith, azimuth, muon efficiency, time). Default:
        cos zenith alone.
    hours : float or `~astropy.units.Quantity`, optional
        OFF ontime to be taken for each ON run, in h: the best runs are taken until it is reached.
    n_runs : int, optional
        Largest number of OFF runs for each ON run. Without it and ``hours`` all within the limits are taken.
    same : tuple of str
        Columns that must be equal, such as ``("TELLIST", "N_TELS")``.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of an observation.

    Returns
    -------
    matches : `~astropy.table.Table`
        One row for each pair, best first for each ON run: ON_OBS_ID, OFF_OBS_ID, RANK, the difference in each criterion
        (column DELTA_<criterion>), DISTANCE, HOURS (ontime of the OFF run), SUM_HOURS (up to this rank), REASON, and
        ON_PLACE and OFF_PLACE: where the two stand in the lists, from 0, since numbers may repeat or be missing. ON
        runs without a match are in ``matches.meta["LEFT_OUT"]``, with the limit that none meets and how near the best
        one was.

    Raises
    ------
    InputError
        For a criterion that is no column, for OFF runs that are none, and where no ON run has a match.

    Examples
    --------
    >>> matches = match_observations(on, off, limits={"zenith": 5}, hours=10)  # doctest: +SKIP
    >>> maker.fit(on, off, matches=matches)  # doctest: +SKIP
    """
    weights = _checked_weights(weights)
    limits = {} if limits is None else dict(check_kind(limits, dict, "limits", "a dict of limits by criterion"))
    hours, n_runs = _checked_number(hours, n_runs)
    names = [*weights, *(name for name in limits if name not in weights)]
    same = (
        (same,)
        if isinstance(same, str)
        else tuple(check_kind(same, tuple | list, "same", "a tuple of names of columns"))
    )
    for name in same:
        check_kind(name, str, "same", "a tuple of names of columns")
    if location is not None:
        check_kind(location, EarthLocation, "location", "an EarthLocation")
    on_runs, off_runs = (run_conditions(what, runs, names, same, location) for what, runs in (("on", on), ("off", off)))
    limits = _checked_limits(limits, off_runs.units)
    scales = {name: _scale(name, limits, off_runs) for name in names}

    rows, left_out = [], dict(on_runs.unusable)
    for i, (itself, name_of_run) in enumerate(zip(_itself(on, off, on_runs, off_runs), on_runs.names, strict=True)):
        candidates = np.ones(len(off_runs.keys), dtype=bool)
        candidates[itself] = False
        for name in same:
            candidates &= off_runs.values[name] == on_runs.values[name][i]
            if not candidates.any():
                left_out[name_of_run] = f"no other OFF run has {name} = {on_runs.values[name][i]}"
                break
        if not candidates.any():
            left_out.setdefault(name_of_run, "there is no OFF run but itself")
            continue
        delta = {name: difference(name, on_runs, i, off_runs) for name in names}
        within, why = _within(limits, delta, candidates)
        # a criterion that is unknown for a run cannot rank it
        distance = _distance(delta, weights, scales)
        within &= np.isfinite(distance)
        if not within.any():
            left_out[name_of_run] = why or f"{' and '.join(weights)} are unknown for this run or for all OFF runs"
            continue
        rows += _take(on_runs, i, np.flatnonzero(within), delta, distance, off_runs, limits, hours, n_runs)
    return _table(rows, left_out, names, off_runs)


def _checked_weights(weights):
    if isinstance(weights, str):
        if weights not in _PRESETS:
            raise InputError(f"weights: got {weights!r}, but a dict or one of {sorted(_PRESETS)} is needed")
        weights = _PRESETS[weights]
    weights = (
        _DEFAULT_WEIGHTS if weights is None else check_kind(weights, dict, "weights", "a dict of weights by criterion")
    )
    if not weights or not all(isinstance(w, Real) and 0 < float(w) < np.inf for w in weights.values()):
        raise InputError(
            f"weights: got {weights}, but at least one weight and all > 0 are needed; leave out a criterion"
        )
    return weights


def _checked_number(hours, n_runs):
    if hours is not None:
        try:
            hours = hours.to_value("h") if isinstance(hours, u.Quantity) else float(hours)
        except (u.UnitConversionError, TypeError, ValueError) as error:
            raise InputError(f"hours: got {hours!r}, but a number of hours or a time is needed") from error
        if not hours > 0:
            raise InputError(f"hours: got {hours} h, but more than 0 is needed, or None for all runs")
    n_runs = None if n_runs is None else check_whole(n_runs, 1, "n_runs", "None for all runs, or a whole number")
    return hours, n_runs


def _checked_limits(limits, units):
    """Limits as numbers in the units of the differences."""
    out = {}
    for name, limit in limits.items():
        unit = CRITERIA[name][0] if name in CRITERIA else units.get(name, u.one)
        try:
            out[name] = limit.to_value(unit) if isinstance(limit, u.Quantity) else float(limit)
        except (u.UnitConversionError, TypeError, ValueError) as error:
            raise InputError(
                f"limits: got {limit!r} for {name!r}, but a number or a quantity in {unit} is needed"
            ) from error
        if not out[name] >= 0:
            raise InputError(f"limits: got {limit} for {name!r}, but a limit is >= 0")
    return out


def _scale(name, limits, off):
    if limits.get(name, 0) > 0:
        return limits[name]
    if name in CRITERIA:
        return CRITERIA[name][1]
    spread = float(np.nanstd(off.values[name].astype(float)))
    return spread if spread > 0 else 1.0


def _distance(delta, weights, scales):
    return np.sqrt(sum(w * (delta[k] / scales[k]) ** 2 for k, w in weights.items()) / sum(weights.values()))


def _within(limits, delta, candidates):
    """Which candidates meet all limits; where none does, the limit that is missed and how near the best one was."""
    within = candidates.copy()
    for name, limit in limits.items():
        within &= delta[name] <= limit
    if within.any() or not limits:
        return within, ""
    unit = {name: f" {CRITERIA[name][0]}".rstrip() if name in CRITERIA else "" for name in limits}
    alone = {k: np.min(np.where(candidates & np.isfinite(delta[k]), delta[k], np.inf)) for k in limits}
    missed = [name for name, nearest in alone.items() if not nearest <= limits[name]]
    if missed:
        parts = [
            f"{k} <= {limits[k]:.4g}{unit[k]}: the nearest OFF run differs by {alone[k]:.4g}{unit[k]}" for k in missed
        ]
        return within, "no OFF run meets the limit " + "; nor ".join(parts)
    # each limit is met by some run, all of them by none: the run that misses by the least
    worst = np.max([delta[k] / max(limits[k], 1e-300) for k in limits], axis=0)
    best = np.argmin(np.where(candidates & np.isfinite(worst), worst, np.inf))
    name = max(limits, key=lambda k: delta[k][best] / max(limits[k], 1e-300))
    return within, (
        f"no OFF run meets all limits; the one that comes nearest differs by {delta[name][best]:.4g}{unit[name]} in "
        f"{name}, whose limit is {limits[name]:.4g}{unit[name]}"
    )


def _take(on, i, within, delta, distance, off, limits, hours, n_runs):
    """Rows of the best OFF runs of one ON run; equally good ones in the order of their labels."""
    labels = label_array(key.obs_id for key in off.keys)
    order = within[np.lexsort((labels[within], distance[within]))]
    total = np.cumsum(off.hours[order])
    enough = len(order) if hours is None else int(np.searchsorted(total, hours * (1 - 1e-9))) + 1
    number = min(len(order), enough, n_runs or len(order))
    where = f"of {len(order)} within the limits" if limits else f"of {len(order)}"
    rows = []
    for rank, k in enumerate(order[:number], start=1):
        reason = f"number {rank} {where}, distance {distance[k]:.3g}"
        if hours is not None:
            reason += f", for {total[rank - 1]:.2f} of {hours:.2f} h"
            if rank == number and total[rank - 1] < hours * (1 - 1e-9):
                reason += " (no more runs)" if number == len(order) else " (n_runs reached)"
        differences = {name: float(delta[name][k]) for name in delta}
        rows.append(
            (
                on.keys[i].obs_id,
                off.keys[k].obs_id,
                rank,
                *differences.values(),
                float(distance[k]),
                float(off.hours[k]),
                float(total[rank - 1]),
                reason,
                on.places[i],
                off.places[k],
            )
        )
    return rows


def _table(rows, left_out, names, off):
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in left_out.items())
    if not rows:
        raise InputError(f"limits: none of the {len(left_out)} ON runs has a matching OFF run; widen them\n{reasons}")
    if left_out:
        log.warning(f"{len(left_out)} ON runs have no matching OFF run and are left out:\n{reasons}")
    deltas = [f"DELTA_{name.upper()}" for name in names]
    units = {
        c: CRITERIA[n][0] if n in CRITERIA else off.units.get(n, u.one) for c, n in zip(deltas, names, strict=True)
    }
    columns = [
        "ON_OBS_ID",
        "OFF_OBS_ID",
        "RANK",
        *deltas,
        "DISTANCE",
        "HOURS",
        "SUM_HOURS",
        "REASON",
        "ON_PLACE",
        "OFF_PLACE",
    ]
    units = {name: unit for name, unit in units.items() if unit != u.one} | {"HOURS": u.h, "SUM_HOURS": u.h}
    table = Table(rows=rows, names=columns, units=units, meta={"LEFT_OUT": left_out})
    for column, place in (("ON_OBS_ID", 0), ("OFF_OBS_ID", 1)):
        table[column] = label_array(row[place] for row in rows)
    return table


def _itself(on, off, on_runs, off_runs) -> list[list[int]]:
    """For each ON run which of the OFF runs are that run itself, or may be.

    A key that several runs of a list share tells nothing: there the same object, or the same row of one table, is the
    same run.
    """
    keys = on_runs.keys
    if isinstance(on, Table) != isinstance(off, Table):  # a table may give other starts than good time intervals
        keys = [RunKey(key.obs_id) for key in keys]
    found = find_runs(keys, off_runs.keys)
    for i, (key, same_key) in enumerate(zip(keys, find_runs(keys, keys), strict=True)):
        shared = np.isfinite(key.start) and max(len(same_key), len(found[i])) > 1
        if shared or (key.obs_id == "" and not np.isfinite(key.start)):
            place = on_runs.places[i]
            found[i] = [k for k in found[i] if _is_entry(on, place, off, off_runs.places[k])]
    return found


def _is_entry(on, place, off, other):
    if isinstance(on, Table) or isinstance(off, Table):
        return on is off and place == other
    return on[place] is off[other]
