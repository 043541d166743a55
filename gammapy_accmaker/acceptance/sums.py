"""The error of a background that is summed over a region and over runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gammapy.data import Observation
from gammapy.maps import Geom, Map, RegionGeom
from regions import SkyRegion

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.data.observations import as_observations
from gammapy_accmaker.errors import InputError


def background_sum_error(
    maker: AcceptanceBackgroundMaker, geoms, observations, region: SkyRegion | Map | None = None
) -> np.ndarray:
    """Standard deviation of the background of `AcceptanceBackgroundMaker.make_background`, summed over region and runs.

    What all runs share, the rate, adds up over them; the effects of each run are its own.

    Parameters
    ----------
    maker : `AcceptanceBackgroundMaker`
        Fitted.
    geoms : `~gammapy.maps.WcsGeom` or `~gammapy.maps.RegionGeom`, or list of these
        One for all runs, or that of each. Their energy axes are the same.
    observations : `~gammapy.data.Observations`, list of `~gammapy.data.Observation`, or one of these
        Runs of the sum.
    region : `~regions.SkyRegion` or `~gammapy.maps.Map`, optional
        The sum is over the pixels whose centre is in the region, or where the mask (an image on the geometry) is True;
        over all of them by default.

    Returns
    -------
    error : `~numpy.ndarray`, shape (n_energy,)
        In counts.

    Raises
    ------
    InputError
        For something else than a maker, geometries that are not as many as the runs or differ in their energies, and a
        region without pixels.

    Examples
    --------
    >>> error = background_sum_error(maker, stacked.counts.geom, observations, region=circle)  # doctest: +SKIP
    """
    if not isinstance(maker, AcceptanceBackgroundMaker):
        raise InputError(
            f"maker: got {type(maker).__name__}, but an AcceptanceBackgroundMaker is needed; make one of a model by "
            "AcceptanceBackgroundMaker(model=model)"
        )
    observations = [observations] if isinstance(observations, Observation) else list(as_observations(observations))
    given = list(geoms) if isinstance(geoms, Sequence) else [geoms] * len(observations)
    if len(given) != len(observations):
        raise InputError(
            f"geoms: got {len(given)} for {len(observations)} observations; give one for each, or one for all"
        )
    for geom in given:
        if not isinstance(geom, Geom) or "energy" not in geom.axes.names:
            raise InputError(f"geoms: got {type(geom).__name__}, but geometries with the axis 'energy' are needed")
    edges = [energy_edges_from_axis(geom.axes["energy"]) for geom in given]
    if any(len(own) != len(edges[0]) or not np.allclose(own, edges[0], rtol=1e-6) for own in edges):
        raise InputError("geoms: their energy axes differ, but a sum over runs needs the same; use one axis for all")
    shared: dict[int, np.ndarray] = {}
    variance = np.zeros(len(edges[0]) - 1)
    for geom, observation in zip(given, observations, strict=True):
        errors = maker.background_errors(geom, observation)
        by_rate, by_run = errors.of_sum(_weights(geom, region))
        # runs that were matched to other OFF runs have models of their own
        shared[errors.model_number] = shared.get(errors.model_number, 0.0) + by_rate
        variance += (by_run**2).sum(1)
    return np.sqrt(variance + sum((changes**2).sum(1) for changes in shared.values()))


def _weights(geom, region):
    image = geom.to_image()
    if region is None:
        return np.ones(int(np.prod(image.data_shape)))
    if isinstance(geom, RegionGeom):
        raise InputError("region: got one for a RegionGeom, which is a region itself; leave it out")
    if isinstance(region, Map):
        if region.geom.to_image().data_shape != image.data_shape or region.data.size != np.prod(image.data_shape):
            raise InputError(
                f"region: got a mask of shape {region.data.shape}, but an image of shape {image.data_shape} is needed"
            )
        inside = region.data.astype(bool)
    elif isinstance(region, SkyRegion):
        inside = image.region_mask([region]).data
    else:
        raise InputError(f"region: got {type(region).__name__}, but a sky region or a mask map is needed")
    if not inside.any():
        raise InputError("region: no pixel of the geometry has its centre inside; choose a larger one")
    return inside.ravel().astype(float)
