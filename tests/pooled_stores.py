"""Simulated runs whose background depends on zenith angle and azimuth, for the tests of pooled models."""

from functools import cache

import astropy.units as u
import numpy as np
from astropy.coordinates.erfa_astrom import ErfaAstromInterpolator, erfa_astrom
from stores import altered, observations, simulated

from gammapy_accmaker.simulation.store import BackgroundTruth

WEST = 0.6  # factor on the rate west of the meridian
EDGES = np.geomspace(0.3, 30, 9)
PIXELS = np.linspace(-2.4, 2.4, 49)
RADIUS = 2.3
STEP = 10.0  # s


@cache
def zenith_store():
    """Runs at zenith angles of 20 to 50 deg without norms or shifts;
    the first, of 26 min with a gap, culminates in its middle."""
    return simulated(
        "zenith", n_wobble=1, n_off=11, ontime=20 * u.min, norm_scatter=0, shift_scatter=0, source=False, seed=3,
        zenith_range=(20, 50) * u.deg, truth=BackgroundTruth(),
    )  # fmt: skip


@cache
def zenith_runs():
    return observations(zenith_store())


def crossing_run():
    """The run that crosses the meridian, from `east_west_runs`."""
    return east_west_runs()[0]


@cache
def _azimuths(obs_id):
    """Seconds after the start, every STEP over the whole run, the azimuth of the pointing there,
    and whether it is good time."""
    run = next(run for run in zenith_runs() if run.obs_id == obs_id)
    start, stop = run.gti.time_start, run.gti.time_stop
    seconds = np.arange(0, (stop[-1] - start[0]).to_value("s"), STEP)
    times = start[0] + seconds * u.s
    with erfa_astrom.set(ErfaAstromInterpolator(300 * u.s)):
        azimuth = run.get_pointing_altaz(times).az.wrap_at("180d").deg
    good = np.any([(times >= a) & (times < b) for a, b in zip(start, stop, strict=True)], axis=0)
    return seconds, azimuth, good


@cache
def east_west_runs():
    """The runs of `zenith_store` with events left out at random west of the meridian."""
    rng, runs = np.random.default_rng(1), []
    for run in zenith_runs():
        seconds, azimuth, _ = _azimuths(run.obs_id)
        after = (run.events.time - run.gti.time_start[0]).to_value("s")
        east = np.interp(after, seconds, np.unwrap(azimuth, period=360)) % 360 < 180
        runs.append(altered(run, keep=east | (rng.random(len(east)) < WEST)))
    return runs


def east_share(obs_id):
    """Part of the ontime east of the meridian."""
    _, azimuth, good = _azimuths(obs_id)
    return float(np.mean(azimuth[good] % 360 < 180))


@cache
def truth_in_disc(obs_id):
    """Expected counts within RADIUS of the pointing by energy, without a dependence on azimuth."""
    middle = 0.5 * (PIXELS[1:] + PIXELS[:-1])
    inside = np.hypot(*np.meshgrid(middle, middle, indexing="ij")) < RADIUS
    return zenith_store().expected_counts(obs_id, EDGES, PIXELS, PIXELS)[:, inside].sum(1)
