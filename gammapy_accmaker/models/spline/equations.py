"""Normal equations of the rate's coefficients, summed over runs that each see one zenith angle.

The coefficients are those of a space of splines in energy and offset for each of a few splines in zenith angle; a run
adds its matrix to the blocks of the zenith splines that it sees. Runs are taken in batches, so that matrix products do
the work.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.linalg import cholesky

from gammapy_accmaker.models.bsplines import BSplineAxis
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis

BATCH = 16  # runs; their matrices are held together


class RateEquations:
    """Information and gradient of the coefficients, numbered as (space, zenith).

    Parameters
    ----------
    n_space, n_zenith : int
        Number of splines in energy and offset together, and in zenith angle.
    """

    def __init__(self, n_space: int, n_zenith: int):
        self.n_space, self.n_zenith = n_space, n_zenith
        self._pairs = np.tril_indices(n_zenith)
        # what a run tells is symmetric: one triangle of it does
        self._information = np.zeros((len(self._pairs[0]), n_space * (n_space + 1) // 2))
        self._gradient = np.zeros((n_space, n_zenith))
        self._weights: list[np.ndarray] = []
        self._batch: np.ndarray | None = None

    def add(self, zenith: np.ndarray, information: np.ndarray, gradient: np.ndarray) -> None:
        """Add a run: its zenith splines, shape (n_zenith,), and what it tells of the splines in space there."""
        self._gradient += gradient[:, None] * zenith
        if self._batch is None:
            self._batch = np.empty((BATCH, self._information.shape[1]))
        information.take(_triangle(self.n_space)[0], out=self._batch[len(self._weights)], mode="clip")
        self._weights.append(_products(zenith, self._pairs))
        if len(self._weights) == BATCH:
            self._add_batch()

    def add_all(self, other: RateEquations) -> None:
        """Add the runs of others."""
        self.take_batch()
        other.take_batch()
        self._information += other._information
        self._gradient += other._gradient

    def take_batch(self) -> None:
        """Add what waits to the sums: less is held then."""
        self._add_batch()
        self._batch = None

    def _add_batch(self):
        if self._weights and self._batch is not None:
            self._information += np.array(self._weights).T @ self._batch[: len(self._weights)]
            self._weights = []

    def gradient(self) -> np.ndarray:
        """Sum over the runs, shape (n_space * n_zenith,)."""
        return self._gradient.ravel()

    def information(self) -> np.ndarray:
        """Sum over the runs, shape (n_space * n_zenith,) twice."""
        self.take_batch()
        out = np.empty((self.n_space, self.n_zenith, self.n_space, self.n_zenith))
        block, (lower, upper) = np.empty((self.n_space, self.n_space)), _triangle(self.n_space)
        for values, a, b in zip(self._information, *self._pairs, strict=True):
            block.put(lower, values)
            block.put(upper, values)
            out[:, a, :, b] = out[:, b, :, a] = block
        return out.reshape(self.n_space * self.n_zenith, -1)


class RateCovariance:
    """Covariance of the coefficients as quadratic forms at one zenith angle.

    Parameters
    ----------
    covariance : `~numpy.ndarray`, shape (n_space * n_zenith,) twice
        Symmetric; its lower triangle is used.
    n_zenith : int
    """

    def __init__(self, covariance: np.ndarray, n_zenith: int):
        self.n_space = len(covariance) // n_zenith
        blocks = covariance.reshape(self.n_space, n_zenith, self.n_space, n_zenith)
        self._pairs = np.tril_indices(n_zenith)
        # single precision does for what is added to posterior variances
        self._blocks = np.empty((len(self._pairs[0]), self.n_space**2), dtype=np.float32)
        for k, (a, b) in enumerate(zip(*self._pairs, strict=True)):
            self._blocks[k] = (1 if a == b else 2) * blocks[:, a, :, b].ravel()

    def at(self, zeniths: np.ndarray) -> np.ndarray:
        """Matrices M for some runs, shape (n_run, n_space, n_space): `quadratic_form` of M and G is the covariance of
        G' c.

        ``zeniths`` has the zenith splines of each run, shape (n_run, n_zenith).
        """
        weights = np.array([_products(zenith, self._pairs) for zenith in zeniths], dtype=np.float32)
        return (weights @ self._blocks).reshape(len(zeniths), self.n_space, self.n_space)


def quadratic_form(matrix: np.ndarray | None, gain: np.ndarray) -> np.ndarray | float:
    """Symmetric part of G' M G, with M from `RateCovariance.at`; 0 where M is None, not known yet."""
    if matrix is None:
        return 0.0
    out = gain.T.astype(np.float32) @ (matrix @ gain.astype(np.float32))
    return 0.5 * (out + out.T)


