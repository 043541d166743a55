"""ON and OFF observations -> an `AcceptanceModel` with a model for each ON run, fitted to the OFF runs matched to it."""

from __future__ import annotations

import logging

import numpy as np
from astropy.table import vstack

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.errors import FitError, InputError
from gammapy_accmaker.fit import fit_runs, make_run_table, say_without_exclusion
from gammapy_accmaker.models.per_run import ModelPerRun
from gammapy_accmaker.options import MatchingOptions
from gammapy_accmaker.reduction.matching import match_observations
from gammapy_accmaker.reduction.run_notes import warn_of_notes
from gammapy_accmaker.runs import make_bins, make_exclusion, reduce_observations

__all__ = ["fit_matched"]

log = logging.getLogger(__name__)


def fit_matched(
    observations,
    off_observations,
    config: AcceptanceConfig,
    *,
    exclusion,
    matches,
    n_jobs,
    parallel_backend,
    cache=None,
    on_error="skip",
) -> AcceptanceModel:
    """Fit a model for each ON run to its matched OFF runs; each run is reduced once, and equal matches share a fit.

    Parameters
    ----------
    observations, off_observations : `~gammapy.data.Observations`
    config : `AcceptanceConfig`
    exclusion, n_jobs, parallel_backend, cache, on_error
        As for `fit_acceptance`.
    matches : `~astropy.table.Table` or None
        What `match_observations` returned; without it the ``matching`` options are used.
    """
    on, off = list(observations), list(off_observations)
    bins, excluded = make_bins(config), make_exclusion(config, exclusion)
    say_without_exclusion(config, excluded)
    matches = (
        _match(on, off, config.matching or MatchingOptions(), config) if matches is None else _checked(matches, on)
    )
    left_out = {int(k): reason for k, reason in matches.meta.get("LEFT_OUT", {}).items()}
    in_use = [o for o in off if int(o.obs_id) in set(matches["OFF_OBS_ID"])]
    if not in_use:
        raise InputError(
            "matches: none of its OFF runs is among the off_observations; give the observations it was made of"
        )
    off_runs, off_failures = reduce_observations(
        in_use, bins, config, excluded, n_jobs, parallel_backend, cache=cache, on_error=on_error
    )
    usable = {slices[0].obs_id: slices for slices in off_runs}
    matches = matches[np.isin(matches["OFF_OBS_ID"], list(usable))]

    models, number, which, why = [], {}, {}, {}
    for observation in on:
        obs_id = int(observation.obs_id)
        taken = frozenset(int(k) for k in matches["OFF_OBS_ID"][matches["ON_OBS_ID"] == obs_id])
        if not taken:
            left_out.setdefault(obs_id, "none of its matched OFF runs can be used")
        elif taken not in number and taken not in why:
            try:
                own = [usable[k] for k in sorted(taken)]
                models.append(fit_runs(own, bins, config, n_jobs=n_jobs, parallel_backend=parallel_backend))
                number[taken] = len(models) - 1
            except FitError as error:
                why[taken] = f"the fit to its {len(taken)} matched OFF runs failed: {error}"
        if taken in number:
            which[obs_id] = number[taken]
        elif taken in why:
            left_out[obs_id] = why[taken]
    if not models:
        reasons = "; ".join(f"{obs_id}: {reason}" for obs_id, reason in list(left_out.items())[:5])
        raise InputError(f"matching: no ON run gets a model ({reasons})")

    with_model = [o for o in on if int(o.obs_id) in which]
    on_runs, on_failures = reduce_observations(
        with_model, bins, config, excluded, n_jobs, parallel_backend, cache=cache, on_error=on_error
    )
    rate_model = ModelPerRun(models, list(which), list(which.values()))
    warn_of_notes([*off_runs, *on_runs], config.offset_max.deg)
    on_table = make_run_table(rate_model, bins, on_runs, on_failures | left_out, config, role="apply")
    log.info(f"zenith: {rate_model.describe_zenith()}")
    # an OFF run is compared with the first of the models that it is part of
    first = {k: i for taken, i in reversed(number.items()) for k in taken}
    off_failures |= {int(o.obs_id): "no ON run takes it" for o in off if o not in in_use}
    off_failures |= {k: "the fits that it is part of failed" for k in usable if k not in first}
    off_runs = [slices for slices in off_runs if slices[0].obs_id in first]
    off_model = ModelPerRun(models, list(first), list(first.values()))
    off_table = make_run_table(off_model, bins, off_runs, off_failures, config)
    run_table = vstack([off_table, on_table])
    return AcceptanceModel(rate_model, config.without_files().to_yaml(), run_table, matches, exclusion=excluded)


def _match(on, off, options, config):
    return match_observations(
        on,
        off,
        limits=options.limits,
        weights=options.weights,
        hours=options.hours,
        n_runs=options.n_runs,
        same=options.same,
        location=config.observatory_location,
    )


def _checked(matches, on):
    for name in ("ON_OBS_ID", "OFF_OBS_ID"):
        if name not in matches.colnames:
            raise InputError(f"matches: it has no column {name!r}; make it with match_observations")
    unknown = [int(o.obs_id) for o in on if int(o.obs_id) not in set(matches["ON_OBS_ID"])]
    unknown = [k for k in unknown if k not in matches.meta.get("LEFT_OUT", {})]
    if unknown:
        log.warning(f"matches: {len(unknown)} ON runs are not among them and are left out: {unknown}")
        matches = matches.copy()
        matches.meta["LEFT_OUT"] = matches.meta.get("LEFT_OUT", {}) | dict.fromkeys(
            unknown, "it is not among the matches"
        )
    return matches
