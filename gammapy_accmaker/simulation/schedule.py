"""When and where the simulated runs point, and what differs between them."""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.time import Time

from gammapy_accmaker.simulation.irfs import REFERENCE_TIME, SITE

__all__ = ["FIRST_OFF_ID", "FIRST_ON_ID", "LOWEST_ZENITH", "SOURCE_RA", "ScheduledRun", "schedule_run"]

FIRST_ON_ID, FIRST_OFF_ID = 100_001, 200_001
SOURCE_RA = 100.0
GAP = 360.0  # s
# Closer to the zenith than this, in deg, a wobble pointing would sweep through the pole of the mount.
LOWEST_ZENITH = 2.0
SIDEREAL_DEG_PER_HOUR, SIDEREAL_DEG_PER_NIGHT = 15.041, 0.98565


@dataclass(frozen=True)
class ScheduledRun:
    """Schedule of one run and its own effects; times in s since REFERENCE_TIME, angles in deg."""

    obs_id: int
    target: str
    target_position: SkyCoord
    pointing: SkyCoord
    gtis: np.ndarray
    norm: float
    shift: float
    muon_efficiency: float


def _spread(number: int) -> float:
    """Point number 0, 1, 2, ... of 0, 1, 1/2, 1/4, 3/4, ...: covers [0, 1] evenly, wherever the sequence ends."""
    if number < 2:
        return float(number)
    return sum(int(bit) * 0.5**k for k, bit in enumerate(reversed(f"{number - 1:b}"), start=1))


def schedule_run(obs_id, number, zenith_range, ontime, has_gap, rng, norm_scatter, shift_scatter) -> ScheduledRun:
    """Choose pointing and time such that the middle of the run has its share of the zenith range."""
    latitude, is_on = SITE.lat.deg, obs_id < FIRST_OFF_ID
    lowest = max(zenith_range[0], LOWEST_ZENITH)
    drift = 0.5 * ontime / 3600 * SIDEREAL_DEG_PER_HOUR
    zenith = lowest + _spread(number) * max(zenith_range[1] - drift - lowest, 0.0)
    a, s, mirror, ra_step, culmination = rng.normal(), rng.normal(), rng.normal(), rng.uniform(20, 340), rng.random()

    if is_on:
        target = SkyCoord(SOURCE_RA, latitude + lowest, unit="deg")
        angle, separation = 90 * (number % 4), 0.5 + 0.2 * (number // 4 % 2)
        pointing = target.directional_offset_by(angle * u.deg, separation * u.deg)
    else:
        dec = latitude + (-1) ** number * (lowest + 0.8 * culmination * (zenith - lowest))
        target = pointing = SkyCoord((SOURCE_RA + ra_step) % 360, dec, unit="deg")

    sin, cos = np.sin(np.deg2rad([latitude, pointing.dec.deg])), np.cos(np.deg2rad([latitude, pointing.dec.deg]))
    hour_angle = np.rad2deg(np.arccos(np.clip((np.cos(np.deg2rad(zenith)) - sin.prod()) / cos.prod(), -1, 1)))
    # Run 0 culminates in its middle, whatever its wobble offset; the others alternate between rising and setting.
    sidereal = pointing.ra.deg + (0.0 if number == 0 else (-1) ** number * hour_angle)
    # The night of the year when this sidereal time comes around local midnight.
    midnight = Time("2021-07-01T22:54:00" if is_on else "2022-07-01T22:54:00", scale="utc")
    ahead = (sidereal - midnight.sidereal_time("mean", longitude=SITE.lon).deg) % 360
    night = np.round(ahead / SIDEREAL_DEG_PER_NIGHT)
    middle = midnight + night * u.day + (ahead - night * SIDEREAL_DEG_PER_NIGHT) / SIDEREAL_DEG_PER_HOUR * u.hour

    duration = ontime + GAP * has_gap
    start = np.round((middle - REFERENCE_TIME).to_value("s") - 0.5 * duration)
    stop = start + duration
    gtis = np.array([[start, stop]])
    if has_gap:
        pause = start + np.round(0.4 * ontime)
        gtis = np.array([[start, pause], [pause + GAP, stop]])
    shift = shift_scatter * s
    return ScheduledRun(
        obs_id=obs_id,
        target="Simulated source" if is_on else f"OFF {obs_id - FIRST_OFF_ID + 1}",
        target_position=target,
        pointing=pointing,
        gtis=gtis,
        norm=float(np.exp(norm_scatter * a)),
        shift=shift,
        # Dirty mirrors make energies come out low, that is, the spectrum at E is that of a higher true energy.
        muon_efficiency=0.75 * np.exp(-shift + 0.01 * mirror),
    )
