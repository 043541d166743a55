"""Runs are looped over in one or more processes; a process that dies takes one run with it, not the fit."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from gammapy.utils import parallel
from gammapy.utils.pbar import progress_bar

from gammapy_accmaker.errors import AcceptanceError, InputError

__all__ = ["ProcessDiedError", "make_starmap", "map_runs"]

AHEAD = 2  # tasks handed out at a time, for each process


class ProcessDiedError(AcceptanceError):
    """The process that worked on a run ended without an answer: killed, out of memory, or crashed."""


def map_runs(
    function: Callable, inputs: list[tuple], n_jobs: int | None, backend: str | None, task_name: str = ""
) -> Iterator:
    """Results of a function for each tuple of arguments, in their order, as soon as they are there.

    Processes of this machine are those of `concurrent.futures`: the pool behind gammapy's own "multiprocessing" waits
    for ever for a process that died. "ray" is gammapy's.

    Parameters
    ----------
    function : callable
        It catches what it can; an exception of it ends the loop.
    inputs : list of tuple
    n_jobs : int, optional
        Processes; gammapy's default.
    backend : {"multiprocessing", "ray"}, optional
        gammapy's default.
    task_name : str
        Of the progress bar.

    Yields
    ------
    result : object
        What the function returns; a `ProcessDiedError` for arguments whose process died, twice and alone at last.

    Raises
    ------
    InputError
        For a number of processes or a backend that does not exist.
    ProcessDiedError
        With ray, where a worker was lost that it did not replace.
    """
    n_jobs = parallel.N_JOBS_DEFAULT if n_jobs is None else n_jobs
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs < 1:
        raise InputError(f"n_jobs: got {n_jobs!r}, but a whole number of processes >= 1 is needed")
    backend = parallel.BACKEND_DEFAULT if backend is None else backend
    try:
        backend = parallel.ParallelBackendEnum.from_str(backend).value
    except ValueError as error:
        raise InputError(f"parallel_backend: got {backend!r}, but 'multiprocessing' or 'ray' is needed") from error
    n_jobs = min(n_jobs, len(inputs))
    if backend == "ray" and n_jobs > 1:
        return iter(_with_ray(function, inputs, n_jobs, task_name))
    n_jobs = min(n_jobs, multiprocessing.cpu_count())
    # a process that was started by another, such as one of DatasetsMaker, starts none itself
    if n_jobs <= 1 or multiprocessing.current_process().name != "MainProcess":
        return (function(*arguments) for arguments in progress_bar(inputs, desc=task_name))
    return _in_processes(function, inputs, n_jobs, task_name)


def make_starmap(
    n_jobs: int | None, backend: str | None, task_name: str
) -> Callable[[Callable, list[tuple]], Iterator]:
    """As `itertools.starmap`, by `map_runs`; a process that died ends the loop with its `ProcessDiedError`."""

    def starmap(function, inputs):
        for result in map_runs(function, inputs, n_jobs, backend, task_name):
            if isinstance(result, ProcessDiedError):
                raise result
            yield result

    return starmap


def _with_ray(function, inputs, n_jobs, task_name):
    try:
        return parallel.run_multiprocessing(
            function, inputs, backend="ray", pool_kwargs={"processes": n_jobs}, task_name=task_name
        )
    except Exception as error:  # the kinds that ray raises are known where it is installed only
        raise ProcessDiedError(
            f"{task_name}: ray lost a worker or could not reach its cluster ({type(error).__name__}: {error}); see "
            "`ray status`, and start again: with `cache` what was done is not done twice"
        ) from error


def _in_processes(function, inputs, n_jobs, task_name):
    """Results in order; a few tasks ahead are handed out, so that a broken pool leaves few of them in doubt."""
    waiting, done, pool, futures = deque(range(len(inputs))), {}, ProcessPoolExecutor(n_jobs), {}
    try:
        for number in progress_bar(range(len(inputs)), desc=task_name):
            while number not in done:
                broken = False
                while waiting and len(futures) < AHEAD * n_jobs and not broken:
                    try:
                        futures[pool.submit(function, *inputs[waiting[0]])] = waiting[0]
                        waiting.popleft()
                    except BrokenProcessPool:
                        broken = True
                finished = wait(futures, return_when=FIRST_COMPLETED).done if not broken else set(futures)
                in_doubt = []
                for future in finished:
                    k = futures.pop(future)
                    try:
                        done[k] = future.result()
                    except BrokenProcessPool:
                        in_doubt.append(k)
                if in_doubt or broken:
                    in_doubt += futures.values()  # all tasks of a broken pool end with it
                    futures.clear()
                    pool.shutdown()
                    for k in sorted(in_doubt):
                        done[k] = _alone(function, inputs[k])
                    pool = ProcessPoolExecutor(n_jobs)
            yield done.pop(number)
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(function, arguments):
    """Result in a process of its own, or the error that says that it died."""
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return ProcessDiedError(
                "the process that read it died: killed, out of memory, or crashed; read this run alone to see why"
            )
