"""Small simulated runs at chosen zenith angles, in memory, for the tests that what is filled is what was fitted."""

from functools import cache

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from helpers import event_table, make_observation, tracking

from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.simulation.store import BackgroundTruth

ONTIME = 1500.0  # s
SCALE = 4.0
EDGES = np.geomspace(0.15, 30, 80)  # TeV
PIXELS = np.linspace(-2.9, 2.9, 59)
SLICES = 8  # of a run, over each of which the truth stands still


@cache
def _truth(cos_zenith):
    """Expected counts a second in the bins at a cos zenith."""
    truth = BackgroundTruth(scale=SCALE, offset_max=4)
    middle = 0.5 * (PIXELS[1:] + PIXELS[:-1])
    lon, lat = (a.ravel() for a in np.meshgrid(middle, middle, indexing="ij"))
    return (
        truth.integral(EDGES, lon, lat, cos_zenith) * np.radians(PIXELS[1] - PIXELS[0]) ** 2 * np.cos(np.radians(lat))
    )


def simulated_run(obs_id, azimuth, altitude, rng, norm=1.0, intervals=((0, ONTIME),)):
    """A run of events that follow `BackgroundTruth` in the camera."""
    pointing = tracking(azimuth, altitude, after=0.5 * ONTIME)
    track = observation_track(make_observation(pointing, intervals), "altaz")
    seconds, xyz, energy = [], [], []
    for start, stop in track.intervals:
        cuts = np.linspace(start, stop, SLICES + 1)
        for a, b in zip(cuts[:-1], cuts[1:], strict=True):
            z = float(np.round(track.cos_zenith_at([0.5 * (a + b)])[0], 3))
            n = rng.poisson(norm * (b - a) * _truth(z))
            bins = np.repeat(np.arange(n.size), n.ravel())
            k, pixel = np.divmod(bins, n.shape[1])
            i, j = np.divmod(pixel, len(PIXELS) - 1)
            lon, lat = (np.radians(PIXELS[x] + rng.random(len(x)) * (PIXELS[1] - PIXELS[0])) for x in (i, j))
            camera = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
            times = rng.uniform(a, b, len(bins))
            seconds.append(times)
            xyz.append(np.einsum("nji,nj->ni", track.matrices_at(times), camera))
            energy.append(EDGES[k] * (EDGES[k + 1] / EDGES[k]) ** rng.random(len(bins)))
    seconds, xyz, energy = (np.concatenate(x) for x in (seconds, xyz, energy))
    positions = SkyCoord(*xyz.T, representation_type="cartesian").represent_as("unitspherical")
    positions = SkyCoord(positions.lon, positions.lat)
    return make_observation(pointing, intervals, event_table(seconds, positions, energy), obs_id=obs_id)


@cache
def runs_with_spread(number, spread, seed=0):
    """Runs whose mean cos zenith is spread evenly over some range around 0.75, rising and setting in turn."""
    rng = np.random.default_rng([seed, number, round(1e4 * spread)])
    means = np.linspace(0.75 - 0.5 * spread, 0.75 + 0.5 * spread, number) if number > 1 else [0.75]
    azimuths = [110.0, 250.0, 80.0, 280.0]
    return [
        simulated_run(k + 1, azimuths[k % 4], np.degrees(np.arcsin(z)), rng, np.exp(0.1 * rng.normal()))
        for k, z in enumerate(means)
    ]


def exclusion_circle():
    """A circle in the field of the first run."""
    from regions import CircleSkyRegion

    pointing = tracking(110.0, np.degrees(np.arcsin(0.75)), after=0.5 * ONTIME).fixed_icrs
    return CircleSkyRegion(pointing.directional_offset_by(30 * u.deg, 0.8 * u.deg), 0.35 * u.deg)
