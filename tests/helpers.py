"""Observations in memory for the tests of the reduction."""

import sys
from contextlib import contextmanager

import astropy.units as u
import numpy as np
from astropy.coordinates import ICRS, AltAz, EarthLocation, SkyCoord
from astropy.table import Table
from astropy.time import Time
from gammapy.data import GTI, EventList, FixedPointingInfo, Observation, ObservationMetaData

HESS = EarthLocation.from_geodetic(lon=16.500222 * u.deg, lat=-23.271778 * u.deg, height=1835 * u.m)
START = Time("2020-05-01T22:00:00", scale="tt")


def contents(folder):
    """What stands in every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tracking(azimuth, altitude, *, after=0.0, location=HESS):
    """Pointing at the ICRS position that has this azimuth and altitude (deg) some seconds after the start."""
    frame = AltAz(obstime=START + after * u.s, location=location)
    icrs = SkyCoord(az=azimuth * u.deg, alt=altitude * u.deg, frame=frame).transform_to(ICRS())
    return FixedPointingInfo(fixed_icrs=SkyCoord(icrs.ra, icrs.dec))


def drifting(azimuth, altitude):
    """Pointing at a fixed azimuth and altitude (deg)."""
    return FixedPointingInfo(fixed_altaz=SkyCoord(az=azimuth * u.deg, alt=altitude * u.deg, frame=AltAz()))


def pointing_at(pointing, seconds):
    """ICRS pointing at each of some seconds after the start."""
    icrs = pointing.get_icrs(START + seconds * u.s, HESS)
    return SkyCoord(*(np.broadcast_to(angle, len(seconds), subok=True) for angle in (icrs.ra, icrs.dec)))


def random_in_cap(center, radius, size, rng):
    """ICRS positions, evenly distributed within a radius (deg) of positions."""
    separation = np.degrees(np.arccos(1 - rng.uniform(0, 1, size) * (1 - np.cos(np.radians(radius)))))
    return center.directional_offset_by(rng.uniform(0, 360, size) * u.deg, separation * u.deg)


def event_table(seconds, positions, energy):
    """Event table; seconds after the start, ICRS positions, energies in TeV."""
    table = Table(
        {"RA": positions.ra.to("deg"), "DEC": positions.dec.to("deg"), "ENERGY": np.asarray(energy, float) * u.TeV},
        meta={"MUONEFF": 0.8, "OBS_ID": 7},
    )
    table["TIME"] = START + np.asarray(seconds, float) * u.s
    return table


def make_observation(pointing, intervals=((0, 1700),), table=None, *, location=HESS, obs_id=7, deadtime=0.06):
    """Observation with good time intervals (s after the start) and an event table (default: one event, in range)."""
    intervals = np.reshape(np.asarray(intervals, float), (-1, 2))
    gti = GTI.create(intervals[:, 0] * u.s, intervals[:, 1] * u.s, reference_time=START)
    if table is None:
        seconds = intervals[:1, 0] if len(intervals) else np.zeros(1)
        table = event_table(seconds, pointing_at(pointing, seconds), [1.0])
    meta = ObservationMetaData(deadtime_fraction=deadtime, location=location)
    return Observation(obs_id=obs_id, meta=meta, gti=gti, events=EventList(table), pointing=pointing, location=location)


class Calibrated(Observation):
    """A user's, whose events are not those of its file."""

    @property
    def events(self):
        table = super().events.table.copy()
        table["ENERGY"] = 1.3 * table["ENERGY"]
        return EventList(table)


def simulate(pointing, size, *, intervals=((0, 1700),), radius=3.5, seed=0, location=HESS, obs_id=7):
    """Observation with events evenly distributed in time and in a cap around the pointing, energies 0.1 to 100 TeV."""
    rng = np.random.default_rng(seed)
    intervals = np.reshape(np.asarray(intervals, float), (-1, 2))
    length = np.diff(intervals, axis=1)[:, 0]
    which = rng.choice(len(intervals), size, p=length / length.sum())
    seconds = np.sort(intervals[which, 0] + rng.uniform(0, 1, size) * length[which])
    positions = random_in_cap(pointing_at(pointing, seconds), radius, size, rng)
    table = event_table(seconds, positions, 10 ** rng.uniform(-1, 2, size))
    return make_observation(pointing, intervals, table, location=location, obs_id=obs_id)


def xyz_of(positions):
    """ICRS unit vectors, shape (n, 3)."""
    return positions.icrs.cartesian.xyz.value.T


_opened: list[list[str]] = []


def _note_opening(event, arguments):
    if event == "open":
        for paths in _opened:
            paths.append(str(arguments[0]))


@contextmanager
def opened_files():
    """Paths of the files that this process opens, each as often as it is opened."""
    if not hasattr(opened_files, "hook"):
        opened_files.hook = _note_opening  # Python has no way to take it off again
        sys.addaudithook(_note_opening)
    paths: list[str] = []
    _opened.append(paths)
    try:
        yield paths
    finally:
        _opened.remove(paths)
