"""Known sources in a fit: whether the runs can tell of them, and the table of what was found."""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import Table

from gammapy_accmaker.data.reduced_run import ReducedRun
from gammapy_accmaker.data.source_counts import MAX_PSF_RADIUS, model_extent
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.source_terms import AmplitudeFit

log = logging.getLogger(__name__)

_SMALL_SHARE = 0.2  # of the information on an amplitude; with less, camera and sky cannot be told apart
_FEW_SIGMA = 1.0  # of an error over the amplitude; with more, the amplitude is not known
_LIKE_ACCEPTANCE = "camera and sky cannot be told apart"
_UNKNOWN = "not known from the runs"
_AT_ZERO = "at 0"
_MOVING = "not converged"
_SMALLEST_PART = 1e-3  # of the counts of a source, outside of the exclusion; with less, nothing of it is seen
_BELOW_THRESHOLD = "below thresholds"  # of the runs: no flux, since the responses are not to be trusted there
_NO_COUNTS = "no counts outside of the exclusion"
_REMEDY = "use OFF runs (off_observations), an exclusion, or runs of other wobble positions"


def beyond_fields(sources: SourceList, pointings: SkyCoord, offset_max: float) -> dict[str, float]:
    """Sources outside of the field of view of all runs, ``offset_max`` in deg, and how far the nearest pointing is."""
    found = {}
    for source in sources:
        center, radius = model_extent(source.model)
        nearest = 0.0 if center is None else float(center.separation(pointings).deg.min())
        if nearest > offset_max + radius + MAX_PSF_RADIUS:
            found[source.name] = nearest
    return found


def check_in_fields(sources: SourceList, runs: list[ReducedRun], offset_max: float) -> None:
    """Raise an `InputError` for a source outside of the field of view of all runs; ``offset_max`` in deg."""
    lon, lat = np.array([part.pointing for run in runs for part in run.slices]).T
    for name, nearest in beyond_fields(sources, SkyCoord(lon, lat, unit="deg", frame="icrs"), offset_max).items():
        raise InputError(
            f"sources: {name!r} lies outside of the fields of all runs: the nearest pointing is {nearest:.1f} deg from "
            f"it, and runs are used up to {offset_max:g} deg; leave it out, or correct its position"
        )


def fitted_sources(sources: SourceList, fit: AmplitudeFit | None, energy_edges: np.ndarray) -> SourceList:
    """The sources with the amplitudes of a fit."""
    if fit is None:
        return sources
    n_free, found = len(sources.free), {}
    for k, source in enumerate(sources.free):
        found[source.name] = _bands(fit, k, energy_edges), _bands(fit, n_free + k, energy_edges)
    return sources.with_amplitudes(found)


def _bands(fit, k, energy_edges):
    return fit.bands.edges(k, energy_edges).tolist(), fit.values[fit.bands.amplitudes_of(k)].tolist()


def make_source_table(
    sources: SourceList, fit: AmplitudeFit | None, runs: list[ReducedRun], energy_edges: np.ndarray
) -> Table:
    """One row for each source and band of energy.

    ``sources``: as they were before the fit; ``runs``: with the units of their counts.

    Columns: the SOURCE; whether its amplitude was FREE; E_MIN and E_MAX of the band; AMPLITUDE, the factor on the flux
    of its model, and its error; its expected COUNTS in the runs outside of the exclusion; INFORMATION, the share of
    what the counts tell of the amplitude that is left once the background is fitted with it; and a FLAG.
    """
    rows, free = [], [source.name for source in sources.free]
    for source in sources:
        if source.name not in free:
            given, amplitudes = source.edges or energy_edges[[0, -1]], source.amplitudes or (1.0,)
            for low, high, value in zip(given[:-1], given[1:], amplitudes, strict=True):
                low, high = np.clip((low, high), *energy_edges[[0, -1]])
                rows.append((source.name, False, low, high, value, np.nan, np.nan, np.nan, ""))
        elif fit is not None:
            k = free.index(source.name)
            own = _rows_of(fit, k, runs, energy_edges)
            rows += [(source.name, True, *row) for row in own]
            for *row, flag in _rows_of(fit, len(free) + k, runs, energy_edges):
                if flag != _NO_COUNTS:
                    rows.append((source.name, True, *row, _BELOW_THRESHOLD))
    names = ["SOURCE", "FREE", "E_MIN", "E_MAX", "AMPLITUDE", "AMPLITUDE_ERR", "COUNTS", "INFORMATION", "FLAG"]
    if not rows:
        return Table()
    return Table(rows=rows, names=names, units={"E_MIN": u.TeV, "E_MAX": u.TeV})


