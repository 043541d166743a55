"""Observations that a caller gives: a list of them, or what to do about what came instead."""

from __future__ import annotations

from gammapy.data import DataStore, Observation

from gammapy_accmaker.errors import InputError

__all__ = ["as_observations", "check_observation"]

REMEDY = "take them from a data store: `data_store.get_observations(obs_ids, required_irf=[])`"


def as_observations(observations, argument: str = "observations") -> list[Observation]:
    """A list of one observation or more; a single one is a list of one."""
    if isinstance(observations, Observation):
        return [observations]
    wanted = "but `Observations` or a list of `Observation` is needed; "
    if isinstance(observations, DataStore):
        raise InputError(
            f"{argument}: got a DataStore, {wanted}give `data_store.get_observations(required_irf=[])`, with the numbers of "
            "the runs for some of them"
        )
    try:
        found = None if isinstance(observations, str | bytes | dict) else list(observations)
    except TypeError:  # some types can be looped over only where they are arrays
        found = None
    if found is None:
        raise InputError(f"{argument}: got {type(observations).__name__}, {wanted}{REMEDY}")
    if not found:
        raise InputError(f"{argument}: got none, but at least one is needed; check the selection of the data store")
    for one in found:
        if not isinstance(one, Observation):
            raise InputError(f"{argument}: got {type(one).__name__} among them, {wanted}{REMEDY}")
    return found


def check_observation(observation) -> None:
    """Raise an `InputError` for anything but one observation."""
    if not isinstance(observation, Observation):
        raise InputError(f"observation: got {type(observation).__name__}, but one `Observation` is needed; {REMEDY}")
