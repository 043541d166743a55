"""Sky <-> field-of-view coordinates over a run.

FOV_LON grows with decreasing azimuth (or right ascension), FOV_LAT with increasing altitude (or declination), as in
gammapy's ``FoVAltAzFrame`` and ``FoVICRSFrame``. Over a field of a few degrees the way from ICRS to the camera is a
rotation at any one time (differential aberration is below 1 arcsec), so astropy is asked at the nodes only and the
rotation is interpolated between them.
"""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import erfa
import numpy as np
from astropy.coordinates import EarthLocation
from astropy.coordinates.builtin_frames.utils import get_dut1utc, get_polar_motion
from astropy.time import Time, TimeDelta
from astropy.utils import iers
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation, Slerp

from gammapy_accmaker.errors import ObservationError

_MAX_ROTATION = np.radians(1.5)  # between two nodes; slerp is then good to a few arcsec even near the zenith
_MIN_STEP = 1.0  # s
_MAX_SPAN = 86400.0  # s; times beyond it are damaged, and would take all memory
_MIN_PART = 1.0  # s, of good time in a part of a run
MAX_ZENITH_CHANGE = 0.05  # of cos zenith within a slice of a run
_EARTH_STEP = 1800.0  # s, between which the motion of the Earth is interpolated
_FIRST_IN_BOTH, _NOT_YET_FINAL = 42000, 60  # MJD, days: between them and the end of the final values astropy has these
_MEAN_STEP = 60.0  # s, between the nodes over which the conditions of a run are averaged


def unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Unit vectors, shape (..., 3), of longitudes and latitudes in rad."""
    return erfa.s2c(lon, lat)


def vectors_to_lonlat(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Longitudes and latitudes in rad of unit vectors, shape (..., 3)."""
    return np.arctan2(xyz[..., 1], xyz[..., 0]), np.arcsin(np.clip(xyz[..., 2], -1, 1))


def seconds_between(start: Time, times: Time) -> np.ndarray:
    """Seconds from a start to times: as their difference, without the objects that astropy makes for it."""
    start, times = start.tt, times.tt
    return ((times.jd1 - start.jd1) + (times.jd2 - start.jd2)) * 86400.0


def site_numbers(site: EarthLocation) -> tuple[float, float, float]:
    """Longitude and latitude in deg, and height in m."""
    return _geodetic(*(float(x.to_value("m")) for x in site.geocentric))


@lru_cache(maxsize=64)
def _geodetic(x, y, z):
    # astropy computes all three whenever one is asked for, and the runs of a telescope ask for the same
    lon, lat, height = EarthLocation.from_geocentric(x, y, z, unit="m").geodetic
    return float(lon.deg), float(lat.deg), float(height.to_value("m"))


def gti_seconds(time_start: Time, time_stop: Time) -> np.ndarray:
    """Good time intervals in s after the first start, shape (n, 2), sorted;
    empty ones are dropped, those that overlap are merged."""
    zero = time_start.min()
    intervals = np.stack([seconds_between(zero, time_start), seconds_between(zero, time_stop)], axis=-1)
    intervals = intervals[intervals[:, 1] > intervals[:, 0]]
    intervals = intervals[np.argsort(intervals[:, 0], kind="stable")]
    if len(intervals) == 0:
        return intervals
    # a new one begins where all before it have ended
    reached = np.maximum.accumulate(intervals[:, 1])
    first = np.flatnonzero(np.append(True, intervals[1:, 0] >= reached[:-1]))
    return np.stack([intervals[first, 0], np.maximum.reduceat(intervals[:, 1], first)], axis=-1)


