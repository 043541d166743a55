"""Runs are looped over in one or more processes; a process that dies takes one run with it, not the fit.

A user's process of one thread is forked, which takes no time. Beside other threads a fork may inherit a lock that one
of them holds, and hang, which Python 3.12 warns of: then processes come from a fork server of Python, a clean process
in which this package is imported once, for some 2 s; where there can be none (Windows) they are spawned.

The script or notebook of the user is not run again in them, as it would be by default: a script needs no
``if __name__ == "__main__"``. What was defined there is not known in them; a task that needs it is done in the user's
own process.
"""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import shutil
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from astropy.utils import data, iers
from gammapy.utils import parallel
from gammapy.utils.pbar import progress_bar

from gammapy_accmaker.errors import AcceptanceError
from gammapy_accmaker.utils.arguments import check_choice, check_whole
from gammapy_accmaker.utils.parcels import Parcel, ParcelLostError
from gammapy_accmaker.utils.threads import ONE_THREAD, one_thread

log = logging.getLogger(__name__)

_AHEAD = 2  # tasks handed out at a time, for each process


class ProcessDiedError(AcceptanceError):
    """The process that worked on a run ended without an answer: killed, out of memory, or crashed."""


@dataclass(frozen=True)
class Execution:
    """How the runs of a task are worked through: made once in a public function, and handed on by it.

    Attributes
    ----------
    n_jobs : int
        Processes.
    backend : {"multiprocessing", "ray"}
        Processes of this machine are those of `concurrent.futures`: the pool behind gammapy's own "multiprocessing"
        waits for ever for a process that died. "ray" is gammapy's.
    processes : `_Processes`, optional
        Where they are kept between loops, see `open`.
    """

    n_jobs: int = 1
    backend: str = "multiprocessing"
    processes: _Processes | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, n_jobs: int | None = None, parallel_backend: str | None = None) -> Execution:
        """What a user asked for, or gammapy's defaults; an `InputError` for what does not exist."""
        n_jobs = parallel.N_JOBS_DEFAULT if n_jobs is None else n_jobs
        n_jobs = check_whole(n_jobs, 1, "n_jobs", "a whole number of processes")
        backend = parallel.BACKEND_DEFAULT if parallel_backend is None else parallel_backend
        backend = getattr(backend, "value", backend)  # gammapy's own default is a member of the enumeration
        check_choice(backend, [known.value for known in parallel.ParallelBackendEnum], "parallel_backend")
        return cls(n_jobs, backend)

    @contextmanager
    def open(self) -> Iterator[Execution]:
        """The same, whose loops share their processes while it is open: to start them takes 0.07 s for each loop."""
        if self.processes is not None:  # by one that is open already
            yield self
            return
        processes = _Processes(min(self.n_jobs, multiprocessing.cpu_count()))
        try:
            yield replace(self, processes=processes)
        finally:
            processes.over = True
            processes.close(cancel_futures=True)

    def map(self, function: Callable, inputs: list[tuple], task_name: str = "") -> Iterator:
        """Results of a function for each tuple of arguments, in their order, as soon as they are there.

        Parameters
        ----------
        function : callable
            It catches what it can; an exception of it ends the loop.
        inputs : list of tuple
        task_name : str
            Of the progress bar.

        Yields
        ------
        result : object
            What the function returns; a `ProcessDiedError` for arguments whose process died, twice and alone at last.

        Raises
        ------
        ProcessDiedError
            With ray, where a worker was lost that it did not replace.
        """
        n_jobs = min(self.n_jobs, len(inputs))
        if self.backend == "ray" and n_jobs > 1:
            return iter(_with_ray(function, inputs, n_jobs, task_name))
        n_jobs = min(n_jobs, multiprocessing.cpu_count())
        # a process that was started by another, such as one of DatasetsMaker, starts none itself
        if n_jobs <= 1 or multiprocessing.parent_process() is not None:
            return (_call(function, *arguments) for arguments in progress_bar(inputs, desc=task_name))
        return _in_processes(function, inputs, n_jobs, task_name, self.processes)

    def starmap(self, task_name: str) -> Callable[[Callable, list[tuple]], Iterator]:
        """As `itertools.starmap`, by `map`; a process that died ends the loop with its `ProcessDiedError`."""

        def starmap(function, inputs):
            for result in self.map(function, inputs, task_name):
                if isinstance(result, ProcessDiedError):
                    raise result
                yield result

        return starmap


SERIAL = Execution()  # one run after the other, in this process


