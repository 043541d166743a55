"""Runs without sources moved to one target: a source of known size is put among real background.

Every event keeps its place in the camera, its energy and its time in the run; every run keeps its zenith angle, and the
side of the meridian.
"""

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import vstack
from astropy.time import TimeDelta
from gammapy.data import GTI, EventList, FixedPointingInfo, Observation

from gammapy_accmaker.camera.track import fov_track, unit_vectors, vectors_to_lonlat
from gammapy_accmaker.data.counts import observation_track

SIDEREAL_DAY = 86164.0905  # s
TARGET = SkyCoord(40.0, -25.0, unit="deg")
# of H.E.S.S. DR1: bright or extended sources, or those of the Galactic plane
WITH_SOURCES = {"MSH 15-5-02", "MSH15-52", "RXJ 1713.7-3946", "Crab Nebula", "PKS 2155-304", "custom"}
WITH_SOURCES |= {"G346.1+0.0", "G346.8+0.0", "G347.5+0.0"}


def off_runs(store):
    """Those runs of H.E.S.S. DR1 on fields without a bright source."""
    chosen = [str(name).strip() not in WITH_SOURCES for name in store.obs_table["OBJECT"]]
    return list(
        store.get_observations(
            store.obs_table["OBS_ID"][chosen], required_irf=["aeff", "edisp", "psf"], skip_missing=True
        )
    )


def wobbled(observations, wobble=0.6, target=TARGET):
    """Runs that point around the target, north, east, south and west of it in turn, at an offset in deg."""
    return [
        repointed(o, target.directional_offset_by(90 * (k % 4) * u.deg, wobble * u.deg))
        for k, o in enumerate(observations)
    ]


def repointed(observation, pointing):
    """A copy in memory of a run that points elsewhere, at the time at which this stands as high."""
    old, site = observation_track(observation, "altaz"), observation.observatory_earth_location
    middle = np.array([0.5 * (old.intervals[0, 0] + old.intervals[-1, 1])])
    latitude, dec = site.lat.rad, pointing.dec.rad
    cos_hour = (old.cos_zenith_at(middle)[0] - np.sin(latitude) * np.sin(dec)) / (np.cos(latitude) * np.cos(dec))
    hour = np.arccos(np.clip(cos_hour, -1, 1)) * (-1 if old.azimuth_at(middle)[0] % 360 < 180 else 1)
    sidereal = (old.start + TimeDelta(middle[0], format="sec")).sidereal_time("mean", longitude=site.lon).rad
    turn = (pointing.ra.rad + hour - sidereal + np.pi) % (2 * np.pi) - np.pi
    later = TimeDelta(turn / (2 * np.pi) * SIDEREAL_DAY, format="sec")

    events, gti = observation.events, observation.gti
    start, stop = gti.time_start + later, gti.time_stop + later
    fixed = FixedPointingInfo(fixed_icrs=SkyCoord(pointing.ra, pointing.dec))
    new, seconds = fov_track(fixed, start, stop, site, "altaz"), (events.time.tt - old.start.tt).to_value("s")
    camera = np.einsum("nij,nj->ni", old.matrices_at(seconds), unit_vectors(events.radec.ra.rad, events.radec.dec.rad))
    lon, lat = np.degrees(vectors_to_lonlat(np.einsum("nji,nj->ni", new.matrices_at(seconds), camera)))
    table = events.table.copy()
    table["RA"], table["DEC"], table["TIME"] = lon % 360 * u.deg, lat * u.deg, events.time + later
    table.meta |= {"RA_PNT": pointing.ra.deg, "DEC_PNT": pointing.dec.deg}
    return _copy(observation, table, gti=GTI.create(start, stop, gti.time_ref), pointing=fixed)


def with_disc(observation, radius, signal_to_background, rng, target=TARGET):
    """A copy of a run with a disc of a radius in deg, whose events have the energies of those around the target."""
    table = observation.events.table
    inside = np.flatnonzero(observation.events.radec.separation(target).deg < radius)
    n = rng.poisson(signal_to_background * len(inside))
    more = table[rng.choice(inside, n)]
    there = target.directional_offset_by(rng.uniform(0, 360, n) * u.deg, radius * np.sqrt(rng.random(n)) * u.deg)
    more["RA"], more["DEC"] = there.ra, there.dec
    both = vstack([table, more], metadata_conflicts="silent")
    both.meta = dict(table.meta)
    return _copy(observation, both[np.argsort(both["TIME"])])


def _copy(observation, table, **parts):
    given = {name: getattr(observation, name) for name in ("gti", "aeff", "edisp", "psf", "pointing", "meta")}
    given |= {"events": EventList(table), "location": observation.observatory_earth_location} | parts
    return Observation(obs_id=observation.obs_id, **given)
