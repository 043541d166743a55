"""How smooth the rate of the spline model is, and how that is estimated.

The spectrum that all offsets share has penalties of its own, apart from those on what differs between them: one
smoothing parameter for all would hold the common spectrum to straightness once for each offset, and wash out its
threshold where runs are few. Spectra of all zenith angles have them in common, or a threshold that moves with the
zenith angle, which is a rough change of the spectrum, would be held back. A threshold is sharp and the spectrum above
it is not, so along the energy each group of a few knots has a smoothing parameter. All are estimated by the generalised
Fellner-Schall update (Wood & Fasiolo 2017, Biometrics 73, 1071).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, eye_array, kron

from gammapy_accmaker.models.bsplines import difference_penalty, update_smoothing

_GROUP_KNOTS = 5  # second differences in energy that share a smoothing parameter
_SMOOTHING_START = 1.0, 10.0  # along energy, and along offset and zenith angle
_SMOOTHING_RANGE = (1e-4, 1e6)
_NULL_SPACE = 1e-3  # first differences in offset and zenith: directions without data flatten out
_RIDGE = 1e-4  # towards the spectrum of all counts: where there are no data a coefficient does not run away


class RatePenalty:
    """Quadratic penalty on the coefficients of the rate, shape (n_energy, n_offset, n_zenith).

    Parameters
    ----------
    start : `~numpy.ndarray`, shape (n_energy, n_offset, n_zenith)
        Coefficients that a small ridge pulls to.

    Attributes
    ----------
    smoothing : `~numpy.ndarray`
        Of the spectrum that the offsets share, a group of knots each; of its differences between offsets; along the
        offset; along the zenith angle.
    """

    def __init__(self, start: np.ndarray):
        self.sizes = n_energy, n_offset, n_zenith = start.shape
        # projector on the mean over the offsets: what it takes away is how the offsets differ
        common = np.kron(np.full((n_offset, n_offset), 1 / n_offset), np.eye(n_zenith))
        self._groups = _energy_groups(n_energy)
        self._whole = [sum(self._groups)]
        along_offset, along_zenith = difference_penalty(n_offset), difference_penalty(n_zenith)
        self._along = [np.kron(along_offset, np.eye(n_zenith)), np.kron(np.eye(n_offset), along_zenith)]
        self._matrices = [kron(csr_array(p), common, "csr") for p in self._groups]
        self._matrices += [kron(csr_array(p), np.eye(n_offset * n_zenith) - common, "csr") for p in self._whole]
        self._matrices += [kron(eye_array(n_energy), csr_array(p), "csr") for p in self._along]
        flat = np.kron(difference_penalty(n_offset, 1), np.eye(n_zenith))
        flat += np.kron(np.eye(n_offset), difference_penalty(n_zenith, 1))
        self._fixed = _NULL_SPACE * kron(eye_array(n_energy), csr_array(flat), "csr") + _RIDGE * eye_array(start.size)
        self.pull = _RIDGE * start.ravel()
        self.smoothing = np.repeat(_SMOOTHING_START, [len(self._groups) + 1, 2])

    def matrix(self) -> csr_array:
        """Penalty matrix, shape (k, k)."""
        return sum(s * m for s, m in zip(self.smoothing, self._matrices, strict=True)) + self._fixed

    def update(self, values: np.ndarray, covariance: np.ndarray) -> None:
        """One update of the smoothing parameters.

        Parameters
        ----------
        values : `~numpy.ndarray`, shape (k,)
            Coefficients.
        covariance : `~numpy.ndarray`, shape (k, k)
            Their posterior covariance at the present smoothing parameters.
        """
        # traces of products, from the few entries that are not 0
        entries = [matrix.tocoo() for matrix in self._matrices]
        own = np.array([e.data @ covariance[e.coords] for e in entries])
        roughness = np.array([values @ (matrix @ values) for matrix in self._matrices])
        new = update_smoothing(self.smoothing, self.smoothing * (self._ranks() - own), roughness, _SMOOTHING_RANGE)
        acts = np.array([matrix.count_nonzero() > 0 for matrix in self._matrices])
        self.smoothing = np.where(acts, new, self.smoothing)

    def _ranks(self) -> np.ndarray:
        """Trace of the pseudoinverse of the whole penalty times each part of it."""
        _, n_offset, n_zenith = self.sizes
        n_group = len(self._groups)
        by_offset, by_zenith = (_eigenvalues(n) for n in (n_offset, n_zenith))
        common, apart = self.smoothing[:n_group], self.smoothing[n_group : n_group + 1]
        out = np.zeros(len(self.smoothing))
        # the first eigenvector along the offset is the mean over the offsets
        parts = [
            (slice(n_group), self._groups, common, by_offset[:1]),
            (slice(n_group, n_group + 1), self._whole, apart, by_offset[1:]),
        ]
        for place, groups, smoothing, of_offset in parts:
            of_offset, of_zenith = (a.ravel() for a in np.meshgrid(of_offset, by_zenith, indexing="ij"))
            # the penalties along offset and zenith have common eigenvectors: one matrix over the energies for each pair
            stiff = self.smoothing[-2] * of_offset + self.smoothing[-1] * of_zenith
            loose = stiff == 0
            # the rows of the differences are independent: alone, each group has full rank
            alone = np.array([np.linalg.matrix_rank(p) if p.any() else 0 for p in groups])
            out[place] = loose.sum() * alone / smoothing
            if loose.all():
                continue
            within = sum(s * p for s, p in zip(smoothing, groups, strict=True))
            inverse = np.linalg.inv(within + stiff[~loose, None, None] * np.eye(len(within)))
            out[place] += [np.sum(inverse * p) for p in groups]
            trace = np.trace(inverse, axis1=1, axis2=2)
            out[-2:] += trace @ of_offset[~loose], trace @ of_zenith[~loose]
        return out


def _eigenvalues(n):
    """Those of the penalty on second differences, increasing; exactly 0 where it is."""
    values = np.linalg.eigvalsh(difference_penalty(n))
    return np.where(values > 1e-9 * max(values.max(), 1e-9), values, 0.0)


def _energy_groups(n_energy):
    """Penalty matrices of the second differences along the energy, group by group."""
    difference = np.diff(np.eye(n_energy), 2, axis=0)
    n_group = max(len(difference) // _GROUP_KNOTS, 1)
    return [part.T @ part for part in np.array_split(difference, n_group)]
