"""How the profile over the field of view drifts with energy: coherent over energies and smooth in the field.

Each energy alone has too few events to show that its profile is wider than that of all energies together, which the low
energies dominate; many neighbouring energies that agree do show it. The log of the profile gets a few smooth modes over
the field, whose amplitudes walk at random over log energy. The variance of the steps of each mode is estimated from all
energies by marginal likelihood (generalised Fellner-Schall update of Wood & Fasiolo 2017, Biometrics 73, 1071): a mode
that does not drift stays where it is, and where counts are few the amplitude stays at that of the nearest energies that
have more.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from gammapy_accmaker.models.bsplines import row_tensor, update_smoothing
from gammapy_accmaker.models.spectrum import linear_weights

_PRECISION_RANGE = 1e-2, 1e6  # of one step of an amplitude; the modes have a mean square of 1
_RIDGE = 0.1  # precision of an amplitude itself, which holds one event from pulling it away
_MAX_ROUNDS = 60
_TOLERANCE = 1e-3, 0.02  # of an amplitude, and of the log of a precision


def orthonormal_modes(functions: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Functions over bins made orthogonal to a constant and to each other, of mean square 1.

    Parameters
    ----------
    functions : `~numpy.ndarray`
        Shape (bin, mode).
    weight : `~numpy.ndarray`
        Of each bin, >= 0, shape (bin,).

    Returns
    -------
    modes : `~numpy.ndarray`
        Shape (bin, m); without those that the bins with a weight cannot tell from the others.
    """
    # Gram-Schmidt with weights, as a QR decomposition; the constant comes first, and what is left is free of it
    columns = np.column_stack([np.ones(len(weight)), functions])
    _, triangle = np.linalg.qr(np.sqrt(weight / weight.sum())[:, None] * columns)
    size = np.sqrt(weight @ columns**2 / weight.sum())
    known = np.abs(np.diag(triangle))[: columns.shape[1]] > 1e-3 * size[: len(triangle)]
    # bins give out before functions do
    first = len(known) if known.all() else int(np.argmin(known))
    return (columns[:, :first] @ np.linalg.inv(triangle[:first, :first]))[:, 1:]


def fit_drift(
    counts: np.ndarray, mu: np.ndarray, modes: np.ndarray, log_energy: np.ndarray, node_step: float
) -> np.ndarray:
    """Log of the factor on expected counts, by energy and position, up to a norm for each energy.

    The likelihood is that of the shape at each energy (multinomial), so totals by energy play no part.

    Parameters
    ----------
    counts : `~numpy.ndarray`
        Shape (energy, bin).
    mu : `~numpy.ndarray`
        Expected counts without drift, > 0 where a bin was seen, shape (energy, bin); their scale is of no importance.
    modes : `~numpy.ndarray`
        Smooth functions over the bins, see `orthonormal_modes`, shape (bin, mode).
    log_energy : `~numpy.ndarray`
        Increasing, shape (energy,).
    node_step : float
        In log energy, of the nodes of the amplitudes, between which they are linear.

    Returns
    -------
    log_factor : `~numpy.ndarray`
        Shape (energy, bin).
    """
    n_nodes = int(np.ceil(np.ptp(log_energy) / node_step - 1e-9)) + 1
    n_modes = modes.shape[1]
    if n_nodes < 2 or n_modes == 0:
        return np.zeros(counts.shape)
    nodes = np.linspace(log_energy[0], log_energy[-1], n_nodes)
    hats = linear_weights(nodes, log_energy)
    # the random walk as a penalty: the sum of the squared steps between neighbouring nodes
    steps = np.diff(np.eye(n_nodes), axis=0)
    walk, ridge = steps.T @ steps, _RIDGE * np.eye(n_nodes * n_modes)
    seen = mu.sum(0) > 0
    inside, seen_counts, log_mu = modes[seen], counts[:, seen], np.log(np.maximum(mu[:, seen], 1e-300))
    total = seen_counts.sum(1, keepdims=True)
    squares = row_tensor(inside)
    amplitude, precision = np.zeros((n_nodes, n_modes)), np.full(n_modes, 100.0)
    for _ in range(_MAX_ROUNDS):
        log_share = log_mu + (hats @ amplitude) @ inside.T
        share = np.exp(log_share - log_share.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        # mean and covariance of the modes over the bins, as the profile at each energy weighs them: a multinomial's
        # slope is counts * (observed mean - mean), and its information counts * covariance
        mean = share @ inside
        spread = (share @ squares).reshape(-1, n_modes, n_modes) - mean[:, :, None] * mean[:, None, :]
        # of the amplitudes, mode by mode
        information = np.einsum("ek,el,emn->mknl", hats, hats, total[:, :, None] * spread, optimize=True)
        hessian = information.reshape(2 * (n_modes * n_nodes,)) + np.kron(np.diag(precision), walk) + ridge
        slope = (hats.T @ ((seen_counts - total * share) @ inside)).T - precision[:, None] * (amplitude.T @ walk)
        covariance = cho_solve(cho_factor(hessian), np.eye(len(hessian)))
        change = (covariance @ (slope - _RIDGE * amplitude.T).ravel()).reshape(n_modes, n_nodes).T
        # a Newton step, at most 1 in any amplitude: a factor e where a mode is 1
        size = np.abs(change).max()
        amplitude = amplitude + change * min(1, 1 / max(size, 1e-300))
        own = covariance.reshape(n_modes, n_nodes, n_modes, n_nodes)
        decided = np.array([len(steps) - precision[m] * np.sum(own[m, :, m] * walk) for m in range(n_modes)])
        new = update_smoothing(precision, decided, np.sum((steps @ amplitude) ** 2, axis=0), _PRECISION_RANGE)
        drift, precision = np.abs(np.log(new / precision)).max(), new
        if size < _TOLERANCE[0] and drift < _TOLERANCE[1]:
            break
    return (hats @ amplitude) @ modes.T
