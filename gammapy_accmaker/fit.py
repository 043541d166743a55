"""Configuration + observations -> `AcceptanceModel`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from astropy.table import Table

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.binning import offset
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import RateModel, ScaledModel
from gammapy_accmaker.models.binned import BinnedModel, fit_binned, fit_run_norms
from gammapy_accmaker.models.spline_fit import fit_spline
from gammapy_accmaker.models.spline_rate import SplineRate
from gammapy_accmaker.models.spline_run import fit_run
from gammapy_accmaker.models.stats import deviance_moments, poisson_deviance
from gammapy_accmaker.reduction.counts import CountsBins, RunCounts
from gammapy_accmaker.runs import make_bins, make_exclusion, reduce_observations

__all__ = ["adapt_to_run", "fit_acceptance", "fit_runs", "make_run_table"]

RUN_COLUMNS = ["OBS_ID", "ROLE", "USED", "ONTIME", "LIVETIME", "ZENITH", "AZIMUTH", "MJD", "COUNTS", "EXPECTED", "DROPPED",
               "NORM", "NORM_ERR", "SHIFT", "SHIFT_ERR", "DEVIANCE", "FLAG"]  # fmt: skip
RUN_UNITS = {"ONTIME": "s", "LIVETIME": "s", "ZENITH": "deg", "AZIMUTH": "deg", "MJD": "d"}
SUBPOINTS = 3  # along each side of a bin, over which the model is averaged to predict the counts of a run


def fit_acceptance(
    observations, config=None, *, exclusion=None, n_jobs=None, parallel_backend=None, cache=None, on_error="skip"
) -> AcceptanceModel:
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
    cache : str or `~pathlib.Path`, optional
        Folder for the reduced runs. A run whose files and settings have not changed since is not read again.
    on_error : {"skip", "raise"}
        Whether a run that cannot be used is left out, or ends the fit at once.

    Returns
    -------
    model : `AcceptanceModel`

    Raises
    ------
    InputError
        Without observations, or where none can be used.
    ObservationError
        With ``on_error="raise"``, for the first run that cannot be used.
    """
    config = AcceptanceConfig.coerce(config)
    observations = list(observations)
    if not observations:
        raise InputError("observations: got none, but at least one is needed; check the selection of the data store")
    bins = make_bins(config)
    runs, failures = reduce_observations(
        observations,
        bins,
        config,
        make_exclusion(config, exclusion),
        n_jobs,
        parallel_backend,
        cache=cache,
        on_error=on_error,
    )
    if not runs:
        reasons = "; ".join(f"{obs_id}: {reason}" for obs_id, reason in list(failures.items())[:5])
        raise InputError(f"observations: none of the {len(observations)} can be used ({reasons})")
    rate_model = fit_runs(runs, bins, config)
    return AcceptanceModel(rate_model, config.to_yaml(), make_run_table(rate_model, bins, runs, failures, config))


def fit_runs(runs: list[list[RunCounts]], bins: CountsBins, config: AcceptanceConfig) -> RateModel:
    """Model fitted to reduced runs, each a list of slices."""
    return _fit_spline(runs, bins, config) if config.model.type == "spline" else _fit_binned(runs, bins, config)


def _fit_binned(runs, bins, config) -> BinnedModel:
    whole = [part for slices in runs for part in slices]  # binned models know no zenith angle: one slice a run
    exposure = np.array([run.exposure for run in whole])
    norms = np.ones(len(whole))
    if config.run_effects.type == "norm":
        norms = fit_run_norms(np.array([run.counts.sum(0) for run in whole]), exposure)
    return fit_binned(sum(run.counts for run in whole).toarray(), norms @ exposure, bins.energy_edges, bins.fov)


def _fit_spline(runs, bins, config) -> SplineRate:
    inside = _spline_pixels(bins, config)
    model = fit_spline(
        [_of_pixels(part, inside) for slices in runs for part in slices],
        bins.energy_edges,
        *(a[inside] for a in (bins.fov.fov_lon, bins.fov.fov_lat, bins.fov.solid_angle)),
        run_effects=config.run_effects.type,
        gradient=config.run_effects.gradient,
        zenith=config.zenith.type == "continuous",
        covariates=tuple(name for name in config.model.covariates if all(name in run[0].covariates for run in runs)),
    )
    return SplineRate(model)


