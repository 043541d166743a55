"""Time and peak memory of a fit against the numbers of runs, bins and workers, each fit in a process of its own.

    python tests/benchmarks/scaling.py --runs 10 100 1000 --n-jobs 1 2
    python tests/benchmarks/scaling.py --model grid --runs 100 --offset-bins 6 12 24 48
    python tests/benchmarks/scaling.py --dr1 --runs 105 1050

The runs are drawn on arrays in the bins of the model: events are not read, so that what is measured is the fit. With
``--dr1`` they are those of H.E.S.S. DR1, again and again with new numbers, and they are read. Prints the exponent of
the time between the first and the last row, in runs or in bins, which is 1 where the time is linear. Memory, of the
process and its workers together, is looked at twice a second; what they share counts once. (Linux only.)
"""

import argparse
import copy
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from gammapy.data import DataStore
from scipy.sparse import csr_array

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from gammapy_accmaker import AcceptanceConfig, fit_acceptance  # noqa: E402
from gammapy_accmaker.acceptance.fit import fit_runs, make_run_table  # noqa: E402
from gammapy_accmaker.acceptance.reduction import make_bins  # noqa: E402
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice, handed_over  # noqa: E402
from gammapy_accmaker.data.sky_counts import SKY_PIXEL, SkyCounts, sky_bands  # noqa: E402
from gammapy_accmaker.simulation.irfs import BackgroundTruth  # noqa: E402
from gammapy_accmaker.utils.few_bytes import in_few_bytes  # noqa: E402
from gammapy_accmaker.utils.parallel import Execution  # noqa: E402
from gammapy_accmaker.utils.run_key import RunKey

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
        counts = csr_array((np.ones(n, dtype=np.int32), np.divmod(at.astype(np.int32), shape[1])), shape=shape)
        counts.sum_duplicates()
        exposure = np.full(shape[1], ONTIME)
        dropped = {"not finite": 0, "outside GTI": 0}
        times = {"ontime": ONTIME, "livetime": 0.94 * ONTIME, "mjd": 59000.0 + k}
        where = {"cos_zenith": cos_zenith[z], "azimuth": rng.uniform(0, 360), "cos_zenith_range": (cos_zenith[z],) * 2}
        part = RunSlice(key=RunKey(k + 1), counts=counts, exposure=exposure, **times, **where)
        sky = sky_counts(np.divmod(at, shape[1]), bins, rng)
        yield ReducedRun(part.key, (part,), dropped=dropped, place=k, sky=sky)


def sky_counts(at, bins, rng):
    """The same events on the sky, as much as a reduced run keeps of them; ``at``: their bins of energy and field."""
    energy, pixel = at
    lon, lat = (rng.normal(a[pixel], 0.02) for a in (bins.fov.fov_lon, bins.fov.fov_lat))
    side = 2 * int(np.ceil(bins.fov.offset_max / SKY_PIXEL))
    column, row = (np.clip(np.floor(a / SKY_PIXEL).astype(int) + side // 2, 0, side - 1) for a in (lon, lat))
    band = np.searchsorted(sky_bands(bins.energy_edges), bins.energy_edges[energy], side="right") - 1
    index, counts = np.unique((band * side + row) * side + column, return_counts=True)
    turns = np.repeat(np.eye(3)[None], 6, axis=0)
    return SkyCounts(
        in_few_bytes(index), in_few_bytes(counts), side, np.eye(3), np.zeros(6, np.int8), np.full(6, ONTIME / 6), turns
    )


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
    config = CONFIGS[options.model]
    if options.offset_bins[0]:
        config = config | {"model": config["model"] | {"offset_bins": options.offset_bins[0]}}
    config, (number,), (n_jobs,) = AcceptanceConfig.coerce(config), options.runs, options.n_jobs
    if options.dr1:
        runs = list(repeated_observations(number))
    else:
        bins = make_bins(config)
        runs = list(draw_runs(bins, number, options.events))
    memory, held, start = PeakMemory(), processor_time(), time.monotonic()
    runs_alone = memory.now()
    memory.start()
    if options.dr1:
        fit_acceptance(runs, config, n_jobs=n_jobs)
    else:
        again = config.model.adapts_by_counts(config.run_effects.settings)
        given = runs if again else handed_over(runs)
        fitted = fit_runs(given, bins, config, execution=Execution.of(n_jobs))[0]
        adapted = [fitted.adapt(run, bins, config.run_effects.settings, k) for k, run in enumerate(runs)]
        make_run_table(fitted, runs, adapted, {}, config)
    wall, cpu = time.monotonic() - start, processor_time() - held
    return {"wall": wall, "cpu": cpu, "held": runs_alone, "peak": memory.stop()}


def processor_time():
    """Of this process, of its children, and of theirs that have ended, in s."""
    pids = [
        os.getpid(),
        *(pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()),
    ]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(float(ticks) for stat in stats for ticks in stat[11:15]) / os.sysconf("SC_CLK_TCK")


class PeakMemory(threading.Thread):
    """Largest memory in GB of this process and its children."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.done = 0.0, threading.Event()

    def now(self):
        pids, total = [os.getpid(), *(p.pid for p in multiprocessing.active_children())], 0
        for pid in pids:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it has ended
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1e6

    def run(self):
        while not self.done.wait(0.5):
            self.peak = max(self.peak, self.now())

    def stop(self):
        self.done.set()
        self.join()
        return max(self.peak, self.now())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--n-jobs", type=int, nargs="+", default=[1])
    parser.add_argument("--offset-bins", type=int, nargs="+", default=[0], help="of a binned model; 0: its default")
    parser.add_argument("--model", choices=CONFIGS, default="spline")
    parser.add_argument("--events", type=int, default=10000, help="of each run that is drawn")
    parser.add_argument("--dr1", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(options)))
        return
    what = "H.E.S.S. DR1 repeated" if options.dr1 else f"{options.events} events a run"
    threads = os.environ.get("OMP_NUM_THREADS")
    print(f"{options.model}, {what}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}")
    print(f"{'runs':>6s} {'bins':>5s} {'jobs':>5s} {'wall s':>8s} {'CPU s':>8s} {'runs GB':>8s} {'peak GB':>8s}")
    rows = []
    for number, offset_bins, n_jobs in itertools.product(options.runs, options.offset_bins, options.n_jobs):
        one = ["--runs", str(number), "--offset-bins", str(offset_bins), "--n-jobs", str(n_jobs)]
        command = [sys.executable, *sys.argv, *one, "--alone"]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        rows.append(row | {"runs": number, "bins": offset_bins})
        print(
            f"{number:6d} {offset_bins or '':>5} {n_jobs:5d} {row['wall']:8.1f} {row['cpu']:8.1f} {row['held']:8.2f} "
            f"{row['peak']:8.2f}",
            flush=True,
        )
    first, last = rows[0], rows[-1]
    for name in ("runs", "bins"):
        if first[name] != last[name]:
            exponent = np.log(last["cpu"] / first["cpu"]) / np.log(last[name] / first[name])
            growth = (last["peak"] - first["peak"]) / (last[name] - first[name])
            print(f"exponent of the CPU time in {name}: {exponent:.2f}; memory: {1e6 * growth:.0f} kB for each")


if __name__ == "__main__":
    main()
