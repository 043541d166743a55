"""Simulated DL3 data store: runs with a known background, written as real FITS files.

Wobble runs around one source and OFF runs elsewhere (`_schedule_run`: when and where they point, and what differs
between them), tracked in RA and Dec from the H.E.S.S. site, with full response and without a background HDU. The
background is drawn in the camera frame (ALTAZ) from `BackgroundTruth`, at each event's own time, and taken to the sky
with gammapy's and astropy's frames: nothing here shares code with the reduction that is to be tested on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import AltAz, SkyCoord
from astropy.coordinates.erfa_astrom import ErfaAstromInterpolator, erfa_astrom
from astropy.time import Time
from gammapy.data import DataStore
from gammapy.modeling.models import PointSpatialModel, PowerLawSpectralModel, SkyModel
from gammapy.utils.coordinates import FoVAltAzFrame
from gammapy.utils.pbar import progress_bar
from scipy.special import gammainc, gammaincinv

from gammapy_accmaker.acceptance.dl3 import OBS_INDEX
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.simulation.irfs import (
    REFERENCE_TIME,
    SITE,
    TEV_IN_MEV,
    BackgroundTruth,
    draw_source_events,
    energy_quadrature,
    make_irfs,
    offset_of,
    run_file,
    write_index,
    write_run,
)
from gammapy_accmaker.utils.files import check_free, write_folder_atomically

_FIRST_ON_ID, _FIRST_OFF_ID = 100_001, 200_001
_SOURCE_RA = 100.0
_GAP = 360.0  # s
# Closer to the zenith than this, in deg, a wobble pointing would sweep through the pole of the mount.
_LOWEST_ZENITH = 2.0
_SIDEREAL_DEG_PER_HOUR, _SIDEREAL_DEG_PER_NIGHT = 15.041, 0.98565


@dataclass(frozen=True)
class _ScheduledRun:
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


def _schedule_run(obs_id, number, zenith_range, ontime, has_gap, rng, norm_scatter, shift_scatter) -> _ScheduledRun:
    """Choose pointing and time such that the middle of the run has its share of the zenith range."""
    latitude, is_on = SITE.lat.deg, obs_id < _FIRST_OFF_ID
    lowest = max(zenith_range[0], _LOWEST_ZENITH)
    drift = 0.5 * ontime / 3600 * _SIDEREAL_DEG_PER_HOUR
    zenith = lowest + _spread(number) * max(zenith_range[1] - drift - lowest, 0.0)
    a, s, mirror, ra_step, culmination = rng.normal(), rng.normal(), rng.normal(), rng.uniform(20, 340), rng.random()

    if is_on:
        target = SkyCoord(_SOURCE_RA, latitude + lowest, unit="deg")
        angle, separation = 90 * (number % 4), 0.5 + 0.2 * (number // 4 % 2)
        pointing = target.directional_offset_by(angle * u.deg, separation * u.deg)
    else:
        dec = latitude + (-1) ** number * (lowest + 0.8 * culmination * (zenith - lowest))
        target = pointing = SkyCoord((_SOURCE_RA + ra_step) % 360, dec, unit="deg")

    sin, cos = np.sin(np.deg2rad([latitude, pointing.dec.deg])), np.cos(np.deg2rad([latitude, pointing.dec.deg]))
    hour_angle = np.rad2deg(np.arccos(np.clip((np.cos(np.deg2rad(zenith)) - sin.prod()) / cos.prod(), -1, 1)))
    # Run 0 culminates in its middle, whatever its wobble offset; the others alternate between rising and setting.
    sidereal = pointing.ra.deg + (0.0 if number == 0 else (-1) ** number * hour_angle)
    # The night of the year when this sidereal time comes around local midnight.
    midnight = Time("2021-07-01T22:54:00" if is_on else "2022-07-01T22:54:00", scale="utc")
    ahead = (sidereal - midnight.sidereal_time("mean", longitude=SITE.lon).deg) % 360
    night = np.round(ahead / _SIDEREAL_DEG_PER_NIGHT)
    middle = midnight + night * u.day + (ahead - night * _SIDEREAL_DEG_PER_NIGHT) / _SIDEREAL_DEG_PER_HOUR * u.hour

    duration = ontime + _GAP * has_gap
    start = np.round((middle - REFERENCE_TIME).to_value("s") - 0.5 * duration)
    stop = start + duration
    gtis = np.array([[start, stop]])
    if has_gap:
        pause = start + np.round(0.4 * ontime)
        gtis = np.array([[start, pause], [pause + _GAP, stop]])
    shift = shift_scatter * s
    return _ScheduledRun(
        obs_id=obs_id,
        target="Simulated source" if is_on else f"OFF {obs_id - _FIRST_OFF_ID + 1}",
        target_position=target,
        pointing=pointing,
        gtis=gtis,
        norm=float(np.exp(norm_scatter * a)),
        shift=shift,
        # Dirty mirrors make energies come out low, that is, the spectrum at E is that of a higher true energy.
        muon_efficiency=0.75 * np.exp(-shift + 0.01 * mirror),
    )


def _time_nodes(gtis: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle and length, in s, of equal steps of at most ``step`` that fill the good time intervals (n, 2)."""
    middle, length = [], []
    for start, stop in gtis:
        edges = np.linspace(start, stop, max(1, int(np.ceil((stop - start) / step))) + 1)
        middle.append(0.5 * (edges[:-1] + edges[1:]))
        length.append(np.diff(edges))
    return np.concatenate(middle), np.concatenate(length)


