"""What can go wrong, in numbers: README's section of that name.

    python tests/benchmarks/pitfalls.py

On H.E.S.S. DL3 DR1 below GAMMAPY_DATA. Three questions:

- a source that is not excluded: which share of its excess does the background take?
- few counts: runs of which only a part of the events is kept; how far is their background from the counts of the rest?
- one pointing: a circle is excluded at one place of the camera in all runs; how far is its background from the counts?
"""

import sys
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore, EventList, Observation
from gammapy.maps import Map, MapAxis, WcsGeom
from regions import CircleSkyRegion

sys.path.insert(0, str(Path(__file__).parent.parent))
from dr1 import exclusion

from gammapy_accmaker import AcceptanceBackgroundMaker

AXIS = MapAxis.from_energy_bounds("0.5 TeV", "10 TeV", nbin=1)


def circle(ra, dec, radius):
    return CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), radius * u.deg)


def inside(maker, observations, region, axis=AXIS):
    """Counts and background in a circle, by energy."""
    counts = background = np.zeros(axis.nbin)
    width = 2.2 * region.radius
    for observation in observations:
        geom = WcsGeom.create(skydir=region.center, width=width, binsz=0.02, axes=[axis])
        where = geom.region_mask([region]).data
        seen = Map.from_geom(geom)
        seen.fill_events(observation.events)
        counts = counts + (seen.data * where).sum((1, 2))
        background = background + (maker.make_background(geom, observation).data * where).sum((1, 2))
    return counts, background


def share_eaten(name, observations, region):
    """1 - excess without its exclusion / excess with it."""
    others = [r for r in exclusion() if r.center.separation(region.center) > 0.3 * u.deg]
    excess = []
    for regions in ([*others, region], others):
        maker = AcceptanceBackgroundMaker(exclusion=regions).fit(observations)
        counts, background = inside(maker, observations, region)
        excess.append((counts - background).sum())
    share = 100 * (1 - excess[1] / excess[0])
    print(f"{name}, {len(observations)} runs, not excluded: {share:.0f} % of its excess is taken")


def thinned(observation, keep):
    parts = {name: getattr(observation, name) for name in ("gti", "aeff", "edisp", "psf", "pointing", "meta")}
    events = EventList(observation.events.table[keep])
    location = observation.observatory_earth_location
    return Observation(obs_id=observation.obs_id, events=events, location=location, bkg=None, **parts)


def few_counts(observations, fractions=(0.5, 0.1, 0.02)):
    """Background of runs of which a part of the events is kept, over the counts of the rest, by energy."""
    axis = MapAxis.from_energy_edges([0.5, 1, 3, 10] * u.TeV)
    for fraction in fractions:
        rng = np.random.default_rng(1)
        kept = [rng.random(len(o.events.table)) < fraction for o in observations]
        pairs = [(thinned(o, k), thinned(o, ~k)) for o, k in zip(observations, kept, strict=True)]
        few = [pair[0] for pair in pairs]
        maker = AcceptanceBackgroundMaker(exclusion=exclusion()).fit(few)
        used = maker.run_table["COUNTS"]
        counts = background = 0
        for part, rest in pairs:
            pointing = part.get_pointing_icrs(part.tmid)
            geom = WcsGeom.create(skydir=pointing, width=4.4, binsz=0.1, axes=[axis])
            off = ~geom.region_mask(exclusion()).data & (geom.separation(pointing) < 2.2 * u.deg)
            seen = Map.from_geom(geom)
            seen.fill_events(rest.events)
            counts = counts + (seen.data * off).sum((1, 2))
            predicted = (maker.make_background(geom, part).data * off).sum((1, 2))
            background = background + predicted * (1 - fraction) / fraction
        deviation = ", ".join(f"{100 * d:+.1f}" for d in background / counts - 1)
        print(
            f"{len(few)} runs of {used.min()} to {used.max()} events: {deviation} % "
            f"({', '.join(f'{100 / np.sqrt(n * fraction / (1 - fraction)):.1f}' for n in counts)} % by chance) at "
            "0.5-1, 1-3, 3-10 TeV"
        )


def one_place(observations, radii=(0.3, 0.6, 1.0)):
    """Background in a circle around the pointing over the counts in it, where the circle is excluded in all runs."""
    for radius in radii:
        circles = [CircleSkyRegion(o.get_pointing_icrs(o.tmid), radius * u.deg) for o in observations]
        ratios = []
        for regions in (exclusion(), [*exclusion(), *circles]):
            maker = AcceptanceBackgroundMaker(exclusion=regions).fit(observations)
            sums = [inside(maker, [o], c) for o, c in zip(observations, circles, strict=True)]
            counts, background = np.sum(sums, axis=(0, 2))
            ratios.append(100 * (background / counts - 1))
        chance = 100 / np.sqrt(counts)
        print(
            f"{len(observations)} OFF runs, the inner {radius} deg of the camera excluded in all: background "
            f"{ratios[1]:+.1f} % off its counts (seen: {ratios[0]:+.1f} %, chance {chance:.1f} %)"
        )


if __name__ == "__main__":
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    table = store.obs_table

    def near(region, radius=2.5):
        return store.get_observations(table["OBS_ID"][table.pointing_radec.separation(region.center) < radius * u.deg])

    rxj1713, msh1552 = circle(258.39, -39.76, 0.6), circle(228.53, -59.16, 0.3)
    share_eaten("RX J1713.7-3946", near(rxj1713), rxj1713)
    share_eaten("RX J1713.7-3946", near(rxj1713)[:1], rxj1713)
    share_eaten("MSH 15-52", near(msh1552), msh1552)
    off = store.get_observations([20275, 20915, 25345, 25443, 25511, 26791, 26827, 26850, 26964, 27044, 27121, 29024])
    one_place(off)
    few_counts(store.get_observations([23246, 23635, 23651, 28981, 29177, 29556]))
