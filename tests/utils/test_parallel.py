"""Processes of this machine: safe beside threads, without the user's script, and as if there were one alone."""

import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
from astropy.utils import iers

from gammapy_accmaker.utils.parallel import Execution, ProcessDiedError, _without_the_script

LOCK = threading.Lock()


def in_two(function, numbers=range(4)):
    return list(Execution(2).map(function, [(k,) for k in numbers], "numbers"))


def _takes_the_lock(number):
    return LOCK.acquire(timeout=0.5) and number


def test_a_lock_that_a_thread_holds_is_free_in_other_processes():
    """A fork would hand it over locked, with nobody to open it."""
    held, done = threading.Event(), threading.Event()

    def hold():
        with LOCK:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        # one each: what a process has locked here stays so
        assert list(Execution(2).map(_takes_the_lock, [(1,), (1,)]))[0] == 1
    finally:
        done.set()
        thread.join()


def _speaks(number):
    logging.getLogger("gammapy_accmaker.acceptance.fit").warning(f"number {number}")
    warnings.warn("of all numbers", UserWarning, stacklevel=1)
    return number


def test_what_processes_log_and_warn_of_is_heard_in_the_order_of_the_runs(caplog):
    with pytest.warns(UserWarning, match="of all numbers"):
        assert in_two(_speaks) == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [f"number {k}" for k in range(4)]


def _state(number):
    return (
        os.environ.get("ACCMAKER_TEST"),
        iers.conf.auto_max_age,
        type(iers.earth_orientation_table.get()),
        os.getcwd(),
    )


def test_processes_know_what_was_set_since_they_could_be_started(monkeypatch, tmp_path):
    in_two(_state)
    monkeypatch.setenv("ACCMAKER_TEST", "set later")
    monkeypatch.chdir(tmp_path)
    with iers.conf.set_temp("auto_max_age", 77), iers.earth_orientation_table.set(iers.IERS_B.open()):
        assert set(in_two(_state)) == {("set later", 77, iers.IERS_B, os.getcwd())}


def test_the_process_of_the_user_is_left_as_it_was():
    main, environment = sys.modules["__main__"], dict(os.environ)
    in_two(abs)
    assert sys.modules["__main__"] is main and dict(os.environ) == environment


def test_processes_of_two_threads_at_once_leave_it_so_too():
    main, environment, done = sys.modules["__main__"], dict(os.environ), threading.Event()

    def start():
        with _without_the_script():
            done.wait()

    thread = threading.Thread(target=start)
    with _without_the_script():
        thread.start()
        time.sleep(0.05)
    done.set()
    thread.join()
    assert sys.modules["__main__"] is main and dict(os.environ) == environment


def _of_the_script(number):
    warnings.warn_explicit("of an application", UserWarning, "application/__main__.py", 1)
    return f"application/__main__.py, line {number}"


def test_an_answer_may_speak_of_the_script():
    with pytest.warns(UserWarning, match="of an application"):
        assert in_two(_of_the_script, range(2)) == [f"application/__main__.py, line {k}" for k in range(2)]


def _sum(values, path):
    while values.any() and not os.path.exists(path):
        time.sleep(0.01)
    return values.sum()


def test_a_folder_of_temporary_files_that_is_tidied_up_meanwhile(tmp_path, monkeypatch):
    """The last of what was handed out is not read yet then."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = tmp_path / "tidy"
    sums = Execution(2).map(_sum, [(np.full(10_000, k), path) for k in range(8)])
    first = next(sums)
    for folder in tmp_path.glob("gammapy_accmaker-*"):
        shutil.rmtree(folder)
    path.touch()
    assert [first, *sums] == [10_000 * k for k in range(8)]


def _nested(number):
    return [os.getpid(), *Execution(2).map(_process, [(k,) for k in range(2)])]


def _process(number):
    return os.getpid()


def test_a_process_starts_no_others():
    pids = in_two(_nested)
    assert all(len(set(group)) == 1 for group in pids) and os.getpid() not in {group[0] for group in pids}


def _pid_unless(number, end):
    """Of the process; it ends with 2, in one way or the other."""
    return end() if number == 2 else os.getpid()


def _raise():
    raise ZeroDivisionError


def _die():
    os._exit(1)


def test_loops_share_the_processes_while_they_are_kept():
    with Execution(2).open() as kept:
        pids = {pid for _ in range(3) for pid in kept.map(_process, [(k,) for k in range(8)])}
        next(kept.map(_process, [(k,) for k in range(8)]))  # it is left there
        with pytest.raises(ZeroDivisionError):
            list(kept.map(_pid_unless, [(k, _raise) for k in range(8)]))
        pids |= set(kept.map(_process, [(k,) for k in range(8)]))
        assert len(pids) <= 2 and os.getpid() not in pids
        results = list(kept.map(_pid_unless, [(k, _die) for k in range(8)]))
        assert [isinstance(result, ProcessDiedError) for result in results] == [k == 2 for k in range(8)]
        later = set(kept.map(_process, [(k,) for k in range(8)]))
        assert len(later) <= 2 and not later & pids and multiprocessing.active_children()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [1, 2])
def test_none_is_started_before_it_is_needed_nor_left_by_an_error(number):
    with pytest.raises(ZeroDivisionError), Execution(2).open() as kept:
        assert not multiprocessing.active_children()
        unfinished = kept.starmap("")(_process, [(k,) for k in range(number)])
        assert (next(unfinished) == os.getpid()) == (number == 1)
        raise ZeroDivisionError
    assert not multiprocessing.active_children()
    if number > 1:
        for late in (unfinished, kept.map(_process, [(1,), (2,)])):
            with pytest.raises(RuntimeError, match="have been closed"):
                next(iter(late))
        assert not multiprocessing.active_children()


SCRIPT = """
    import os, sys, threading
    from gammapy_accmaker.utils.parallel import Execution

    print("begun", flush=True)
    stop = threading.Event()
    threading.Thread(target=stop.wait).start()
    def square(number):
        return number**2
    print(list(Execution(2).map(abs, [(-k,) for k in range(5)])))
    print(len(set(Execution(2).map(os.getpid, [()] * 4)) - {os.getpid()}) > 0)
    print(set(map(len, Execution(2).map(os.listdir, [("/proc/self/task",)] * 4))))
    print(list(Execution(2).map(square, [(k,) for k in range(5)], "squares")))
    stop.set()
