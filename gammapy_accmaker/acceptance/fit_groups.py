"""A model for each group of a plan, put together to one that follows zenith and azimuth."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gammapy_accmaker.acceptance.plan import GroupPlan
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.counts import RunCounts
from gammapy_accmaker.errors import FitError
from gammapy_accmaker.models.azimuth import AzimuthBinned
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.zenith import ZenithBinned, ZenithInterpolated

__all__ = ["fit_groups"]

log = logging.getLogger(__name__)


def fit_groups(
    runs: list[list[RunCounts]],
    plan: GroupPlan,
    config: AcceptanceConfig,
    fit_one: Callable[[list[list[RunCounts]]], RateModel],
) -> RateModel:
    """Fit the groups of a plan.

    Parameters
    ----------
    runs : list of list of `RunCounts`
        Slices of each run; the plan was made of them.
    plan : `GroupPlan`
    config : `AcceptanceConfig`
        It says how the models of the groups are put together.
    fit_one : callable
        Fits runs of one slice each, without zenith or azimuth.
    """
    models = []
    assigned = plan.assign(runs, config)
    for number, group in enumerate(assigned):
        try:
            models.append(fit_one([[_whole(slices)] for slices in group]))
        except FitError as error:
            ids = ", ".join(str(slices[0].obs_id) for slices in group)
            raise FitError(f"group {number} of the plan, runs {ids}: {error}") from error
    mean, ranges = plan.mean_cos_zenith(), [_seen_range(group) for group in assigned]
    sectors = np.unique(plan.sector)
    by_sector = []
    for k in sectors:
        groups = np.flatnonzero(plan.sector == k)
        own, trained = (
            [models[g] for g in groups],
            (min(ranges[g][0] for g in groups), max(ranges[g][1] for g in groups)),
        )
        if config.zenith.type == "binned":
            by_sector.append(ZenithBinned(plan.edges_in(k), own, trained))
        elif config.zenith.type == "interpolated":
            by_sector.append(ZenithInterpolated(mean[groups], own, config.zenith.scale == "log", trained))
        else:
            by_sector += own
    if len(plan.azimuth_edges) == 0:
        return by_sector[0]
    lacking = np.setdiff1d(np.arange(len(plan.azimuth_edges)), sectors)
    if len(lacking):
        starts = ", ".join(f"{plan.azimuth_edges[k]:g}" for k in lacking)
        log.warning(
            f"azimuth: {len(lacking)} of {len(plan.azimuth_edges)} sectors, which start at {starts} deg, have no runs; "
            "runs there take the model of the nearest sector"
        )
    ontime = np.bincount(plan.sector[plan.group], plan.ontime, len(plan.azimuth_edges))
    return AzimuthBinned(plan.azimuth_edges, by_sector, sectors, ontime[sectors])


def _seen_range(group):
    """Smallest and largest cos zenith in runs."""
    low, high = np.array([part.cos_zenith_range for slices in group for part in slices]).T
    return float(low.min()), float(high.max())


def _whole(slices):
    """The slices of a run in a group as one: the run has one norm there."""
    ontime = np.array([part.ontime for part in slices])
    return replace(
        slices[0],
        counts=sum(part.counts for part in slices),
        exposure=sum(part.exposure for part in slices),
        ontime=float(ontime.sum()),
        livetime=float(sum(part.livetime for part in slices)),
        cos_zenith=float(np.average([part.cos_zenith for part in slices], weights=ontime)),
        cos_zenith_range=_seen_range([slices]),
    )