@dataclass(frozen=True)
class SimulatedStore:
    """What `simulate_data_store` wrote, and the truth behind it.

    The rate of run r is ``run_norm[r] * truth.rate(energy, fov_lon, fov_lat, cos_zenith, shift=run_shift[r])``: its
    logarithm is ``f(log E + s_r) + g(log E) + a_r`` with s_r the shift and a_r the logarithm of the norm.

    Attributes
    ----------
    path : `~pathlib.Path`
        Folder of the store.
    data_store : `~gammapy.data.DataStore`
        The store, opened.
    truth : `BackgroundTruth`
        Background rate.
    source : `~gammapy.modeling.models.SkyModel` or None
        Point source that the wobble runs look at.
    run_norm, run_shift : dict
        Norm and energy shift of each run, by observation number.
    on_obs_ids, off_obs_ids : tuple of int
        Observation numbers of wobble runs and of OFF runs.
    """

    path: Path
    data_store: DataStore
    truth: BackgroundTruth
    source: SkyModel | None
    run_norm: dict[int, float]
    run_shift: dict[int, float]
    on_obs_ids: tuple[int, ...]
    off_obs_ids: tuple[int, ...]

    def expected_counts(self, obs_id: int, energy_edges, fov_lon_edges, fov_lat_edges) -> np.ndarray:
        """Expected background counts of a run, integrated over bins, pixels of the camera frame and GTIs.

        Parameters
        ----------
        obs_id : int
            Observation number.
        energy_edges : array-like
            Energy edges in TeV.
        fov_lon_edges, fov_lat_edges : array-like
            Edges of the pixels in deg. A pixel that the camera's edge cuts is integrated less well than the others.

        Returns
        -------
        counts : `~numpy.ndarray`
            Shape ``(n_energy, n_fov_lon, n_fov_lat)``.
        """
        observation = self.data_store.obs(obs_id, required_irf=[])
        gti = observation.gti
        gtis = np.stack([(t - REFERENCE_TIME).to_value("s") for t in (gti.time_start, gti.time_stop)], axis=-1)
        middle, length = _time_nodes(gtis, step=60.0)
        cos_zenith = np.sin(observation.get_pointing_altaz(REFERENCE_TIME + middle * u.s).alt.rad)

        node, weight = np.polynomial.legendre.leggauss(3)
        lon, lat = (
            np.asarray(e, dtype=float)[:-1, None] + np.diff(e)[:, None] * 0.5 * (1 + node)
            for e in (fov_lon_edges, fov_lat_edges)
        )
        lon_weight, lat_weight = (
            np.deg2rad(np.diff(e))[:, None] * 0.5 * weight for e in (fov_lon_edges, fov_lat_edges)
        )
        solid_angle = lon_weight[:, :, None, None] * (lat_weight * np.cos(np.deg2rad(lat)))
        lon, shift = lon[:, :, None, None], self.run_shift[obs_id]

        counts = np.zeros((len(energy_edges) - 1, len(lon), len(lat)))
        for energy, width, k in zip(*energy_quadrature(energy_edges), strict=True):
            # Zenith enters through the spectrum alone: the time integral needs no positions.
            shifted = energy * np.exp(shift)
            dose = width * np.sum(length * self.truth.spectrum(shifted, cos_zenith))
            field = self.truth.profile(shifted, offset_of(lon, lat)) * self.truth.asymmetry(energy, lon, lat)
            counts[k] += dose * np.sum(field * solid_angle, axis=(1, 3))
        return self.run_norm[obs_id] * counts


