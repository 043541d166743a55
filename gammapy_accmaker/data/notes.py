"""What a user should know of runs before their fit is believed:
instruments, sites, good time, and the reach of their events."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.utils.run_key import run_names, some_names

log = logging.getLogger(__name__)

_MAX_OUTSIDE_GTI = 0.002  # of the events of a run: times that are rounded to seconds leave a few in 10 000
_SAME_SITE = 1.0  # km
_MIN_GAP, _RING, _MIN_IN_RING = 0.1, 0.25, 30  # deg, deg, events; see `find_reach`
_NAMED = 5  # sites in a line


@dataclass(frozen=True)
class RunNotes:
    """Of one run.

    Attributes
    ----------
    instrument : str
        TELESCOP and INSTRUME of the header of the events.
    site : tuple of float or None
        Longitude and latitude in deg and height in m that are used; None where they are not known.
    site_moved : float
        Distance in km of the site that the user gave from that of the header; 0 where there are not two.
    n_events, outside_gti : int
        Events with finite numbers, and those of them that lie outside of the good time intervals.
    overlap : float
        Time in s that the intervals count more than once.
    reach : float
        Offset in deg beyond which the run has no events, though the model goes on; infinite where it has some.
    without_psf : bool
        Whether sources were folded with its responses, and there was no point spread function.
    """

    instrument: str = ""
    site: tuple[float, float, float] | None = None
    site_moved: float = 0.0
    n_events: int = 0
    outside_gti: int = 0
    overlap: float = 0.0
    reach: float = np.inf
    without_psf: bool = False


def find_reach(offset: np.ndarray, offset_max: float) -> float:
    """Offset in deg at which events stop short of the largest offset, see `RunNotes.reach`.

    The last event lies there, it is more than 0.1 deg short, and in the ring of 0.25 deg before it are so many events
    that none in the next one is no chance.
    """
    last = float(np.max(offset, initial=0.0))
    ring = min(_RING, offset_max - last)
    if ring <= _MIN_GAP or np.sum(offset > last - ring) < _MIN_IN_RING:
        return np.inf
    return last


def warn_of_notes(runs, offset_max: float) -> None:
    """One warning for each thing that reduced runs should be looked at for."""
    # an ON run may be an OFF run too
    by_key = {run.key: run.notes for run in runs}
    notes = dict(zip(run_names(key.obs_id for key in by_key), by_key.values(), strict=True))
    _warn_of_instruments(notes)
    moved = {k: one.site_moved for k, one in notes.items() if one.site_moved > _SAME_SITE}
    if moved:
        log.warning(
            f"observatory_location: it is used in place of the site in the headers of {_some(moved)}, which is up to "
            f"{max(moved.values()):.0f} km away"
        )
    warn_outside_gti(notes)
    _warn_without_psf(notes)
    overlap = {k: one for k, one in notes.items() if one.overlap > 0}
    if overlap:
        log.warning(
            f"the good time intervals of {_some(overlap)} overlap, by up to "
            f"{max(n.overlap for n in overlap.values()):.0f} s: that time is counted once here, but gammapy counts it "
            "twice in the exposure; merge them with `gti.union()`"
        )
    short = {k: one.reach for k, one in notes.items() if np.isfinite(one.reach)}
    if short:
        low, high = min(short.values()), max(short.values())
        beyond = f"{low:.2f} deg" if high - low < 0.01 else f"{low:.2f} to {high:.2f} deg"
        log.warning(
            f"{_some(short)} have no events beyond an offset of {beyond}, but offset_max is {offset_max:g} deg: their "
            "field of view is smaller, or was cut, and the model spreads what they have over what they do not see; "
            "set `offset_max` to it"
        )


def _warn_without_psf(notes):
    lacking = {k: one for k, one in notes.items() if one.without_psf}
    if lacking:
        log.warning(
            f"sources: {_some(lacking)} have no point spread function, and none is applied: sources are taken as sharp "
            "as their models, and what of them lies outside counts as background; add it to the DL3, or give models "
            "that are as wide as the sources are seen"
        )


def warn_outside_gti(notes: dict[int | str, RunNotes]) -> None:
    """One warning where events of runs, by their names, lie outside of the good time intervals,
    which gammapy does not look at."""
    outside = {k: one for k, one in notes.items() if one.outside_gti > _MAX_OUTSIDE_GTI * one.n_events}
    if outside:
        n, of = (sum(getattr(one, name) for one in outside.values()) for name in ("outside_gti", "n_events"))
        log.warning(
            f"{n} of {of} events of {_some(outside)} lie outside of the good time intervals. They are left out here, "
            "but gammapy keeps them in the counts of datasets, whose exposure and background are for the good time "
            "alone: give the makers observations without them, as `observations.select_time(...)` makes, "
            "or mend the GTI tables"
        )


def _warn_of_instruments(notes):
    found = Counter(one.instrument for one in notes.values() if one.instrument)
    if len(found) > 1:
        named = ", ".join(f"{name} ({n} runs)" for name, n in found.most_common())
        log.warning(f"the runs are of {len(found)} instruments, {named}, but get one acceptance: fit each alone")
        return
    sites: list[tuple[float, float, float]] = []
    for one in notes.values():
        if one.site is not None and not any(_near(one.site, other) for other in sites):
            sites.append(one.site)
    if len(sites) > 1:
        named = "; ".join(f"lon {lon:.4f} deg, lat {lat:.4f} deg" for lon, lat, _ in sites[:_NAMED])
        log.warning(
            f"the runs name {len(sites)} sites ({named}), but get one acceptance: fit each alone, or give the right "
            "site as `observatory_location`"
        )


def _near(a, b):
    """Whether two sites are within some 10 km of each other."""
    turn = np.abs((a[0] - b[0] + 180) % 360 - 180) * np.cos(np.radians(a[1]))
    return np.hypot(turn, a[1] - b[1]) < 0.1


def _some(runs):
    return f"{len(runs)} run{'s' * (len(runs) > 1)} ({some_names(runs)})"