@one_thread()
def _call(function, *arguments):
    """The cores are for the processes."""
    return function(*arguments)


def _with_ray(function, inputs, n_jobs, task_name):
    try:
        return parallel.run_multiprocessing(
            partial(_call, function), inputs, backend="ray", pool_kwargs={"processes": n_jobs}, task_name=task_name
        )
    except Exception as error:  # the kinds that ray raises are known where it is installed only
        raise ProcessDiedError(
            f"{task_name}: ray lost a worker or could not reach its cluster ({type(error).__name__}: {error}); see "
            "`ray status`, and start again: with `cache` what was done is not done twice"
        ) from error


class _Processes:
    """A pool that is opened when it is needed first, and anew after it was closed because a process of it died."""

    def __init__(self, number: int):
        self.number = number
        self.pool: ProcessPoolExecutor | None = None
        self.folder: TemporaryDirectory | None = None
        self.functions: dict[int, tuple[int, Parcel]] = {}  # by their ids: those of loops, numbered
        self.over = False

    def submit(self, function: Callable, arguments: tuple) -> Future:
        """A call of the function of a loop; a `_NotKnownError` where other processes cannot know it."""
        if self.folder is None:
            self.folder = TemporaryDirectory(prefix="gammapy_accmaker-", ignore_cleanup_errors=True)
        try:
            if id(function) not in self.functions:
                self.functions[id(function)] = next(_numbers), Parcel.of(function, self.folder.name)
            parcel = Parcel.of(arguments, self.folder.name)
        except Exception as error:
            raise _NotKnownError from error
        if self.pool is None:
            self.pool = _pool(self.number, self.folder.name)
        with _without_the_script():  # it starts processes
            return self.pool.submit(_work, *self.functions[id(function)], parcel, self.folder.name)

    def let_go(self, function: Callable):
        """The loop of a function is over."""
        if id(function) in self.functions:
            self.functions.pop(id(function))[1].discard()

    def close(self, cancel_futures=False):
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=cancel_futures)
        if self.folder is not None:
            self.folder.cleanup()
        self.pool = self.folder = None
        self.functions.clear()


def _in_processes(function, inputs, n_jobs, task_name, kept):
    """Results in order; a few tasks ahead are handed out, so that a broken pool leaves few of them in doubt."""
    waiting, processes = deque(range(len(inputs))), _Processes(n_jobs) if kept is None else kept
    done: dict[int, Any] = {}
    futures: dict[Future, int] = {}
    warned = False
    try:
        for number in progress_bar(range(len(inputs)), desc=task_name):
            if processes.over:
                raise RuntimeError("a loop goes on whose processes have been closed")
            while number not in done:
                broken = False
                while waiting and len(futures) < _AHEAD * n_jobs and not broken:
                    k = waiting[0]
                    try:
                        futures[processes.submit(function, inputs[k])] = k
                        waiting.popleft()
                    except BrokenProcessPool:
                        broken = True
                    except _NotKnownError:
                        if not warned:
                            log.warning(f"{task_name or 'n_jobs'}: {_NOT_KNOWN}")
                        warned, done[k] = True, (_call(function, *inputs[k]), [])
                        waiting.popleft()
                        break
                finished = wait(futures, return_when=FIRST_COMPLETED).done if not broken else set(futures)
                in_doubt = []
                for future in finished:
                    k = futures.pop(future)
                    try:
                        done[k] = future.result().take()
                    except BrokenProcessPool:
                        in_doubt.append(k)
                    except ParcelLostError:
                        done[k] = _alone(function, inputs[k])
                if in_doubt or broken:
                    in_doubt += futures.values()  # all tasks of a broken pool end with it
                    futures.clear()
                    processes.close()
                    for k in sorted(in_doubt):
                        done[k] = _alone(function, inputs[k])
            result, messages = done.pop(number)
            for message in messages:
                _repeat(message)
            yield result
    finally:
        for future in futures:
            future.cancel()
        processes.let_go(function)
        if kept is None:
            processes.close()


def _alone(function, arguments):
    """Result in a process of its own, or the error that says that it died; and its messages."""
    process = _Processes(1)
    try:
        return process.submit(function, arguments).result().take()
    except BrokenProcessPool:
        return ProcessDiedError(
            "the process that worked on it died, twice: killed, out of memory, or crashed; with n_jobs=1 it is seen why"
        ), []
    finally:
        process.close()


class _NotKnownError(Exception):
    """See _NOT_KNOWN."""


