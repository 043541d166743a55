"""Fit, look for sources in the residuals, leave them out and fit again, until none is left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from astropy.table import Table, vstack

from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.options import IterativeOptions
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.excess import excess_regions, find_excess
from gammapy_accmaker.products.sky_stack import SkyStack

__all__ = ["fit_until_stable", "stack_residuals"]

log = logging.getLogger(__name__)

PIXELS_PER_RADIUS = 3  # of the discs; pixels of the sky map


def fit_until_stable(
    fit: Callable[[Exclusion], tuple[AcceptanceModel, dict[int, RateModel]]],
    observations,
    config: AcceptanceConfig,
    options: IterativeOptions,
    exclusion: Exclusion,
) -> AcceptanceModel:
    """Repeat a fit, with the significant excess of the runs left out, until no more is found.

    Parameters
    ----------
    fit : callable
        Fits outside of an exclusion, and returns the model and, by place in the list of observations, what it is
        adapted to each run.
    observations : list of `~gammapy.data.Observation`
    config : `AcceptanceConfig`
    options : `IterativeOptions`
        Of the search.
    exclusion : `Exclusion`
        Left out from the beginning.

    Returns
    -------
    model : `AcceptanceModel`
        With what was found in ``found``; a search that did not end is named in a warning and in
        ``found.meta["STABLE"]``.
    """
    found, stable = Table(), False
    model, adapted = fit(exclusion)
    for iteration in range(1, options.max_iterations + 1):
        left_out = exclusion.with_regions(excess_regions(found))
        new = find_excess(
            stack_residuals(observations, model, adapted, config, options, left_out),
            options.threshold,
            options.correlation_radius.deg,
            options.dilation.deg,
        )
        if len(new) == 0:
            stable = True
            break
        new["ITERATION"] = iteration
        found = vstack([found, new]) if len(found) else new
        log.info(
            f"iteration {iteration}: {len(new)} excesses found, the strongest of {new['SIGNIFICANCE'].max():.1f} sigma"
        )
        model, adapted = fit(exclusion.with_regions(excess_regions(found)))
    if not stable:
        log.warning(
            f"exclusion.iterative: the last of {options.max_iterations} searches still found {len(new)} excesses, the "
            f"strongest of {new['SIGNIFICANCE'].max():.1f} sigma; "
            "raise max_iterations or the threshold, or exclude what is known"
        )
    if len(found):
        found.meta["STABLE"] = stable
    return replace(model, found=found)


def stack_residuals(observations, model, adapted, config, options, exclusion):
    """Counts and expectations of runs on the sky, with models by place in the list, in one energy bin."""
    usable = {place: observations[place] for place in adapted}
    stack = SkyStack(
        usable,
        model.rate_model.energy_edges[[0, -1]],
        config.offset_max.deg,
        exclusion,
        pixel=options.correlation_radius.deg / PIXELS_PER_RADIUS,
        alignment=config.fov_alignment,
        location=config.observatory_location,
        time_step=config.time_step_seconds,
    )
    for place, model_of_run in adapted.items():
        stack.add(place, model_of_run)
    return stack
