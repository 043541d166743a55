"""Covariates of a run, made comparable: cos zenith, azimuth, and what else the caller names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.models.fit_counts import zenith_range


@dataclass(frozen=True)
class CovariateScale:
    """Centre, width and trained range of the covariates, and how they move the energy threshold.

    The covariates are the log of cos zenith (only with ``zenith``) and then those named. What is missing or not a
    number counts as the mean of the training runs; what lies outside their range is clamped to it.

    Attributes
    ----------
    zenith : bool
    names : tuple of str
        Keys of ``run.covariates``.
    center, width : `~numpy.ndarray`, shape (k,)
        Mean and standard deviation over the training runs; a width of 0 means that nothing can be learnt.
    limits : `~numpy.ndarray`, shape (k, 2)
        Trained range in units of the width.
    energy_scaling : `~numpy.ndarray`, shape (k,)
        Scaling of log energy per width.
    azimuth_center : `~numpy.ndarray`, shape (2,)
        Mean of ``sin(zenith)`` times sine and cosine of azimuth.
    """

    zenith: bool
    names: tuple[str, ...]
    center: np.ndarray
    width: np.ndarray
    limits: np.ndarray
    energy_scaling: np.ndarray
    azimuth_center: np.ndarray

    @classmethod
    def of(cls, runs, zenith: bool, names: tuple[str, ...]) -> CovariateScale:
        """Learn the scale from runs (each one or several slices), without names that none of them has; the energy
        scaling is left at 0."""
        names = tuple(name for name in names if any(name in (r.covariates or {}) for r in runs))
        blank = cls(zenith, names, *(np.zeros(0),) * 4, np.zeros(2))
        raw = np.array([blank._raw(r.cos_zenith, r.covariates) for r in runs]).reshape(len(runs), -1)
        known = np.isfinite(raw)
        number = np.maximum(known.sum(0), 1)
        center = np.where(known, raw, 0).sum(0) / number
        width = np.sqrt((np.where(known, raw - center, 0) ** 2).sum(0) / number)
        width[width < 1e-6 * np.maximum(np.abs(center), 1e-3)] = 0
        blank = cls(zenith, names, center, width, np.tile([-np.inf, np.inf], (len(center), 1)), center, np.zeros(2))
        standard = np.array([blank.standard(r.cos_zenith, r.covariates) for r in runs]).reshape(len(runs), -1)
        azimuth = np.mean([_azimuth(r.cos_zenith, r.azimuth, np.zeros(2)) for r in runs], axis=0)
        if zenith and len(center):
            # the zenith angle is known within each slice as well
            ends = [blank.standard(z, None)[0] for z in zenith_range(runs)]
            standard = np.vstack([standard, np.tile(standard[0], (2, 1))])
            standard[-2:, 0] = ends
        limits = np.stack([standard.min(0), standard.max(0)], axis=1)
        return cls(zenith, names, center, width, limits, np.zeros(len(center)), azimuth)

    def with_scaling(self, energy_scaling: np.ndarray) -> CovariateScale:
        """A copy with another energy scaling."""
        return CovariateScale(
            self.zenith, self.names, self.center, self.width, self.limits, energy_scaling, self.azimuth_center
        )

    def _raw(self, cos_zenith, covariates):
        covariates = {} if covariates is None else covariates
        first = [np.log(np.clip(cos_zenith, 0.05, 1))] if self.zenith else []
        return np.array(first + [float(covariates.get(name, np.nan)) for name in self.names])

    def standard(self, cos_zenith: float, covariates: dict[str, float] | None) -> np.ndarray:
        """Covariates in widths from the centre, clamped to the trained range, shape (k,)."""
        value = self._raw(cos_zenith, covariates)
        usable = np.isfinite(value) & (self.width > 0)
        value = np.where(usable, (value - self.center) / np.where(self.width > 0, self.width, 1), 0.0)
        return np.clip(value, self.limits[:, 0], self.limits[:, 1])

    def scaling(self, cos_zenith: float, covariates: dict[str, float] | None) -> tuple[float, float]:
        """Scaling of log energy by the zenith angle and by the other covariates."""
        parts = self.energy_scaling * self.standard(cos_zenith, covariates)
        first = int(self.zenith)
        return float(parts[:first].sum()), float(parts[first:].sum())

    def regressors(self, cos_zenith: float, azimuth: float | None, covariates: dict[str, float] | None) -> np.ndarray:
        """What the mean effects of a run depend on: covariates, two of the azimuth (deg), and 1; shape (k + 3,)."""
        azimuthal = _azimuth(cos_zenith, azimuth, self.azimuth_center)
        return np.concatenate([self.standard(cos_zenith, covariates), azimuthal, [1.0]])

    @property
    def n_regressor(self) -> int:
        """Number of `regressors`."""
        return len(self.center) + 3


def _azimuth(cos_zenith, azimuth, center):
    if azimuth is None or not (np.isfinite(azimuth) and np.isfinite(cos_zenith)):
        return np.zeros(2)
    angle, sin_zenith = np.radians(azimuth), np.sqrt(max(1 - cos_zenith**2, 0.0))
    return np.array([sin_zenith * np.sin(angle), sin_zenith * np.cos(angle)]) - center