def _rows_of(fit, k, runs, energy_edges):
    """Rows of a source, from the energies of the bands on."""
    unit = np.sum([part.sources[k].by_energy() for run in runs for part in run.slices], axis=0)
    whole = sum((run.sky.sources[k].by_energy() for run in runs if run.sky is not None), start=np.zeros(len(unit)))
    for i in range(*fit.bands.amplitudes_of(k).indices(fit.bands.n)):
        own = fit.bands.number[k] == i
        filled = np.flatnonzero(own & (unit > 0))
        first, last = (filled if len(filled) else np.flatnonzero(own))[[0, -1]]
        energies, counts = (energy_edges[first], energy_edges[last + 1]), float(unit[own].sum())
        value, error = fit.values[i], fit.errors[i]
        if not counts > _SMALLEST_PART * float(whole[own].sum()):
            yield (*energies, value, np.nan, 0.0, 0.0, _NO_COUNTS)
            continue
        flags = []
        if fit.share[i] < _SMALL_SHARE:
            flags.append(_LIKE_ACCEPTANCE)
        elif error > _FEW_SIGMA * max(value, 1 / np.sqrt(counts)) and fit.alike[i]:
            flags.append(_UNKNOWN)
        if value == 0:
            flags.append(_AT_ZERO)
        if not fit.converged:
            flags.append(_MOVING)
        error = max(error, 1 / counts)  # where there is no background: one count more cannot be told
        yield (*energies, value, error, value * counts, fit.share[i], "; ".join(flags))


def warn_of_sources(table: Table) -> None:
    """One warning for each kind of source that the runs do not tell enough of."""
    if not len(table):
        return
    for flag, meaning, remedy in (
        (_LIKE_ACCEPTANCE, "an acceptance could look as they do in these runs", _REMEDY),
        (_UNKNOWN, "they look like each other", "give fewer free sources, or freeze the amplitudes of some"),
        (_MOVING, "they still moved when the fit ended", "give fewer free sources or bands, or an exclusion"),
    ):
        rows = [row for row in table if flag in row["FLAG"]]
        if rows:
            named = ", ".join(f"{row['SOURCE']} at {_energies(row)} ({100 * row['INFORMATION']:.0f} %)" for row in rows)
            log.warning(
                f"sources: {flag}: {named}. The number is the share of the information on the amplitude that is left "
                f"once the background is fitted with it; {meaning}, and the background may hold a part of them: "
                f"{remedy}"
            )


def describe_sources(table: Table) -> list[str]:
    """A line for each source of a table."""
    lines = []
    for name in dict.fromkeys(table["SOURCE"].tolist() if len(table) else ()):
        rows = table[(table["SOURCE"] == name) & (table["FLAG"] != _BELOW_THRESHOLD)]
        if not rows["FREE"][0]:
            lines.append(f"{name}, as given")
            continue
        parts = []
        for row in rows:
            value, energies = f"{row['AMPLITUDE']:.3g} +- {row['AMPLITUDE_ERR']:.2g}", _energies(row)
            flag = f", {row['FLAG']}" if row["FLAG"] else ""
            parts.append(f"{value} at {energies} ({100 * row['INFORMATION']:.0f} % of the information left{flag})")
        lines.append(f"{name}, amplitude {'; '.join(parts)}")
    return lines


def _energies(row):
    return f"{row['E_MIN']:.2g} to {row['E_MAX']:.2g} TeV"