def reaction_variance(own: np.ndarray, zenith: np.ndarray, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Variance that the uncertainty of the rate gives to what is fitted to runs, as deviations from its mean over runs:
    most of it, what all runs do alike, is no error of the difference between them.

    Parameters
    ----------
    own : `~numpy.ndarray`, shape (n_run, n_space, j)
        By how much each of some quantities of a run falls as a coefficient at its zenith angle rises.
    zenith : `~numpy.ndarray`, shape (n_run, n_zenith)
        Zenith splines of the runs.
    mean : `~numpy.ndarray`, shape (n_space, n_zenith, j)
        The same as ``own`` for all coefficients, averaged over the runs.
    factor : `~numpy.ndarray`, shape (n_space, n_zenith, p)
        R with R R' the covariance of the coefficients.

    Returns
    -------
    variance : `~numpy.ndarray`, shape (n_run, j)
    """
    n_run, n_space, j = own.shape
    size, out = n_space * zenith.shape[1], np.empty((n_run, j))
    for start in range(0, n_run, BATCH):
        here = slice(start, start + BATCH)
        difference = own[here, :, None, :] * zenith[here, None, :, None] - mean
        rows = difference.reshape(-1, size, j).transpose(0, 2, 1).reshape(-1, size)
        out[here] = ((rows @ factor.reshape(size, -1)) ** 2).sum(1).reshape(-1, j)
    return out


def moving_directions(coefficients: np.ndarray, energy: ScaledEnergyAxis, zenith: BSplineAxis) -> np.ndarray:
    """Changes of the coefficients that move the spectrum in energy: at all zenith angles, and by a power law of cos
    zenith.

    A spectrum that is moved is as smooth as before. A penalty on differences of the coefficients seems to hold against
    it only because, to first order, the spectrum changes by its derivative, which is rough at the threshold. Errors
    there would come out too small.

    Parameters
    ----------
    coefficients : `~numpy.ndarray`, shape (n_energy, n_offset, n_zenith)
    energy, zenith : `ScaledEnergyAxis`, `BSplineAxis`
        Axes of the first and of the last.

    Returns
    -------
    directions : `~numpy.ndarray`, shape (n_energy * n_offset * n_zenith, 1 or 2)
    """
    moved = np.einsum("ij,jtz->itz", energy.differentiate, coefficients)
    directions = [moved.ravel()]
    if zenith.n > 1:
        directions.append((moved * (zenith.centers - zenith.centers.mean())).ravel())
    return np.array(directions).T


@lru_cache(maxsize=4)
def _triangle(n):
    """Flat numbers of the entries of the lower triangle of a matrix, and of those that mirror them."""
    row, column = np.tril_indices(n)
    return row * n + column, column * n + row


def factor_of(matrix: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of a symmetric matrix, which is overwritten."""
    # its transpose, the same matrix, is in the order of LAPACK, and not copied
    return cholesky(matrix.T, lower=True, overwrite_a=True, check_finite=False)


def _products(zenith, pairs):
    return zenith[pairs[0]] * zenith[pairs[1]]
