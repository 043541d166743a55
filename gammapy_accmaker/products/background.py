"""Model + camera track + geometry -> map of expected background counts.

While the sky turns through the camera, the energy-integrated rate is averaged over time on a polar grid around the
pointing, where a rotation is a shift in angle and the average a convolution; the map's pixels are then read from that
grid once. `expected_counts_directly` evaluates the model anew at every node and pixel: it is the reference.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Geom, Map, RegionGeom, WcsGeom
from gammapy.utils.regions import compound_region_to_regions
from regions import PointSkyRegion
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.camera.track import MAX_ZENITH_CHANGE, FovTrack, time_nodes, unit_vectors, vectors_to_lonlat
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.utils.threads import one_thread

_OFFSET_STEP = 0.05  # deg
_ANGLE_STEPS = 256  # 1.4 deg, 0.06 deg on the sky at 2.5 deg offset
_COARSE_PIXEL = 0.1  # deg; larger pixels are divided, since the rate at a centre is not the mean over them
_RECTANGLE_MARGIN = 3  # pixels; at the rims of an all-sky map pixels are long

_REGION_PIXELS = 20  # across the smallest of the regions, each of which gammapy divides by 10
_MAX_REGION_PIXELS = 200  # across all of them


@one_thread()
def make_background_map(model: RateModel, track: FovTrack, geom, time_step: float | None) -> Map:
    """Map of expected background counts.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
        Camera track of the run, in the alignment of the model.
    geom : `~gammapy.maps.WcsGeom` or `~gammapy.maps.RegionGeom`
        Geometry with a reconstructed energy axis named "energy" and no other.
    time_step : float or None
        Resolution in s inside the run; None: one step.

    Raises
    ------
    InputError
        For a geometry of another kind, or whose energies all lie outside of the model.
    ObservationError
        For a geometry that does not overlap the field of view of the run.
    """
    check_geom(model, geom)
    edges = energy_edges_from_axis(geom.axes["energy"])
    if isinstance(geom, RegionGeom):
        data = _region_counts(model, track, geom, edges, time_step)
    else:
        data = _wcs_counts(model, track, geom, edges, time_step)
    return Map.from_geom(geom, data=data, unit="")


def check_geom(model: RateModel, geom) -> None:
    """Raise an `InputError` for a geometry that no background can be made on."""
    if not isinstance(geom, (WcsGeom, RegionGeom)) or geom.axes.names != ["energy"]:
        axes = f" with axes {geom.axes.names}" if isinstance(geom, Geom) else ""
        raise InputError(
            f"geom: got {type(geom).__name__}{axes}, but a WcsGeom or RegionGeom with the single axis 'energy' is "
            "needed"
        )
    edges = energy_edges_from_axis(geom.axes["energy"])
    if edges[-1] <= model.energy_edges[0] or edges[0] >= model.energy_edges[-1]:
        raise InputError(
            f"geom: its energy axis, {edges[0]:.3g} to {edges[-1]:.3g} TeV, lies outside of the model, "
            f"{model.energy_edges[0]:.3g} to {model.energy_edges[-1]:.3g} TeV; choose bins inside"
        )


@dataclass(frozen=True)
class FieldPixels:
    """The pixels of an image in the field of view of a run, where they are large divided into finer ones.

    Attributes
    ----------
    shape : tuple of int
        Of the image.
    rows, columns : slice
        Of the rectangle in it that holds the field.
    factor : int
        Into how many parts along each side its pixels are divided; 1 for small ones.
    xyz : `~numpy.ndarray`, shape (n, 3)
        ICRS unit vectors of the fine pixels.
    solid_angle : `~numpy.ndarray`, shape (n,)
        In sr.
    """

    shape: tuple[int, int]
    rows: slice
    columns: slice
    factor: int
    xyz: np.ndarray
    solid_angle: np.ndarray

    @classmethod
    def of(cls, image: WcsGeom, model: RateModel, track: FovTrack) -> FieldPixels:
        """Those of an image; a map of the whole sky is not divided where the run does not look."""
        xyz, shape = icrs_vectors(image), image.data_shape
        # the rate at the centre of a large pixel is not its mean
        factor = max(int(np.ceil(np.max(image.pixel_scales.to_value("deg")) / _COARSE_PIXEL - 1e-6)), 1)
        rows, columns = _rectangle(image, xyz, track.matrices[0, 0], _reach(model, track))
        image = WcsGeom(image.wcs[rows, columns], npix=(columns.stop - columns.start, rows.stop - rows.start))
        if factor > 1:
            image = image.upsample(factor)
            xyz = icrs_vectors(image)
        else:
            xyz = xyz.reshape(*shape, 3)[rows, columns].reshape(-1, 3)
        solid_angle = pixel_solid_angles(image).ravel()
        # at the rim of an all-sky map pixels have corners outside of the sky, and no size that gammapy knows
        solid_angle = np.where(np.isfinite(solid_angle), solid_angle, np.nanmedian(solid_angle))
        return cls(shape, rows, columns, factor, xyz, solid_angle)

    @property
    def places(self) -> np.ndarray:
        """Numbers of the pixels of the rectangle in the raveled image."""
        return np.arange(self.shape[0] * self.shape[1]).reshape(self.shape)[self.rows, self.columns].ravel()

    @property
    def member(self) -> csr_array:
        """1 where a fine pixel, n of them, lies in a pixel of the rectangle, shape (m, n)."""
        m, across = len(self.xyz) // self.factor**2, (self.columns.stop - self.columns.start) * self.factor
        y, x = np.divmod(np.arange(len(self.xyz)), across)
        number = (y // self.factor * across + x) // self.factor
        return csr_array((np.ones(len(number)), (number, np.arange(len(number)))), shape=(m, len(number)))


def _wcs_counts(model, track, geom, edges, time_step):
    pixels = FieldPixels.of(geom.to_image(), model, track)
    fine = expected_counts(model, track, pixels.xyz, pixels.solid_angle, edges, time_step)
    counts = np.zeros((len(fine), pixels.shape[0] * pixels.shape[1]))
    counts[:, pixels.places] = fine if pixels.factor == 1 else (pixels.member @ fine.T).T
    return counts.reshape(-1, *pixels.shape)


def _reach(model, track):
    """Largest angle in deg from the first pointing at which a run may have a background."""
    return model.offset_max + track.pointing_drift


def _rectangle(image, xyz, pointing, reach):
    """Rows and columns of an image, of pixels at xyz, that hold all within an angle in deg of a direction, and some
    around them."""
    margin = _RECTANGLE_MARGIN * np.max(image.pixel_scales.to_value("deg"))
    near = xyz @ pointing >= np.cos(np.radians(min(reach + margin, 180)))
    near = near.reshape(image.data_shape)
    if not near.any():
        raise _outside_of_field(reach)
    ends = (np.flatnonzero(near.any(axis))[[0, -1]] for axis in (1, 0))
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def _outside_of_field(reach):
    return ObservationError(
        f"geom: no pixel lies within {reach:.2f} deg of the pointing; choose a geometry that overlaps the field of view"
    )


def _region_counts(model, track, geom, edges, time_step):
    if geom.region is None or isinstance(geom.region, PointSkyRegion):
        raise InputError(
            f"geom: got the region {geom.region}, but a background is counted over a region with an area; use a circle"
        )
    xyz, solid_angle = region_pixels(geom)
    counts = expected_counts(model, track, xyz, solid_angle, edges, time_step)
    return counts.sum(1).reshape(len(counts), 1, 1)


def region_pixels(geom) -> tuple[np.ndarray, np.ndarray]:
    """ICRS unit vectors of positions in a region, shape (n, 3), and the solid angle in sr that each stands for."""
    image, weights = _region_weights(geom)
    inside = weights > 0
    return icrs_vectors(image)[inside.ravel()], pixel_solid_angles(image)[inside] * weights[inside]


def _region_weights(geom):
    """Image around regions with pixels that resolve the smallest of them, and the part of each pixel that is inside.

    Those of gammapy are 0.1 deg, whatever the region, and its image cuts off the rims of regions that lie apart.
    """
    parts = compound_region_to_regions(geom.region)
    width, own = geom.width.to_value("deg"), geom.binsz_wcs.to_value("deg").min()
    smallest = own * min(np.sqrt(part.to_pixel(geom.wcs).area) for part in parts)
    size = min(max(smallest / _REGION_PIXELS, width.max() / _MAX_REGION_PIXELS), own)
    image = WcsGeom.create(
        skydir=geom.center_skydir, width=tuple(1.1 * width + 4 * size), binsz=size, proj="TAN", frame=geom.frame
    )
    return image, image.region_weights([geom.region], oversampling_factor=10).data


def icrs_vectors(image) -> np.ndarray:
    """ICRS unit vectors of the pixel centres of a geometry without energy axis, shape (n, 3)."""
    return _vectors_in_icrs(image.get_coord(sparse=False), image.frame)


def pixel_solid_angles(image) -> np.ndarray:
    """Solid angles in sr of the pixels of a geometry without energy axis, in its shape.

    They are those of `WcsGeom.solid_angle`, two triangles with the sides and angles of the pixel on the sphere, at a
    fourth of its time: on plain arrays, and each side is worked out once.
    """
    corners = image.get_coord(mode="edges", sparse=False)
    lon, lat = corners.lon.to_value("rad"), corners.lat.to_value("rad")
    sin, cos = np.sin(lat), np.cos(lat)

    def sides(start, end):
        """Along east and north at their start, as long as they are."""
        turn = lon[end] - lon[start]
        level = cos[end] * np.cos(turn)
        east, north = cos[end] * np.sin(turn), cos[start] * sin[end] - sin[start] * level
        sine = np.maximum(np.hypot(east, north), 1e-300)  # at a pole a side may have no length
        length = np.arctan2(sine, sin[start] * sin[end] + cos[start] * level)
        return np.stack([east, north]) * (length / sine)

    first, last = np.s_[:-1], np.s_[1:]
    along, up, down = sides(np.s_[:, :-1], np.s_[:, 1:]), sides(first, last), sides(last, first)

    def cross(a, b):
        return a[0] * b[1] - a[1] * b[0]

    lower = cross(along[:, 1:], down[:, :, :-1])
    return 0.5 * np.abs(lower + cross(up[:, :, 1:], along[:, :-1]))


def _vectors_in_icrs(coord, frame):
    lon, lat = np.ravel(coord.lon.to_value("rad")), np.ravel(coord.lat.to_value("rad"))
    xyz = unit_vectors(lon, lat)
    if frame == "icrs":
        return xyz
    axes = SkyCoord([0, 90, 0] * u.deg, [0, 0, 90] * u.deg, frame=frame).icrs.cartesian.xyz.value
    return xyz @ axes.T


def expected_counts(
    model: RateModel, track: FovTrack, xyz, solid_angle, energy_edges, time_step: float | None
) -> np.ndarray:
    """Background counts expected in a run at sky positions.

    Parameters
    ----------
    model, track, time_step
        As for `make_background_map`.
    xyz : `~numpy.ndarray`
        ICRS unit vectors, shape (n, 3); NaN where a map has no sky.
    solid_angle : `~numpy.ndarray`
        Of each position in sr, shape (n,).
    energy_edges : `~numpy.ndarray`
        In TeV, shape (m + 1,).

    Returns
    -------
    counts : `~numpy.ndarray`
        Shape (m, n); 0 where the model has no coverage.
    """
    counts = np.zeros((len(energy_edges) - 1, len(xyz)))
    reach = _reach(model, track)
    near = np.flatnonzero(xyz @ track.matrices[0, 0] >= np.cos(np.radians(reach)))
    if len(near) == 0:
        raise _outside_of_field(reach)
    if track.pointing_drift > 1e-3:
        counts[:, near] = expected_counts_directly(model, track, xyz[near], solid_angle[near], energy_edges, time_step)
        return counts
    camera = xyz[near] @ track.matrices[0].T
    average, _ = polar_average(
        model, track, lambda here, lon, lat, z: here.integral_grid(energy_edges, lon, lat, z), time_step,
        _rings_around(model, camera),
    )  # fmt: skip
    counts[:, near] = read_polar(average, camera, model.offset_max) * solid_angle[near]
    return counts


def expected_counts_directly(model, track, xyz, solid_angle, energy_edges, time_step) -> np.ndarray:
    """The same as `expected_counts`, by evaluating the model at every time node: slow and plain."""
    counts = np.zeros((len(energy_edges) - 1, len(xyz)))
    for here, part in _parts(model, track):
        seconds, weights = time_nodes(part.intervals, time_step)
        z = part.mean_cos_zenith
        for matrix, weight in zip(part.matrices_at(seconds), weights, strict=True):
            lon, lat = vectors_to_lonlat(xyz @ matrix.T)
            counts += weight * here.integral_grid(energy_edges, np.degrees(lon), np.degrees(lat), z)
    return counts * solid_angle


def polar_average(
    model: RateModel, track: FovTrack, evaluate, time_step: float | None, rings: slice = slice(None)
) -> tuple[np.ndarray, float]:
    """What a model gives, summed over the run, over (energy, offset, angle at the first node of the track).

    ``evaluate``: function of a model at an azimuth, of fov_lon and fov_lat in deg and of cos zenith, of shape
    (energy, position). The sum is weighted with the ontime in s, which is returned besides it. ``rings``: of the grid
    that are wanted; the others are 0.
    """
    lon, lat, shape = polar_grid(model.offset_max, _offset_step(model), 1 if model.is_radial else _ANGLE_STEPS)
    lon, lat = (a.reshape(shape)[rings].ravel() for a in (lon, lat))
    average = np.zeros(())
    for here, part in _parts(model, track):
        seconds, weights = time_nodes(part.intervals, time_step)
        turn = part.matrices_at(seconds) @ track.matrices[0].T
        angle = np.arctan2(turn[:, 2, 1], turn[:, 1, 1])
        rate = evaluate(here, lon, lat, part.mean_cos_zenith)
        average = average + _turned(rate.reshape(len(rate), -1, shape[1]), angle, weights)
    whole = np.zeros((len(average), *shape))
    whole[:, rings] = average
    return whole, track.ontime


def _rings_around(model, camera):
    """The rings of the polar grid between which camera unit vectors lie: of a small region few."""
    step = model.offset_max / np.ceil(model.offset_max / _offset_step(model))
    theta = np.degrees(np.arccos(np.clip(camera[:, 0], -1, 1)))
    return slice(max(int(theta.min() / step) - 1, 0), int(theta.max() / step) + 3)


def _offset_step(model):
    """In deg; at the one angle of a radial model finer steps cost nothing, and its profile has kinks between them."""
    return 0.25 * _OFFSET_STEP if model.is_radial else _OFFSET_STEP


@lru_cache(maxsize=8)
def polar_grid(offset_max, offset_step, n_angle):
    """FOV_LON and FOV_LAT in deg of a polar grid up to an offset, raveled, and its shape (offset, angle)."""
    theta = np.linspace(0, offset_max * (1 - 1e-12), int(np.ceil(offset_max / offset_step)) + 1)
    t, p = np.meshgrid(np.radians(theta), 2 * np.pi * np.arange(n_angle) / n_angle, indexing="ij")
    xyz = np.stack([np.cos(t), np.sin(t) * np.cos(p), np.sin(t) * np.sin(p)], axis=-1)
    lon, lat = (np.degrees(a).ravel() for a in vectors_to_lonlat(xyz))
    for kept in (lon, lat):
        kept.flags.writeable = False
    return lon, lat, t.shape


def read_polar(planes, camera, offset_max):
    """Values at camera unit vectors, shape (n, 3), of planes over a polar grid, shape (m, offset, angle): (m, n)."""
    reading = polar_reading(camera, planes.shape[1:], offset_max)
    return np.ascontiguousarray((reading @ planes.reshape(len(planes), -1).T).T)


def polar_reading(camera, shape, offset_max) -> csr_array:
    """Matrix that reads values over a polar grid of a shape (offset, angle), raveled, at camera unit vectors (n, 3).

    Between the points of the grid they are linear in offset and angle, and beyond the last offset constant.
    """
    n_offset, n_angle = shape
    theta = np.degrees(np.arccos(np.clip(camera[:, 0], -1, 1)))
    row = np.minimum(theta / offset_max, 1) * (n_offset - 1)
    ring = np.minimum(row.astype(int), max(n_offset - 2, 0))
    outwards = row - ring
    column = np.arctan2(camera[:, 2], camera[:, 1]) / (2 * np.pi) % 1 * n_angle
    sector = np.minimum(column.astype(int), n_angle - 1)
    around = column - sector
    # each position is the sum of four points of the grid
    first, following = ring * n_angle, np.minimum(ring + 1, n_offset - 1) * n_angle
    points = np.stack([first + sector, first + (sector + 1) % n_angle], axis=1)
    points = np.hstack([points, points + (following - first)[:, None]])
    weights = np.stack([1 - around, around], axis=1)
    weights = np.hstack([weights * (1 - outwards)[:, None], weights * outwards[:, None]])
    starts = np.arange(0, 4 * len(camera) + 1, 4)
    return csr_array((weights.ravel(), points.ravel(), starts), shape=(len(camera), n_offset * n_angle))


def _turned(rate, angle, weights):
    """Sum over nodes of weight x rate at the angle a node has turned by; angles run along the last axis."""
    n = rate.shape[-1]
    position = angle / (2 * np.pi) % 1 * n
    left = np.floor(position).astype(int)
    share = np.bincount(left % n, weights * (left + 1 - position), n) + np.bincount(
        (left + 1) % n, weights * (position - left), n
    )
    if n == 1:
        return rate * share[0]
    turned = np.fft.irfft(np.fft.rfft(rate) * np.conj(np.fft.rfft(share)), n)
    # rounding of the transform must not leave a rate where there is none
    return np.where(turned > 1e-12 * turned.max(), turned, 0)


def rate_nodes(model: RateModel, track: FovTrack) -> list[tuple[RateModel, float, float]]:
    """What stands for a run: the model at an azimuth, a cos zenith, and the seconds that the two stand for."""
    return [(here, part.mean_cos_zenith, part.ontime) for here, part in _parts(model, track)]


def _parts(model, track):
    """The model at the azimuth of each slice of a run, and the slice."""
    return [(model.at_azimuth(part.mean_azimuth), part) for part in run_slices(model, track)]


def run_slices(model: RateModel, track: FovTrack) -> list[FovTrack]:
    """The slices of a run at whose mean zenith angles a model is evaluated: those of its reduction.

    Counts and exposure of a slice were fitted at its mean zenith angle, and the rate that was found is right there: at
    any other, nodes that are closer in time among them, it is that of other counts.
    """
    jumps = len(model.zenith_edges) > 0
    edges = track.slice_edges(
        None if model.zenith_range is None or jumps else MAX_ZENITH_CHANGE, model.zenith_edges, model.azimuth_edges
    )
    return [track.during(start, stop) for start, stop in itertools.pairwise(edges)]
