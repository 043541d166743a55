"""Polar cells of the field of view: all that a fit of the spline model keeps of a run is its counts and exposure there.

`FovCells` are the cells, with what functions over the field are in them (modes of the camera, and the log asymmetry by
`AsymmetryCells`); `gather_counts` sums a slice of a run over them, and `RunCells` prepares the sums for the likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from scipy.sparse import csr_array

from gammapy_accmaker.models.bsplines import BSplineAxis, row_tensor, tensor_information
from gammapy_accmaker.models.source_terms import CountsPatch, SourceBands
from gammapy_accmaker.utils.few_bytes import in_few_bytes
from gammapy_accmaker.utils.run_key import RunKey

_RING_WIDTH = 0.1  # deg
_N_SECTOR = 12
_ASYMMETRY_ORDER = 4  # highest harmonic of the position angle
_EVEN = 1e-9  # deg and rad; displacements below are rounding
_STEP = 1e-4  # deg and rad, of derivatives

# functions of (x, y), the offset in units of the largest one; "radial" has about zero mean over the counts
_CAMERA_MODES = {
    "flat": lambda x, y: np.ones_like(x),
    "radial": lambda x, y: x * x + y * y - 0.4,
    "lon": lambda x, y: x,
    "lat": lambda x, y: y,
}


def camera_modes(fov_lon, fov_lat, offset_max: float, names) -> np.ndarray:
    """Values of the named `_CAMERA_MODES` at positions in deg, shape (n, len(names))."""
    x, y = np.asarray(fov_lon) / offset_max, np.asarray(fov_lat) / offset_max
    return np.stack([_CAMERA_MODES[name](x, y) for name in names], axis=-1) if len(names) else np.zeros((len(x), 0))


def asymmetry_basis(fov_lon, fov_lat, axis: BSplineAxis) -> np.ndarray:
    """Harmonics of the position angle times B-splines of the offset: zero mean over every ring.

    Parameters
    ----------
    fov_lon, fov_lat : array_like, shape (n,)
        Positions in deg.
    axis : `BSplineAxis`
        Of the offset in deg.

    Returns
    -------
    basis : `~numpy.ndarray`, shape (n, 2 * _ASYMMETRY_ORDER * axis.n)
    """
    offset, angle = np.hypot(fov_lon, fov_lat), np.arctan2(fov_lat, fov_lon)
    radial = axis.basis(offset)
    # a harmonic of order m vanishes like offset ** m at the centre, or it would jump there
    rise = np.minimum(offset / (0.3 * axis.hi), 1)
    columns = [
        radial * (rise**m * wave(m * angle))[:, None]
        for m in range(1, _ASYMMETRY_ORDER + 1)
        for wave in (np.cos, np.sin)
    ]
    return np.hstack(columns)


def asymmetry_orders(axis: BSplineAxis) -> np.ndarray:
    """Order of the harmonic of each column of `asymmetry_basis`."""
    return np.repeat(np.arange(1, _ASYMMETRY_ORDER + 1), 2 * axis.n)


@dataclass(frozen=True)
class FovCells:
    """Polar cells that hold field-of-view pixels; the number of a cell is ``ring * n_sector + sector``.

    Parameters
    ----------
    fov_lon, fov_lat : `~numpy.ndarray`, shape (n_fov,)
        Pixel centres in deg.
    solid_angle : `~numpy.ndarray`, shape (n_fov,)
        In sr.
    """

    fov_lon: np.ndarray
    fov_lat: np.ndarray
    solid_angle: np.ndarray
    n_sector: int = _N_SECTOR

    @cached_property
    def offset(self) -> np.ndarray:
        """Offset of each pixel in deg."""
        return np.hypot(self.fov_lon, self.fov_lat)

    @cached_property
    def offset_max(self) -> float:
        """Largest offset of a pixel in deg."""
        return float(max(self.offset.max(), 1e-3))

    @cached_property
    def n_ring(self) -> int:
        return max(int(np.ceil(self.offset_max / _RING_WIDTH)), 1)

    @property
    def n_cell(self) -> int:
        return self.n_ring * self.n_sector

    @cached_property
    def ring_of_cell(self) -> np.ndarray:
        return np.repeat(np.arange(self.n_ring), self.n_sector)

    @cached_property
    def membership(self) -> csr_array:
        """1 where a pixel lies in a cell, shape (n_fov, n_cell)."""
        ring = np.minimum((self.offset / self.offset_max * self.n_ring).astype(int), self.n_ring - 1)
        angle = np.arctan2(self.fov_lat, self.fov_lon) % (2 * np.pi)
        sector = (angle / (2 * np.pi) * self.n_sector).astype(int) % self.n_sector
        rows = np.arange(len(ring))
        return csr_array((np.ones(len(ring)), (rows, ring * self.n_sector + sector)), shape=(len(ring), self.n_cell))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the pixels of each cell, shapes (n_fov, k) to (n_cell, k); 0 in cells without pixels."""
        pixels = np.maximum(self.membership.sum(axis=0), 1)
        return (self.membership.T @ values) / pixels[:, None]

    @cached_property
    def polar(self) -> np.ndarray:
        """Offset of each pixel in deg, and its position angle in rad from the middle of its sector,
        shape (n_fov, 2)."""
        width = 2 * np.pi / self.n_sector
        return np.stack([self.offset, np.arctan2(self.fov_lat, self.fov_lon) % width - 0.5 * width], axis=1)

    def displacement(self, exposure: np.ndarray) -> np.ndarray | None:
        """How far the mean position of what a run has seen of each cell is from that of the cell.

        Parameters
        ----------
        exposure : `~numpy.ndarray`, shape (n_fov,)
            Of the pixels.

        Returns
        -------
        displacement : `~numpy.ndarray`, shape (n_cell, 2), float32
            In offset (deg) and position angle (rad), 0 in cells without exposure; None where every cell was seen
            evenly.
        """
        seen = (self.membership.T @ exposure)[:, None]
        position = np.divide(
            self.membership.T @ (exposure[:, None] * self.polar), seen, where=seen > 0, out=0 * self._centre
        )
        moved = np.where(seen > 0, position - self._centre, 0.0)
        moved[np.abs(moved) < _EVEN] = 0.0
        return moved.astype(np.float32) if moved.any() else None

    @cached_property
    def _centre(self):
        return self.mean(self.polar)

    def expansion(self, function: Callable) -> np.ndarray:
        """Functions of ``(fov_lon, fov_lat)``, and their derivatives by the two of `displacement`.

        Parameters
        ----------
        function : callable
            It gives values of shape (n_fov, k).

        Returns
        -------
        expansion : `~numpy.ndarray`, shape (3, n_cell, k)
            Means over the pixels of each cell: of the values, of the derivative by offset and of that by position
            angle.
        """
        offset, angle = self.offset, np.arctan2(self.fov_lat, self.fov_lon)

        def at(*step):
            return function((offset + step[0]) * np.cos(angle + step[1]), (offset + step[0]) * np.sin(angle + step[1]))

        slopes = [self.mean(at(*step) - at(*-step)) / (2 * _STEP) for step in _STEP * np.eye(2)]
        return np.stack([self.mean(function(self.fov_lon, self.fov_lat)), *slopes])

    def log_mean(self, log_values: np.ndarray) -> np.ndarray:
        """Log of the mean of the exponentials over the pixels of each cell, shapes (n, n_fov) to (n, n_cell)."""
        mean = self.mean(log_values.T).T
        # about the mean of the logs, so that no exponential overflows
        return mean + np.log(np.maximum(self.mean(np.exp(log_values - mean[:, self.membership.indices]).T).T, 1e-300))

    @cached_property
    def ring_variance(self) -> np.ndarray:
        """Variance of the offset over the pixels of each ring, deg2, shape (n_ring,)."""
        moments = self.ring_mean(np.stack([self.offset, self.offset**2], axis=1), np.zeros(2))
        return np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0)

    def ring_mean(self, values: np.ndarray, default: np.ndarray) -> np.ndarray:
        """Mean over the pixels of each ring, shapes (n_fov, k) to (n_ring, k); ``default`` in rings without pixels."""
        pixels = self._rings(self.membership.sum(axis=0)[:, None])
        return np.where(pixels > 0, self._rings(self.membership.T @ values) / np.maximum(pixels, 1), default)

    def _rings(self, cells):
        return cells.reshape(self.n_ring, self.n_sector, -1).sum(axis=1)

    @cached_property
    def ring_offset(self) -> np.ndarray:
        """Middle of each ring in deg."""
        return (np.arange(self.n_ring) + 0.5) * self.offset_max / self.n_ring