def _draw_background(rng, truth: BackgroundTruth, run: _ScheduledRun) -> tuple[np.ndarray, np.ndarray, SkyCoord]:
    """Times in s, energies in TeV and sky positions of the background events of a run.

    Nothing is binned: energies come from a fine cumulative table, one for each 20 s, offsets from the closed-form
    quantile of the profile. The table is one of the tangent plane, thinned to the sphere.
    """
    middle, length = _time_nodes(run.gtis, step=20.0)
    altaz = run.pointing.transform_to(AltAz(obstime=REFERENCE_TIME + middle * u.s, location=SITE))
    log_energy = np.linspace(np.log(truth.energy_min), np.log(truth.energy_max), 2001)
    shifted = np.exp(log_energy + run.shift)
    density = truth.spectrum(shifted, np.sin(altaz.alt.rad)[:, None]) * truth.profile_integral(shifted)
    density = density * np.exp(log_energy) * TEV_IN_MEV * run.norm
    step = 0.5 * (density[:, 1:] + density[:, :-1]) * np.diff(log_energy)
    cumulative = np.concatenate([np.zeros((len(step), 1)), np.cumsum(step, axis=1)], axis=1)
    node = np.repeat(np.arange(len(middle)), rng.poisson(cumulative[:, -1] * length))

    level = rng.random(len(node)) * cumulative[node, -1]
    rows = [np.interp(level[node == k], cumulative[k], log_energy) for k in range(len(middle))]
    energy = np.exp(np.concatenate(rows))
    time = middle[node] + (rng.random(len(node)) - 0.5) * length[node]

    width = truth.width(energy * np.exp(run.shift))
    level = rng.random(len(node)) * gammainc(0.8, (truth.offset_max / width) ** 2.5)
    offset = np.deg2rad(width * gammaincinv(0.8, level) ** 0.4)
    on_sphere = rng.random(len(node)) < np.sinc(offset / np.pi)
    energy, time, offset = energy[on_sphere], time[on_sphere], offset[on_sphere]

    if len(time) == 0:  # astropy transforms no empty arrays of times
        return time, energy, SkyCoord([], [], unit="deg")
    angle = rng.uniform(0, 2 * np.pi, len(offset))
    lon = np.arctan2(np.sin(offset) * np.cos(angle), np.cos(offset))
    lat = np.arcsin(np.sin(offset) * np.sin(angle))
    # The asymmetry is odd: mirroring an event through the centre with the right probability draws it exactly.
    odd = truth.asymmetry(energy, np.rad2deg(lon), np.rad2deg(lat))
    side = np.where(2 * rng.random(len(lon)) < odd, 1.0, -1.0)

    obstime = REFERENCE_TIME + time * u.s
    frame = AltAz(obstime=obstime, location=SITE)
    altaz = run.pointing.transform_to(frame)
    origin = AltAz(alt=altaz.alt, az=altaz.az, obstime=obstime, location=SITE)
    in_camera = FoVAltAzFrame(
        fov_lon=side * lon * u.rad, fov_lat=side * lat * u.rad, origin=origin, location=SITE, obstime=obstime
    )
    return time, energy, SkyCoord(in_camera).transform_to(frame).icrs


