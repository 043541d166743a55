"""Amplitudes of sources beside a background whose fit takes counts alone: rings, grids and functions of the camera.

By turns: each count tells of the background by the share b / (b + s) of it in what is expected there (the EM
algorithm), the background is fitted to the counts so weighted, and the amplitudes to the counts beside it. Steps of the
amplitudes are extrapolated, since the plain ones fall by the share of information that the background takes a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import CountsBins
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice, in_own_order
from gammapy_accmaker.models.base import EffectSettings, RateModel
from gammapy_accmaker.models.source_terms import (
    TINY,
    AmplitudeFit,
    SourceBands,
    background_weights,
    step_amplitudes,
)

_MAX_ROUNDS = 30
_MEMORY = 4  # rounds that a step of the amplitudes is extrapolated from
_CONVERGED = 0.03  # change of an amplitude, by itself and extrapolated, in standard deviations
_NEWTON_STEPS, _NEWTON_TOLERANCE = 30, 1e-3  # of the amplitudes beside a background, in standard deviations
_PROBE = 1.0  # change of the amplitudes, in standard deviations, by which the share of the background is measured
_PROBE_ROUNDS = 3  # after which a background that is fitted with the amplitudes has followed


@dataclass(frozen=True)
class _Beside:
    """The runs with sources in them, and what the sources add to each slice."""

    runs: list[ReducedRun]
    bins: CountsBins
    bands: SourceBands
    effects: EffectSettings

    @classmethod
    def of(cls, runs, bins, n_band, effects) -> _Beside:
        with_sources = in_own_order([run for run in runs if run.has_sources])
        parts = [part for run in with_sources for part in run.slices]
        return cls(with_sources, bins, SourceBands.of_parts(parts, len(bins.energy_edges) - 1, n_band), effects)

    @property
    def parts(self) -> list[RunSlice]:
        """Slices of the runs that have units of sources."""
        return [part for run in self.runs for part in run.slices if part.sources]

    def backgrounds(self, model: RateModel, amplitudes) -> list[list[np.ndarray]]:
        """Expected counts of the background in the bins, by run and slice."""
        out = []
        for run in self.runs:
            signals = [self.bands.signal(part.signal, part.sources, amplitudes) for part in run.slices]
            slices = [replace(part, signal=own) for part, own in zip(run.slices, signals, strict=True)]
            of_run = model.for_run(run.key) if model.differs_by_run else model
            adapted = of_run.adapt(replace(run, slices=tuple(slices)), self.bins, self.effects).model
            out.append([adapted.expected_counts([part], self.bins.energy_edges, self.bins.fov) for part in slices])
        return out

    def weighted(self, backgrounds, amplitudes) -> dict[int, csr_array]:
        """Counts of the background by the number (`id`) of the slice."""
        out = {}
        for run, own in zip(self.runs, backgrounds, strict=True):
            for part, background in zip(run.slices, own, strict=True):
                signal = self.bands.signal(part.signal, part.sources, amplitudes)
                if signal is None:
                    continue
                weights = np.ones(background.shape)
                here = signal.columns
                weights[:, here] = background_weights(background[:, here], signal.values)
                counts = part.counts.tocoo()
                data = counts.data * weights[counts.coords]
                out[id(part)] = csr_array((data, counts.coords), shape=counts.shape)
        return out

    def derivatives(self, backgrounds, values) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and information of the amplitudes beside a background."""
        gradient, information = np.zeros(self.bands.n), np.zeros((self.bands.n, self.bands.n))
        factors = self.bands.factors(values)
        for run, own in zip(self.runs, backgrounds, strict=True):
            for part, background in zip(run.slices, own, strict=True):
                cells = _cells(part, background)
                if cells is None:
                    continue
                counts, known, units = cells
                total = np.maximum(known + np.einsum("ke,kej->ej", factors, units), TINY)
                gradient += self.bands.sums((units * (counts / total - 1)).sum(2))
                information += self.bands.pair_sums(np.einsum("kej,lej->kle", units, units / total))
        return gradient, information

    def amplitudes(self, backgrounds, start) -> tuple[np.ndarray, np.ndarray]:
        """Those of maximum likelihood beside a background, and the information on them."""
        values, information = start, np.zeros((self.bands.n, self.bands.n))
        for _ in range(_NEWTON_STEPS if self.bands.n else 0):
            gradient, information = self.derivatives(backgrounds, values)
            step = step_amplitudes(values, gradient, information, information)
            values = values + step
            if np.all(np.abs(step) < _NEWTON_TOLERANCE / np.sqrt(np.maximum(np.diag(information), TINY))):
                break
        return values, information


def _cells(part: RunSlice, background):
    """Counts, known expectations and units of the sources, in the bins that sources touch; None without any."""
    columns = [source.columns for source in part.sources if len(source.columns)]
    if not columns:
        return None
    here = np.unique(np.concatenate(columns))
    units = np.zeros((len(part.sources), len(background), len(here)))
    for unit, source in zip(units, part.sources, strict=True):
        unit[:, np.searchsorted(here, source.columns)] = source.values
    known = background[:, here]
    if part.signal is not None:
        known = known + part.signal.toarray()[:, here]
    return part.counts[:, here].toarray(), known, units