@dataclass(frozen=True)
class AsymmetryCells:
    """Bases of the log asymmetry in bins of energy and in cells.

    Parameters
    ----------
    cells : `FovCells`
    log_energy : `~numpy.ndarray`, shape (n_energy,)
    energy_axis, offset_axis : `BSplineAxis`
        In log(E / TeV) and deg.
    """

    cells: FovCells
    log_energy: np.ndarray
    energy_axis: BSplineAxis
    offset_axis: BSplineAxis

    @cached_property
    def at_energy(self) -> np.ndarray:
        """Splines in energy, shape (n_energy, n_a)."""
        return self.energy_axis.basis(self.log_energy)

    @cached_property
    def space(self) -> np.ndarray:
        """`asymmetry_basis` in the cells, see `FovCells.expansion`, shape (3, n_cell, n_b)."""
        return self.cells.expansion(partial(asymmetry_basis, axis=self.offset_axis))

    @cached_property
    def pixels(self) -> np.ndarray:
        """The same in the pixels, shape (n_fov, n_b)."""
        return asymmetry_basis(self.cells.fov_lon, self.cells.fov_lat, self.offset_axis)

    def mean_log(self, coefficients: np.ndarray) -> np.ndarray:
        """Mean over each cell of the log asymmetry of coefficients of shape (n_a, n_b), shape (n_energy, n_cell)."""
        return self.at_energy @ coefficients @ self.space[0].T

    def information(self, expected: np.ndarray) -> np.ndarray:
        """What expected counts, shape (n_energy, n_cell), tell of the coefficients, shape (n_a n_b, n_a n_b)."""
        return tensor_information(expected, [row_tensor(self.at_energy), row_tensor(self.space[0])])

    def log_mean(self, coefficients: np.ndarray) -> np.ndarray:
        """Log of the mean asymmetry of each cell, and its derivatives as in `FovCells.expansion`,
        shape (3, n_energy, n_cell).

        Within a sector of 30 deg the log asymmetry may change by more than 1: its mean is not the log of the mean.
        """
        out = self.at_energy @ coefficients @ self.space.transpose(0, 2, 1)
        out[0] = self.cells.log_mean(self.at_energy @ coefficients @ self.pixels.T)
        return out


