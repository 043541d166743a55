"""What a model expects in the bins of the camera frame, run by run."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.binning import FovBins
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import rate_nodes
from gammapy_accmaker.reduction.fov import FovTrack

__all__ = ["expected_in_camera", "expected_in_slices"]


def expected_in_camera(
    model: RateModel, track: FovTrack, energy_edges: np.ndarray, fov: FovBins, time_step: float | None = 60.0
) -> np.ndarray:
    """Background counts that a model expects in a run, nothing excluded.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
        Camera track of the run.
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    fov : `FovBins`
        Bins in the alignment of the model.
    time_step : float or None
        Resolution in s over which the zenith angle is followed.

    Returns
    -------
    counts : `~numpy.ndarray`
        Shape (nbin, fov.size).
    """
    lon, lat = fov.subpoints(2)
    intensity = sum(
        time * here.integral_grid(energy_edges, lon.ravel(), lat.ravel(), z)
        for here, z, time in rate_nodes(model, track, time_step)
    )
    return intensity.reshape(len(energy_edges) - 1, *lon.shape).mean(2) * fov.solid_angle


def expected_in_slices(
    model: RateModel, slices, energy_edges: np.ndarray, fov: FovBins, inside: np.ndarray
) -> np.ndarray:
    """Background counts that a model expects outside of the exclusion, from the exposure of a reduced run.

    The rate is taken at the centre of a pixel: for pixels of about 0.1 deg.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    slices : list of `RunCounts`
        With the exposure in the pixels ``fov``.
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    fov : `FovBins`
        Pixels in the alignment of the model.
    inside : `~numpy.ndarray`
        Pixels that are asked for, shape (fov.size,).

    Returns
    -------
    counts : `~numpy.ndarray`
        Shape (nbin, fov.size); 0 elsewhere and where the model does not reach.
    """
    counts = np.zeros((len(energy_edges) - 1, fov.size))
    lon, lat = fov.fov_lon[inside], fov.fov_lat[inside]
    for part in slices:
        intensity = model.at_azimuth(part.azimuth).integral_grid(energy_edges, lon, lat, part.cos_zenith)
        counts[:, inside] += intensity * (part.exposure * fov.solid_angle)[inside]
    return counts