def fit_beside_sources(
    runs: list[ReducedRun],
    bins: CountsBins,
    fit: Callable[[dict[int, csr_array]], RateModel],
    n_band: int,
    effects: EffectSettings,
) -> tuple[RateModel, AmplitudeFit]:
    """Background and amplitudes of sources together.

    Parameters
    ----------
    runs : list of `ReducedRun`
    bins : `CountsBins`
    fit : callable
        It fits the background to counts by the number (`id`) of a slice in place of its own.
    n_band : int
        Most bands of energy in which a source has an amplitude of its own, above the thresholds of the runs and below.
    effects : `EffectSettings`

    Returns
    -------
    model : `RateModel`
    sources : `AmplitudeFit`
    """
    return _alternate(_Beside.of(runs, bins, n_band, effects), fit)


def fit_amplitudes(
    runs: list[ReducedRun], bins: CountsBins, model: RateModel, n_band: int, effects: EffectSettings
) -> AmplitudeFit:
    """Amplitudes of sources beside a model that is known, of which each run has its own effects; the arguments are
    those of `fit_beside_sources`."""
    return _alternate(_Beside.of(runs, bins, n_band, effects), lambda counts: model, probe_rounds=1)[1]


def _alternate(beside, fit, probe_rounds=_PROBE_ROUNDS):
    values = np.zeros(beside.bands.n)  # so that the flux in which a source is given does not matter

    def one_round(backgrounds, values, repeat=1):
        for _ in range(repeat):
            model = fit(beside.weighted(backgrounds, values))
            backgrounds = beside.backgrounds(model, values)
        return model, backgrounds, *beside.amplitudes(backgrounds, values)

    backgrounds = beside.backgrounds(fit({}), values)
    values, information = beside.amplitudes(backgrounds, values)
    steps: list[np.ndarray] = []
    points: list[np.ndarray] = []
    converged = False
    for _ in range(_MAX_ROUNDS):
        model, backgrounds, new, information = one_round(backgrounds, values)
        width = 1 / np.sqrt(np.maximum(np.diag(information), TINY))
        step = new - values
        if steps and np.linalg.norm(step / width) > np.linalg.norm(steps[-1] / width):
            points, steps = [], []  # the last extrapolation went too far
        points, steps = [*points, new][-_MEMORY:], [*steps, step][-_MEMORY:]
        extrapolated = _anderson(points, steps, width)
        moved = np.maximum(np.abs(step), np.abs(extrapolated - values)) / width
        values = extrapolated
        if np.max(moved, initial=0.0) < _CONVERGED:
            converged = True
            break
    model, backgrounds, _, information = one_round(backgrounds, values, probe_rounds)
    left = _information_left(beside, one_round, backgrounds, values, information, probe_rounds)
    return model, AmplitudeFit.of(beside.bands, values, information, left, converged)


def _anderson(points, steps, width):
    """Point at which the steps would be 0, from the last ones (Anderson's mixing); never below 0.

    ``points``: where the steps led.
    """
    if len(steps) < 2:
        return points[-1]
    differences = np.array([(steps[-1] - step) / width for step in steps[:-1]]).T
    moves = np.array([points[-1] - point for point in points[:-1]]).T
    share, *_ = np.linalg.lstsq(differences, steps[-1] / width, rcond=1e-3)
    return np.maximum(points[-1] - moves @ share, 0)


def _information_left(beside, one_round, backgrounds, values, information, probe_rounds):
    """Information on the amplitudes that is left once the background is fitted with them.

    By how much the gradient falls along an amplitude when the background follows it. The amplitudes of a source are
    moved together, and tell of those that add counts at the same energies.
    """
    bands, n = beside.bands, beside.bands.n
    width, left = _PROBE / np.sqrt(np.maximum(np.diag(information), TINY)), np.zeros((n, n))
    spectra = np.zeros(bands.number.shape)
    for part in beside.parts:
        spectra += [source.by_energy() for source in part.sources]
    common = bands.pair_sums(spectra[:, None] * spectra)
    before = beside.derivatives(backgrounds, values)[0]
    for k in range(len(bands.number)):
        own = np.zeros(n, dtype=bool)
        own[bands.amplitudes_of(k)] = True
        moved = values + np.where(own, width, 0)
        fall = before - beside.derivatives(one_round(backgrounds, moved, probe_rounds)[1], moved)[0]
        share = common[:, own] / np.maximum(common[:, own].sum(axis=1, keepdims=True), TINY)
        left[:, own] += fall[:, None] * share / width[own]
    # what is not known at all, as where neither background nor counts are, tells nothing of others
    most = np.sqrt(np.maximum(np.diag(left), 0))
    return np.clip(0.5 * (left + left.T), -most * most[:, None], most * most[:, None])
