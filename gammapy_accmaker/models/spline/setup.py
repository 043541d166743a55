"""Choice of the axes of the spline model, from the runs that it is fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.bsplines import BSplineAxis
from gammapy_accmaker.models.spline.adapt import as_slices
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EffectBasis
from gammapy_accmaker.models.spline.likelihood import RunDesign
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis

__all__ = ["SplineSetup", "order_runs"]

OFFSET_STEP, ZENITH_STEP, ASYMMETRY_ENERGY_STEP, ASYMMETRY_OFFSET_STEP = 0.4, 0.13, 1.2, 1.2
SHIFT_MARGIN = 0.15  # in log energy: a run that is shifted finds the spectrum continued, not a step in its slope
MIN_ZENITH_RANGE = 0.02  # in cos zenith; over less the rate does not depend on it


def order_runs(runs, zenith) -> tuple[list, list[int]]:
    """Runs with exposure, each a list of its slices, in an order that is theirs and not that of the input.

    Parameters
    ----------
    runs : list of list of `CellCounts`
    zenith : bool
        Whether their zenith angles must be known.

    Returns
    -------
    ordered : list of list of `CellCounts`
    places : list of int
        Of each of them in the input.
    """
    with_exposure = [sorted(as_slices(slices), key=_content) for slices in runs]
    places = [place for place, slices in enumerate(with_exposure) if slices]
    places.sort(key=lambda place: [_content(part) for part in with_exposure[place]])
    ordered = [with_exposure[place] for place in places]
    if not sum(s.counts.sum() for slices in ordered for s in slices) > 0:
        raise InputError(f"runs: none of {len(with_exposure)} runs has both exposure and counts in the energy range")
    unknown = [s[0].key.obs_id for s in ordered if not all(np.isfinite(r.cos_zenith) for r in s)]
    if zenith and unknown:
        raise InputError(
            f"runs {unknown}: the zenith angle is not known; give `observatory_location`, or use `zenith: {{type: none}}`"
        )
    return ordered, places


def _content(part):
    """What slices are sorted by; those that are alike in it may come in any order."""
    return float(np.nan_to_num(part.cos_zenith)), float(part.counts.sum()), float(part.exposure.sum())


@dataclass(frozen=True)
class SplineSetup:
    """Axes and bases of a fit.

    Attributes
    ----------
    design : `RunDesign`
    scale : `CovariateScale`
    zenith_range : tuple of float
        Of cos zenith, as the runs have seen it.
    zenith_axis : `BSplineAxis`
        In the log of cos zenith.
    asymmetry_energy_axis, asymmetry_offset_axis : `BSplineAxis`
    """

    design: RunDesign
    scale: CovariateScale
    zenith_range: tuple[float, float]
    zenith_axis: BSplineAxis
    asymmetry_energy_axis: BSplineAxis
    asymmetry_offset_axis: BSplineAxis

    @classmethod
    def of(cls, grouped, energy_edges, cells, run_effects, gradient, zenith, covariates) -> SplineSetup:
        """Choose them for these runs (from `order_runs`); the arguments are those of `fit_spline`."""
        log_energy = 0.5 * np.log(energy_edges[1:] * energy_edges[:-1])
        slices = [s for run in grouped for s in run]
        spectra = np.array([s.spectrum(len(log_energy)) for s in slices])
        scale = _threshold_scaling(CovariateScale.of(slices, zenith, covariates), slices, spectra, log_energy)
        scaled = np.array([log_energy + sum(scale.scaling(s.cos_zenith, s.covariates)) for s in slices])
        ends = [sum(scale.scaling(z, s.covariates)) for s in slices for z in s.cos_zenith_range]
        energy = _energy_axis(scaled, spectra, log_energy[0] + min(ends), log_energy[-1] + max(ends))
        lo, hi = scale.zenith_range(slices) if zenith else (0.0, 1.0)
        # a run tells of its mean zenith angle, however far its slices reach
        by_run = [np.mean([s.cos_zenith for s in run]) for run in grouped]
        if zenith and np.ptp(by_run) > MIN_ZENITH_RANGE:
            # no more splines than the runs can tell apart
            n_zenith = min(int(np.ceil((hi - lo) / ZENITH_STEP)) + 3, 3 + len(grouped) // 3, 9)
            zenith_axis = BSplineAxis(np.log(lo), np.log(hi), max(n_zenith, 4))
        else:
            zenith_axis = BSplineAxis(-1.0, 0.0, 1)
        offset = BSplineAxis(0.0, cells.offset_max, max(int(np.ceil(cells.offset_max / OFFSET_STEP)) + 2, 3), even=True)
        lo_e, pivot, hi_e = _quantiles(log_energy, spectra.sum(0), (1e-3, 0.5, 1 - 1e-3))
        if hi_e - lo_e < 0.1:
            lo_e, hi_e = log_energy[0] - 0.1, log_energy[-1] + 0.1
        effects = EffectBasis(run_effects, gradient, lo_e, hi_e, pivot, cells.offset_max)
        n_energy = max(int(np.ceil((hi_e - lo_e) / ASYMMETRY_ENERGY_STEP)) + 3, 4)
        n_offset = max(int(np.ceil(cells.offset_max / ASYMMETRY_OFFSET_STEP)) + 3, 4)
        return cls(
            RunDesign(energy_edges, cells, energy, offset, effects),
            scale,
            (lo, hi),
            zenith_axis,
            BSplineAxis(lo_e, hi_e, n_energy),
            BSplineAxis(0.0, cells.offset_max, n_offset),
        )


def _quantiles(x, weights, shares):
    """Positions below which the given shares of the weights lie; x need not be sorted."""
    order = np.argsort(x, kind="stable")
    total = np.cumsum(weights[order])
    return [float(np.interp(share * total[-1], total, x[order])) for share in shares]


def _threshold_scaling(scale, slices, spectra, log_energy):
    """Energy scaling that moves the 5 % quantiles of the runs' log energies onto each other."""
    seen = spectra.sum(1) > 0
    if not seen.any() or not len(scale.center):
        return scale
    standard = np.array([scale.standard(s.cos_zenith, s.covariates) for s in slices])[seen]
    weights = spectra[seen].sum(1)
    quantile = np.array([_quantiles(log_energy, s, (0.05,))[0] for s in spectra[seen]])
    mean = np.average(standard, axis=0, weights=weights)
    centered = (standard - mean) * weights[:, None]
    gram = centered.T @ standard + 1e-2 * weights.sum() * np.eye(standard.shape[1])
    slope = np.linalg.solve(gram, centered.T @ (quantile - np.average(quantile, weights=weights)))
    return scale.with_scaling(-slope)


def _energy_axis(scaled, spectra, lowest, highest):
    """Knots dense from the lowest counts to beyond the peak of the counts, where the threshold is."""
    low, middle = _quantiles(scaled.ravel(), spectra.ravel(), (3e-4, 0.4))
    return ScaledEnergyAxis(float(lowest) - SHIFT_MARGIN, float(highest) + SHIFT_MARGIN, low - 0.1, middle)
