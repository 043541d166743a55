"""Configuration + observations -> reduced runs: which bins, which exclusion, which runs can be used."""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.maps import Map

from gammapy_accmaker.binning import FovBins, energy_edges_per_decade, split_bins
from gammapy_accmaker.cache import RunCache, in_memory
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.errors import AcceptanceError, InputError, ObservationError
from gammapy_accmaker.parallel import ProcessDiedError, map_runs
from gammapy_accmaker.reduction.counts import CountsBins, RunCounts, reduce_slices
from gammapy_accmaker.reduction.exclusion import Exclusion
from gammapy_accmaker.reduction.fov import MAX_ZENITH_CHANGE
from gammapy_accmaker.reduction.grouping import zenith_cells
from gammapy_accmaker.reduction.region_files import catalog_regions
from gammapy_accmaker.reduction.wobble_half import without_source_half
from gammapy_accmaker.run_files import check_files

__all__ = [
    "make_bins",
    "make_exclusion",
    "open_cache",
    "reduce_observations",
    "reduce_one",
    "run_exclusion",
]

log = logging.getLogger(__name__)

SPLINE_BINS_PER_DECADE = 50
SPLINE_PIXEL = 0.1  # deg


def make_bins(config: AcceptanceConfig) -> CountsBins:
    """Bins that the configuration asks for."""
    if config.model.type == "spline":
        low, high = config.energy.min, config.energy.max
        edges = energy_edges_per_decade(low, high, SPLINE_BINS_PER_DECADE)
        return CountsBins(
            edges,
            FovBins.grid(config.offset_max.deg, 2 * int(np.ceil(config.offset_max.deg / SPLINE_PIXEL))),
            config.fov_alignment,
            config.offset_max.deg,
        )
    if isinstance(config.fit_energy, u.Quantity):
        # in a wide bin the spectrum is one of fine bins; the profile over the field is that of the wide one
        edges = split_bins(config.fit_energy.to_value("TeV"), 1 / config.energy.nbins_per_decade)
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
    options, items = config.exclusion, []
    if options.mask is not None:
        try:
            mask = Map.read(options.mask)
        except Exception as error:  # readers of maps raise many kinds
            raise InputError(f"exclusion.mask: {options.mask} cannot be read as a map ({error})") from error
        items.append(Exclusion(mask, options.margin, options.mask.name))
    if options.catalog is not None:
        circles = catalog_regions(**dict(options.catalog))
        items.append(Exclusion(circles, options.margin, options.catalog.path.name))
    return Exclusion([options.regions, *items, exclusion], options.margin)


def run_exclusion(observation, config: AcceptanceConfig, exclusion: Exclusion) -> Exclusion:
    """The exclusion and what is left out of this run alone."""
    half = config.exclusion.wobble_half
    if half is False:
        return exclusion
    source = None if half is True else SkyCoord(half.lon, half.lat, frame=half.frame)
    return without_source_half(observation, exclusion, source, config.offset_max.deg, config.observatory_location)


def reduce_one(observation, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion) -> list[RunCounts]:
    """Counts and exposure of one observation, which must have some of each, in slices of nearly one zenith angle."""
    pooled = config.zenith_bins
    check_files(observation)
    try:
        slices = reduce_slices(
            observation,
            bins,
            run_exclusion(observation, config, exclusion),
            max_zenith_change=MAX_ZENITH_CHANGE if config.zenith.type in ("continuous", "interpolated") else None,
            cos_zenith_edges=() if pooled is None else zenith_cells(pooled.initial_width),
            azimuth_edges=config.azimuth.edges,
            time_step=config.time_step_seconds,
            location=config.observatory_location,
            needs_zenith=config.needs_zenith,
        )
    except AcceptanceError:
        raise
    except Exception as error:  # whatever a broken file makes the readers raise
        raise ObservationError(
            f"observation {observation.obs_id}: it cannot be read ({type(error).__name__}: {error})"
        ) from error
    if not any(part.exposure.any() for part in slices):
        raise ObservationError(
            f"observation {observation.obs_id}: the exclusion covers its whole field of view; make it smaller"
        )
    if not any(part.counts.nnz for part in slices):
        raise ObservationError(
            f"observation {observation.obs_id}: it has no events in the energies and offsets of the model outside of the exclusion"
        )
    return slices


def _reduce_or_explain(observation, bins, config, exclusion, cache):
    try:
        slices = None if cache is None else cache.get(observation)
        if slices is None:
            held = in_memory(observation)
            slices = reduce_one(observation, bins, config, exclusion)
            if cache is not None:
                cache.put(observation, slices, held)
        return slices
    except Exception as error:  # of whatever kind, it costs this run, not the fit
        return f"{type(error).__name__}: {error}"


def open_cache(folder, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion) -> RunCache:
    """The cache of reduced runs in a folder, for all settings that `reduce_one` depends on."""
    pooled = config.zenith_bins
    settings = (
        exclusion,
        config.zenith.type,
        None if pooled is None else pooled.initial_width,
        config.azimuth.edges,
        str(config.exclusion.wobble_half),
        config.time_step_seconds,
        config.observatory_location,
    )
    return RunCache.open(folder, bins, MAX_ZENITH_CHANGE, *settings)


def reduce_observations(
    observations,
    bins: CountsBins,
    config: AcceptanceConfig,
    exclusion: Exclusion,
    n_jobs=None,
    parallel_backend=None,
    *,
    cache=None,
    on_error="skip",
) -> tuple[list[list[RunCounts]], dict[int, str]]:
    """Slices of the observations that can be used, by their number, and for the others the reason.

    One warning names those that are left out; with ``on_error="raise"`` the first of them ends the reduction.
    ``cache``: folder of the reduced runs, see `RunCache`.
    """
    if on_error not in ("skip", "raise"):
        raise InputError(f"on_error: got {on_error!r}, but 'skip' or 'raise' is needed")
    if cache is not None:
        cache = open_cache(cache, bins, config, exclusion)
    inputs = [(observation, bins, config, exclusion, cache) for observation in observations]
    runs, failures = [], {}
    results = map_runs(_reduce_or_explain, inputs, n_jobs, parallel_backend, "Reduction of observations")
    for observation, result in zip(observations, results, strict=True):
        if isinstance(result, list):
            runs.append(result)
            continue
        reason = f"{type(result).__name__}: {result}" if isinstance(result, ProcessDiedError) else result
        if on_error == "raise":
            raise ObservationError(f"observation {observation.obs_id} cannot be used: {reason}")
        failures[int(observation.obs_id)] = reason
    if failures:
        reasons = "\n".join(f"  {obs_id}: {reason}" for obs_id, reason in failures.items())
        log.warning(f"{len(failures)} of {len(observations)} observations are left out:\n{reasons}")
    # sums of many runs are then the same to the last digit, in whatever order the runs came
    runs.sort(key=lambda slices: (slices[0].obs_id, slices[0].mjd))
    return runs, failures
