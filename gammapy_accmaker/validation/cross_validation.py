"""How well a configuration predicts runs that its fit has not seen.

The runs are divided into folds; each fold is predicted by a model fitted to the others. What a configuration fits to
the run itself is fitted to a random half of the run's events, and the prediction is scored on the other half.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.table import Table
from gammapy.data import EventList
from gammapy.utils.pbar import progress_bar

from gammapy_accmaker.acceptance.fit import fit_runs, warn_of_covariates
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.acceptance.sources import fitted_sources
from gammapy_accmaker.camera.bins import CountsBins, FovBins, as_edges, as_number, offset
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.notes import warn_of_notes
from gammapy_accmaker.data.observations import as_observations, find_unreadable
from gammapy_accmaker.data.sky_counts import SKY_PIXEL
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.arguments import check_whole
from gammapy_accmaker.utils.describe import counted
from gammapy_accmaker.utils.parallel import Execution
from gammapy_accmaker.utils.run_key import label_array, run_label, run_names
from gammapy_accmaker.utils.statistics import free_norm_log_likelihood
from gammapy_accmaker.validation.stacks import DISC_RADIUS, disc_significance, make_sky_stack, sky_significance

log = logging.getLogger(__name__)

_FORMATS = {
    "SCORE": ".0f",
    "GAIN": "+.0f",
    "GAIN_ERR": ".0f",
    "LOG_NORM_BIAS": "+.3f",
    "LOG_NORM_STD": ".3f",
    "FIT_TIME": ".1f",
    "E_MIN": ".2f",
    "E_MAX": ".2f",
    "MEAN": "+.2f",
    "WIDTH": ".2f",
}


@dataclass(frozen=True)
class CrossValidation:
    """Result of `cross_validate`.

    Attributes
    ----------
    table : `~astropy.table.Table`
        One row for each configuration: score, its gain over the first, the error of the gain from its scatter over the
        runs, bias and scatter of the log norm of the runs before they are adapted to, mean time of a fit.
    scores : `~astropy.table.Table`
        One row for each run: the score of each configuration, in a column of its name.
    significance : `~astropy.table.Table`
        Mean and width of the significance of the held-out runs, each adapted to by its own events (or by a norm, with
        run effects ``none``), for each configuration and energy band: in the camera frame stacked one fold at a time
        and, if asked for, in the sky frame stacked one field at a time.
    n_folds : int
    """

    table: Table
    scores: Table
    significance: Table
    n_folds: int = 5

    def __repr__(self):
        return f"<{type(self).__name__}: {', '.join(map(str, self.table['CONFIG']))}; {self._what()}>"

    def __str__(self):
        return "\n".join([f"{type(self).__name__}: {self._what()}", *self.table.pformat(max_lines=-1, max_width=-1)])

    def _repr_html_(self):
        return f"<p>{type(self).__name__}: {self._what()}</p>{self.table._repr_html_()}"

    def _what(self):
        return f"{counted(len(self.scores), 'run')} in {self.n_folds} folds, each predicted by a fit to the others"


def cross_validate(
    observations,
    configs: dict,
    *,
    exclusion=None,
    sources=None,
    n_folds: int = 5,
    seed: int = 0,
    split_seed: int = 3,
    energy_edges: u.Quantity | None = None,
    band_edges: u.Quantity | None = None,
    offset_max: u.Quantity = 2.3 * u.deg,
    sky: bool = False,
    n_jobs: int | None = None,
    parallel_backend: str | None = None,
) -> CrossValidation:
    """Score configurations on runs that their fit has not seen.

    What a configuration adapts to a run is adapted to one random half of the run's events. The score is of the other
    half, scaled to all: the sum of n log(mu / sum(mu)) over energy bins and camera pixels of 0.1 deg, that is the
    Poisson log-likelihood with a free norm. The significance is of all events, with the model adapted to all of them.

    Parameters
    ----------
    observations : `~gammapy.data.Observations`
        Observations; those that one of the configurations cannot use are left out for all.
    configs : dict of `AcceptanceConfig` or dict
        Configurations by name. The first is the reference of the gains.
    exclusion : sky region, region file, mask map, or a list of these, optional
        Left out of fits and scores.
    sources : `~gammapy.modeling.models.Models`, `~gammapy.modeling.models.SkyModel`, path, or a list of these, optional
        Gamma-ray sources beside the background, in fits, scores and significance: amplitudes that are free are fitted
        with each fold left out.
    n_folds : int
        Number of folds.
    seed, split_seed : int
        Random seeds of the division into folds and of the halves of the events.
    energy_edges : `~astropy.units.Quantity`, optional
        Energy bins of the score; 24 logarithmic ones from 0.2 to 20 TeV by default.
    band_edges : `~astropy.units.Quantity`, optional
        Energy bands of the significance; four a decade from 0.32 to 10 TeV by default.
    offset_max : `~astropy.units.Quantity`
        Largest offset of the score, or that of the smallest model where that is less.
    sky : bool
        Whether significance is found in the sky frame too, stacked field by field; known sources are part of what is
        expected there.
    n_jobs, parallel_backend : int and str, optional
        As for `fit_acceptance`.

    Returns
    -------
    result : `CrossValidation`
        Tables of the configurations, of the runs, and of the significance.

    Raises
    ------
    InputError
        For a number of folds that the observations do not allow, for configurations with ``matching`` or
        ``exclusion.iterative``, and where too few observations can be used.

    Examples
    --------
    >>> configs = {"radial": {"model": {"type": "radial"}}, "spline": {}}
    >>> result = cross_validate(observations, configs, exclusion="sources.reg")  # doctest: +SKIP
    >>> result.table["CONFIG", "GAIN", "GAIN_ERR"]  # doctest: +SKIP
    """
    observations = as_observations(observations)
    if not 2 <= check_whole(n_folds, 1, "n_folds") <= len(observations):
        raise InputError(
            f"n_folds: got {n_folds} for {len(observations)} observations, but 2 to as many folds as runs are needed"
        )
    if not isinstance(configs, dict) or not configs:
        raise InputError(
            f"configs: got {type(configs).__name__}, but a dict of configurations by name is needed: {{'a': config}}"
        )
    configs = {name: AcceptanceConfig.coerce(config) for name, config in configs.items()}
    for name, config in configs.items():
        if config.matching is not None or config.search is not None:
            raise InputError(
                f"configs: {name!r} asks for matching, exclusion.iterative or sources that are found, which are not "
                "scored; leave them out, and give what was found as the exclusion"
            )
    execution = Execution.of(n_jobs, parallel_backend)
    seed, split_seed = check_whole(seed, 0, "seed"), check_whole(split_seed, 0, "split_seed")
    edges = np.geomspace(0.2, 20, 25) if energy_edges is None else as_edges(energy_edges, "TeV", "energy_edges")
    bands = 10 ** np.arange(-0.5, 1.01, 0.25) if band_edges is None else as_edges(band_edges, "TeV", "band_edges")

    sites = [config.observatory_location for config in configs.values() if config.observatory_location is not None]
    unreadable = find_unreadable(observations, sites[0] if sites else None)
    if unreadable:
        names = run_names(run_label(observation.obs_id) for observation in observations)
        reasons = "\n".join(f"  {names[k]}: {reason}" for k, reason in unreadable.items())
        log.warning(f"{len(unreadable)} of {len(observations)} observations are left out:\n{reasons}")
    observations = [o for k, o in enumerate(observations) if k not in unreadable]
    rng = np.random.default_rng(split_seed)
    halves = [_split(observation, rng) for observation in progress_bar(observations, desc="Splitting of runs")]
    reductions = {name: Reduction.of(config, exclusion, sources) for name, config in configs.items()}
    scoring = _Scoring(edges, bands, _common_offset(as_number(offset_max, "deg", "offset_max"), reductions))
    reduced = {
        name: _reduce(observations, halves, reduction, scoring, execution) for name, reduction in reductions.items()
    }
    by_run = next(iter(reduced.values()))
    warn_of_notes([run for run, *_ in by_run.values()], next(iter(configs.values())).offset_max.deg)
    for name, config in configs.items():
        warn_of_covariates([run for run, *_ in reduced[name].values()], config)
    used = [k for k in range(len(observations)) if all(k in by_run for by_run in reduced.values())]
    if len(used) < n_folds:
        raise InputError(
            f"observations: only {len(used)} can be used by all configurations, but {n_folds} folds need as many"
        )
    shuffled = np.random.default_rng(seed).permutation(len(observations))
    folds = [[k for k in fold if k in set(used)] for fold in np.array_split(shuffled, n_folds)]

    rows, significance = [], []
    scores = Table({"OBS_ID": label_array(run_label(observations[k].obs_id) for k in used)})
    for name, config in configs.items():
        in_sky = (
            make_sky_stack(
                {k: observations[k] for k in used},
                bands,
                scoring.offset_max,
                config,
                reductions[name].exclusion,
            )
            if sky
            else None
        )
        held_out = _HeldOut.of(reduced[name], folds, reductions[name], scoring, in_sky, execution)
        scores[name] = [held_out.scores[k] for k in used]
        gain = scores[name] - scores[scores.colnames[1]]
        norms = np.array([held_out.log_norms[k] for k in used])
        rows.append(
            (
                name,
                scores[name].sum(),
                gain.sum(),
                np.sqrt(len(gain)) * np.std(gain),
                norms.mean(),
                norms.std(),
                held_out.fit_time,
            )
        )
        significance += [(name, frame, bands[k], bands[k + 1], *found) for frame, k, *found in held_out.significance]
    table = Table(
        rows=rows,
        names=["CONFIG", "SCORE", "GAIN", "GAIN_ERR", "LOG_NORM_BIAS", "LOG_NORM_STD", "FIT_TIME"],
        units={"FIT_TIME": "s"},
    )
    names = ["CONFIG", "FRAME", "E_MIN", "E_MAX", "MEAN", "WIDTH", "COUNTS"]
    by_band = Table(rows=significance, names=names, units={"E_MIN": "TeV", "E_MAX": "TeV"})
    for column in (*table.columns.values(), *by_band.columns.values()):
        column.info.format = _FORMATS.get(column.name)
    return CrossValidation(table, scores, by_band, n_folds)


def _common_offset(offset_max, reductions):
    """Largest offset in deg of the score: where one of the models ends, it expects nothing of the events beyond."""
    reach = {}
    for name, reduction in reductions.items():
        bins = reduction.bins
        reach[name] = min(bins.offset_max, *(float(edges[-1]) for edges in bins.fov.edges))
    smallest = min(reach, key=reach.__getitem__)
    if reach[smallest] > offset_max - 1e-6:
        return offset_max
    log.warning(
        f"offset_max: got {offset_max:g} deg, but the model of {smallest!r} ends at {reach[smallest]:g} deg; "
        "all are scored within that"
    )
    return reach[smallest]


def _split(observation, rng):
    """The observation with one random half of its events, and with the other."""
    table = observation.events.table
    first = rng.random(len(table)) < 0.5
    halves = []
    for keep in (first, ~first):
        half = copy.copy(observation)
        half.events = EventList(table[keep])
        halves.append(half)
    return halves


class _Scoring:
    """Bins of the score and of the significance."""

    def __init__(self, edges, bands, offset_max):
        n = int(np.ceil(offset_max / SKY_PIXEL))
        self.fov = FovBins.grid(n * SKY_PIXEL, 2 * n)
        # one set of fine bins serves both: every edge of the two is an edge here
        self.fine = np.unique(np.round(np.concatenate([edges, bands]), 12))
        self.offset_max = offset_max
        # discs that reach beyond the largest offset are cut, and see the rim of the field only
        self.whole_discs = offset(self.fov.fov_lon, self.fov.fov_lat) < offset_max - DISC_RADIUS
        self.in_score, self.in_band = (_members(self.fine, e) for e in (edges, bands))

    def bins(self, alignment):
        return CountsBins(self.fine, self.fov, alignment, self.offset_max)

    def expected(self, model, run):
        """Expected counts in the fine bins, of the background and of sources, shape (n, fov.size)."""
        counts = model.expected_counts(run.slices, self.fine, self.fov)
        return counts if run.signal is None else counts + run.signal.toarray()


def _members(fine, edges):
    """Sums fine bins to coarse ones, shape (coarse, fine)."""
    middle = np.sqrt(fine[1:] * fine[:-1])
    bins = np.searchsorted(edges, middle) - 1
    return (bins == np.arange(len(edges) - 1)[:, None]).astype(float)


def _reduce(observations, halves, fitting, scoring, execution):
    """By place in the list: the run and its first half in the bins of the fit,
    it and its second half in those of the score."""
    to_score = replace(fitting, bins=scoring.bins(fitting.bins.alignment))
    parts = []
    for runs, reduction in (
        (observations, fitting),
        ([half for half, _ in halves], fitting),
        (observations, to_score),
        ([half for _, half in halves], to_score),
    ):
        parts.append({run.place: run for run in reduction.reduce_all(runs, execution)[0]})
    if len(fitting.sources):
        # what sources add is worked out for the whole time of a run; of the events a half has half
        for whole, half in ((0, 1), (2, 3)):
            for k, run in parts[half].items():
                if k in parts[whole]:
                    share = run.notes.n_events / max(parts[whole][k].notes.n_events, 1)
                    parts[half][k] = run.with_share(share)
    return {k: tuple(part[k] for part in parts) for k in parts[0] if all(k in part for part in parts)}


@dataclass(frozen=True)
class _HeldOut:
    """Scores and log norms by run, and significances by band, of one configuration."""

    scores: dict[int, float]
    log_norms: dict[int, float]
    significance: list[tuple[str, int, float, float, int]]
    fit_time: float

    @classmethod
    def of(cls, reduced, folds, reduction, scoring, sky, execution):
        bins, config, effects = reduction.bins, reduction.config, reduction.config.run_effects.settings
        scores, log_norms, seconds, pulls = {}, {}, [], []
        scoring_bins = scoring.bins(bins.alignment)
        for fold in progress_bar(folds, desc="Folds"):
            start = time.monotonic()
            rest = [reduced[k][0] for k in sorted(set(reduced) - set(fold))]
            model, found = fit_runs(rest, bins, config, execution=execution)
            known = fitted_sources(reduction.sources, found, bins.energy_edges)
            in_score = None if found is None else found.on(bins.energy_edges, scoring.fine)
            seconds.append(time.monotonic() - start)
            stack = np.zeros(())
            for k in fold:
                run, to_adapt = (one.with_amplitudes(found) for one in reduced[k][:2])
                whole, to_score = (one.with_amplitudes(in_score) for one in reduced[k][2:])
                all_counts, counts = (one.counts.toarray() for one in (whole, to_score))
                mu = scoring.expected(model.adapt(to_adapt, bins, effects).model, to_score)
                binned = scoring.in_score @ counts
                scale = (scoring.in_score @ all_counts).sum() / max(binned.sum(), 1)
                scores[k] = scale * free_norm_log_likelihood(binned, scoring.in_score @ mu)
                unadapted = scoring.in_score @ scoring.expected(model, whole)
                log_norms[k] = np.log(max((scoring.in_score @ all_counts).sum(), 0.5) / unadapted.sum())
                # as the maker does: effects, the norm at least, from the run's own events, all of them
                adapted = model.adapt(run, bins, effects).model
                mu = scoring.expected(adapted, whole)
                norm = all_counts.sum() / mu.sum() if config.run_effects.type == "none" else 1.0
                stack = stack + np.stack([scoring.in_band @ all_counts, norm * (scoring.in_band @ mu)])
                if sky is not None:
                    sky.add(k, adapted, norm, sources=known, bins=scoring_bins)
            counted, expected = stack
            pulls.append(disc_significance(counted, expected, scoring.fov.shape, scoring.whole_discs))
        significance = [("camera", k, *found) for k, found in enumerate(_summary(pulls))]
        if sky is not None:
            significance += [("sky", k, *found) for k, found in enumerate(_summary(sky_significance(sky.fields)))]
        return cls(scores, log_norms, significance, float(np.mean(seconds)))


def _summary(stacks):
    """Mean and width of the scores of all discs, and the counts, by band."""
    for band in zip(*stacks, strict=True):
        values = np.concatenate([found for found, _ in band])
        mean, width = (values.mean(), values.std()) if len(values) else (np.nan, np.nan)  # beyond the model's energies
        yield mean, width, int(sum(n for _, n in band))
