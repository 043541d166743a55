"""Background within the directional cut of point-like IRFs (RAD_MAX), whose radius follows the energy of the event."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.maps import Map

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.camera.track import FovTrack, unit_vectors
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import check_geom, expected_counts

_RINGS, _ANGLES = 8, 24  # positions in a circle, each of the same solid angle


def make_rad_max_background(model: RateModel, track: FovTrack, geom, observation, time_step: float | None) -> Map:
    """Expected background counts around a point, within the radius that gammapy selects the counts of each energy with.

    Parameters
    ----------
    model, track, time_step
        As for `make_background_map`.
    geom : `~gammapy.maps.RegionGeom`
        Of one `~regions.PointSkyRegion`.
    observation : `~gammapy.data.Observation`
        With RAD_MAX, as a table or in the header of a point-like IRF.

    Raises
    ------
    ObservationError
        Where the observation has no RAD_MAX.
    """
    check_geom(model, geom)
    rad_max = observation.rad_max
    if rad_max is None:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no RAD_MAX, which the background around a point needs; use a "
            "circle as the region"
        )
    center, edges = geom.region.center.icrs, energy_edges_from_axis(geom.axes["energy"])
    offset = float(center.separation(observation.events.pointing_radec).deg)
    parts, radii = rad_max_radii(rad_max, edges, offset)
    counts = np.zeros((len(edges) - 1, 1, 1))
    number = np.searchsorted(edges, np.sqrt(parts[1:] * parts[:-1])) - 1
    different = np.unique(radii[radii > 0])
    if len(different) == 0:
        return Map.from_geom(geom, data=counts, unit="")
    positions, solid_angle = zip(*(_circle(center, radius) for radius in different), strict=True)
    n = _RINGS * _ANGLES
    found = expected_counts(model, track, np.concatenate(positions), np.repeat(solid_angle, n), parts, time_step)
    found = found.reshape(len(radii), len(different), n).sum(2)
    for k in np.flatnonzero(radii > 0):
        counts[number[k]] += found[k, np.searchsorted(different, radii[k])]
    return Map.from_geom(geom, data=counts, unit="")


def rad_max_radii(rad_max, energy_edges: np.ndarray, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius by energy, as gammapy takes it for each event: that of the nearest node of the table.

    Parameters
    ----------
    rad_max : `~gammapy.irf.RadMax2D`
    energy_edges : `~numpy.ndarray`
        In TeV, shape (n + 1,).
    offset : float
        Of the centre of the circle from the pointing in deg.

    Returns
    -------
    edges, radii : `~numpy.ndarray`
        Edges in TeV, shape (m + 1,), those that were given among them, between which the radius in deg, shape (m,), is
        the same.
    """
    axis = rad_max.axes["energy"]
    nodes = axis.center.to_value("TeV")
    steps = np.sqrt(nodes[1:] * nodes[:-1]) if axis.interp == "log" else 0.5 * (nodes[1:] + nodes[:-1])
    steps = np.concatenate([axis.edges.to_value("TeV")[[0, -1]], steps])
    inside = (steps > energy_edges[0]) & (steps < energy_edges[-1])
    edges = np.unique(np.concatenate([energy_edges, steps[inside]]))
    # a sliver between an edge and a step that differ by rounding counts nothing
    middle = np.sqrt(edges[1:] * edges[:-1])
    radii = rad_max.evaluate(method="nearest", energy=middle * u.TeV, offset=offset * u.deg)
    return edges, np.nan_to_num(np.ravel(radii.to_value("deg")))


def _circle(center, radius):
    """ICRS unit vectors of positions that share the area of a circle (radius in deg),
    and the solid angle of one in sr."""
    whole = 1 - np.cos(np.radians(radius))
    separation = np.arccos(1 - whole * (np.arange(_RINGS) + 0.5) / _RINGS)
    angle = 2 * np.pi * (np.arange(_ANGLES)[:, None] + 0.5 * (np.arange(_RINGS) % 2)) / _ANGLES
    positions = center.directional_offset_by(angle * u.rad, separation * u.rad)
    return unit_vectors(positions.ra.rad.ravel(), positions.dec.rad.ravel()), 2 * np.pi * whole / (_RINGS * _ANGLES)
