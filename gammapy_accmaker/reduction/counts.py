"""One observation -> `RunCounts`: counts and exposure in the field of view. The only reader of events."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from astropy.coordinates import EarthLocation
from scipy.ndimage import binary_dilation
from scipy.sparse import csr_array

from gammapy_accmaker.binning import FovBins, axis_index, check_edges
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.reduction.fov import FovTrack, fov_track, time_nodes, unit_vectors, vectors_to_lonlat

__all__ = ["CountsBins", "RunCounts", "observation_track", "reduce_observation", "reduce_slices"]

GTI_TOLERANCE = 1.0  # s; H.E.S.S. DR1 rounds the stop of its intervals down, and a few events come later
SUBPOINTS = 5  # along each side of a bin that an exclusion touches
RING_TRACK_STEP = 300.0  # s, between nodes where only zenith and azimuth are wanted
POINTING_STEP = 60.0  # s; at which the pointing is averaged
MIN_EXPOSURE = 0.02  # of the ontime; a bin that is seen less is left out, since its counts are edge effects


@dataclass(frozen=True)
class CountsBins:
    """Bins of `RunCounts`: energy edges in TeV, field-of-view bins, and the frame that the camera axes follow."""

    energy_edges: np.ndarray
    fov: FovBins
    alignment: str = "altaz"

    def __post_init__(self):
        object.__setattr__(self, "energy_edges", check_edges("energy edges", self.energy_edges))
        if self.alignment not in ("altaz", "radec"):
            raise InputError(f"fov_alignment: got {self.alignment!r}, but 'altaz' or 'radec' is needed")


@dataclass(frozen=True)
class RunCounts:
    """Counts and exposure of one run, or of a part of it.

    Attributes
    ----------
    obs_id : int
        Number of the observation.
    counts : `~scipy.sparse.csr_array`
        Unexcluded counts, shape (energy, field-of-view bin).
    exposure : `~numpy.ndarray`
        Unexcluded ontime of each field-of-view bin in s, shape (bin,). Dead time is not taken off.
    ontime, livetime : float
        In s.
    cos_zenith, azimuth : float
        Of the pointing, mean over the good time; azimuth in deg; NaN without a location.
    mjd : float
        Mean time.
    pointing : tuple of float
        Right ascension and declination in deg, at the start of the run.
    covariates : dict of float
        What the event header tells of the state of the instrument.
    dropped : dict of int
        Events of the whole run that were left out, by reason.
    """

    obs_id: int
    counts: csr_array
    exposure: np.ndarray
    ontime: float
    livetime: float
    cos_zenith: float
    azimuth: float
    mjd: float
    pointing: tuple[float, float] = (np.nan, np.nan)
    covariates: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


def observation_track(
    observation,
    alignment: str,
    location: EarthLocation | None = None,
    step: float = POINTING_STEP,
    turning: bool = True,
) -> FovTrack:
    """Camera track of a gammapy observation, see `fov_track`; ``location`` serves where the observation has none."""
    gti = observation.gti
    if gti is None or len(gti.table) == 0:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no good time intervals, but some ontime is needed"
        )
    site = observation.observatory_earth_location
    if site is None:
        site = location
    try:
        return fov_track(observation.pointing, gti.time_start, gti.time_stop, site, alignment, step, turning)
    except ObservationError as error:
        raise ObservationError(str(error).replace("observation:", f"observation {observation.obs_id}:", 1)) from error


def reduce_observation(
    observation,
    bins: CountsBins,
    exclusion: Exclusion | None = None,
    *,
    time_step: float | None = 60.0,
    location: EarthLocation | None = None,
) -> RunCounts:
    """Counts and exposure of a whole observation in the field of view; see `reduce_slices`."""
    return reduce_slices(observation, bins, exclusion, time_step=time_step, location=location)[0]


def reduce_slices(
    observation,
    bins: CountsBins,
    exclusion: Exclusion | None = None,
    *,
    max_zenith_change: float | None = None,
    cos_zenith_edges=(),
    azimuth_edges=(),
    time_step: float | None = 60.0,
    location: EarthLocation | None = None,
) -> list[RunCounts]:
    """Counts and exposure of an observation in the field of view, slice by slice in time.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
        It is not changed.
    bins : `CountsBins`
        Bins of energy and field of view.
    exclusion : `Exclusion`, optional
        Sky positions left out of counts and exposure.
    max_zenith_change : float, optional
        Over which cos zenith may change within a slice; without it, and without edges, the whole run is one slice.
    cos_zenith_edges, azimuth_edges : array-like
        Cos zenith and azimuth (deg) of the pointing at which slices end too.
    time_step : float or None
        Resolution in s at which exclusions turn through the camera; None: one step.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site, used where the observation has none.

    Returns
    -------
    slices : list of `RunCounts`
        Their exposures sum to that of the run.

    Raises
    ------
    ObservationError
        Where the observation has no good time, no location that is needed, or no usable events.
    """
    # rings do not notice how the field turns: what it costs to follow it is saved
    step = RING_TRACK_STEP if bins.fov.is_radial and len(azimuth_edges) == 0 else POINTING_STEP
    track = observation_track(observation, bins.alignment, location, step, turning=not bins.fov.is_radial)
    if len(cos_zenith_edges) + len(azimuth_edges) and not np.all(np.isfinite(track.cos_zenith)):
        raise ObservationError(
            f"observation {observation.obs_id}: it has no observatory location, but bins of zenith or azimuth need one; "
            "set `observatory_location` in the configuration"
        )
    xyz, energy, seconds, dropped, covariates = _read_events(observation, track)
    if exclusion is None:
        exclusion = Exclusion()
    exclusion = exclusion.near(track.matrices[0, 0], bins.fov.offset_max + track.pointing_drift)
    keep = ~exclusion.contains(xyz)
    dropped["excluded"] = int((~keep).sum())
    xyz, energy, seconds = xyz[keep], energy[keep], seconds[keep]
    fov_bin = bins.fov.index(*track.to_fov(xyz, seconds))
    energy_bin = axis_index(bins.energy_edges, energy)
    inside = (fov_bin >= 0) & (energy_bin >= 0)
    dropped["out of range"] = int((~inside).sum())
    dropped["unexposed bin"] = 0
    live = observation.observation_live_time_duration.to_value("s") / track.ontime

    cuts = np.append(_equal_cuts(track, max_zenith_change), track.crossings(cos_zenith_edges, azimuth_edges))
    edges = track.part_edges(np.sort(cuts))
    number = np.searchsorted(edges[1:-1], seconds, side="right")
    slices = []
    for k, (start, stop) in enumerate(itertools.pairwise(edges)):
        part = track.during(start, stop)
        if part.ontime <= 0:
            continue
        fraction = _unexcluded_fraction(bins.fov, part, exclusion, time_step)
        here = inside & (number == k)
        seen = here & (fraction > 0)[fov_bin]
        dropped["unexposed bin"] += int((here & ~seen).sum())
        shape = (len(bins.energy_edges) - 1, bins.fov.size)
        counts = csr_array((np.ones(seen.sum(), dtype=np.int32), (energy_bin[seen], fov_bin[seen])), shape=shape)
        counts.sum_duplicates()
        slices.append(_run_counts(observation, part, counts, fraction, live, covariates, dropped))
    return slices


def _equal_cuts(track, max_zenith_change):
    change = np.ptp(track.cos_zenith)
    n = 1 if max_zenith_change is None or not np.isfinite(change) else max(int(np.ceil(change / max_zenith_change)), 1)
    return np.linspace(track.intervals[0, 0], track.intervals[-1, 1], n + 1)[1:-1]


def _run_counts(observation, track, counts, fraction, live, covariates, dropped):
    nodes, weights = time_nodes(track.intervals, POINTING_STEP)
    mean_time = np.average(nodes, weights=weights)
    return RunCounts(
        obs_id=int(observation.obs_id),
        counts=counts,
        exposure=fraction * track.ontime,
        ontime=track.ontime,
        livetime=live * track.ontime,
        cos_zenith=float(np.average(track.cos_zenith_at(nodes), weights=weights)),
        azimuth=float(np.average(np.interp(nodes, track.seconds, track.azimuth), weights=weights) % 360),
        mjd=float(track.start.mjd + mean_time / 86400),
        pointing=tuple(float(x) for x in np.degrees(vectors_to_lonlat(track.matrices[0, 0]))),
        covariates=covariates,
        dropped=dropped,
    )


def _read_events(observation, track):
    """ICRS unit vectors, energies in TeV and seconds after the start of the track of the usable events."""
    try:
        events = observation.events
        if events is None:
            raise ValueError("there is no event list")
        table = events.table
        ra, dec = (table[name].quantity.to_value("rad").astype(float) for name in ("RA", "DEC"))
        energy = table["ENERGY"].quantity.to_value("TeV").astype(float)
    except (KeyError, TypeError, ValueError) as error:  # gammapy checks the columns as it reads them
        raise ObservationError(
            f"observation {observation.obs_id}: its events cannot be used ({error}); they need the columns TIME, "
            "RA and DEC (angles) and ENERGY (an energy)"
        ) from error
    # by the two parts of a Julian date: much faster than the difference of two `Time`
    time, start = events.time.tt, track.start.tt
    seconds = ((time.jd1 - start.jd1) + (time.jd2 - start.jd2)) * 86400.0
    good = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(energy) & (energy > 0) & np.isfinite(seconds)
    in_gti = np.zeros(len(seconds), dtype=bool)
    for a, b in track.intervals:
        in_gti |= (seconds >= a - GTI_TOLERANCE) & (seconds <= b + GTI_TOLERANCE)
    keep = good & in_gti
    dropped = {"not finite": int((~good).sum()), "outside GTI": int((good & ~in_gti).sum())}
    if not keep.any():
        raise ObservationError(
            f"observation {observation.obs_id}: none of its {len(keep)} events can be used ({dropped['not finite']} "
            f"with NaN or energy <= 0, {dropped['outside GTI']} outside the good time intervals); leave the run out"
        )
    return unit_vectors(ra[keep], dec[keep]), energy[keep], seconds[keep], dropped, _covariates(table.meta)


def _drifts(matrices):
    """Whether the pointing moves on the sky."""
    return np.ptp(matrices[:, 0], axis=0).max() > 1e-9


def _unexcluded_fraction(fov, track, exclusion, time_step):
    """Part of the ontime and of the solid angle of each bin that is not excluded, 0 where below MIN_EXPOSURE."""
    fraction = np.ones(fov.size)
    if not len(exclusion):
        return fraction
    seconds, weights = time_nodes(track.intervals, time_step)
    if fov.is_radial and not _drifts(track.matrices):
        # rings do not notice that the field turns
        seconds, weights = seconds[:1], weights.sum(keepdims=True)
    lon, lat = fov.subpoints(SUBPOINTS)
    camera = unit_vectors(np.radians(lon), np.radians(lat))
    matrices = track.matrices_at(seconds)
    touched = _touched_bins(fov, camera, matrices, exclusion)
    excluded = np.zeros(len(touched))
    for matrix, weight in zip(matrices, weights, strict=True):
        inside = exclusion.contains(camera[touched].reshape(-1, 3) @ matrix)
        excluded += weight * inside.reshape(len(touched), camera.shape[1]).mean(1)
    fraction[touched] -= excluded / weights.sum()
    fraction[fraction < MIN_EXPOSURE] = 0
    return fraction


def _touched_bins(fov, camera, matrices, exclusion):
    """Numbers of the bins that an excluded position can enter at some node."""
    if len(matrices) == 1:
        return np.flatnonzero(exclusion.contains(camera.reshape(-1, 3) @ matrices[0]).reshape(fov.size, -1).any(1))
    if _drifts(matrices):
        return np.arange(fov.size)  # the sky itself moves through the camera
    # the excluded sky within the circle around the grid, found at the first node, turns with the field
    circle = FovBins.grid(fov.offset_max, int(np.ceil(2 * fov.offset_max / min(np.diff(e).min() for e in fov.edges))))
    lon, lat = circle.subpoints(SUBPOINTS)
    points = unit_vectors(np.radians(lon), np.radians(lat)).reshape(-1, 3) @ matrices[0]
    points = points[exclusion.contains(points)]
    touched = np.zeros(fov.shape, dtype=bool)
    for matrix in matrices:
        lon, lat = vectors_to_lonlat(points @ matrix.T)
        bins = fov.index(np.degrees(lon), np.degrees(lat))
        touched.flat[bins[bins >= 0]] = True
    # one bin more all around, since only sample points were followed
    return np.flatnonzero(binary_dilation(touched, np.ones((3, 3))))


def _covariates(meta):
    value = meta.get("MUONEFF")
    return {} if value is None else {"MUONEFF": float(value)}
