"""What is not known of the background, as models with priors for a fit of gammapy.

The priors are what is known without the events that the datasets hold: from the population of the runs, other runs, and
what of a run lies outside of its dataset. Events that are in the dataset speak in its own likelihood; in the prior they
would speak a second time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gammapy.datasets import MapDataset
from gammapy.maps import Map, RegionGeom, WcsGeom
from gammapy.modeling.models import GaussianPrior, Models, PowerLawNormSpectralModel, TemplateNPredModel
from regions import PointSkyRegion
from scipy.optimize import nnls

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.data.counts import CountsBins, unexcluded_exposure
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.products.modes import BackgroundErrors

# Least of the information on a direction of the rate that is left without the events of the datasets: a prior is at
# most ten times as wide as the errors with them.
_LEFT = 1e-2
_NOT_IN_FILES = r"[^\w.+-]"  # characters of the name of a dataset
_LEAST_PIXEL = 0.1  # deg; around a point
_ALIKE = 1e-9  # of the sum of squares of the backgrounds of runs
_NEGLIGIBLE = 1e-3  # variance of the counts along a direction, in units of that of Poisson


@dataclass(frozen=True)
class PriorErrors:
    """Errors of the background of a run without the events that a dataset holds.

    Attributes
    ----------
    errors : `BackgroundErrors`
    removed : `~numpy.ndarray`, shape (k, k), or None
        What these events told of the leading directions of the rate, see `RateModel.without`.
    """

    errors: BackgroundErrors
    removed: np.ndarray | None


def held_by(dataset, slices, bins: CountsBins, exclusion: Exclusion, time_step) -> list[tuple]:
    """What a dataset holds of the events that a run's effects are fitted to.

    Parameters
    ----------
    dataset : `~gammapy.datasets.MapDataset` or `~gammapy.datasets.SpectrumDataset`
        Its bins within its masks.
    slices : list of `FovTrack`
        Tracks of those of the reduced run.
    bins : `CountsBins`
        Of the reduction.
    exclusion : `Exclusion`
        Of the run.
    time_step : float or None

    Returns
    -------
    held : list of tuple of `~numpy.ndarray`, shapes (fov.size,), (n_energy,)
        Exposure in s that is held, and energies, from 0 to 1, of each slice of the run.
    """
    geom = dataset.counts.geom
    mask = np.ones(geom.data_shape, dtype=bool) if dataset.mask is None else np.asarray(dataset.mask.data, dtype=bool)
    energies = _covered(bins.energy_edges, energy_edges_from_axis(geom.axes["energy"]), mask.any(axis=(1, 2)))
    if isinstance(geom, RegionGeom):
        # around a point a dataset holds what lies within a small angle that depends on the energy
        others = exclusion if isinstance(geom.region, PointSkyRegion) else exclusion.with_regions([geom.region])
    else:
        others = exclusion.with_regions([Map.from_geom(geom.to_image(), data=~mask.any(axis=0))])
    held = []
    for part in slices:
        seen, left = (unexcluded_exposure(bins, part, of, time_step) for of in (exclusion, others))
        held.append((np.maximum(seen - left, 0.0), energies))
    return held


def _covered(edges, of_dataset, used):
    """Share of each energy bin, in the logarithm, that used bins of the dataset cover."""
    low, high = (np.log(e) for e in (edges[:-1], edges[1:]))
    first, last = np.log(of_dataset[:-1])[used, None], np.log(of_dataset[1:])[used, None]
    overlap = np.clip(np.minimum(high, last) - np.maximum(low, first), 0, None).sum(0)
    return np.minimum(overlap / (high - low), 1.0)


def nuisance_models(datasets: Sequence, runs: Sequence[Sequence[PriorErrors]], n: int) -> Models:
    """Template models with priors for datasets.

    Parameters
    ----------
    datasets : sequence of `~gammapy.datasets.MapDataset` or `~gammapy.datasets.SpectrumDataset`
    runs : sequence of sequence of `PriorErrors`
        Of the runs of each dataset.
    n : int
        Most models of a dataset; of several datasets, of what they share and of what each has for itself.
    """
    prior = _priors_of_rate([run for own in runs for run in own])
    parts = [_DatasetErrors(dataset, own, prior) for dataset, own in zip(datasets, runs, strict=True)]
    grams = [part.information() for part in parts]
    if len(parts) == 1:
        return Models(parts[0].models(_leading(grams[0], n), "background"))
    k = sum(len(root) for root in prior.values())
    # what several datasets share is found for all of them together
    along = _leading(np.sum([gram[:k, :k] for gram in grams], axis=0), n)
    of_rate, of_runs = [], []
    for part, gram in zip(parts, grams, strict=True):
        shared = np.concatenate([along, np.zeros((len(gram) - k, along.shape[1]))])
        # gammapy adds the prior of a parameter once for each dataset that it is linked in
        of_rate.append(part.models(shared, "background-rate", sigma=np.sqrt(len(parts))))
        for model, first in zip(of_rate[-1], of_rate[0], strict=True):
            model.spectral_model.norm = first.spectral_model.norm
        own = np.concatenate([np.zeros((k, len(gram) - k)), np.eye(len(gram) - k)])
        of_runs += part.models(own @ _leading(gram[k:, k:], n), "background-run")
    return Models([*(model for own in of_rate for model in own), *of_runs])


def relative_error_of_sum(dataset, runs: Sequence[PriorErrors], used: np.ndarray) -> float:
    """Relative standard deviation of the background of a dataset summed over the pixels of an image that are used."""
    total, changes = 0.0, np.zeros(())
    for background, inside, columns in _DatasetErrors(dataset, runs, _priors_of_rate(runs))._by_energy():
        inside = inside & used.ravel()
        total, changes = total + background[inside].sum(), changes + columns[inside].sum(0)
    return float(np.sqrt((changes**2).sum()) / total) if total > 0 else np.nan


def _priors_of_rate(runs: Sequence[PriorErrors]) -> dict[int, np.ndarray]:
    """Matrices from independent directions of unit variance to the leading ones of the rate, without what the events of
    the runs told, by the number of the model."""
    removed: dict[int, np.ndarray] = {}
    for run in runs:
        number, errors = run.errors.model_number, run.errors
        if number not in removed:
            removed[number] = np.zeros((errors.n_leading,) * 2)
        if run.removed is not None:
            removed[number] = removed[number] + run.removed
    out = {}
    for number, told in removed.items():
        values, vectors = np.linalg.eigh(np.eye(len(told)) - told)
        out[number] = vectors / np.sqrt(np.maximum(values, _LEFT))
    return out


def _leading(information: np.ndarray, n: int) -> np.ndarray:
    """Directions along which a dataset is changed most, in units of its Poisson errors, shape (k, n or fewer)."""
    values, vectors = np.linalg.eigh(information)
    order = np.argsort(values)[::-1][:n]
    return vectors[:, order[values[order] > _NEGLIGIBLE]]


def _template_geom(geom):
    """Of the templates of a dataset: for a region one pixel, since gammapy reads no template of a region back."""
    if not isinstance(geom, RegionGeom):
        return geom
    size = np.maximum(geom.width.to_value("deg"), _LEAST_PIXEL)
    return WcsGeom.create(
        skydir=geom.center_skydir, npix=(1, 1), binsz=tuple(size), frame=geom.frame, axes=[geom.axes["energy"]]
    )


@dataclass(frozen=True)
class _DatasetErrors:
    """A dataset, the errors of its runs, and the priors of the rate."""

    dataset: MapDataset
    runs: Sequence[PriorErrors]
    prior: dict[int, np.ndarray]

    def _by_energy(self):
        """Background in each bin of an energy, whether it counts, and the changes along the directions of the rates and
        of all runs."""
        geom, background = self.dataset.counts.geom, self.dataset.background.data
        mask = (
            np.ones(geom.data_shape, dtype=bool) if self.dataset.mask is None else self.dataset.mask.data.astype(bool)
        )
        scales = self._scales()
        for k, found in enumerate(zip(*(run.errors.along_leading() for run in self.runs), strict=True)):
            scaled = [
                (shared * scale[k, :, None], own * scale[k, :, None])
                for (shared, own), scale in zip(found, scales, strict=True)
            ]
            columns = [
                sum(
                    shared
                    for (shared, _), run in zip(scaled, self.runs, strict=True)
                    if run.errors.model_number == number
                )
                @ root
                if any(run.errors.model_number == number for run in self.runs)
                else np.zeros((mask[k].size, root.shape[1]))
                for number, root in self.prior.items()
            ]
            yield (
                background[k].ravel(),
                mask[k].ravel(),
                np.concatenate([*columns, *(own for _, own in scaled)], axis=1),
            )

    def _scales(self) -> np.ndarray:
        """Part of the background of each run that the dataset has, shape (run, energy, bin).

        Above the threshold of one run a stack has all of it, and below nothing. What share of each there is at an
        energy is read from the background itself, which is the sum of those of the runs; what is left in a bin, by what
        a mask has left out of all or a renormalisation has changed, goes to all of them.
        """
        of_runs = np.array([run.errors.background.data for run in self.runs])
        of_runs = of_runs.reshape(*of_runs.shape[:2], -1)
        background = np.reshape(self.dataset.background.data, of_runs.shape[1:])
        shares = np.ones(of_runs.shape[:2])
        for k, (parts, total) in enumerate(zip(of_runs.transpose(1, 0, 2), background, strict=True)):
            if len(parts) > 1 and parts.any() and total.any():
                gram, together = parts @ parts.T, parts @ total
                # runs that are alike share what cannot be told
                least = _ALIKE * np.trace(gram)
                root = np.linalg.cholesky(gram + least * np.eye(len(parts)))
                alike = least * total.sum() / parts.sum()
                shares[:, k] = nnls(root.T, np.linalg.solve(root, together + alike))[0]
        made = np.einsum("rk,rkm->km", shares, of_runs)
        left = np.divide(background, made, out=np.zeros_like(made), where=made > 0)
        return shares[:, :, None] * left

    def information(self) -> np.ndarray:
        """Of the dataset on the directions, by its counts."""
        total = np.zeros(())
        for background, used, changes in self._by_energy():
            used = used & (background > 0)
            total = total + changes[used].T @ (changes[used] / background[used, None])
        return total

    def models(self, along: np.ndarray, name: str, sigma: float = 1.0) -> list[TemplateNPredModel]:
        """One for each column of directions."""
        data = np.array([changes @ along for _, _, changes in self._by_energy()])
        geom, models = _template_geom(self.dataset.counts.geom), []
        for k in range(along.shape[1]):
            spectrum = PowerLawNormSpectralModel(norm=0)
            spectrum.tilt.frozen = True
            spectrum.norm.prior = GaussianPrior(mu=0, sigma=sigma)
            full = f"{self.dataset.name}-{name}-{k}"
            models.append(
                TemplateNPredModel(
                    Map.from_geom(geom, data=data[:, :, k].reshape(geom.data_shape), unit=""),
                    spectral_model=spectrum,
                    name=full,
                    filename=f"{re.sub(_NOT_IN_FILES, '_', full)}.fits",
                    datasets_names=[self.dataset.name],
                    copy_data=False,
                )
            )
        return models
