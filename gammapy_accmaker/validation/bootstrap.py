"""Errors of a fit from the scatter of refits to resampled runs: slow, and free of the assumptions of the model's own errors."""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.utils.pbar import progress_bar

from gammapy_accmaker.acceptance.fit import fit_runs
from gammapy_accmaker.acceptance.reduction import make_bins, make_exclusion, reduce_observations
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.observations import as_observations
from gammapy_accmaker.errors import InputError

__all__ = ["bootstrap_error"]


def bootstrap_error(
    observations,
    config,
    energy: u.Quantity,
    fov_lon: u.Quantity,
    fov_lat: u.Quantity,
    cos_zenith: float,
    *,
    n_bootstrap: int = 20,
    seed: int = 0,
    exclusion=None,
    n_jobs: int | None = None,
    parallel_backend: str | None = None,
) -> np.ndarray:
    """Standard deviation of the logarithm of the rate of the mean run, from runs drawn with replacement.

    Parameters
    ----------
    observations : `~gammapy.data.Observations`
        At least two that can be used.
    config : `AcceptanceConfig` or dict
        Options of the fit.
    energy : `~astropy.units.Quantity`
        Reconstructed energies, shape (n,).
    fov_lon, fov_lat : `~astropy.units.Quantity`
        Positions, shape (m,).
    cos_zenith : float
        Cosine of the zenith angle.
    n_bootstrap : int
        Number of refits.
    seed : int
        Of the drawing.
    exclusion, n_jobs, parallel_backend
        As for `fit_acceptance`.

    Returns
    -------
    error : `~numpy.ndarray`
        Shape (n, m).
    """
    config = AcceptanceConfig.coerce(config)
    if n_bootstrap < 2:
        raise InputError(f"n_bootstrap: got {n_bootstrap}, but a scatter needs at least 2")
    bins = make_bins(config)
    runs, _ = reduce_observations(
        as_observations(observations), bins, config, make_exclusion(config, exclusion), n_jobs, parallel_backend
    )
    if len(runs) < 2:
        raise InputError(f"observations: {len(runs)} can be used, but runs are drawn from at least 2")
    grid = u.Quantity(energy).to_value("TeV"), u.Quantity(fov_lon).to_value("deg"), u.Quantity(fov_lat).to_value("deg")
    rng = np.random.default_rng(seed)
    log_rates = []
    for _ in progress_bar(range(n_bootstrap), desc="Bootstrap"):
        drawn = [runs[k] for k in rng.integers(len(runs), size=len(runs))]  # one that is drawn twice counts as two
        model = fit_runs(drawn, bins, config, n_jobs=n_jobs, parallel_backend=parallel_backend)
        log_rates.append(np.log(model.rate_grid(*grid, cos_zenith)))
    return np.std(log_rates, axis=0, ddof=1)
