"""How well a model describes the counts that it was fitted to, over the field of view and energy together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy.stats import chi2

from gammapy_accmaker.camera.bins import FovBins, offset
from gammapy_accmaker.utils.statistics import deviance_moments, poisson_deviance

_IMPROBABLE = 1e-4  # probability of a deviance as large as this by chance: such a fit is called poor,
_MATTERS = 0.02  # if it is so far off: with a million events 1 % is seen, and runs differ by more
_PARTS = ((5, 8), (5, 4), (5, 1), (2, 1), (1, 1))  # rings and sectors of the field, the most that the counts allow
_COUNTS_A_CELL = 10.0  # on average, of a part of the field at an energy
_GROUP_WIDTH = 0.2  # in log10 energy
_LEAST_EXPECTED = 1e-3  # events in a cell that has some
POOR_FIT = 6.0  # standard deviations of the deviance of an energy group of a run


@dataclass(frozen=True)
class GoodnessOfFit:
    """Poisson deviance of a fit from its counts, in cells of field of view and energy.

    Attributes
    ----------
    deviance : float
        Sum over cells.
    expected, error : float
        Mean and standard deviation of the deviance for a right model, at its expected counts, which may be few.
    n_cells : int
    p_value : float
        Probability of a deviance that is larger by chance.
    misfit : float
        Root mean square of the relative deviation of the model, beyond that of Poisson counts.
    worst : str
        The cell that deviates most, with its counts.
    """

    deviance: float
    expected: float
    error: float
    n_cells: int
    p_value: float
    misfit: float
    worst: str

    @property
    def is_poor(self) -> bool:
        """Whether the deviance is too large for chance, and what is wrong large enough to matter."""
        return self.p_value < _IMPROBABLE and self.misfit > _MATTERS

    def __str__(self):
        text = (
            f"deviance {self.deviance:.0f} in {self.n_cells} cells of field and energy, {self.expected:.0f} +- "
            f"{self.error:.0f} by chance"
        )
        if self.is_poor:
            text = f"poor, {text}; {100 * self.misfit:.1f} % off beyond the noise, most at {self.worst}"
        return text

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form."""
        numbers = (self.deviance, self.expected, self.error, self.n_cells, self.p_value, self.misfit)
        return {"goodness": np.array(numbers, dtype=float), "goodness_worst": np.array(self.worst)}

    @classmethod
    def from_arrays(cls, arrays) -> GoodnessOfFit | None:
        """The inverse of `to_arrays`; None where there is none, as in the files of earlier versions."""
        if "goodness" not in arrays:
            return None
        deviance, expected, error, n_cells, p_value, misfit = (float(x) for x in arrays["goodness"])
        return cls(deviance, expected, error, int(n_cells), p_value, misfit, str(arrays["goodness_worst"]))


def describe_goodness(fits: Sequence[GoodnessOfFit]) -> str:
    """The goodness of all fits of a model in one line: how many are poor, and the worst."""
    worst = min(fits, key=lambda fit: (fit.p_value, -(fit.deviance - fit.expected) / max(fit.error, 1e-300)))
    poor = sum(fit.is_poor for fit in fits)
    if len(fits) == 1:
        return str(worst)
    return (
        f"{poor} of {len(fits)} fits {'is' if poor == 1 else 'are'} poor; the worst: {worst}"
        if poor
        else f"{len(fits)} fits; the worst: {worst}"
    )


