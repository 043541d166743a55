"""Configuration + observations -> `AcceptanceModel`."""

from __future__ import annotations

import logging
from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.table import Table
from gammapy.maps import Map
from gammapy.utils.parallel import N_JOBS_DEFAULT, run_multiprocessing

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.binning import FovBins, energy_edges_per_decade, offset
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.errors import AcceptanceError, InputError, ObservationError
from gammapy_accmaker.models.base import RateModel, ScaledModel
from gammapy_accmaker.models.binned import BinnedModel, fit_binned, fit_run_norms
from gammapy_accmaker.models.spline_fit import fit_spline
from gammapy_accmaker.models.spline_rate import SplineRate
from gammapy_accmaker.models.spline_run import fit_run
from gammapy_accmaker.reduction.counts import CountsBins, RunCounts, reduce_observation
from gammapy_accmaker.reduction.exclusion import Exclusion

__all__ = ["adapt_to_run", "fit_acceptance", "fit_runs", "make_bins", "make_exclusion", "reduce_observations", "reduce_one"]

log = logging.getLogger(__name__)

SPLINE_BINS_PER_DECADE = 50
SPLINE_PIXEL = 0.1  # deg
RUN_COLUMNS = ["OBS_ID", "ROLE", "USED", "ONTIME", "LIVETIME", "ZENITH", "AZIMUTH", "MJD", "COUNTS", "EXPECTED", "DROPPED",
               "NORM", "NORM_ERR", "SHIFT", "SHIFT_ERR", "FLAG"]  # fmt: skip
SUBPOINTS = 3  # along each side of a bin, over which the model is averaged to predict the counts of a run


def fit_acceptance(observations, config=None, *, exclusion=None, n_jobs=None, parallel_backend=None) -> AcceptanceModel:
    """Fit an acceptance model to observations.

    Parameters
    ----------
    observations : `~gammapy.data.Observations` or list of `~gammapy.data.Observation`
        ON or OFF observations. One that cannot be used is left out, named in a warning and listed in the run table.
    config : `AcceptanceConfig` or dict, optional
        Options; their defaults where it is None.
    exclusion : sky region, region file, mask map, or a list of these, optional
        Left out of the fit, in addition to the exclusion of the configuration.
    n_jobs : int, optional
        Processes that reduce the observations; gammapy's default.
    parallel_backend : {"multiprocessing", "ray"}, optional
        gammapy's default.

    Returns
    -------
    model : `AcceptanceModel`

    Raises
    ------
    InputError
        Without observations, or where none can be used.
    """
    config = AcceptanceConfig.coerce(config)
    observations = list(observations)
    if not observations:
        raise InputError("observations: got none, but at least one is needed; check the selection of the data store")
    bins = make_bins(config)
    runs, failures = reduce_observations(observations, bins, config, make_exclusion(config, exclusion), n_jobs, parallel_backend)
    if not runs:
        reasons = "; ".join(f"{obs_id}: {reason}" for obs_id, reason in list(failures.items())[:5])
        raise InputError(f"observations: none of the {len(observations)} can be used ({reasons})")
    rate_model = fit_runs(runs, bins, config)
    return AcceptanceModel(rate_model, config.to_yaml(), make_run_table(rate_model, bins, runs, failures, config))


def fit_runs(runs: list[RunCounts], bins: CountsBins, config: AcceptanceConfig) -> RateModel:
    """Model fitted to reduced runs."""
    return _fit_spline(runs, bins, config) if config.model.type == "spline" else _fit_binned(runs, bins, config)


def _fit_binned(runs, bins, config) -> BinnedModel:
    exposure = np.array([run.exposure for run in runs])
    norms = np.ones(len(runs))
    if config.run_effects.type == "norm":
        norms = fit_run_norms(np.array([run.counts.sum(0) for run in runs]), exposure)
    return fit_binned(sum(run.counts for run in runs).toarray(), norms @ exposure, bins.energy_edges, bins.fov)


def _fit_spline(runs, bins, config) -> SplineRate:
    inside = offset(bins.fov.fov_lon, bins.fov.fov_lat) < config.offset_max.deg
    model = fit_spline(
        [_of_pixels(run, inside) for run in runs],
        bins.energy_edges,
        *(a[inside] for a in (bins.fov.fov_lon, bins.fov.fov_lat, bins.fov.solid_angle)),
        run_effects=config.run_effects.type,
        gradient=config.run_effects.gradient,
        zenith=config.zenith.type == "continuous",
        covariates=tuple(name for name in config.model.covariates if all(name in run.covariates for run in runs)),
    )
    return SplineRate(model)


def _of_pixels(run, inside):
    return replace(run, counts=run.counts[:, inside], exposure=run.exposure[inside])


