"""Linear algebra in one thread, and memory that is kept.

The matrices here are small, and processes are many: with more threads than free cores, those of OpenBLAS wait for one
another, and a call takes several times as long as in one thread. `one_thread` asks for one while it lasts, whatever
OMP_NUM_THREADS says, and gives back what was set before. It finds the OpenBLAS that the wheels of numpy and scipy bring
along, by its own functions to get and set the number; where they use another library, it is left as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy.linalg  # which loads the library

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # of a new process

# where wheels of Linux and Windows, and those of macOS, have the libraries that they bring along
_PLACES = [Path(str(package.__file__)).parent for package in (np, scipy)]
_FOLDERS = [folder for place in _PLACES for folder in (place.with_name(f"{place.name}.libs"), place / ".dylibs")]
_PREFIXES, _SUFFIXES = ("scipy_openblas", "openblas"), ("64_", "")
_ONLY_LOADED = getattr(os, "RTLD_NOLOAD", 0)  # a library that is not in use is not brought in


@contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, linear algebra of numpy and scipy uses one thread; also a decorator."""
    # the allocator of Linux gives large arrays back to the system, and takes the next ones from it page by page; one of
    # this size, which is never touched, teaches it to keep as much for the process: a fit takes 5 % less time
    np.empty(31 * 2**20, dtype=np.uint8)
    # one that has one thread is not touched: in a process that was forked it would start the others anew
    before = [(put, number) for get, put in thread_pools() if (number := get()) != 1]
    try:
        for put, _ in before:
            put(1)
        yield
    finally:
        for put, number in before:
            put(number)


def give_back_memory() -> None:
    """What has been freed goes back to the system, also where other things lie behind it: the allocator of Linux keeps
    such holes, and of each thread apart, so that what comes from other processes does not fill them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def thread_pools() -> list[tuple[Callable[[], int], Callable[[int], None]]]:
    """Functions that get and set the number of threads, of each library that was found."""
    found = []
    for path in sorted(path for folder in _FOLDERS for path in folder.glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE | _ONLY_LOADED)
        except OSError:
            continue
        for prefix, suffix in ((prefix, suffix) for prefix in _PREFIXES for suffix in _SUFFIXES):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and put is not None:
                found.append((get, put))
                break
    return found
