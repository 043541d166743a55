"""Linear algebra in one thread, and what was set before again."""

import sys
from pathlib import Path

import numpy as np
import pytest
from stores import observations, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.models.binned import BinnedModel
from gammapy_accmaker.utils.parallel import SERIAL, Execution
from gammapy_accmaker.utils.threads import give_back_memory, one_thread, thread_pools

pytestmark = pytest.mark.skipif(not thread_pools(), reason="numpy and scipy use another library than OpenBLAS")


def numbers():
    return [get() for get, _ in thread_pools()]


def numbers_and_product(k):
    return numbers(), float((np.ones((k, k)) @ np.ones((k, k))).sum())


@pytest.fixture(autouse=True)
def two_threads():
    before = numbers()
    for _, put in thread_pools():
        put(2)
    yield
    for (_, put), number in zip(thread_pools(), before, strict=True):
        put(number)


def test_one_thread_while_it_lasts():
    several = numbers()
    with one_thread():
        assert set(numbers()) == {1}
        with one_thread():
            pass
        assert set(numbers()) == {1}
    assert numbers() == several
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert numbers() == several
    assert set(one_thread()(numbers)()) == {1} and numbers() == several


@pytest.mark.parametrize("execution", [SERIAL, Execution(2)], ids=["here", "two processes"])
def test_tasks_of_a_loop(execution):
    several = numbers()
    results = execution.map(numbers_and_product, [(k,) for k in (10, 20)])
    for (inside, total), k in zip(results, (10, 20), strict=True):
        assert set(inside) == {1} and total == k**3
        assert numbers() == several  # between the tasks as well
    assert numbers() == several


def test_a_maker(monkeypatch):
    seen, runs = [], observations(plain_store())[:2]
    adapt, integral_grid = BinnedModel.adapt, BinnedModel.integral_grid
    monkeypatch.setattr(BinnedModel, "adapt", lambda *given: seen.append(numbers()) or adapt(*given))
    monkeypatch.setattr(BinnedModel, "integral_grid", lambda *given: seen.append(numbers()) or integral_grid(*given))
    several = numbers()
    maker = AcceptanceBackgroundMaker(options("grid")).fit(runs, n_jobs=1)
    assert {n for one in seen for n in one} == {1} and numbers() == several
    seen.clear()
    maker.make_irf(runs[0])
    assert len(seen) > 2 and {n for one in seen for n in one} == {1} and numbers() == several


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators give it back, or cannot be asked")
def test_what_lies_between_things_that_are_kept_is_given_back():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with one_thread():
        kept = [(np.ones(10_000), np.ones(1000)) for _ in range(1000)]
        kept = [small for _, small in kept]
        before = resident()
        give_back_memory()
        assert resident() < before - 0.8 * 1000 * 80_000 + 1000 * 4096 and len(kept) == 1000