_NOT_KNOWN = (
    "what a script or notebook defines (a function, a class), and what cannot be pickled, is not known to other "
    "processes: it is done in this one; to use more, define it in a module and import it"
)


_numbers = itertools.count()


# In the processes


def _work(number, function, parcel, folder):
    """Result of a task, and what it logged and warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        result = _call(_of_loop(number, function), *parcel.take())
    messages = [_messages.get() for _ in range(_messages.qsize())]
    warned = [(w.message, w.category, w.filename, w.lineno) for w in caught]
    return Parcel.of((result, [*messages, *warned]), folder, is_answer=True)


def _of_loop(number, parcel):
    """The function of a loop, made once: what is bound to it may be large, and keep what it has worked out."""
    if number not in _function:
        _function.clear()
        _function[number] = parcel.open()
    return _function[number]


_function: dict[int, Callable] = {}  # with the number of its loop
_messages: SimpleQueue = SimpleQueue()


def _begin(environment, options, earth_orientation, level, folder):
    """What the user's process may have set after the fork server began, or has read already."""
    gc.freeze()  # what a fork has of the user's process is not looked through for what may be freed: it stays shared
    os.environ.clear()
    os.environ.update(environment)
    for conf, values in zip(_CONF, options, strict=True):
        for name, value in values.items():
            setattr(conf, name, value)
    # the same table for the same answer, and 0.5 s less than to read it from its file
    iers.earth_orientation_table.set(ForkingPickler.loads(earth_orientation))
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        if isinstance(logger, logging.Logger):  # a fork has the handlers of the user, who is to hear each message once
            logger.handlers, logger.propagate = [], True
    logging.root.setLevel(level)
    logging.root.addHandler(QueueHandler(_messages))
    threading.Thread(target=_end_with_the_user, args=(folder,), daemon=True).start()


def _end_with_the_user(folder):
    """Where the user's process is killed it tells nobody, and this one would wait for its next task for ever."""
    user = multiprocessing.parent_process()
    if user is not None:
        user.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


# In the process of the user


def _repeat(message):
    """A message of another process, as if it came from here."""
    if isinstance(message, logging.LogRecord):
        logger = logging.getLogger(message.name)
        if logger.isEnabledFor(message.levelno):
            logger.handle(message)
    else:
        text, category, filename, line = message
        warnings.warn_explicit(text, category, filename, line, registry=_warned)


_warned: dict = {}
_CONF = (iers.conf, data.conf)
_THREAD_END = 0.1  # s, after which a thread that has ended is known to the system no more


def _pool(n_jobs, folder):
    context = _context()
    options = [{name: getattr(conf, name) for name in conf} for conf in _CONF]
    level = logging.getLogger("gammapy_accmaker").getEffectiveLevel()
    earth_orientation = bytes(ForkingPickler.dumps(iers.earth_orientation_table.get()))
    return ProcessPoolExecutor(n_jobs, context, _begin, (dict(os.environ), options, earth_orientation, level, folder))


def _context():
    """Where processes come from; a fork server imports what this process has of the package, while that goes on."""
    if _has_one_thread():
        return multiprocessing.get_context("fork")
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([name for name in sys.modules if name.startswith("gammapy_accmaker")])
        try:
            with _without_the_script():
                forkserver.ensure_running()
            return context
        except OSError:
            # its socket lies in the folder of temporary files, whose path may be too long for one
            pass
    return multiprocessing.get_context("spawn")


def _has_one_thread():
    """Whether this process has no other thread, nor has linear algebra; not where the system does not tell (Linux
    does)."""
    until = time.monotonic()
    for thread in threading.enumerate():
        if thread.name == "tqdm_monitor" and hasattr(thread, "exit"):
            thread.exit()  # that of progress bars, hidden ones too: the next of them starts it again
            until += _THREAD_END
    try:
        while (number := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < until:
            time.sleep(1e-3)
    except OSError:
        return False
    return number == 1


_one_at_a_time = threading.Lock()  # what another thread has put aside would be taken for the user's own


@contextmanager
def _without_the_script():
    """Python runs what is `__main__` here in each process that it starts: nothing. And linear algebra begins there with
    one thread; see `_begin` for the rest of the environment."""
    with _one_at_a_time:
        main, environment = sys.modules["__main__"], {name: os.environ.get(name) for name in ONE_THREAD}
        sys.modules["__main__"] = ModuleType("__main__")
        os.environ.update(ONE_THREAD)
        try:
            yield
        finally:
            sys.modules["__main__"] = main
            for name, value in environment.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
