"""Ray as the engine: the same answer as one process, and a worker that dies is an error that says so."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from gammapy.data import DataStore
from stores import IRFS, options, plain_store

from gammapy_accmaker import fit_acceptance
from gammapy_accmaker.utils.parallel import Execution, ProcessDiedError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def local_cluster():
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(here.parent), str(here), *sys.path])
    # one of our own, whatever cluster the machine is part of
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


def test_the_same_answer_as_in_one_process():
    store = DataStore.from_dir(plain_store().path)
    observations = list(store.get_observations(sorted(store.obs_table["OBS_ID"])[:4], required_irf=IRFS))
    here = fit_acceptance(observations, options("radial")).rate_model
    there = fit_acceptance(observations, options("radial"), n_jobs=2, parallel_backend="ray").rate_model
    assert np.array_equal(here.counts, there.counts) and np.array_equal(here.exposure, there.exposure)


def _die_at_3(number):
    if number == 3:
        os._exit(1)
    return number


def test_a_worker_that_dies_is_a_clear_error_and_nothing_hangs():
    with pytest.raises(ProcessDiedError, match="squares: ray lost a worker"):
        list(Execution(2, "ray").map(_die_at_3, [(k,) for k in range(8)], "squares"))
    assert list(Execution(2, "ray").map(abs, [(-k,) for k in range(8)], "squares")) == list(range(8))