def _spline_pixels(bins, config):
    return offset(bins.fov.fov_lon, bins.fov.fov_lat) < config.offset_max.deg


def _of_pixels(part, inside):
    return replace(part, counts=part.counts[:, inside], exposure=part.exposure[inside])


def adapt_to_run(
    rate_model: RateModel, bins: CountsBins, slices: list[RunCounts], config: AcceptanceConfig
) -> tuple[RateModel, dict]:
    """The model with the effects of a run, and these effects as columns of the run table."""
    kind = config.run_effects.type
    if isinstance(rate_model, SplineRate):
        model, inside = rate_model.model, _spline_pixels(bins, config)
        effect = fit_run(model, [_of_pixels(part, inside) for part in slices], kind=kind)
        row = {"EXPECTED": effect.expected.sum(), "NORM": effect.norm, "NORM_ERR": effect.norm_error}
        # what the covariates of the run foretell of its energy scale, and what its events add
        row |= {
            "SHIFT": effect.scaling + effect.shift,
            "SHIFT_ERR": effect.shift_error,
            "DEVIANCE": np.max(effect.deviance, initial=0.0),
        }
        return SplineRate(model, effect, slices[0].azimuth, slices[0].covariates), row | {
            "FLAG": "; ".join(effect.flags)
        }
    (run,) = slices
    expected, counts = expected_counts_in_bins(rate_model, bins, run), np.asarray(run.counts.sum(1)).ravel()
    norm, error = 1.0, 0.0
    if kind == "norm":
        norm, error = counts.sum() / expected.sum(), np.sqrt(counts.sum()) / expected.sum()
    mean, variance = deviance_moments(norm * expected)
    score = (poisson_deviance(counts, norm * expected) - mean) / np.sqrt(variance)
    row = {"EXPECTED": norm * expected.sum(), "NORM": norm, "NORM_ERR": error, "SHIFT": 0.0, "SHIFT_ERR": 0.0}
    return ScaledModel(rate_model, norm, error), row | {"DEVIANCE": score.max(), "FLAG": ""}


def expected_counts_in_bins(rate_model: RateModel, bins: CountsBins, run: RunCounts) -> np.ndarray:
    """Counts that a model of norm 1 expects in a run, shape (energy,), outside of its exclusion."""
    lon, lat = bins.fov.subpoints(SUBPOINTS)
    seen = run.exposure > 0
    intensity = rate_model.integral_grid(bins.energy_edges, lon[seen].ravel(), lat[seen].ravel(), run.cos_zenith)
    intensity = intensity.reshape(len(intensity), seen.sum(), -1).mean(2)
    return intensity @ (run.exposure * bins.fov.solid_angle)[seen]


def make_run_table(rate_model, bins, runs, failures, config, role="fit") -> Table:
    """One row for each run: what went in, its effects, how well it fits, and the reason where it was left out."""
    rows = []
    for slices in runs:
        _, effects = adapt_to_run(rate_model, bins, slices, config)
        first, ontime = slices[0], [part.ontime for part in slices]
        cos_zenith = np.average([part.cos_zenith for part in slices], weights=ontime)
        rows.append({
            "OBS_ID": first.obs_id, "ROLE": role, "USED": True, "ONTIME": sum(ontime), "LIVETIME": sum(p.livetime for p in slices),
            "ZENITH": np.degrees(np.arccos(np.clip(cos_zenith, -1, 1))), "AZIMUTH": first.azimuth, "MJD": first.mjd,
            "COUNTS": int(sum(part.counts.sum() for part in slices)),
            "DROPPED": first.dropped["not finite"] + first.dropped["outside GTI"], **effects,
        })  # fmt: skip
    unknown = {
        name: np.nan for name in RUN_COLUMNS if name not in ("OBS_ID", "ROLE", "USED", "COUNTS", "DROPPED", "FLAG")
    }
    for obs_id, reason in failures.items():
        rows.append(
            {"OBS_ID": obs_id, "ROLE": role, "USED": False, "COUNTS": 0, "DROPPED": 0, "FLAG": reason, **unknown}
        )
    table = Table(rows=rows, names=RUN_COLUMNS, units=RUN_UNITS)
    table.sort("OBS_ID")
    return table