def _observation_header(run: _ScheduledRun, altaz: SkyCoord, dead_time: float) -> dict:
    """What the event header and the observation index both say of a run."""
    start, stop, ontime = run.gtis[0, 0], run.gtis[-1, 1], float(np.diff(run.gtis, axis=1).sum())
    date_start, date_stop = ((REFERENCE_TIME + t * u.s).isot for t in (start, stop))
    return {
        "OBS_ID": run.obs_id,
        "RA_PNT": run.pointing.ra.deg,
        "DEC_PNT": run.pointing.dec.deg,
        "GLON_PNT": run.pointing.galactic.l.deg,
        "GLAT_PNT": run.pointing.galactic.b.deg,
        "ALT_PNT": altaz.alt.deg,
        "AZ_PNT": altaz.az.deg,
        "OBJECT": run.target,
        "RA_OBJ": run.target_position.ra.deg,
        "DEC_OBJ": run.target_position.dec.deg,
        "ONTIME": ontime,
        "LIVETIME": ontime * (1 - dead_time),
        "DEADC": 1 - dead_time,
        "TSTART": start,
        "TSTOP": stop,
        "DATE-OBS": date_start,
        "DATE-END": date_stop,
        "N_TELS": 4,
        "TELLIST": "1,2,3,4",
        "MUONEFF": run.muon_efficiency,
    }


def _simulate_run(
    path: Path, rng, run: _ScheduledRun, truth: BackgroundTruth, source: SkyModel | None, dead_time: float
) -> dict:
    """Draw and write one run; return its row of the observation index."""
    # Precession, nutation and aberration are interpolated between 5 min: 1e-9 arcsec off, 30 times faster.
    with erfa_astrom.set(ErfaAstromInterpolator(300 * u.s)):
        middle = REFERENCE_TIME + 0.5 * (run.gtis[0, 0] + run.gtis[-1, 1]) * u.s
        altaz = run.pointing.transform_to(AltAz(obstime=middle, location=SITE))
        cos_zenith = np.sin(altaz.alt.rad)
        irfs = make_irfs(cos_zenith, float(truth.threshold(cos_zenith)))
        time, energy, position = _draw_background(rng, truth, run)
    ra, dec = position.ra.deg, position.dec.deg
    if source is not None and run.obs_id < _FIRST_OFF_ID:
        more = draw_source_events(rng, source, run.pointing, irfs["aeff"], run.gtis, 1 - dead_time)
        kept = (more[1] >= truth.energy_min) & (more[1] <= truth.energy_max)
        kept &= more[2].separation(run.pointing).deg <= truth.offset_max
        time, energy = np.concatenate([time, more[0][kept]]), np.concatenate([energy, more[1][kept]])
        ra, dec = np.concatenate([ra, more[2].ra.deg[kept]]), np.concatenate([dec, more[2].dec.deg[kept]])
    order = np.argsort(time)
    columns = {
        "EVENT_ID": np.arange(1, len(time) + 1),
        "TIME": time[order] * u.s,
        "RA": ra[order] * u.deg,
        "DEC": dec[order] * u.deg,
        "ENERGY": energy[order].astype(np.float32) * u.TeV,
    }
    header = _observation_header(run, altaz, dead_time)
    write_run(path, header, run.gtis, columns, irfs)
    return {**header, "ZEN_PNT": 90 - altaz.alt.deg, "QUALITY": 0, "EVENT_COUNT": len(time)}


