"""What a model expects in the bins of the camera frame, run by run."""

from __future__ import annotations

import numpy as np

from gammapy_accmaker.binning import FovBins
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import rate_nodes
from gammapy_accmaker.reduction.fov import FovTrack

__all__ = ["expected_in_camera"]


def expected_in_camera(model: RateModel, track: FovTrack, energy_edges: np.ndarray, fov: FovBins) -> np.ndarray:
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
    Returns
    -------
    counts : `~numpy.ndarray`
        Shape (nbin, fov.size).
    """
    lon, lat = fov.subpoints(2)
    intensity = sum(
        time * here.integral_grid(energy_edges, lon.ravel(), lat.ravel(), z)
        for here, z, time in rate_nodes(model, track)
    )
    return intensity.reshape(len(energy_edges) - 1, *lon.shape).mean(2) * fov.solid_angle
