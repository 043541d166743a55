"""Reduced runs -> `AcceptanceModel`: the fit of all runs together, or of a model for each group of a plan.

From the top: the groups of a plan, put together to one model that follows zenith and azimuth; `plan_groups` and
`fit_acceptance`, the public doors, and `fit_runs` below them; and the run table, in which every run has a row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack

from gammapy_accmaker.acceptance.model import WITHOUT_EXCLUSION, AcceptanceModel
from gammapy_accmaker.acceptance.plan import GroupPlan, make_plan, warn_missed
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.acceptance.search import Fitted, fit_until_stable, warn_of_excess
from gammapy_accmaker.acceptance.source_fit import fit_amplitudes, fit_beside_sources
from gammapy_accmaker.acceptance.sources import (
    check_in_fields,
    fitted_sources,
    make_source_table,
    warn_of_sources,
)
from gammapy_accmaker.camera.bins import CountsBins, merge_bins
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.kinds import FitSettings, SplineOptions
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.notes import warn_of_notes
from gammapy_accmaker.data.observations import as_observations
from gammapy_accmaker.data.reduced_run import ReducedRun, handed_over, in_own_order
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import FitError, InputError
from gammapy_accmaker.models.alignment import ZenithScaling, find_zenith_scaling, seen_in_field
from gammapy_accmaker.models.base import NOT_CONVERGED, AdaptedRun, RateModel
from gammapy_accmaker.models.fit_counts import FitCounts, add_up, sum_counts, zenith_range
from gammapy_accmaker.models.goodness import describe_goodness
from gammapy_accmaker.models.pooled import AzimuthBinned, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.models.source_terms import AmplitudeFit
from gammapy_accmaker.utils.arguments import check_kind
from gammapy_accmaker.utils.describe import counted, in_percent, in_thousands
from gammapy_accmaker.utils.parallel import SERIAL, Execution
from gammapy_accmaker.utils.run_key import LeftOut, label_array, require_runs, run_names, some_names
from gammapy_accmaker.utils.threads import one_thread

log = logging.getLogger(__name__)

_OFF_SHARE, _OFF_SIGMA = 0.1, 5.0  # between the counts of a run and what is expected: a run is flagged
COUNTS_OFF = "counts off"
_ROUNDING = 1e-4  # of cos zenith, between the nodes of a track
_DEFAULT_COVARIATES = SplineOptions().covariates


def _fit_groups(
    runs: list[ReducedRun],
    plan: GroupPlan,
    config: AcceptanceConfig,
    fit_one: Callable[[list[ReducedRun]], RateModel],
    scaling: ZenithScaling | None = None,
) -> RateModel:
    """Fit the groups of a plan.

    Parameters
    ----------
    runs : list of `ReducedRun`
        The plan was made of them.
    plan : `GroupPlan`
    config : `AcceptanceConfig`
        It says how the models of the groups are put together.
    fit_one : callable
        Fits the runs of a group, without zenith or azimuth.
    scaling : `ZenithScaling`, optional
        With which it puts runs of different zenith angles together.
    """
    models = []
    assigned = plan.assign(runs, config)
    for number, group in enumerate(assigned):
        try:
            models.append(fit_one(group))
        except FitError as error:
            ids = ", ".join(str(run.obs_id) for run in group)
            raise FitError(f"group {number} of the plan, runs {ids}: {error}") from error
    mean, ranges = plan.mean_cos_zenith(), [zenith_range(group) for group in assigned]
    sectors = np.unique(plan.sector)
    by_sector: list[RateModel] = []
    for k in sectors:
        groups = np.flatnonzero(plan.sector == k)
        own, trained = (
            [models[g] for g in groups],
            (min(ranges[g][0] for g in groups), max(ranges[g][1] for g in groups)),
        )
        if config.zenith.type == "binned":
            by_sector.append(ZenithBinned(plan.edges_in(k), own, trained))
        elif config.zenith.type == "interpolated":
            by_sector.append(ZenithInterpolated(mean[groups], own, config.zenith.scale == "log", trained, scaling))
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


def plan_groups(observations, config=None, *, exclusion=None, n_jobs=None, parallel_backend=None) -> GroupPlan:
    """Plan which runs are pooled in a fit.

    Parameters
    ----------
    observations : `~gammapy.data.Observations` or list of `~gammapy.data.Observation`
        Those that are to be fitted.
    config : `AcceptanceConfig` or dict, optional
        Its ``zenith`` and ``azimuth`` say how runs are pooled; the model ``spline``, which follows the zenith angle
        without bins, has one group.
    exclusion : sky region, region file, mask map, or a list of these, optional
        As for `fit_acceptance`: counts in it are not counted.
    n_jobs, parallel_backend : int and str, optional
        As for `fit_acceptance`.

    Returns
    -------
    plan : `GroupPlan`
        To look at, to plot, and for `fit_acceptance`.

    Raises
    ------
    InputError
        Where no observation can be used.

    Examples
    --------
    >>> config = AcceptanceConfig(model={"type": "radial"})
    >>> plan = plan_groups(observations, config)  # doctest: +SKIP
    >>> print(plan)  # doctest: +SKIP
    >>> model = fit_acceptance(observations, config, plan=plan)  # doctest: +SKIP
    """
    config = AcceptanceConfig.coerce(config)
    observations = as_observations(observations)
    runs, failures = Reduction.of(config, exclusion).reduce_all(observations, Execution.of(n_jobs, parallel_backend))
    warn_of_notes(runs, config.offset_max.deg)
    require_runs(runs, failures.values())
    plan = make_plan(runs, config)
    warn_missed(plan, config)
    return plan


@one_thread()
def fit_acceptance(
    observations,
    config=None,
    *,
    exclusion=None,
    sources=None,
    n_jobs=None,
    parallel_backend=None,
    plan=None,
    cache=None,
    on_error="skip",
) -> AcceptanceModel:
    """Fit an acceptance model to observations.

    Parameters
    ----------
    observations : `~gammapy.data.Observations` or list of `~gammapy.data.Observation`
        ON or OFF observations. One that cannot be used is left out, named in a warning and listed in the run table.
        Each entry of the list is a run with effects of its own: observation numbers may repeat, be missing or be text.
        So are the pieces that gammapy's ``select_time`` makes of a run; where they are to share its effects, give the
        run as a whole (its good time intervals may have gaps, and within it the rate follows the zenith angle).
    config : `AcceptanceConfig` or dict, optional
        Options; their defaults where it is None.
    exclusion : sky region, region file, mask map, or a list of these, optional
        Left out of the fit, in addition to the exclusion of the configuration.
    sources : `~gammapy.modeling.models.Models`, `~gammapy.modeling.models.SkyModel`, path, or a list of these, optional
        Gamma-ray sources that stand in the likelihood of the fit beside the background, in addition to those of the
        configuration: they need not be excluded. The amplitude (or norm) of a source is fitted, in bands of energy,
        unless it is frozen; all else of it stays as given.
    n_jobs : int, optional
        Processes that reduce the observations and fit the spline model; gammapy's default. The answer is the same.
    parallel_backend : {"multiprocessing", "ray"}, optional
        gammapy's default.
    plan : `GroupPlan`, optional
        From `plan_groups` of the same observations and options; made anew by default.
    cache : str or `~pathlib.Path`, optional
        Folder for the reduced runs. A run whose files and settings have not changed since is not read again.
    on_error : {"skip", "raise"}
        Whether a run that cannot be used is left out, or ends the fit at once.

    Returns
    -------
    model : `AcceptanceModel`
        The fit, with a table of its runs.

    Raises
    ------
    InputError
        Without observations, where none can be used, or for a plan of other observations.
    ObservationError
        With ``on_error="raise"``, for the first run that cannot be used.
    FitError
        Where a fit does not reach a usable result.

    Examples
    --------
    >>> from gammapy_accmaker import fit_acceptance
    >>> model = fit_acceptance(observations, {"model": {"type": "radial"}}, exclusion="sources.reg")  # doctest: +SKIP
    >>> model.run_table["OBS_ID", "NORM", "NORM_ERR"]  # doctest: +SKIP
    """
    config = AcceptanceConfig.coerce(config)
    if config.matching is not None:
        raise InputError(
            "matching: it needs ON and OFF runs; call AcceptanceBackgroundMaker(config).fit(on, off_observations=off)"
        )
    if plan is not None:
        check_kind(plan, GroupPlan, "plan", "a GroupPlan of `plan_groups`")
    if plan is not None and not _is_grouped(config):
        plan.check_settings(config)
        plan = None  # of one group, which is what the fit makes of the runs anyway
    observations, execution = as_observations(observations), Execution.of(n_jobs, parallel_backend)
    reduction = Reduction.of(config, exclusion, sources)
    say_without_exclusion(config, reduction.exclusion, reduction.sources)

    warned = False

    def fit(exclusion):
        nonlocal warned
        start, reading = time.monotonic(), replace(reduction, exclusion=exclusion)
        runs, failures = reading.reduce_all(observations, execution, cache=cache, on_error=on_error)
        if not warned:  # the search for sources comes here again
            warn_of_notes(runs, config.offset_max.deg)
            warn_of_covariates(runs, config)
            warned = True
        return _fit_once(runs, failures, reading, plan, execution, start)

    with execution.open() as execution:
        if config.search is not None:
            return fit_until_stable(fit, config.search, reduction.exclusion, observations).model
        fitted = fit(reduction.exclusion)
        warn_of_excess(fitted)
        return fitted.model


def _warn_of_poor_fit(rate_model: RateModel, config: AcceptanceConfig) -> None:
    """One warning where a fit does not describe its own counts over field of view and energy."""
    if any(fit.is_poor for fit in rate_model.goodness):
        log.warning(
            f"model: {config.model.type} does not describe the counts; {describe_goodness(rate_model.goodness)}; "
            f"{config.model.remedy}"
        )


def say_without_exclusion(config: AcceptanceConfig, exclusion: Exclusion, sources: SourceList) -> None:
    """One warning where a fit leaves no part of the sky out, and knows of no source."""
    nothing = exclusion.is_empty and not len(sources) and config.search is None
    if nothing and config.exclusion.wobble_half is False:
        log.warning(
            f"exclusion: nothing is excluded: {WITHOUT_EXCLUSION}, in the fit and in the effects of each run; give "
            "their regions as `exclusion`, or their models as `sources`, or set `sources: {type: found}` to look for "
            "them. Runs on fields without sources need none."
        )


def warn_of_covariates(runs: list[ReducedRun], config: AcceptanceConfig) -> None:
    """One warning for each keyword that the model is to follow and that reduced runs lack."""
    names = run_names(run.obs_id for run in runs)
    for name in config.model.keywords:
        lacking = [label for label, run in zip(names, runs, strict=True) if name not in run.covariates]
        if not lacking:
            continue
        what = f"model.covariates: {name} is missing from the event header, or is no number there,"
        if len(lacking) < len(runs):
            log.warning(
                f"{what} of {len(lacking)} of {len(runs)} runs ({some_names(lacking)}): they count as the mean of the "
                "others, so that their norm and energy scale follow from their events alone; fill it in, or leave it "
                "out"
            )
        else:  # that of the default is one of H.E.S.S.
            level = logging.INFO if name in _DEFAULT_COVARIATES else logging.WARNING
            log.log(level, f"{what} of all {len(runs)} runs, and the model does not follow it; correct or leave it out")


def say_what_is_fitted(runs: list[ReducedRun], n_left_out: int, counts: FitCounts, model: str, offset_max: float):
    """The runs of a fit, their events, and how much of what they saw is excluded, at the level info."""
    ontime = sum(part.ontime for run in runs for part in run.slices)
    left_out = f" ({n_left_out} left out)" if n_left_out else ""
    log.info(
        f"fit: {model} model of {counted(len(runs), 'run')}{left_out}, {in_thousands(counts.counts.sum())} events in "
        f"{ontime / 3600:.3g} h, {in_percent(counts.excluded_share(ontime, offset_max))} of the field of view excluded"
    )


def say_how_it_ended(rate_model: RateModel, start: float) -> None:
    """How a fit converged, what it follows, and the seconds since it was begun, at the level info."""
    ended, names = rate_model.convergence, rate_model.covariate_names
    follows = f"zenith {rate_model.describe_zenith()}; covariates {', '.join(names) if names else 'none'}"
    log.info(f"fit: {f'{ended}; ' if ended else ''}{follows}; {time.monotonic() - start:.1f} s")


def _fit_once(runs, failures, reduction, plan, execution, start):
    """The fit of reduced runs, and the model adapted to each of them where that is needed, by place in the list."""
    config, bins = reduction.config, reduction.bins
    require_runs(runs, failures.values())
    fit_counts = sum_counts([part for run in in_own_order(runs) for part in run.slices], bins.energy_edges, bins.fov)
    say_what_is_fitted(runs, len(failures), fit_counts, config.model.type, config.offset_max.deg)
    if plan is None and _is_grouped(config):
        plan = make_plan(runs, config)
        warn_missed(plan, config)
    check_in_fields(reduction.sources, runs, config.offset_max.deg)
    again = config.model.adapts_by_counts(config.run_effects.settings)
    rate_model, source_fit = fit_runs(runs if again else handed_over(runs), bins, config, plan, execution=execution)
    runs, known_sources, source_table = _with_sources(source_fit, runs, reduction)
    warn_of_sources(source_table)
    say_how_it_ended(rate_model, start)
    _warn_of_poor_fit(rate_model, config)
    adapted = [rate_model.adapt(run, bins, config.run_effects.settings, k) for k, run in enumerate(runs)]
    run_table = make_run_table(rate_model, runs, adapted, failures, config)
    parts = {"plan": plan, "fit_counts": fit_counts, "exclusion": reduction.exclusion, "source_table": source_table}
    model = AcceptanceModel(rate_model, config.without_files(), run_table, known_sources=known_sources, **parts)
    return Fitted(model, runs, [one.model for one in adapted], bins.energy_edges)


def _is_grouped(config: AcceptanceConfig) -> bool:
    """Whether runs are pooled in bins of zenith or azimuth."""
    return config.zenith_bins is not None or config.azimuth.type != "none"


@one_thread()
def fit_runs(
    runs: Iterable[ReducedRun],
    bins: CountsBins,
    config: AcceptanceConfig,
    plan: GroupPlan | None = None,
    *,
    execution: Execution = SERIAL,
) -> tuple[RateModel, AmplitudeFit | None]:
    """Model fitted to reduced runs, in the groups of a plan, which is made of them by default; and the amplitudes of
    their sources, None where no run has any."""
    settings = FitSettings(
        config.run_effects.settings,
        n_band=config.sources.bands,
        follows_zenith=config.zenith.type == "continuous",
        in_wide_bins=isinstance(config.fit_energy, u.Quantity),
    )
    if config.model.fits_sources:
        rate_model, found = config.model.fit(runs, bins, settings, execution)
    else:
        rate_model, found = _fit_to_counts(list(runs), bins, config, settings, plan, execution)
    if rate_model.not_converged:
        log.warning(f"model: {rate_model.not_converged}")
    return rate_model, found


def _fit_to_counts(runs, bins, config, settings, plan, execution):
    """`fit_runs` of a kind of model that knows no sources, and perhaps groups of runs."""
    scaling = _zenith_scaling(runs, bins) if config.model.aligns and config.zenith.type == "interpolated" else None
    settings = replace(settings, scaling=scaling, profile_edges=_make_profile_edges(runs, bins, config))

    if not _is_grouped(config):
        plan = None
    elif plan is None:
        plan = make_plan(runs, config)

    def fit(counts):
        """To the counts of some slices in place of their own, by the number of the slice."""

        def fit_one(group):
            group = [run.with_counts(counts) for run in group] if counts else group
            return config.model.fit(group, bins, settings, execution)[0]

        return fit_one(runs) if plan is None else _fit_groups(runs, plan, config, fit_one, scaling)

    if any(run.has_sources for run in runs):
        return fit_beside_sources(runs, bins, fit, settings.n_band, settings.effects)
    return fit({}), None


@one_thread()
def fit_sources(
    rate_model: RateModel, runs: list[ReducedRun], reduction: Reduction
) -> tuple[list[ReducedRun], SourceList, Table]:
    """Amplitudes of free sources beside a model of other runs, from these runs together, each with its own effects.

    Returns
    -------
    runs : list of `ReducedRun`
        With what the sources add to them.
    sources : `SourceList`
        Those of the reduction, as they were found.
    table : `~astropy.table.Table`
        See `make_source_table`.
    """
    config, bins, found = reduction.config, reduction.bins, None
    if any(part.sources for run in runs for part in run.slices):
        found = fit_amplitudes(runs, bins, rate_model, config.sources.bands, config.run_effects.settings)
    return _with_sources(found, runs, reduction)


def _with_sources(found, runs, reduction):
    edges = reduction.bins.energy_edges
    table = make_source_table(reduction.sources, found, runs, edges)
    return [run.with_amplitudes(found) for run in runs], fitted_sources(reduction.sources, found, edges), table


def _zenith_scaling(runs, bins):
    """How runs of different zenith angles go over into each other."""
    runs = in_own_order(runs)
    exposure, in_field = np.array([run.exposure for run in runs]), add_up(p for r in runs for p in r.slices).sum(0)
    return find_zenith_scaling(
        np.array([np.asarray(run.counts.sum(1)).ravel() for run in runs]),
        seen_in_field(in_field, exposure, np.ones(len(runs))),
        np.log(bins.energy_edges),
        np.log([run.cos_zenith for run in runs]),
    )


def _make_profile_edges(runs, bins, config) -> np.ndarray | None:
    """Energy edges in TeV between which bins share a profile over the field; None where each has its own.

    They are those of ``fit_energy``, or what its adaptive bins become with the counts of all runs.
    """
    if isinstance(config.fit_energy, u.Quantity):
        edges = config.fit_energy.to_value("TeV")
        return edges if len(edges) < len(bins.energy_edges) else None
    if config.fit_energy is None:
        return None
    counts = add_up(part for run in runs for part in run.slices)
    return merge_bins(counts.sum(1), bins.energy_edges, config.fit_energy.min_counts, config.fit_energy.max_width)


def warn_outside_zenith(rate_model: RateModel, cos_zenith: dict[int | str, float]) -> None:
    """One warning that names the runs whose mean cos zenith is outside of what the model was trained for."""
    if rate_model.zenith_range is None:
        return
    low, high = rate_model.zenith_range
    outside = {k: z for k, z in cos_zenith.items() if np.isfinite(z) and not low - _ROUNDING <= z <= high + _ROUNDING}
    if outside:
        named = ", ".join(f"{name} ({z:.3f})" for name, z in outside.items())
        log.warning(
            f"cos zenith of runs outside of the trained range, {low:.3f} to {high:.3f}: {named}; "
            "they take the rate at its end"
        )


def make_run_table(
    rate_model: RateModel,
    runs: Sequence[ReducedRun],
    adapted: Sequence[AdaptedRun],
    failures: Mapping[int, LeftOut],
    config: AcceptanceConfig,
    role: str = "fit",
) -> Table:
    """One row for each run: what went in, its effects, how well it fits, and the reason where it was left out.

    ``runs`` and ``failures`` are those of `Reduction.reduce_all`; the rows are in the order of the observations.
    ``adapted``: what the model, or its own, is adapted to each run.
    """
    labels = {run.place: run.obs_id for run in runs}
    labels |= {place: left_out.obs_id for place, left_out in failures.items()}
    names = dict(zip(sorted(labels), run_names(labels[place] for place in sorted(labels)), strict=True))
    warn_outside_zenith(rate_model, {names[run.place]: run.cos_zenith for run in runs})
    rows, outside, off, limits = {}, {}, {}, config.run_effects.norm_limits
    for run, one in zip(runs, adapted, strict=True):
        flags = [*one.flags]
        if limits is not None and not limits[0] <= one.norm <= limits[1]:
            outside[names[run.place]] = one.norm
            flags.append(f"norm outside of limits [{limits[0]:g}, {limits[1]:g}]")
        counts = int(sum(part.counts.sum() for part in run.slices))
        if _is_off(counts, one.expected):
            off[names[run.place]] = counts / max(one.expected, 1e-300)
            flags.append(COUNTS_OFF)
        rows[run.place] = {
            "ROLE": role, "USED": True, "ONTIME": run.ontime, "LIVETIME": run.livetime,
            "ZENITH": np.degrees(np.arccos(np.clip(run.cos_zenith, -1, 1))), "AZIMUTH": run.azimuth, "MJD": run.mjd,
            "COUNTS": counts,
            "DROPPED": run.dropped["not finite"] + run.dropped["outside GTI"],
            "EXPECTED": one.expected, "NORM": one.norm, "NORM_ERR": one.norm_error,
            "SHIFT": one.shift, "SHIFT_ERR": one.shift_error, "DEVIANCE": one.deviance,
            "FLAG": "; ".join(flags), "NORM_EMIN": one.norm_energy[0], "NORM_EMAX": one.norm_energy[1],
            "START": run.key.start, "RA": run.key.pointing[0] % 360, "DEC": run.key.pointing[1],
        }  # fmt: skip
    if limits is not None and outside:
        named = ", ".join(f"{name} ({norm:.3g})" for name, norm in outside.items())
        log.warning(
            f"the norms of {len(outside)} of {len(runs)} runs lie outside of {list(limits)} and are kept: {named}"
        )
    if off:
        named = some_names([f"{name} ({ratio:.2f})" for name, ratio in off.items()])
        log.warning(
            f"the counts of {len(off)} of {len(runs)} runs are more than {100 * _OFF_SHARE:.0f} % and {_OFF_SIGMA:.0f} "
            f"standard deviations off (counts over what is expected: {named}): {_remedy_for_off(config)}"
        )
    swinging = [str(names[place]) for place, row in rows.items() if NOT_CONVERGED in row["FLAG"]]
    if swinging:
        log.warning(
            f"the effects of {len(swinging)} of {len(runs)} runs did not converge: {', '.join(swinging)}; look at "
            "their residuals, or use run_effects 'norm' or 'none'"
        )
    unknown = {
        name: np.nan for name in RUN_COLUMNS if name not in ("OBS_ID", "ROLE", "USED", "COUNTS", "DROPPED", "FLAG")
    }
    for place, left_out in failures.items():
        rows[place] = {"ROLE": role, "USED": False, "COUNTS": 0, "DROPPED": 0, "FLAG": left_out.reason, **unknown}
    units = {name: column.unit for name, column in RUN_COLUMNS.items() if column.unit}
    table = Table(rows=[rows[place] for place in sorted(rows)], names=[*RUN_COLUMNS][1:], units=units)
    table.add_column(label_array(labels[place] for place in sorted(rows)), name="OBS_ID", index=0)
    return table


def _is_off(counts, expected):
    """Whether counts and what is expected differ by more than chance, and by enough to matter."""
    difference = abs(counts - expected)
    return difference > _OFF_SHARE * expected and difference > _OFF_SIGMA * np.sqrt(max(expected, 1.0))


def _remedy_for_off(config):
    if config.run_effects.type == "shift":
        return "look at their residuals; leave them out, or fit them with runs that are like them"
    return (
        f"run_effects {config.run_effects.type!r} does not follow their trigger thresholds, or their rates; use "
        "run_effects 'shift', or their background above NORM_EMIN alone"
        if config.run_effects.type != "none"
        else "run_effects 'none' follows neither their rates nor their trigger thresholds; use run_effects 'shift'"
    )


def stack_run_tables(tables: list[Table]) -> Table:
    """Run tables one below the other; the labels of their runs are text where one of them has text."""
    labels = label_array(label for table in tables for label in table["OBS_ID"].tolist())
    tables = [table.copy() for table in tables]
    for table in tables:
        table.remove_column("OBS_ID")
    stacked = vstack(tables)
    stacked.add_column(labels, name="OBS_ID", index=0)
    return stacked
