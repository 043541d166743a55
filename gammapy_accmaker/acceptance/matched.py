"""ON and OFF observations -> an `AcceptanceModel` with a model for each ON run,
fitted to the OFF runs matched to it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import numpy as np
from astropy.table import Table

from gammapy_accmaker.acceptance.fit import (
    fit_runs,
    fit_sources,
    make_run_table,
    say_how_it_ended,
    say_what_is_fitted,
    say_without_exclusion,
    stack_run_tables,
    warn_of_covariates,
)
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.acceptance.sources import warn_of_sources
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.options import MatchingOptions
from gammapy_accmaker.data.matching import match_observations
from gammapy_accmaker.data.notes import warn_of_notes
from gammapy_accmaker.data.observations import as_observations
from gammapy_accmaker.errors import AcceptanceError, FitError, InputError
from gammapy_accmaker.models.fit_counts import sum_counts
from gammapy_accmaker.models.pooled import ModelPerRun
from gammapy_accmaker.utils.arguments import check_kind
from gammapy_accmaker.utils.parallel import Execution
from gammapy_accmaker.utils.run_key import LeftOut, run_label, run_names

log = logging.getLogger(__name__)


def fit_matched(
    observations,
    off_observations,
    config: AcceptanceConfig,
    *,
    exclusion,
    sources,
    matches,
    execution: Execution,
    cache=None,
    on_error="skip",
) -> AcceptanceModel:
    """Fit a model for each ON run to its matched OFF runs; each run is reduced once, and equal matches share a fit.

    Parameters
    ----------
    observations, off_observations : `~gammapy.data.Observations`
    config : `AcceptanceConfig`
    exclusion, cache, on_error
        As for `fit_acceptance`.
    sources : `SourceList`
        Free amplitudes are fitted to the ON runs, beside their models; to the OFF runs fluxes are taken as given.
    execution : `Execution`
    matches : `~astropy.table.Table` or None
        What `match_observations` returned; without it the ``matching`` options are used.
    """
    on, off = as_observations(observations), as_observations(off_observations, "off_observations")
    reading_on = Reduction.of(config, exclusion, sources)
    reduction, bins = replace(reading_on, sources=reading_on.sources.as_given()), reading_on.bins
    say_without_exclusion(config, reduction.exclusion, reduction.sources)
    matches = (
        match_observations(on, off, location=config.observatory_location, **dict(config.matching or MatchingOptions()))
        if matches is None
        else _checked(matches, on)
    )
    pairs, left_out = _pairs(matches, on, off)
    if not pairs:
        raise InputError(
            "matches: none of its OFF runs is among the off_observations; give the observations it was made of"
        )
    reading = {"execution": execution, "cache": cache, "on_error": on_error}
    start = time.monotonic()
    in_use = sorted({k for _, k in pairs})
    off_runs, off_failures = reduction.reduce_all(off, places=in_use, **reading)
    usable = {run.place: run for run in off_runs}
    if off_runs:
        counts = sum_counts([part for run in off_runs for part in run.slices], bins.energy_edges, bins.fov)
        say_what_is_fitted(off_runs, len(off_failures), counts, config.model.type, config.offset_max.deg)

    models, number, which, why = [], {}, {}, {}
    for place in range(len(on)):
        taken = frozenset(k for i, k in pairs if i == place and k in usable)
        if not taken:
            left_out.setdefault(place, "none of its matched OFF runs can be used")
        elif taken not in number and taken not in why:
            try:
                own = [usable[k] for k in sorted(taken)]
                models.append(fit_runs(own, bins, config, execution=execution)[0])
                number[taken] = len(models) - 1
            except FitError as error:
                why[taken] = f"the fit to its {len(taken)} matched OFF runs failed: {error}"
        if taken in number:
            which[place] = number[taken]
        elif taken in why:
            left_out[place] = why[taken]
    on_left_out = _left_out(on, left_out)
    if not models:
        reasons = "; ".join(str(one) for one in list(on_left_out.values())[:5])
        raise InputError(f"matching: no ON run gets a model ({reasons})")

    on_runs, on_failures = reading_on.reduce_all(on, places=list(which), **reading)
    by_place = {run.place: run for run in on_runs}
    keys = {place: _key(on[place], by_place.get(place), reduction) for place in which}
    recognised = [place for place, key in keys.items() if key is not None]
    rate_model = ModelPerRun(models, [keys[place] for place in recognised], [which[place] for place in recognised])
    settings = config.run_effects.settings
    on_runs, known, source_table = fit_sources(rate_model, on_runs, reading_on)
    warn_of_sources(source_table)
    on_adapted = [models[which[run.place]].adapt(run, bins, settings) for run in on_runs]
    on_table = make_run_table(rate_model, on_runs, on_adapted, on_failures | on_left_out, config, "apply")
    warn_of_notes([*off_runs, *on_runs], config.offset_max.deg)
    warn_of_covariates([*off_runs, *on_runs], config)
    say_how_it_ended(rate_model, start)
    # an OFF run is compared with the first of the models that it is part of
    first = {k: i for taken, i in reversed(number.items()) for k in taken}
    not_fitted = {k: "no ON run takes it" for k in range(len(off)) if k not in in_use}
    not_fitted |= {k: "the fits that it is part of failed" for k in usable if k not in first}
    off_runs = [run for k, run in usable.items() if k in first]
    off_adapted = [models[first[k]].adapt(run, bins, settings) for k, run in usable.items() if k in first]
    off_failures = off_failures | _left_out(off, not_fitted)
    off_table = make_run_table(rate_model, off_runs, off_adapted, off_failures, config)
    is_used = np.array([k in usable for k in matches["OFF_PLACE"]], dtype=bool)
    run_table = stack_run_tables([off_table, on_table])
    return AcceptanceModel(
        rate_model, config.without_files(), run_table, matches[is_used], exclusion=reduction.exclusion,
        known_sources=known, source_table=source_table,
    )  # fmt: skip


def _key(observation, run, reduction):
    """What an ON run is recognised by when its background is wanted; None for one that cannot be read."""
    try:
        return reduction.recognise(observation) if run is None else run.key
    except AcceptanceError:
        return None


def _left_out(observations, reasons):
    """Runs that are left out, from the reasons by place."""
    labels = [run_label(observation.obs_id) for observation in observations]
    names = run_names(labels)
    return {place: LeftOut(labels[place], names[place], reason) for place, reason in reasons.items()}


def _pairs(matches, on, off):
    """Places of the ON and the OFF run of each match, and why ON runs have none, by place; places go into the table."""
    places = {side: _places(matches, side, runs) for side, runs in (("ON", on), ("OFF", off))}
    for side, found in places.items():
        matches[f"{side}_PLACE"] = found
    pairs = [(i, k) for i, k in zip(*places.values(), strict=True) if i >= 0 and k >= 0]
    names = run_names(run_label(observation.obs_id) for observation in on)
    reasons = {str(name): reason for name, reason in matches.meta["LEFT_OUT"].items()}
    return pairs, {place: reasons[str(name)] for place, name in enumerate(names) if str(name) in reasons}


def _places(matches, side, observations):
    """Where in a list of observations the runs of the matches stand; -1 for one that is not there."""
    by_label: dict[str, list[int]] = {}
    for place, observation in enumerate(observations):
        by_label.setdefault(str(run_label(observation.obs_id)), []).append(place)
    column, found = f"{side}_PLACE", []
    for row in matches:
        candidates = by_label.get(str(row[f"{side}_OBS_ID"]), [])
        if len(candidates) > 1:
            candidates = [place for place in candidates if column in matches.colnames and place == row[column]]
            if not candidates:
                raise InputError(
                    f"matches: several {side} runs have the number {row[f'{side}_OBS_ID']}, and the table does not "
                    "tell which is meant; make it with match_observations from the same lists of observations"
                )
        found.append(candidates[0] if candidates else -1)
    return found


def _checked(matches, on):
    check_kind(matches, Table, "matches", "the table that match_observations makes")
    for name in ("ON_OBS_ID", "OFF_OBS_ID"):
        if name not in matches.colnames:
            raise InputError(f"matches: it has no column {name!r}; make it with match_observations")
    matches = matches.copy()
    left_out = dict(matches.meta.get("LEFT_OUT", {}))
    known = {str(label) for label in [*matches["ON_OBS_ID"], *left_out]}
    labels = [run_label(observation.obs_id) for observation in on]
    unknown = [
        name for label, name in zip(labels, run_names(labels), strict=True) if not {str(label), str(name)} & known
    ]
    if unknown:
        log.warning(f"matches: {len(unknown)} ON runs are not among them and are left out: {unknown}")
    matches.meta["LEFT_OUT"] = left_out | dict.fromkeys(unknown, "it is not among the matches")
    return matches
