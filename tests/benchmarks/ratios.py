"""What fits and backgrounds cost, in units of reading: of gammapy reading the events of the same runs, in one run.

    export GAMMAPY_DATA=...
    python tests/benchmarks/ratios.py                     # all of H.E.S.S. DL3 DR1: some minutes
    python tests/benchmarks/ratios.py --every 5 background attach

Each figure is of processor time, between two readings, so that it holds on a machine that has other work to do; with
processes the elapsed times are compared, and the machine must be idle. ``first`` is the first call of a process, with
astropy's table of the orientation of the Earth, which is read once in a process.
"""

import argparse
import tempfile
from pathlib import Path

import astropy.units as u
from gammapy.data import DataStore
from gammapy.maps import MapAxis, RegionGeom, WcsGeom
from measures import DR1, EXCLUSION, SPLINE, fit_config, open_runs, processor_time
from regions import CircleSkyRegion

from gammapy_accmaker import AcceptanceBackgroundMaker, attach_background, fit_acceptance

ASKED = {
    "radial, first": 2,
    "radial": 2,
    "spline": 6,
    "spline, two processes, elapsed": 4,
    "background of a run on a map": 10.5,  # 0.15 s where all runs are read in 1.5 s
    "attach, over writing the same backgrounds with gammapy": 2,
}
AXIS = MapAxis.from_energy_bounds("0.5 TeV", "10 TeV", nbin=10)


class Ratios:
    """Times of calls over that of reading the runs, before and after."""

    def __init__(self, ids):
        self.ids = ids

    def read(self):
        return processor_time(lambda: [observation.events.table for observation in open_runs(self.ids)])[1:]

    def say(self, name, ratio):
        print(f"{name:<58} {ASKED.get(name, ''):>6} {ratio:8.1f}", flush=True)

    def of(self, name, call, elapsed=False, per_read=True):
        before = self.read()[elapsed]
        result, *times = processor_time(call)
        time, reading = times[elapsed], 0.5 * (before + self.read()[elapsed])
        if per_read:
            self.say(name, time / reading)
        return result, time

    def fit(self, config, n_jobs=1):
        return fit_acceptance(open_runs(self.ids), config, exclusion=EXCLUSION, n_jobs=n_jobs)


def map_of(observation):
    return WcsGeom.create(skydir=observation.pointing.fixed_icrs, width=5, binsz=0.02, axes=[AXIS])


def region_of(observation, k=0):
    center = observation.pointing.fixed_icrs.directional_offset_by(90 * k * u.deg, 0.5 * u.deg)
    return RegionGeom.create(CircleSkyRegion(center, 0.1 * u.deg), axes=[AXIS])


def backgrounds(ratios, maker):
    runs = open_runs(ratios.ids)
    geoms = {observation.obs_id: map_of(observation) for observation in runs}

    def on(geom_of):
        return [maker.make_background(geom_of(observation), observation) for observation in open_runs(ratios.ids)]

    ratios.of("background of a run on a map", lambda: on(lambda o: geoms[o.obs_id]))
    ratios.of("  the same again: the model is adapted already", lambda: on(lambda o: geoms[o.obs_id]))
    for k in range(2):
        ratios.of(f"  in region {k + 1} of it", lambda k=k: on(lambda o: region_of(o, k)))


def attach(ratios, model):
    """Beside making the backgrounds one by one, and beside writing each with gammapy once they are made."""
    store = DataStore.from_dir(DR1)
    ids = [int(i) for i in open_runs(ratios.ids).ids]

    def make():
        maker = AcceptanceBackgroundMaker(model=model)
        return [maker.make_irf(o, "reverse_lon_radec") for o in store.get_observations(ids, required_irf=[])]

    def write(irfs, folder):
        for k, irf in enumerate(irfs):
            irf.data = irf.data.astype("float32")
            irf.write(Path(folder) / f"{k}.fits")

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        maker = AcceptanceBackgroundMaker(model=model)
        _, ours = ratios.of("attach", lambda: attach_background(store, maker, one, obs_ids=ids, n_jobs=1))
        irfs, _ = ratios.of("  making the backgrounds one by one", make)
        _, written = ratios.of("  writing them with gammapy", lambda: write(irfs, other))
    ratios.say("attach, over writing the same backgrounds with gammapy", ours / written)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ("radial", "spline", "background", "attach")
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(cases)}; default: all")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th run")
    options = parser.parse_args()
    wanted = options.cases or cases
    ratios = Ratios([int(i) for i in open_runs().ids][:: options.every])
    print(f"{len(ratios.ids)} runs; {'time over that of reading them':<49} {'asked':>6} {'reached':>8}")
    if "radial" in wanted:
        ratios.of("radial, first", lambda: ratios.fit(fit_config("radial", 12)))
        ratios.of("radial", lambda: ratios.fit(fit_config("radial", 12)))
    if set(wanted) & {"spline", "background", "attach"}:
        model, _ = ratios.of("spline", lambda: ratios.fit(SPLINE))
    if "spline" in wanted:
        ratios.of("spline, two processes, elapsed", lambda: ratios.fit(SPLINE, 2), elapsed=True)
    if "background" in wanted:
        backgrounds(ratios, AcceptanceBackgroundMaker(model=model))
    if "attach" in wanted:
        attach(ratios, model)


if __name__ == "__main__":
    main()
