"""How runs are named, and how one that comes alone is recognised. Inside a list they are told apart by their place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from astropy.coordinates import angular_separation
from astropy.table import Table
from gammapy.datasets import Datasets

from gammapy_accmaker.errors import AcceptanceError, InputError

_START_TOLERANCE = 0.1  # s; a time that was written to a file and read again is rounded
_POINTING_TOLERANCE = 0.01  # deg
_NAMED = 5  # runs in a message


@dataclass(frozen=True)
class RunKey:
    """What a run is recognised by: a number may be missing, or be that of other runs too.

    Attributes
    ----------
    obs_id : int or str
        Number of the observation, or its name; empty where it has none.
    start : float
        Start of the first good time interval, MJD (TT); NaN where it is not known.
    pointing : tuple of float
        Right ascension and declination in deg at the start; NaN where it is not known.
    """

    obs_id: int | str
    start: float = np.nan
    pointing: tuple[float, float] = (np.nan, np.nan)

    def is_same_run(self, other: RunKey) -> bool:
        """Whether number, start and pointing all agree; what one of the two does not know is not compared."""
        if str(self.obs_id) != str(other.obs_id):
            return False
        if abs(self.start - other.start) * 86400 > _START_TOLERANCE:
            return False
        separation = angular_separation(*np.radians(self.pointing), *np.radians(other.pointing))
        return not separation > np.radians(_POINTING_TOLERANCE)


def find_runs(keys: Iterable[RunKey], among: Iterable[RunKey]) -> list[list[int]]:
    """Places of the runs with each of some keys among others; several where they cannot be told apart."""
    by_label = defaultdict(list)
    for place, other in enumerate(among):
        by_label[str(other.obs_id)].append((place, other))
    return [[place for place, other in by_label[str(key.obs_id)] if key.is_same_run(other)] for key in keys]


def find_run(key: RunKey, among: Iterable[RunKey]) -> int | None:
    """Place of the one run with a key; None where there is none, or where several cannot be told apart by it."""
    (found,) = find_runs([key], among)
    return found[0] if len(found) == 1 else None


def run_keys(run_table: Table) -> list[RunKey]:
    """What the runs of a table are recognised by; tables of older files have the numbers alone."""
    labels = run_table["OBS_ID"].tolist()
    if not {"START", "RA", "DEC"} <= set(run_table.colnames):
        return [RunKey(label) for label in labels]
    start, ra, dec = (run_table[name].tolist() for name in ("START", "RA", "DEC"))
    return [RunKey(label, s, (a, d)) for label, s, a, d in zip(labels, start, ra, dec, strict=True)]


def run_label(obs_id) -> int | str:
    """The number of an observation as an int, or its name as text; empty where it has neither."""
    if obs_id is None or obs_id is np.ma.masked:
        return ""
    if isinstance(obs_id, Integral) or (isinstance(obs_id, float) and obs_id.is_integer()):
        return int(obs_id)
    return obs_id.decode() if isinstance(obs_id, bytes) else str(obs_id)


def label_array(labels: Iterable[int | str]) -> np.ndarray:
    """Labels of runs as one array: of int where all are, else of text."""
    labels = list(labels)
    if all(isinstance(label, int) for label in labels):
        return np.array(labels, dtype=int)
    return np.array([str(label) for label in labels], dtype=str)


def run_names(labels: Iterable[int | str]) -> list[int | str]:
    """What the runs of a list are called in messages:
    their labels, with the place of those that share one or have none."""
    labels = list(labels)
    seen = Counter(map(str, labels))
    return [
        label if label != "" and seen[str(label)] == 1 else f"{label} (run {place} of the list)".strip()
        for place, label in enumerate(labels, start=1)
    ]


def some_names(names: Collection[int | str]) -> str:
    """The first names of many, for a message."""
    first = ", ".join(map(str, list(names)[:_NAMED]))
    return first + (", ..." if len(names) > _NAMED else "")


@dataclass(frozen=True)
class LeftOut:
    """A run that could not be used.

    Attributes
    ----------
    obs_id : int or str
        Its label.
    name : int or str
        What it is called in messages, see `run_names`.
    reason : str
    """

    obs_id: int | str
    name: int | str
    reason: str

    def __str__(self):
        return f"{self.name}: {self.reason}"


def named_by_run(datasets: Datasets) -> Datasets:
    """Datasets of one run each with the names of their runs, where these differ: gammapy gives them random ones, which
    those of their files are."""
    names = [f"run-{dataset.meta_table['OBS_ID'][0]}" for dataset in datasets]
    if len(set(names)) < len(names):
        return datasets
    return Datasets([dataset.copy(name=name) for dataset, name in zip(datasets, names, strict=True)])


def reason_of(error: Exception, obs_id) -> str:
    """Why a run is left out, for those who name the run themselves: an error of ours is a sentence, others need their
    kind."""
    text = str(error).removeprefix(f"observation {obs_id}: ")
    return text if isinstance(error, AcceptanceError) else f"{type(error).__name__}: {text}"


def require_runs(runs: Sequence, failures: Collection, argument: str = "observations") -> None:
    """Raise an `InputError` with the first of the failures (`LeftOut`, or texts) where there are no runs."""
    if not runs:
        more = f"; and {len(failures) - 1} more" if len(failures) > 1 else ""
        first = next(map(str, failures), "there is none")
        raise InputError(f"{argument}: none of the {len(failures)} can be used ({first}{more})")
