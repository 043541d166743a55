"""Time and peak memory of a fit against the number of runs, each size in a process of its own.

    python tests/benchmarks/scaling.py --runs 10 100 1000 --model spline

The runs are drawn on arrays in the bins of the model: events are not read, so that what is measured is the fit. Prints
the exponent of the time between the sizes, which is 1 where the time is linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from gammapy_accmaker import AcceptanceConfig  # noqa: E402
from gammapy_accmaker.demo_truth import BackgroundTruth  # noqa: E402
from gammapy_accmaker.fit import fit_runs, make_run_table  # noqa: E402
from gammapy_accmaker.reduction.counts import RunCounts  # noqa: E402
from gammapy_accmaker.runs import make_bins  # noqa: E402

CONFIGS = {
    "spline": {},
    "radial": {"model": {"type": "radial"}},
    "grid": {"model": {"type": "grid"}},
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


def measure(model, number, events):
    """Seconds and peak memory in GB of one fit; made in a process of its own."""
    config = AcceptanceConfig.coerce(CONFIGS[model])
    bins = make_bins(config)
    runs = list(draw_runs(bins, number, events))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    start = time.monotonic(), time.process_time()
    fitted = fit_runs(runs, bins, config)
    fit = time.monotonic() - start[0], time.process_time() - start[1]
    make_run_table(fitted, bins, runs, {}, config)
    total = time.monotonic() - start[0], time.process_time() - start[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"runs": number, "fit": fit[0], "cpu": fit[1], "table": total[1] - fit[1], "held": held, "peak": peak}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--model", choices=CONFIGS, default="spline")
    parser.add_argument("--events", type=int, default=10000, help="of each run")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.model, options.one, options.events)))
        return
    print(
        f"{options.model}, {options.events} events a run, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}"
    )
    print(f"{'runs':>6s} {'fit s':>8s} {'CPU s':>8s} {'table CPU s':>12s} {'runs GB':>8s} {'peak GB':>8s}")
    rows = []
    for number in options.runs:
        command = [
            sys.executable,
            __file__,
            "--model",
            options.model,
            "--events",
            str(options.events),
            "--one",
            str(number),
        ]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{number:6d} {row['fit']:8.1f} {row['cpu']:8.1f} {row['table']:12.1f} {row['held']:8.2f} {row['peak']:8.2f}",
            flush=True,
        )
    if len(rows) > 1:
        first, last = rows[-2:]
        exponent = np.log(last["cpu"] / first["cpu"]) / np.log(last["runs"] / first["runs"])
        growth = (last["peak"] - first["peak"]) / (last["runs"] - first["runs"])
        print(f"exponent of the CPU time between the last two: {exponent:.2f}; memory: {1e6 * growth:.0f} kB a run")


if __name__ == "__main__":
    main()
