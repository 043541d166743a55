"""What a model expects in the bins of the camera frame, run by run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.camera.track import FovTrack
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import run_slices

__all__ = ["expected_in_camera"]


@dataclass(frozen=True)
class SeenSlice:
    """A slice of a run without its events, of which nothing is excluded; see `RateModel.expected_counts`."""

    exposure: np.ndarray
    cos_zenith: float
    azimuth: float


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
    slices = [
        SeenSlice(np.full(fov.size, part.ontime), part.mean_cos_zenith, part.mean_azimuth)
        for part in run_slices(model, track)
    ]
    return model.expected_counts(slices, energy_edges, fov)