def time_nodes(intervals: np.ndarray, step: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in time over good time intervals, and the time that each stands for.

    Parameters
    ----------
    intervals : `~numpy.ndarray`
        Start and stop in s, shape (n, 2).
    step : float or None
        Longest step in s; None: one node, where half of the ontime has passed.

    Returns
    -------
    seconds, weights : `~numpy.ndarray`
        Times in s, and trapezoid weights in s that sum to the ontime.
    """
    length = intervals[:, 1] - intervals[:, 0]
    if step is None:
        passed, half = np.cumsum(length), 0.5 * length.sum()
        last = np.searchsorted(passed, half)
        return np.array([intervals[last, 1] - (passed[last] - half)]), np.array([length.sum()])
    seconds, weights = [], []
    for start, stop in intervals:
        n = max(int(np.ceil((stop - start) / step)), 1)
        weight = np.full(n + 1, (stop - start) / n)
        weight[[0, -1]] *= 0.5
        seconds.append(np.linspace(start, stop, n + 1))
        weights.append(weight)
    return np.concatenate(seconds), np.concatenate(weights)


@dataclass(frozen=True)
class FovTrack:
    """How the camera sees the sky during a run.

    Attributes
    ----------
    start : `~astropy.time.Time`
        First start of the good time intervals; ``seconds`` count from here.
    intervals : `~numpy.ndarray`
        Good time intervals in s, shape (n, 2).
    seconds : `~numpy.ndarray`
        Times of the rotation nodes in s, shape (m,), increasing.
    matrices : `~numpy.ndarray`
        From ICRS unit vectors to the camera, shape (m, 3, 3): x to the pointing, y to FOV_LON, z to FOV_LAT.
    cos_zenith, azimuth : `~numpy.ndarray`
        Of the pointing at the nodes, shape (m,); azimuth in deg, continuous; NaN without a location.
    """

    start: Time
    intervals: np.ndarray
    seconds: np.ndarray
    matrices: np.ndarray
    cos_zenith: np.ndarray
    azimuth: np.ndarray

    @property
    def ontime(self) -> float:
        """Sum of the good time intervals in s."""
        return float((self.intervals[:, 1] - self.intervals[:, 0]).sum())

    @property
    def turns(self) -> bool:
        """Whether the field rotates in the camera."""
        return bool(np.ptp(self.matrices, axis=0).max() > 1e-9)

    @property
    def pointing_drift(self) -> float:
        """How far in deg the pointing moves on the sky from where it started (drift scans)."""
        cos = self.matrices[:, 0] @ self.matrices[0, 0]
        return float(np.degrees(np.arccos(np.clip(cos, -1, 1)).max()))

    @property
    def radec_matrix(self) -> np.ndarray:
        """From ICRS unit vectors to gammapy's ``FoVICRSFrame`` around the first pointing, shape (3, 3)."""
        lon, lat = vectors_to_lonlat(self.matrices[0, 0])
        return np.stack([self.matrices[0, 0], -_east(lon), _north(lon, lat)])

    def during(self, start: float, stop: float) -> FovTrack:
        """The part of the good time between two times in s."""
        intervals = np.clip(self.intervals, start, stop)
        return replace(self, intervals=intervals[intervals[:, 1] > intervals[:, 0]])

    def crossings(self, cos_zenith_edges=(), azimuth_edges=()) -> np.ndarray:
        """Times in s, increasing, at which cos zenith or the azimuth (deg, in turns of 360) of
        the pointing crosses an edge."""
        times = []
        for values, edges, turn in ((self.cos_zenith, cos_zenith_edges, None), (self.azimuth, azimuth_edges, 360.0)):
            if len(edges) == 0 or not np.all(np.isfinite(values)):
                continue
            edges = np.asarray(edges, dtype=float)
            if turn is not None:
                first, last = np.floor(values.min() / turn), np.floor(values.max() / turn)
                edges = (edges % turn + turn * np.arange(first, last + 1)[:, None]).ravel()
            for edge in edges:
                here = np.flatnonzero((values[:-1] < edge) != (values[1:] < edge))
                share = (edge - values[here]) / (values[here + 1] - values[here])
                times.append(self.seconds[here] + share * np.diff(self.seconds)[here])
        return np.sort(np.concatenate(times)) if times else np.zeros(0)

    def part_edges(self, cuts: np.ndarray) -> np.ndarray:
        """First start, cuts in s and last stop; cuts that leave less than _MIN_PART of good
        time to a part are dropped."""
        edges = [self.intervals[0, 0]]
        for cut in cuts:
            if min(self.during(edges[-1], cut).ontime, self.during(cut, np.inf).ontime) >= _MIN_PART:
                edges.append(cut)
        return np.array([*edges, self.intervals[-1, 1]])

    def slice_edges(self, max_zenith_change: float | None, cos_zenith_edges=(), azimuth_edges=()) -> np.ndarray:
        """Edges in s of the slices of a run: what was fitted in a slice, at its mean conditions, is predicted there.

        Parameters
        ----------
        max_zenith_change : float or None
            Over which cos zenith may change within a slice.
        cos_zenith_edges, azimuth_edges : array-like
            Cos zenith and azimuth (deg) at which slices end too.
        """
        change = np.ptp(self.cos_zenith)
        n = (
            1
            if max_zenith_change is None or not np.isfinite(change)
            else max(int(np.ceil(change / max_zenith_change)), 1)
        )
        cuts = np.linspace(self.intervals[0, 0], self.intervals[-1, 1], n + 1)[1:-1]
        return self.part_edges(np.sort(np.append(cuts, self.crossings(cos_zenith_edges, azimuth_edges))))

    def _mean_nodes(self):
        return time_nodes(self.intervals, _MEAN_STEP)

    @property
    def mean_cos_zenith(self) -> float:
        """Mean of cos zenith over the good time."""
        seconds, weights = self._mean_nodes()
        return float(np.average(self.cos_zenith_at(seconds), weights=weights))

    @property
    def mean_azimuth(self) -> float:
        """Mean of the azimuth in deg over the good time, in [0, 360)."""
        seconds, weights = self._mean_nodes()
        return float(np.average(self.azimuth_at(seconds), weights=weights) % 360)

    @property
    def cos_zenith_range(self) -> tuple[float, float]:
        """Smallest and largest cos zenith during the good time."""
        values = self.cos_zenith_at(self._mean_nodes()[0])
        return float(values.min()), float(values.max())

    def matrices_at(self, seconds: np.ndarray) -> np.ndarray:
        """Rotation matrices at these times, shape (n, 3, 3); clamped to the nodes."""
        first = self.matrices[0]
        if not self.turns or len(seconds) == 0:  # which scipy 1.13 would not take
            return np.broadcast_to(first, (len(seconds), 3, 3))
        return self._from_first(np.clip(seconds, self.seconds[0], self.seconds[-1])).as_matrix() @ first

    @cached_property
    def _from_first(self):
        """Rotation since the first node."""
        return Slerp(self.seconds, Rotation.from_matrix(self.matrices @ self.matrices[0].T))

    def _turned(self, xyz, seconds):
        """Vectors as `matrices_at` turns them, each at its own time, without a matrix for each: by the rotation at the
        node before it, and the part of the turn to the next node by Rodrigues' formula."""
        seconds = np.clip(seconds, self.seconds[0], self.seconds[-1])
        node = np.clip(np.searchsorted(self.seconds, seconds, side="right") - 1, 0, len(self.seconds) - 2)
        turns = Rotation.from_matrix(self.matrices[1:] @ self.matrices[:-1].transpose(0, 2, 1)).as_rotvec()
        angles = np.linalg.norm(turns, axis=1)
        axes = turns / np.where(angles > 0, angles, 1)[:, None]
        angle = angles[node] * (seconds - self.seconds[node]) / np.diff(self.seconds)[node]
        camera = np.einsum("nij,nj->ni", self.matrices[node], xyz)
        axis, cos = axes[node], np.cos(angle)[:, None]
        along = np.einsum("nj,nj->n", axis, camera)[:, None] * (1 - cos) * axis
        return camera * cos + np.cross(axis, camera) * np.sin(angle)[:, None] + along

    def cos_zenith_at(self, seconds: np.ndarray) -> np.ndarray:
        """Cosine of the zenith angle of the pointing at these times."""
        return np.interp(seconds, self.seconds, self.cos_zenith)

    def azimuth_at(self, seconds: np.ndarray) -> np.ndarray:
        """Azimuth of the pointing in deg at these times, continuous through north."""
        return np.interp(seconds, self.seconds, self.azimuth)

    def to_fov(self, xyz: np.ndarray, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """FOV_LON and FOV_LAT in deg of ICRS unit vectors, shape (n, 3), each seen at its own time in s."""
        lon, lat = vectors_to_lonlat(self.to_camera(xyz, seconds))
        return np.degrees(lon), np.degrees(lat)

    def to_camera(self, xyz: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """The same as unit vectors in the camera, shape (n, 3)."""
        return self._turned(xyz, seconds) if self.turns else xyz @ self.matrices[0].T


def fov_track(
    pointing,
    time_start: Time,
    time_stop: Time,
    location: EarthLocation | None,
    alignment: str,
    step: float = 60.0,
    turning: bool = True,
) -> FovTrack:
    """Track of the camera over the good time intervals of a run.

    Parameters
    ----------
    pointing : `~gammapy.data.FixedPointingInfo`
        Tracking a fixed ICRS position or a fixed altitude and azimuth.
    time_start, time_stop : `~astropy.time.Time`
        Good time intervals, shape (n,).
    location : `~astropy.coordinates.EarthLocation` or None
        Site; needed for the alignment "altaz" and for drifting runs.
    alignment : {"altaz", "radec"}
        Frame that the camera axes follow.
    step : float
        Longest step between nodes in s; shortened where the field turns fast.
    turning : bool
        Whether the turn of the field is followed; False is faster, for what depends on the offset alone.
    """
    if location is None and (alignment == "altaz" or pointing.fixed_icrs is None):
        raise ObservationError(
            "observation: it has no observatory location, but alignment 'altaz' and drift runs need one; "
            "set `observatory_location` in the configuration or use `fov_alignment: radec`"
        )
    intervals = gti_seconds(time_start, time_stop)
    if len(intervals) == 0:
        raise ObservationError("observation: its good time intervals are empty, but some ontime is needed")
    if not intervals[-1, 1] - intervals[0, 0] <= _MAX_SPAN:
        raise ObservationError(
            f"observation: its good time intervals span {(intervals[-1, 1] - intervals[0, 0]) / 86400:.3g} days, but a "
            "run of at most 1 day is needed; its times are damaged, or it must be split"
        )
    zero = time_start.min()
    while True:
        seconds = np.unique(time_nodes(intervals, step)[0])
        track = _track_at(pointing, zero, intervals, seconds, location, alignment if turning else "radec")
        trace = np.einsum("nij,nij->n", track.matrices[1:], track.matrices[:-1])
        # the turn inside a gap does not matter
        middle = 0.5 * (seconds[1:] + seconds[:-1])
        in_gti = np.any((middle[:, None] > intervals[:, 0]) & (middle[:, None] < intervals[:, 1]), axis=1)
        turn = np.arccos(np.clip(0.5 * (trace[in_gti] - 1), -1, 1)).max()
        if turn <= _MAX_ROTATION or step <= _MIN_STEP:
            return track
        step = max(step * _MAX_ROTATION / turn * 0.9, _MIN_STEP)


def _track_at(pointing, zero, intervals, seconds, location, alignment):
    if pointing.fixed_icrs is not None:
        lon, lat = (np.repeat(angle.rad, len(seconds)) for angle in (pointing.fixed_icrs.ra, pointing.fixed_icrs.dec))
    else:
        icrs = pointing.get_icrs(zero + TimeDelta(seconds, format="sec"), location)
        lon, lat = icrs.ra.rad, icrs.dec.rad
    # FoVICRS: x to the pointing, y to decreasing right ascension, z to the north
    to_icrs_offset = np.stack([unit_vectors(lon, lat), -_east(lon), _north(lon, lat)], axis=1)
    if location is None:
        nan = np.full(len(seconds), np.nan)
        return FovTrack(zero, intervals, seconds, to_icrs_offset, nan, nan)

    # the pointing and four directions 1.5 deg around it, so that the rotation found is the mean over the field
    t = np.radians(1.5)
    around = np.array([[1, 0, 0], [np.cos(t), np.sin(t), 0], [np.cos(t), -np.sin(t), 0],
                       [np.cos(t), 0, np.sin(t)], [np.cos(t), 0, -np.sin(t)]])  # fmt: skip
    if alignment == "radec":
        around = around[:1]
    sky = np.einsum("pi,nij->npj", around, to_icrs_offset)
    ra, dec = vectors_to_lonlat(sky)
    az, alt = _altaz(ra, dec, zero, seconds, location)
    if alignment == "radec":
        matrices = to_icrs_offset
    else:
        lon, lat = az[:, 0], alt[:, 0]
        camera_axes = np.stack([unit_vectors(lon, lat), -_east(lon), _north(lon, lat)], axis=1)
        camera = np.einsum("npj,nij->npi", unit_vectors(az, alt), camera_axes)
        left, _, right = np.linalg.svd(np.einsum("npi,npj->nij", camera, sky))
        matrices = left @ right
    azimuth = np.degrees(np.unwrap(az[:, 0]))
    return FovTrack(zero, intervals, seconds, matrices, np.sin(alt[:, 0]), azimuth)


def _altaz(ra, dec, start, seconds, location):
    """Azimuth and altitude in rad of stars, shape (n, p), at n times in s, increasing, after a start.

    As `~astropy.coordinates.SkyCoord.transform_to` does it, but the parameters of the transformation are interpolated
    (by cubic splines) between times that lie at most _EARTH_STEP apart: to 1e-6 arcsec.
    """
    nodes = np.linspace(seconds[0], seconds[-1], max(int(np.ceil((seconds[-1] - seconds[0]) / _EARTH_STEP)) + 1, 4))
    utc = (start + TimeDelta(nodes, format="sec")).utc
    day = np.floor(utc.jd1 - 0.5 + utc.jd2)
    table = _orientation_table(day[0], day[-1])
    first, last = np.array([_earth_orientation(k, id(table)) for k in day]).transpose(1, 2, 0)
    dut1, *pole = first + (utc.jd1 - 0.5 - day + utc.jd2) * (last - first)
    lon, lat, height = site_numbers(location)
    astrom, _ = erfa.apco13(utc.jd1, utc.jd2, dut1, np.radians(lon), np.radians(lat), height, *pole, 0, 0, 0, 1)
    astrom["eral"] = np.unwrap(astrom["eral"])  # the angle that the Earth has turned by
    astrom["phi"] = 0  # which nothing here needs: ERFA leaves it as the memory was, which may be no number
    parameters = make_interp_spline(nodes, astrom.view(float).reshape(len(nodes), -1))(seconds)
    astrom = np.ascontiguousarray(parameters).view(astrom.dtype)
    azimuth, zenith, *_ = erfa.atioq(*erfa.atciqz(ra, dec, astrom), astrom)
    return azimuth, 0.5 * np.pi - zenith


def _orientation_table(first, last):
    """Table of the orientation of the Earth between two days: astropy's, or where that is not read yet the one of final
    values, which stand in astropy's for these days too, at half of its time (0.25 s, once in a process).

    Other processes of the package are given astropy's as they begin.
    """
    own = getattr(iers.earth_orientation_table, "_value", True)  # that the user has set; there is no public way to tell
    if own is None and iers.IERS_Auto.iers_table is None and multiprocessing.parent_process() is None:
        final = iers.IERS_B.open()
        mjd = final["MJD"].value[[0, -1]]
        if max(mjd[0], _FIRST_IN_BOTH) <= first - 2400000 and last - 2400000 < mjd[1] - _NOT_YET_FINAL:
            return final
    return iers.earth_orientation_table.get()


_one_at_a_time = threading.Lock()  # or what one thread has set for a while would be kept as the user's own by another


@lru_cache(maxsize=1024)
def _earth_orientation(day, table):
    """UT1 - UTC in s and the polar motion in rad at both ends of a day, between which a table (its `id`) is linear."""
    ends = Time(day + 0.5, [0, 1 - 1e-9], format="jd", scale="utc")
    with _one_at_a_time, iers.earth_orientation_table.set(_orientation_table(day, day)):
        return np.transpose([get_dut1utc(ends), *get_polar_motion(ends)])


def _east(lon):
    return np.stack([-np.sin(lon), np.cos(lon), np.zeros_like(lon)], axis=-1)


def _north(lon, lat):
    return np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)], axis=-1)