"""


@pytest.mark.parametrize("how", ["file", "stdin", "command"])
def test_a_script_needs_no_guard(how, tmp_path):
    """It is not run again, and what it defines is used all the same; nothing is forked beside its thread."""
    path, code = tmp_path / "script.py", textwrap.dedent(SCRIPT)
    path.write_text(code)
    arguments = {"file": [str(path)], "stdin": ["-"], "command": ["-c", code]}[how]
    environment = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning:multiprocessing", *arguments],
        input=code if how == "stdin" else None, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert found[:3] == ["begun", "[0, 1, 2, 3, 4]", "True"] and found[4:] == ["[0, 1, 4, 9, 16]"]
    if os.path.isdir("/proc/self/task"):
        assert found[3] == "{2}"  # that which works, and one that waits for the end of the user's process
    assert done.stderr.count("squares: what a script or notebook defines") == 1
    assert "fork()" not in done.stderr


FORKED = """
    import logging, os, sys, warnings
    from gammapy.utils.pbar import progress_bar
    from gammapy_accmaker.utils.parallel import Execution

    logging.basicConfig(format="root: %(message)s")
    own = logging.getLogger("gammapy_accmaker")
    own.propagate = False
    own.addHandler(logging.StreamHandler())
    list(progress_bar(range(3)))
    print("once", end=" ")
    with Execution(2).open() as kept:
        parents = set(kept.map(os.getppid, [()] * 8))
        list(kept.map(own.warning, [("number %s", k) for k in range(3)]))
        list(kept.map(logging.warning, [("other %s", k) for k in range(3)]))
        list(kept.map(warnings.warn, [("of the fork",)] * 2))
    print(parents == {os.getpid()})
    print(list(Execution(2).map(os.getppid, [()] * 2)) == [os.getpid()] * 2)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="the system does not tell of threads")
def test_a_process_of_one_thread_is_forked():
    """Beside the thread of progress bars, which ends before; what it prints, logs and warns of is heard once."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = ["-W", "error::DeprecationWarning:multiprocessing", "-c", textwrap.dedent(FORKED)]
    done = subprocess.run([sys.executable, *code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.split("\n") == ["once True", "True", ""], done.stderr
    assert [done.stderr.count(f"number {k}") for k in range(3)] == [1, 1, 1]
    assert [done.stderr.count(f"root: other {k}") for k in range(3)] == [1, 1, 1]
    assert done.stderr.count("UserWarning: of the fork") == 1


KILLED = """
    import os, signal
    from gammapy_accmaker.utils.parallel import Execution

    with Execution(2).open() as kept:
        list(kept.map(abs, [(1,), (2,)]))
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_processes_end_with_that_of_the_user(threads, tmp_path):
    """Forked ones, and those of the fork server: what they may print to is closed; and no file is left."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED)], capture_output=True, env=environment, timeout=60)
    assert not list(tmp_path.glob("gammapy_accmaker-*"))


@pytest.mark.skipif(os.name == "nt", reason="there is no fork server")
def test_a_folder_of_temporary_files_with_a_long_path(tmp_path):
    """No socket can be made in it, as in those of some clusters; the processes come without."""
    folder = tmp_path / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    code = "from gammapy_accmaker.utils.parallel import Execution; print(list(Execution(2).map(abs, [(-1,), (-2,)])))"
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == "[1, 2]", done.stderr


class _Bound:
    """A function with much bound to it, which counts in how many processes it was made."""

    def __init__(self, numbers):
        self.numbers, self.calls = numbers, 0

    def __call__(self, number):
        self.calls += 1
        return os.getpid(), self.calls, self.numbers[number]


def test_what_is_bound_to_a_function_is_sent_once_to_each_process():
    first, second = _Bound(np.arange(1e5)), _Bound(-np.arange(1e5))
    with Execution(2).open() as kept:
        folder = None
        for bound in (first, second):
            calls: dict[int, int] = {}
            for k, (pid, call, value) in enumerate(kept.map(bound, [(k,) for k in range(10)])):
                assert value == bound.numbers[k] and call == calls.get(pid, 0) + 1
                calls[pid] = call
                folder = kept.processes.folder.name
                assert sum(path.stat().st_size for path in os.scandir(folder)) == first.numbers.nbytes
            assert not os.listdir(folder)
        # two loops in turn
        mixed = zip(kept.map(first, [(k,) for k in range(6)]), kept.map(second, [(k,) for k in range(6)]), strict=True)
        assert [(one[2], other[2]) for one, other in mixed] == [(k, -k) for k in range(6)]
    assert not os.path.exists(folder)