def simulate_data_store(
    path: str | Path,
    *,
    n_wobble: int = 8,
    n_off: int = 12,
    seed: int = 0,
    ontime: u.Quantity = 28 * u.min,
    zenith_range: u.Quantity = (0, 60) * u.deg,
    norm_scatter: float = 0.05,
    shift_scatter: float = 0.05,
    dead_time: float = 0.06,
    source: bool = True,
    gap: bool = True,
    truth: BackgroundTruth | None = None,
    overwrite: bool = False,
) -> SimulatedStore:
    """Write a simulated DL3 data store and return it with its truth.

    Each run has random numbers of its own, from the seed and its observation number: more runs leave the others as
    they are. The first wobble run (the first OFF run, if there is no other) crosses the meridian.

    Parameters
    ----------
    path : str or `~pathlib.Path`
        Folder to make. It is filled under a temporary name beside and moved when complete.
    n_wobble, n_off : int
        Number of wobble runs, 0.5 and 0.7 deg from the source, and of OFF runs, each on a field of its own.
    seed : int
        Seed of everything random.
    ontime : `~astropy.units.Quantity`
        Good time of each run, dead time included.
    zenith_range : `~astropy.units.Quantity`
        Smallest and largest zenith angle, at which the source culminates and to which runs go.
    norm_scatter, shift_scatter : float
        Standard deviation of the logarithm of the norm and of the shift in log energy, from run to run.
    dead_time : float
        Fraction of the ontime. The background rate is one per ontime, the source is seen during the livetime.
    source : bool
        Whether there is a point source, about a sixth of the Crab nebula. Its events know no norm and no shift.
    gap : bool
        Whether the first run has a gap of 6 min between two good time intervals.
    truth : `BackgroundTruth`, optional
        Background rate. Default is ``BackgroundTruth()``.
    overwrite : bool
        Replace a data store at this path.

    Returns
    -------
    store : `SimulatedStore`
        The opened store, its truth, and the effects of each run.

    Raises
    ------
    InputError
        If a value cannot be simulated; if the path is taken and ``overwrite`` is False, or holds something else than a
        data store.
    """
    path, truth = Path(path).absolute(), truth or BackgroundTruth()
    seconds, zenith = u.Quantity(ontime).to_value("s"), u.Quantity(zenith_range).to_value("deg")
    if min(n_wobble, n_off) < 0 or n_wobble + n_off == 0:
        raise InputError(f"n_wobble, n_off: got {n_wobble} and {n_off}, but neither may be negative nor both 0")
    if not seconds >= 60:
        raise InputError(f"ontime: got {ontime}, but a run needs at least 1 min")
    if zenith.shape != (2,) or not 0 <= zenith[0] < zenith[1] <= 75:
        raise InputError(f"zenith_range: got {zenith_range}, but two increasing angles in 0 to 75 deg are needed")
    if not 0 <= dead_time < 1:
        raise InputError(f"dead_time: got {dead_time}, but a fraction of the ontime, 0 <= dead_time < 1, is needed")
    if not min(norm_scatter, shift_scatter) >= 0:
        raise InputError(f"norm_scatter, shift_scatter: got {norm_scatter} and {shift_scatter}, but they must be >= 0")
    path.parent.mkdir(parents=True, exist_ok=True)
    check_free(path, overwrite, holds=OBS_INDEX)

    model = None
    if source:
        spectrum = PowerLawSpectralModel(index=2.3, amplitude="5e-12 cm-2 s-1 TeV-1", reference="1 TeV")
        position = PointSpatialModel(
            lon_0=_SOURCE_RA * u.deg, lat_0=SITE.lat + max(zenith[0], _LOWEST_ZENITH) * u.deg, frame="icrs"
        )
        model = SkyModel(spectral_model=spectrum, spatial_model=position, name="Simulated source")

    on_obs_ids = tuple(range(_FIRST_ON_ID, _FIRST_ON_ID + n_wobble))
    off_obs_ids = tuple(range(_FIRST_OFF_ID, _FIRST_OFF_ID + n_off))
    numbers = [*enumerate(on_obs_ids), *enumerate(off_obs_ids)]
    rows, norm, shift = [], {}, {}

    def write(folder):
        (folder / "data").mkdir()
        for number, obs_id in progress_bar(numbers, desc="Simulate runs"):
            rng = np.random.default_rng([seed, obs_id])
            has_gap = gap and obs_id == numbers[0][1]
            run = _schedule_run(obs_id, number, zenith, seconds, has_gap, rng, norm_scatter, shift_scatter)
            rows.append(_simulate_run(folder / run_file(obs_id), rng, run, truth, model, dead_time))
            norm[obs_id], shift[obs_id] = run.norm, run.shift
        write_index(folder, rows)

    write_folder_atomically(path, write, overwrite, holds=OBS_INDEX)
    return SimulatedStore(path, DataStore.from_dir(path), truth, model, norm, shift, on_obs_ids, off_obs_ids)
