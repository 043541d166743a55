"""Configuration + observations -> reduced runs: which bins, which exclusion, which runs can be used."""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map
from gammapy.utils.parallel import N_JOBS_DEFAULT, run_multiprocessing

from gammapy_accmaker.binning import FovBins, energy_edges_per_decade
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.errors import AcceptanceError, InputError, ObservationError
from gammapy_accmaker.reduction.counts import CountsBins, RunCounts, reduce_slices
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.reduction.grouping import zenith_cells
from gammapy_accmaker.reduction.region_files import catalog_regions
from gammapy_accmaker.reduction.wobble_half import without_source_half

__all__ = ["make_bins", "make_exclusion", "reduce_observations", "reduce_one", "run_exclusion"]

log = logging.getLogger(__name__)

SPLINE_BINS_PER_DECADE = 50
SPLINE_PIXEL = 0.1  # deg
MAX_ZENITH_CHANGE = 0.05  # of cos zenith within a slice of a run


def make_bins(config: AcceptanceConfig) -> CountsBins:
    """Bins that the configuration asks for."""
    if config.model.type == "spline":
        low, high = config.energy.min, config.energy.max
        edges = energy_edges_per_decade(low, high, SPLINE_BINS_PER_DECADE)
        return CountsBins(
            edges,
            FovBins.grid(config.offset_max.deg, 2 * int(np.ceil(config.offset_max.deg / SPLINE_PIXEL))),
            config.fov_alignment,
        )
    if isinstance(config.fit_energy, u.Quantity):
        edges = config.fit_energy.to_value("TeV")
    else:
        edges = energy_edges_per_decade(config.energy.min, config.energy.max, config.energy.nbins_per_decade)
    offset_max, offset_bins = config.offset_max.deg, config.model.offset_bins
    radial = config.model.type == "radial"
    if isinstance(offset_bins, u.Quantity):
        fov_edges = offset_bins.to_value("deg")
        fov = FovBins((fov_edges,) if radial else (fov_edges, fov_edges))
    else:
        fov = FovBins.rings(offset_max, offset_bins) if radial else FovBins.grid(offset_max, 2 * offset_bins)
    return CountsBins(edges, fov, config.fov_alignment)


def make_exclusion(config: AcceptanceConfig, exclusion=None) -> Exclusion:
    """Exclusion of the configuration and what is given besides it."""
    regions = config.exclusion.regions
    items = list(regions) if isinstance(regions, list) else [regions]
    if config.exclusion.mask is not None:
        try:
            items.append(Map.read(config.exclusion.mask))
        except Exception as error:  # readers of maps raise many kinds
            raise InputError(f"exclusion.mask: {config.exclusion.mask} cannot be read as a map ({error})") from error
    catalog = config.exclusion.catalog
    if catalog is not None:
        items += catalog_regions(**dict(catalog))
    return Exclusion([*items, exclusion], config.exclusion.margin)


def run_exclusion(observation, config: AcceptanceConfig, exclusion: Exclusion) -> Exclusion:
    """The exclusion and what is left out of this run alone."""
    half = config.exclusion.wobble_half
    if half is False:
        return exclusion
    source = None if half is True else SkyCoord(half.lon, half.lat, frame=half.frame)
    return without_source_half(observation, exclusion, source, config.offset_max.deg)


def reduce_one(observation, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion) -> list[RunCounts]:
    """Counts and exposure of one observation, which must have some of each, in slices of nearly one zenith angle."""
    pooled = config.zenith_bins
    slices = reduce_slices(
        observation,
        bins,
        run_exclusion(observation, config, exclusion),
        max_zenith_change=MAX_ZENITH_CHANGE if config.zenith.type in ("continuous", "interpolated") else None,
        cos_zenith_edges=() if pooled is None else zenith_cells(pooled.initial_width),
        azimuth_edges=config.azimuth.edges,
        time_step=config.time_step_seconds,
        location=config.observatory_location,
    )
    if not any(part.exposure.any() for part in slices):
        raise ObservationError(
            f"observation {observation.obs_id}: the exclusion covers its whole field of view; make it smaller"
        )
    if not any(part.counts.nnz for part in slices):
        raise ObservationError(
            f"observation {observation.obs_id}: it has no events in the energies and offsets of the model outside of the exclusion"
        )
    return slices


def _reduce_or_explain(observation, bins, config, exclusion):
    try:
        return reduce_one(observation, bins, config, exclusion)
    except (AcceptanceError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def reduce_observations(
    observations, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion, n_jobs=None, parallel_backend=None
) -> tuple[list[list[RunCounts]], dict[int, str]]:
    """Slices of the observations that can be used, and for the others the reason, by number.

    One warning names those that are left out.
    """
    results = run_multiprocessing(
        _reduce_or_explain,
        [(observation, bins, config, exclusion) for observation in observations],
        backend=parallel_backend,
        pool_kwargs={"processes": min(n_jobs or N_JOBS_DEFAULT, len(observations))},
        task_name="Reduction of observations",
    )
    runs = [result for result in results if isinstance(result, list)]
    failures = {int(o.obs_id): r for o, r in zip(observations, results, strict=True) if isinstance(r, str)}
    if failures:
        reasons = "\n".join(f"  {obs_id}: {reason}" for obs_id, reason in failures.items())
        log.warning(f"{len(failures)} of {len(observations)} observations are left out:\n{reasons}")
    return runs, failures
