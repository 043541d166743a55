"""What a maker made of its last runs, kept: a run on several geometries is read, and the model adapted to it, once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from gammapy_accmaker.data.observations import read_files
from gammapy_accmaker.data.run_state import RunState

_MAX_KEPT = 128  # runs, of 0.1 to 0.2 MB each


class KeptRuns:
    """Results by run, for as long as what they were made with is the same; the oldest are let go.

    It is no part of what its owner is: copies of it, and those in other processes, begin empty.
    """

    def __init__(self):
        self._made_with: dict[str, Any] = {}
        self._results: OrderedDict[str, tuple[RunState, RunState, Any]] = OrderedDict()

    def __reduce__(self):
        return KeptRuns, ()

    def __len__(self):
        return len(self._results)

    def find(self, state: RunState, made_with: dict[str, Any]):
        """The result for a run in this state; None where there is none."""
        if not self._is_made_with(made_with):
            self._made_with = made_with
            self._results.clear()
        if (found := self._results.get(state.name)) is None:
            return None
        before, after, result = found
        # what is in memory must be what was there, or what was read then
        if not state.covers(before) or not after.covers(state):
            return None
        self._results[state.name] = self._results.pop(state.name, found)  # the last to be let go
        return result

    def _is_made_with(self, made_with):
        known = self._made_with
        return made_with.keys() == known.keys() and all(value is known[name] for name, value in made_with.items())

    def add(self, before: RunState, after: RunState, result, made_with: dict[str, Any]) -> None:
        """Keep a result that was just made, after `find`; with the state of the run before and after it was read."""
        if not self._is_made_with(made_with):  # it was changed meanwhile, from another thread
            return
        self._results[before.name] = before, after, result
        self._results.move_to_end(before.name)
        while len(self._results) > _MAX_KEPT:
            self._results.popitem(last=False)


def kept_by_run(method: Callable) -> Callable:
    """A method of an owner of `KeptRuns`, ``_kept``, and of an observation, that gives a dataclass with the observation
    in it: it is called once for a run, as long as no attribute of the owner is set."""

    @wraps(method)
    def result_of_run(self, observation):
        state = RunState.of(observation)
        made_with = {name: value for name, value in vars(self).items() if value is not self._kept}
        result = None if state is None else self._kept.find(state, made_with)
        if result is None:
            read = read_files(observation)
            result = replace(method(self, read), observation=None)
            after = RunState.of(read)
            if state is not None and after is not None and state.name == after.name:
                self._kept.add(state.beside_files(read), after, result, made_with)
        return replace(result, observation=observation)

    return result_of_run
