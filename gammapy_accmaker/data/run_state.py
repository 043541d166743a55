"""What an observation would be read as, told without reading it: whether work that was done on a run holds still."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from astropy.coordinates import EarthLocation
from gammapy.data import GTI, EventList, FixedPointingInfo, Observation, ObservationMetaData
from gammapy.utils.fits import HDULocation

from gammapy_accmaker.data.cache import fingerprint
from gammapy_accmaker.data.observations import event_locations
from gammapy_accmaker.utils.run_key import run_label

_BY_CONTENT = (GTI, EventList, FixedPointingInfo, ObservationMetaData, EarthLocation)


@dataclass(frozen=True)
class RunState:
    """State of an observation, of its files and of what it holds in memory.

    Attributes
    ----------
    name : str
        Fingerprint of its label, its filters, and where it is read from.
    files : tuple
        Size and time of each file.
    memory : dict
        By attribute: fingerprint of what was read or set, or the object itself where only that tells it.
    """

    name: str
    files: tuple
    memory: dict[str, Any]

    @classmethod
    def of(cls, observation) -> RunState | None:
        """None where it cannot be told, such as of a file that is missing."""
        if type(observation) is not Observation:  # a class of its own may give other events than it holds
            return None
        try:
            return cls._of(vars(observation))
        except Exception:  # filters and what users set can be of any kind; whoever reads the run says what is wrong
            return None

    @classmethod
    def _of(cls, held):
        places, memory = {}, {}
        for name, value in held.items():
            if isinstance(value, HDULocation):
                places[name] = value.hdu_class, value.path().absolute(), str(value.hdu_name)
            elif isinstance(value, _BY_CONTENT):
                memory[name] = fingerprint(value)
            elif value is not None and name not in ("obs_id", "obs_filter"):
                memory[name] = value
        files = {path: path.stat() for _, path, _ in places.values()}
        where = sorted((name, kind, str(path), hdu) for name, (kind, path, hdu) in places.items())
        return cls(
            fingerprint(str(run_label(held["obs_id"])), where, vars(held["obs_filter"])),
            tuple(sorted((str(path), state.st_size, state.st_mtime_ns) for path, state in files.items())),
            memory,
        )

    def beside_files(self, read) -> RunState:
        """Without what is in memory as it is in the files, which were read into another observation."""
        stored = {fingerprint(one.load()) for one in event_locations(read) if one.hdu_class != "events"}
        kept = {k: v for k, v in self.memory.items() if not (isinstance(v, str) and v in stored)}
        return replace(self, memory=kept)

    def covers(self, other: RunState) -> bool:
        """Whether it has the same files, and in memory all that the other one has there."""
        if (self.name, self.files) != (other.name, other.files):
            return False
        return all(
            value is self.memory.get(name) or (isinstance(value, str) and value == self.memory.get(name))
            for name, value in other.memory.items()
        )