def adapt_to_run(rate_model: RateModel, bins: CountsBins, run: RunCounts, config: AcceptanceConfig) -> tuple[RateModel, dict]:
    """The model with the effects of a run, and these effects as columns of the run table."""
    kind = config.run_effects.type
    if isinstance(rate_model, SplineRate):
        model = rate_model.model
        inside = offset(bins.fov.fov_lon, bins.fov.fov_lat) < config.offset_max.deg
        effect = fit_run(model, _of_pixels(run, inside), kind=kind)
        row = {"EXPECTED": effect.expected.sum(), "NORM": effect.norm, "NORM_ERR": effect.norm_error}
        row |= {"SHIFT": effect.shift, "SHIFT_ERR": effect.shift_error, "FLAG": "; ".join(effect.flags)}
        return SplineRate(model, effect, run.azimuth, run.covariates), row
    expected, counts = expected_counts_in_bins(rate_model, bins, run).sum(), run.counts.sum()
    norm, error = (counts / expected, np.sqrt(counts) / expected) if kind == "norm" else (1.0, 0.0)
    row = {"EXPECTED": norm * expected, "NORM": norm, "NORM_ERR": error, "SHIFT": 0.0, "SHIFT_ERR": 0.0, "FLAG": ""}
    return ScaledModel(rate_model, norm), row


def make_bins(config: AcceptanceConfig) -> CountsBins:
    """Bins that the configuration asks for."""
    if config.model.type == "spline":
        low, high = config.energy.min, config.energy.max
        edges = energy_edges_per_decade(low, high, SPLINE_BINS_PER_DECADE)
        return CountsBins(edges, FovBins.grid(config.offset_max.deg, 2 * int(np.ceil(config.offset_max.deg / SPLINE_PIXEL))), config.fov_alignment)
    if config.fit_energy is not None:
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
    return Exclusion([*items, exclusion], config.exclusion.margin)


def reduce_one(observation, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion) -> RunCounts:
    """Counts and exposure of one observation, which must have some of each."""
    time_step = None if config.time_step is None else config.time_step.to_value("s")
    run = reduce_observation(observation, bins, exclusion, time_step=time_step, location=config.observatory_location)
    if not run.exposure.any():
        raise ObservationError(f"observation {run.obs_id}: the exclusion covers its whole field of view; make it smaller")
    if not run.counts.nnz:
        raise ObservationError(f"observation {run.obs_id}: it has no events in the energies and offsets of the model outside of the exclusion")
    return run


def _reduce_or_explain(observation, bins, config, exclusion):
    try:
        return reduce_one(observation, bins, config, exclusion)
    except (AcceptanceError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def reduce_observations(
    observations, bins: CountsBins, config: AcceptanceConfig, exclusion: Exclusion, n_jobs=None, parallel_backend=None
) -> tuple[list[RunCounts], dict[int, str]]:
    """Counts of the observations that can be used, and for the others the reason, by number.

    One warning names those that are left out.
    """
    results = run_multiprocessing(
        _reduce_or_explain,
        [(observation, bins, config, exclusion) for observation in observations],
        backend=parallel_backend,
        pool_kwargs={"processes": min(n_jobs or N_JOBS_DEFAULT, len(observations))},
        task_name="Reduction of observations",
    )
    runs = [result for result in results if isinstance(result, RunCounts)]
    failures = {int(o.obs_id): r for o, r in zip(observations, results, strict=True) if isinstance(r, str)}
    if failures:
        reasons = "\n".join(f"  {obs_id}: {reason}" for obs_id, reason in failures.items())
        log.warning(f"{len(failures)} of {len(observations)} observations are left out:\n{reasons}")
    return runs, failures


def expected_counts_in_bins(rate_model: RateModel, bins: CountsBins, run: RunCounts) -> np.ndarray:
    """Counts that a model of norm 1 expects in a run, shape (energy,), outside of its exclusion."""
    lon, lat = bins.fov.subpoints(SUBPOINTS)
    seen = run.exposure > 0
    intensity = rate_model.integral_grid(bins.energy_edges, lon[seen].ravel(), lat[seen].ravel(), run.cos_zenith)
    intensity = intensity.reshape(len(intensity), seen.sum(), -1).mean(2)
    return intensity @ (run.exposure * bins.fov.solid_angle)[seen]


def make_run_table(rate_model, bins, runs, failures, config, role="fit") -> Table:
    """One row for each run: what went in, its effects, and the reason where it was left out."""
    rows = []
    for run in runs:
        _, effects = adapt_to_run(rate_model, bins, run, config)
        rows.append({
            "OBS_ID": run.obs_id, "ROLE": role, "USED": True, "ONTIME": run.ontime, "LIVETIME": run.livetime,
            "ZENITH": np.degrees(np.arccos(np.clip(run.cos_zenith, -1, 1))), "AZIMUTH": run.azimuth, "MJD": run.mjd,
            "COUNTS": int(run.counts.sum()), "DROPPED": run.dropped["not finite"] + run.dropped["outside GTI"], **effects,
        })  # fmt: skip
    empty = dict.fromkeys(("ONTIME", "LIVETIME", "ZENITH", "AZIMUTH", "MJD", "EXPECTED", "NORM", "NORM_ERR", "SHIFT", "SHIFT_ERR"), np.nan)
    for obs_id, reason in failures.items():
        rows.append({"OBS_ID": obs_id, "ROLE": role, "USED": False, "COUNTS": 0, "DROPPED": 0, "FLAG": reason, **empty})
    table = Table(rows=rows, names=RUN_COLUMNS, units={"ONTIME": "s", "LIVETIME": "s", "ZENITH": "deg", "AZIMUTH": "deg", "MJD": "d"})
    table.sort("OBS_ID")
    return table
