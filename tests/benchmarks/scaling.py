"""Time and peak memory of a fit against the number of runs, each size in a process of its own.

    python tests/benchmarks/scaling.py --runs 10 100 1000 --model spline [--n-jobs 2] [--dr1]

The runs are drawn on arrays in the bins of the model: events are not read, so that what is measured is the fit. With
``--dr1`` they are those of H.E.S.S. DR1, again and again with new numbers, and they are read. Prints the exponent of the
time between the last two sizes, which is 1 where the time is linear. Peak memory: of the process and of its workers, each
at its largest.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from gammapy.data import DataStore
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from gammapy_accmaker import AcceptanceConfig, fit_acceptance  # noqa: E402
from gammapy_accmaker.demo_truth import BackgroundTruth  # noqa: E402
from gammapy_accmaker.fit import fit_runs, make_run_table  # noqa: E402
from gammapy_accmaker.reduction.counts import RunCounts  # noqa: E402
from gammapy_accmaker.runs import make_bins  # noqa: E402

CONFIGS = {
    "spline": {},
    "radial": {"model": {"type": "radial"}},
    "grid": {"model": {"type": "grid"}},
    "pooled": {"model": {"type": "radial"}, "zenith": {"type": "interpolated"}, "azimuth": {"type": "east_west"}},
}
ONTIME = 1680.0  # s
ZENITHS = 20  # at which the truth is tabulated


def draw_runs(bins, number, events):
    """Runs of so many events each, with norms of their own, at many zenith angles."""
    rng = np.random.default_rng(0)
    truth = BackgroundTruth()
    cos_zenith = np.linspace(0.6, 1, ZENITHS)
    cumulative = []
    for cos in cos_zenith:
        expected = truth.integral(bins.energy_edges, bins.fov.fov_lon, bins.fov.fov_lat, cos) * bins.fov.solid_angle
        cumulative.append(np.cumsum(expected.ravel()))
    shape = (len(bins.energy_edges) - 1, bins.fov.size)
    for k in range(number):
        z = rng.integers(0, ZENITHS)
        n = rng.poisson(events * np.exp(0.1 * rng.normal()))
        at = np.searchsorted(cumulative[z], rng.uniform(0, cumulative[z][-1], n))
        counts = csr_array((np.ones(n, dtype=np.int32), np.divmod(at, shape[1])), shape=shape)
        counts.sum_duplicates()
        exposure = np.full(shape[1], ONTIME)
        dropped = {"not finite": 0, "outside GTI": 0}
        times = {"ontime": ONTIME, "livetime": 0.94 * ONTIME, "mjd": 59000.0 + k}
        where = {"cos_zenith": cos_zenith[z], "azimuth": rng.uniform(0, 360)}
        yield [RunCounts(obs_id=k + 1, counts=counts, exposure=exposure, dropped=dropped, **times, **where)]


def repeated_observations(number):
    """Observations of H.E.S.S. DR1, with new numbers where they come again."""
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    first = store.get_observations(required_irf="all-optional")
    for k in range(number):
        observation = copy.copy(first[k % len(first)])
        observation.obs_id = k + 1
        yield observation


def measure(options):
    """Seconds and peak memory in GB of one fit; made in a process of its own."""
    config = AcceptanceConfig.coerce(CONFIGS[options.model])
    if options.dr1:
        runs = list(repeated_observations(options.one))
    else:
        bins = make_bins(config)
        runs = list(draw_runs(bins, options.one, options.events))
    held, start = usage(), time.monotonic()
    if options.dr1:
        fit_acceptance(runs, config, n_jobs=options.n_jobs)
    else:
        fitted = fit_runs(runs, bins, config, n_jobs=options.n_jobs)
        make_run_table(fitted, bins, runs, {}, config)
    end = usage()
    peak = end["own"] + options.n_jobs * end["worker"]
    return {
        "runs": options.one,
        "wall": time.monotonic() - start,
        "cpu": end["cpu"] - held["cpu"],
        "held": held["own"],
        "peak": peak,
    }


def usage():
    """Processor time in s of this process and its children, and the largest memory in GB of it and of one of them."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, children))
    return {"cpu": cpu, "own": own.ru_maxrss / 1e6, "worker": children.ru_maxrss / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--model", choices=CONFIGS, default="spline")
    parser.add_argument("--events", type=int, default=10000, help="of each run that is drawn")
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--dr1", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options)))
        return
    what = "H.E.S.S. DR1 repeated" if options.dr1 else f"{options.events} events a run"
    threads = os.environ.get("OMP_NUM_THREADS")
    print(f"{options.model}, {what}, n_jobs={options.n_jobs}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}")
    print(f"{'runs':>6s} {'wall s':>8s} {'CPU s':>8s} {'runs GB':>8s} {'peak GB':>8s}")
    rows = []
    for number in options.runs:
        command = [sys.executable, *sys.argv, "--one", str(number)]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        rows.append(row)
        print(f"{number:6d} {row['wall']:8.1f} {row['cpu']:8.1f} {row['held']:8.2f} {row['peak']:8.2f}", flush=True)
    if len(rows) > 1:
        first, last = rows[-2:]
        exponent = np.log(last["cpu"] / first["cpu"]) / np.log(last["runs"] / first["runs"])
        growth = (last["peak"] - first["peak"]) / (last["runs"] - first["runs"])
        print(f"exponent of the CPU time between the last two: {exponent:.2f}; memory: {1e6 * growth:.0f} kB a run")


if __name__ == "__main__":
    main()