@dataclass(frozen=True)
class CellCounts:
    """A slice of a run in the cells.

    Attributes
    ----------
    key : `RunKey`
        Of the run.
    index, counts : `~numpy.ndarray`, shape (n_filled,)
        Flat number (energy bin x cell), increasing, and content of the bins with counts.
    exposure : `~numpy.ndarray`, shape (n_cell,)
        In s sr.
    displacement : `~numpy.ndarray`, shape (n_cell, 2), or None
        See `FovCells.displacement`.
    cos_zenith, azimuth : float
        Mean values, azimuth in deg.
    cos_zenith_range : tuple of float
        Smallest and largest cos zenith within the slice.
    covariates : dict of float
    signal : `CountsPatch` or None
        Counts that sources of known flux add.
    sources : tuple of `CountsPatch`
        Counts that each source with a free amplitude adds with the flux of its model.
    """

    key: RunKey
    index: np.ndarray
    counts: np.ndarray
    exposure: np.ndarray
    displacement: np.ndarray | None
    cos_zenith: float
    azimuth: float
    cos_zenith_range: tuple[float, float]
    covariates: dict[str, float] = field(default_factory=dict)
    signal: CountsPatch | None = None
    sources: tuple[CountsPatch, ...] = ()

    def spectrum(self, n_energy: int) -> np.ndarray:
        """Counts in each of all energy bins."""
        return np.bincount(self.index // len(self.exposure), self.counts, n_energy)


def in_pixels(run, inside: np.ndarray) -> list:
    """Slices of a run with some of its pixels alone, those that are True in ``inside``."""
    slices = []
    for part in run.slices:
        own = {"counts": part.counts[:, inside], "exposure": part.exposure[inside]}
        if part.signal is not None or part.sources:
            own["signal"] = None if part.signal is None else part.signal.inside(inside)
            own["sources"] = tuple(source.inside(inside) for source in part.sources)
        slices.append(replace(part, **own))
    return slices


def gather_counts(cells: FovCells, n_energy: int, run) -> CellCounts:
    """Sum a slice of a run over the pixels of each cell.

    Parameters
    ----------
    cells : `FovCells`
    n_energy : int
        Number of energy bins.
    run : `RunSlice`-like
        With ``key``, ``counts`` (n_energy, n_fov), sparse, and ``exposure`` (n_fov,) in s, in the pixels of the cells;
        and, where there are sources, ``signal`` and ``sources`` as in `CellCounts`.
    """
    n_fov = len(cells.fov_lon)
    if run.counts.shape != (n_energy, n_fov) or run.exposure.shape != (n_fov,):
        raise ValueError(
            f"run {run.key.obs_id}: counts {run.counts.shape} and exposure {run.exposure.shape} do not fit the bins of "
            f"the model, ({n_energy}, {n_fov}) and ({n_fov},); reduce the run with the bins of the fit"
        )
    counts = (run.counts @ cells.membership).tocoo()
    # as few bytes as hold the number of all bins: numpy divides no smaller ones by that of the cells
    of_bins = np.min_scalar_type(n_energy * cells.n_cell)
    index = (counts.coords[0].astype(np.int64) * cells.n_cell + counts.coords[1]).astype(of_bins)
    order = np.argsort(index)
    order = order[counts.data[order] > 0]
    exposure = cells.membership.T @ (run.exposure * cells.solid_angle)
    signal, sources = getattr(run, "signal", None), getattr(run, "sources", ())
    return CellCounts(
        run.key, index[order], in_few_bytes(counts.data[order]),
        exposure, cells.displacement(run.exposure), run.cos_zenith, run.azimuth, run.cos_zenith_range, run.covariates,
        None if signal is None else signal.gathered(cells.membership),
        tuple(source.gathered(cells.membership) for source in sources),
    )  # fmt: skip


@dataclass(frozen=True)
class RunCells:
    """Counts and exposure of a slice of a run in the cells.

    Attributes
    ----------
    index, counts : `~numpy.ndarray`, shape (n_filled,)
        Flat number (energy bin x cell) and content of the bins with counts.
    exposure : `~numpy.ndarray`, shape (n_cell,)
        In s sr.
    zenith_basis : `~numpy.ndarray`, shape (n_zenith,)
    scaled_energy : `~numpy.ndarray`, shape (n_energy,)
        Scaled log energy of the bins before the run's own shift.
    additive_counts : `~numpy.ndarray`, shape (n_additive,)
        Sum of the counts times each additive effect.
    energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that count and 0 for those left out of counts and exposure; all by default.
    effect_energies : `~numpy.ndarray`, shape (n_energy,), optional
        1 for the energy bins that tell of the effects of the run, else 0; those tell of the rate alone.
    displacement : `~numpy.ndarray`, shape (n_cell, 2), optional
        See `FovCells.displacement`.
    signal : `CountsPatch`, optional
        Counts that sources add to those of the background.
    sources : tuple of `CountsPatch`
        Those of each source with a free amplitude, with the flux of its model.
    """

    index: np.ndarray
    counts: np.ndarray
    exposure: np.ndarray
    zenith_basis: np.ndarray
    scaled_energy: np.ndarray
    additive_counts: np.ndarray
    energies: np.ndarray | None = None
    effect_energies: np.ndarray | None = None
    displacement: np.ndarray | None = None
    signal: CountsPatch | None = None
    sources: tuple[CountsPatch, ...] = ()

    @property
    def has_sources(self) -> bool:
        """Whether a source with a free amplitude adds counts."""
        return any(len(source.columns) for source in self.sources)

    def with_amplitudes(self, bands: SourceBands, amplitudes: np.ndarray) -> RunCells:
        """The same with what the sources add at these amplitudes in the signal."""
        if not self.sources:
            return self
        return replace(self, signal=bands.signal(self.signal, self.sources, amplitudes))

    def on_rings(self, n_sector: int) -> RunCells:
        """The sectors of each ring taken together, without effects of the run and as if they were seen evenly."""
        signal, cell = self.signal, np.arange(len(self.exposure))
        if signal is not None:
            signal = signal.gathered(csr_array((np.ones(len(cell)), (cell, cell // n_sector))))
        index, first = np.unique(self.index // n_sector, return_index=True)
        return RunCells(
            index,
            np.add.reduceat(self.counts, first, dtype=float) if len(first) else self.counts,
            self.exposure.reshape(-1, n_sector).sum(axis=1),
            self.zenith_basis,
            self.scaled_energy,
            np.zeros(0),
            signal=signal,
        )