def field_parts(fov: FovBins, mu: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Parts of the field, rings of as many expected counts each and, for a grid, sectors of them.

    Parameters
    ----------
    fov : `FovBins`
    mu : `~numpy.ndarray`
        Expected counts of each bin, summed over energy, shape (fov.size,).

    Returns
    -------
    part : `~numpy.ndarray`
        Number of the part of each bin, shape (fov.size,).
    names : list of str
    """
    total = mu.sum()
    fits = [(r, s if not fov.is_radial else 1) for r, s in _PARTS]
    n_rings, n_sectors = next((p for p in fits if np.prod(p) * _COUNTS_A_CELL <= total), _PARTS[-1])
    theta = offset(fov.fov_lon, fov.fov_lat)
    order = np.argsort(theta, kind="stable")
    before = np.empty(fov.size)
    before[order] = np.cumsum(mu[order]) - 0.5 * mu[order]
    ring = np.clip((before / max(total, 1e-300) * n_rings).astype(int), 0, n_rings - 1)
    angle = np.arctan2(fov.fov_lon, fov.fov_lat) % (2 * np.pi)
    sector = np.minimum((angle / (2 * np.pi) * n_sectors).astype(int), n_sectors - 1)
    names = []
    for r in range(n_rings):
        inside = theta[ring == r] if np.any(ring == r) else np.zeros(1)
        for s in range(n_sectors):
            where = f"offset {inside.min():.1f} to {inside.max():.1f} deg"
            turn = 360 / n_sectors
            names.append(
                where + (f", {turn * s:.0f} to {turn * (s + 1):.0f} deg from FOV_LAT" if n_sectors > 1 else "")
            )
    return ring * n_sectors + sector, names


def energy_groups(mu: np.ndarray, energy_edges: np.ndarray, n_parts: int) -> np.ndarray:
    """First energy bin of each group that is wide enough and holds enough expected counts
    (shape (nbin,)) for so many parts."""
    starts, held, low = [0], 0.0, energy_edges[0]
    left = np.cumsum(mu[::-1])[::-1]
    for k, one in enumerate(mu):
        wide = np.log10(energy_edges[k] / low) >= _GROUP_WIDTH * (1 - 1e-6)
        if k and wide and min(held, left[k]) >= _COUNTS_A_CELL * n_parts:
            starts.append(k)
            held, low = 0.0, energy_edges[k]
        held += one
    return np.array(starts)


def _cells(counts, mu, energy_edges, fov):
    part, names = field_parts(fov, mu.sum(0))
    members = (part[:, None] == np.arange(len(names))).astype(float)
    starts = energy_groups(mu.sum(1), energy_edges, len(names))
    counts, mu = (np.add.reduceat(values @ members, starts, axis=0) for values in (counts, mu))
    # events where none are expected are no reason to leave a cell out
    mu = np.where((mu <= 0) & (counts > 0), _LEAST_EXPECTED, mu)
    return counts, mu, np.append(energy_edges[starts], energy_edges[-1]), names


def group_scores(counts: np.ndarray, mu: np.ndarray, energy_edges: np.ndarray, fov: FovBins) -> np.ndarray:
    """Deviance over the field within each energy group, less its expectation, in its standard deviations.

    Parameters
    ----------
    counts, mu : `~numpy.ndarray`
        Shape (nbin, fov.size).
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    fov : `FovBins`

    Returns
    -------
    scores : `~numpy.ndarray`
        Shape (group,).
    """
    counts, mu, _, _ = _cells(counts, mu, energy_edges, fov)
    seen = mu > 0
    mean, variance = deviance_moments(mu)
    excess = np.where(seen, poisson_deviance(counts, np.where(seen, mu, 1)) - mean, 0).sum(1)
    return excess / np.sqrt(np.maximum(np.where(seen, variance, 0).sum(1), 1e-12))


def goodness_of_fit(
    counts: np.ndarray, mu: np.ndarray, energy_edges: np.ndarray, fov: FovBins, *, n_parameters: float = 0.0
) -> GoodnessOfFit:
    """Goodness of fit over field of view and energy.

    Parameters
    ----------
    counts, mu : `~numpy.ndarray`
        Shape (nbin, fov.size); 0 in both where nothing was seen.
    energy_edges : `~numpy.ndarray`
        In TeV, shape (nbin + 1,).
    fov : `FovBins`
    n_parameters : float
        Number of parameters that were fitted to the counts.
    """
    counts, mu, edges, names = _cells(counts, mu, energy_edges, fov)
    seen = mu > 0
    n, m = counts[seen], mu[seen]
    left = 1 - min(n_parameters / max(len(n), 1), 0.9)
    deviance, expected, variance = (x.sum() for x in (poisson_deviance(n, m), *deviance_moments(m)))
    expected, variance = max(expected * left, 1e-12), max(variance * left, 1e-12)
    # the deviance of few counts is no chi-square: a scaled one has its mean and variance
    scale = variance / (2 * expected)
    pull = np.where(seen, (counts - mu) / np.sqrt(np.maximum(mu, 1.0)), 0)
    k, part = np.unravel_index(np.abs(pull).argmax(), pull.shape)
    return GoodnessOfFit(
        deviance=float(deviance),
        expected=float(expected),
        error=float(np.sqrt(variance)),
        n_cells=len(n),
        p_value=float(chi2.sf(deviance / scale, expected / scale)),
        misfit=float(np.sqrt(max(deviance - expected, 0) / max(m.sum(), 1e-300))),
        worst=f"{edges[k]:.3g} to {edges[k + 1]:.3g} TeV, {names[part]}: {counts[k, part]:.0f} events, "
        f"{mu[k, part]:.0f} expected",
    )


def goodness_of_model(
    model,
    counts: np.ndarray,
    exposure: np.ndarray,
    energy_edges: np.ndarray,
    fov: FovBins,
    *,
    displacement: np.ndarray | None = None,
    n_parameters: float = 0.0,
) -> GoodnessOfFit:
    """Goodness of fit of a `RateModel` to the counts (nbin, fov.size) and the exposure (fov.size,) in s that it was
    fitted to.

    ``displacement``: of what was seen of the bins, see `RateModel.expected_counts`. The model depends on neither zenith
    angle nor azimuth.
    """
    summed = SimpleNamespace(exposure=exposure, displacement=displacement, cos_zenith=np.nan, azimuth=np.nan)
    mu = model.expected_counts([summed], energy_edges, fov)
    return goodness_of_fit(np.where(exposure > 0, counts, 0), mu, energy_edges, fov, n_parameters=n_parameters)
