"""What the benchmarks time: fits of all runs of H.E.S.S. DL3 DR1, and background maps of one of them.

As a script it does one of them in a process of its own, for an honest first call and peak memory, and prints JSON::

    python tests/benchmarks/measures.py fit grid --offset-bins 6
    python tests/benchmarks/measures.py background
    python tests/benchmarks/measures.py read
"""

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from gammapy.data import DataStore
from gammapy.makers.utils import make_map_background_irf
from gammapy.maps import MapAxis, WcsGeom

from gammapy_accmaker import AcceptanceBackgroundMaker, fit_acceptance

DR1 = Path(os.environ.get("GAMMAPY_DATA", "")) / "hess-dl3-dr1"
EXCLUSION = Path(os.environ.get("ACCMAKER_EXCLUSION", Path(__file__).parents[3] / "shared" / "dr1-exclusions.reg"))
BACKGROUND_RUN = 33795  # 28 min
REPEATS = 5
OVERSAMPLING = 5
SPLINE = {"energy": {"min": "0.15 TeV", "max": "25 TeV"}}


def fit_config(model, offset_bins):
    """Options of a binned fit: 24 bins 0.2-20 TeV; 12 offset bins are 12 rings or a grid of 24 x 24."""
    edges = np.geomspace(0.2, 20, 25)
    return {
        "model": {"type": model, "offset_bins": offset_bins},
        "energy": {"min": "0.2 TeV", "max": "20 TeV"},
        "fit_energy": [f"{edge} TeV" for edge in edges],
        "offset_max": "2.5 deg",
        "fov_alignment": "altaz",
        "zenith": {"type": "none"},
        "azimuth": {"type": "none"},
        "time_step": "1 min",
        "run_effects": {"type": "norm"},
        "renormalization": {"type": "none"},
    }


def open_runs(runs=None):
    """All runs, or some, with nothing read yet but the index."""
    store = DataStore.from_dir(DR1)
    return store.get_observations(store.obs_table["OBS_ID"] if runs is None else runs, required_irf=["aeff"])


def fit(model, offset_bins, n_jobs=1):
    """From the index files to the fitted model; "spline" is the default configuration but for the energies."""
    config = SPLINE if model == "spline" else fit_config(model, offset_bins)
    return fit_acceptance(open_runs(), config, exclusion=EXCLUSION, n_jobs=n_jobs)


def fitted_maker():
    """A maker with a grid model of all runs."""
    maker = AcceptanceBackgroundMaker(fit_config("grid", 12), exclusion=EXCLUSION)
    return maker.fit(open_runs(), n_jobs=1)


def new_run_and_geom():
    """The run and a map of 5 x 5 deg around its pointing; new objects, so that nothing is kept from an earlier call."""
    observation = open_runs([BACKGROUND_RUN])[0]
    energy = MapAxis.from_energy_bounds("0.5 TeV", "10 TeV", nbin=10)
    return observation, WcsGeom.create(skydir=observation.pointing.fixed_icrs, width=5, binsz=0.02, axes=[energy])


def read_events():
    """The event tables of all runs, by gammapy: the time that fits are compared with."""
    return [observation.events.table for observation in open_runs()]


def gammapy_background(irf, observation, geom, oversampling=None):
    """The map as `~gammapy.makers.MapDatasetMaker` makes it; oversampling divides the energy bins."""
    return make_map_background_irf(
        pointing=observation.pointing,
        ontime=observation.observation_time_duration,
        bkg=irf,
        geom=geom,
        time_start=observation.tstart,
        oversampling=oversampling,
        location=observation.observatory_earth_location,
    )


def processor_time(call, *args):
    """What a call returns, and its seconds on the processor and elapsed."""
    start, cpu = time.perf_counter(), time.process_time()
    result = call(*args)
    return result, time.process_time() - cpu, time.perf_counter() - start


def _map_times(call):
    """A map, and the processor times of the first call and of later ones (median), each with new inputs."""
    times = []
    for _ in range(REPEATS):
        result, cpu, _ = processor_time(call, *new_run_and_geom())
        times.append(cpu)
    return result.data.sum((1, 2)), {"first": times[0], "next": statistics.median(times[1:])}


def _peak_mb(who):
    return resource.getrusage(who).ru_maxrss / 1024


def measure_fit(model, offset_bins, n_jobs):
    fitted, cpu, seconds = processor_time(fit, model, offset_bins, n_jobs)
    return {
        "model": model,
        "runs": int(fitted.run_table["USED"].sum()),
        "seconds": seconds,
        "cpu_seconds": cpu,
        # of n workers, each as large as the largest, while n = 1 works in this process
        "peak_mb": _peak_mb(resource.RUSAGE_SELF) + (n_jobs * _peak_mb(resource.RUSAGE_CHILDREN) if n_jobs > 1 else 0),
    }


def measure_background():
    maker = fitted_maker()
    irf = maker.make_irf(new_run_and_geom()[0])
    ours, our_times = _map_times(lambda observation, geom: maker.make_background(geom, observation))
    theirs, their_times = _map_times(lambda observation, geom: gammapy_background(irf, observation, geom))
    # by itself gammapy takes each bin of the map as one power law between the rates at its edges
    finer = gammapy_background(irf, *new_run_and_geom(), oversampling=OVERSAMPLING).data.sum((1, 2))
    return {
        "ours": our_times,
        "gammapy": their_times,
        "energy_bin_ratio": (ours / theirs).tolist(),
        "energy_bin_ratio_oversampled": (ours / finer).tolist(),
    }


def measure_read():
    tables, cpu, seconds = processor_time(read_events)
    return {"runs": len(tables), "events": sum(map(len, tables)), "seconds": seconds, "cpu_seconds": cpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("fit")
    one.add_argument("model", choices=["radial", "grid", "spline"])
    one.add_argument("--offset-bins", type=int, default=12)
    one.add_argument("--n-jobs", type=int, default=1)
    commands.add_parser("background")
    commands.add_parser("read")
    args = parser.parse_args()
    if args.command == "fit":
        result = measure_fit(args.model, args.offset_bins, args.n_jobs)
    else:
        result = measure_background() if args.command == "background" else measure_read()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
