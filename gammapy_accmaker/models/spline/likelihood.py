"""Poisson likelihood of one run under the spline model, its derivatives by the run's effects and by the rate.

Per run, only sums over polar cells are formed; their size does not depend on the number of runs or of events.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache

import numpy as np

from gammapy_accmaker.camera.bins import TEV_IN_MEV
from gammapy_accmaker.models.bsplines import BSplineAxis, row_tensor
from gammapy_accmaker.models.source_terms import TINY, CountsPatch, SourceBands, background_weights
from gammapy_accmaker.models.spline.cells import FovCells, RunCells
from gammapy_accmaker.models.spline.effects import EffectBasis, NormTails
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis

_MAX_LOG_RATE = 30.0  # of expected counts in one cell; keeps the exponential finite on the way to the fit
_NEWTON_LIMIT = (0.15, 0.7)  # longest step in the shift and in any other effect
_OVERSHOOT = 0.5  # slope behind a step, over that before it, at which the maximum lies well within the step
_FINAL_TOLERANCE = 1e-5  # of the effects of a run, in standard deviations of the prior
_WEIGHT_TOLERANCE = 1e-3
_WEIGHT_ROUNDS = 200  # few are needed, but where it is open whether a run with few counts is unusual
_NEIGHBOURS = 4  # cubic splines overlap with three neighbours; between the nodes of the grid one more may come in


@dataclass(frozen=True)
class _CellModes:
    """Camera modes of the effects of a run in the cells.

    Attributes
    ----------
    additive, shift : `~numpy.ndarray`, shapes (n_cell, n_mode), (n_cell, n_shift)
        Of the additive effects and of the shift.
    n_ring : int
    """

    additive: np.ndarray
    shift: np.ndarray
    n_ring: int

    @cached_property
    def products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Products of modes with modes, shifts with shifts and shifts with modes."""
        return row_tensor(self.additive), row_tensor(self.shift), row_tensor(self.shift, self.additive)

    @cached_property
    def ring_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """The additive modes behind a 1, and the shifts, in the cells of each ring, shapes (n_ring, n_sector, n)."""
        n_cell = len(self.additive)
        shape = self.n_ring, n_cell // self.n_ring, -1
        return np.hstack([np.ones((n_cell, 1)), self.additive]).reshape(shape), self.shift.reshape(shape)


@dataclass(frozen=True)
class RunDesign:
    """What all runs of a fit share: bins, cells, and the basis functions at them.

    Parameters
    ----------
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        TeV.
    cells : `FovCells`
    energy, offset : `ScaledEnergyAxis`, `BSplineAxis`
        Axes of the rate.
    effects : `EffectBasis`
    """

    energy_edges: np.ndarray
    cells: FovCells
    energy: ScaledEnergyAxis
    offset: BSplineAxis
    effects: EffectBasis

    @cached_property
    def log_energy(self) -> np.ndarray:
        """log(E / TeV) at the logarithmic centres of the bins."""
        return 0.5 * np.log(self.energy_edges[1:] * self.energy_edges[:-1])

    @cached_property
    def log_width(self) -> np.ndarray:
        """Log of the widths of the bins in MeV."""
        return np.log(np.diff(self.energy_edges) * TEV_IN_MEV)

    @cached_property
    def ring_basis(self) -> np.ndarray:
        """Splines in offset, averaged over the pixels of each ring."""
        return self.cells.ring_mean(self.offset.basis(self.cells.offset), self.offset.basis(self.cells.ring_offset))

    @cached_property
    def ring_slopes(self) -> np.ndarray:
        """Their derivatives by offset, averaged likewise."""
        at_middle = self.offset.derivative(self.cells.ring_offset)
        return self.cells.ring_mean(self.offset.derivative(self.cells.offset), at_middle)

    @cached_property
    def ring_rows(self) -> np.ndarray:
        return row_tensor(self.ring_basis)

    @cached_property
    def columns(self) -> np.ndarray:
        """Energy dependence of the additive effects."""
        return self.effects.energy_columns(self.log_energy)

    @cached_property
    def cell_modes(self) -> _CellModes:
        """Camera modes of the effects, averaged over each cell."""
        additive, shift = self._mode_expansions
        return _CellModes(additive[0], shift[0], self.cells.n_ring)

    @cached_property
    def _mode_expansions(self):
        return self.cells.expansion(self.effects.mode_values), self.cells.expansion(self.effects.shift_values)

    def modes_of(self, displacement: np.ndarray | None) -> _CellModes:
        """The same, averaged over what was seen of each cell; see `FovCells.displacement`."""
        if displacement is None:
            return self.cell_modes
        modes, shifts = (_displaced(values, displacement) for values in self._mode_expansions)
        return _CellModes(modes, shifts, self.cells.n_ring)

    @cached_property
    def mode_columns(self) -> list[np.ndarray]:
        """Numbers of the additive effects of each camera mode."""
        return [np.flatnonzero(self.effects.mode_of_column == m) for m in range(len(self.effects.modes))]

    def ring_sums(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted sums over the sectors of each ring, shape (n_ring, n_energy, n);
        weights as in `CellModes.ring_weights`."""
        return np.matmul(values.reshape(len(values), *weights.shape[:2]).transpose(1, 0, 2), weights)

    def in_offset(self, by_ring: np.ndarray) -> np.ndarray:
        """Sums over rings, shape (n_ring, n_energy, n), times the splines in offset, shape (n_offset, n_energy, n)."""
        return np.tensordot(self.ring_basis, by_ring, axes=(0, 0))


def _displaced(expansion: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """An expansion, see `FovCells.expansion`, at the mean position of what was seen of each cell, shape (n_cell, k)."""
    value, by_offset, by_angle = expansion
    return value + by_offset * displacement[:, :1] + by_angle * displacement[:, 1:]


@dataclass(frozen=True)
class RateTable:
    """The population's rate for a slice of a run, on the grid of u.

    Attributes
    ----------
    log_rate, slope : tuple of `~numpy.ndarray`, shapes (n_grid, n_ring)
        At the nodes, and the change to the next one: of the log rate and of its derivative by u.
    asymmetry : `~numpy.ndarray`, shape (n_energy, n_cell)
        What adds to the rate of the ring: the log asymmetry, and the change to the mean position of what was seen of
        each cell.
    modes : `_CellModes`
        Of what was seen of each cell.
    """

    log_rate: tuple[np.ndarray, np.ndarray]
    slope: tuple[np.ndarray, np.ndarray]
    asymmetry: np.ndarray
    modes: _CellModes

    @classmethod
    def of(cls, design: RunDesign, coefficients: np.ndarray, asymmetry: np.ndarray, run: RunCells):
        """Tabulate; ``asymmetry``: see `AsymmetryCells.log_mean`."""
        profile = coefficients @ run.zenith_basis
        rings, by_offset = profile @ design.ring_basis.T, profile @ design.ring_slopes.T
        # the log of the mean rate of a ring is above the mean of the log by half the variance of the log
        bend = 0.5 * design.cells.ring_variance * (design.energy.grid_basis @ by_offset) ** 2
        log_rate, slope = (
            (values, _steps(values))
            for values in (design.energy.grid_basis @ rings + bend, design.energy.grid_derivative @ rings)
        )
        added = asymmetry[0]
        if run.displacement is not None:
            # the slope is that before the own shift of the run, so that it is worked out once for all steps of its
            # effects
            by_ring = design.energy.interpolate(run.scaled_energy) @ by_offset
            by_offset, by_angle = run.displacement.T
            moved = np.repeat(by_ring, design.cells.n_sector, axis=1)
            moved += asymmetry[1]
            moved *= by_offset
            moved += asymmetry[2] * by_angle
            moved += added
            added = moved
        return cls(log_rate, slope, added, design.modes_of(run.displacement))


def _steps(values: np.ndarray) -> np.ndarray:
    """From each row to the next, 0 from the last."""
    out = np.zeros(values.shape)
    np.subtract(values[1:], values[:-1], out=out[:-1])
    return out


@dataclass(frozen=True)
class RunSums:
    """Derivatives of the log-likelihood of a run; effects are numbered as in `EffectBasis`.

    Attributes
    ----------
    gradient, information : `~numpy.ndarray`, shapes (n,), (n, n)
        By the effects, without their prior.
    expected : `~numpy.ndarray`, shape (n_energy, n_cell)
        Counts of the background.
    rate_gradient : `~numpy.ndarray`, shape (n_spline_energy, n_spline_offset)
        By the coefficients of the rate at the run's zenith angle; empty unless asked for, as the next two.
    rate_information : `~numpy.ndarray`, shape (k, k), k = n_spline_energy * n_spline_offset
    cross_information : `~numpy.ndarray`, shape (k, n)
    weighted : `~numpy.ndarray`, shape (n_energy, n_cell)
        Counts, each with the share of the background in what is expected there; empty for a fit without sources.
    sources : `_SourceSums`, optional
        Derivatives by the amplitudes of sources.
    """

    gradient: np.ndarray
    information: np.ndarray
    expected: np.ndarray
    rate_gradient: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rate_information: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cross_information: np.ndarray = field(default_factory=lambda: np.zeros(0))
    weighted: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sources: _SourceSums | None = None

    @classmethod
    def of(
        cls,
        design: RunDesign,
        table: RateTable,
        run: RunCells,
        effects: np.ndarray,
        *,
        full: bool = False,
        bands: SourceBands | None = None,
    ):
        """Evaluate at the given effects; ``full`` adds the derivatives by the rate, and ``bands`` those by the
        amplitudes of the sources of the run."""
        basis, n_shift = design.effects, design.effects.n_shift
        node, fraction, slope, mu = _expected(design, table, run, effects)
        n_energy, n_ring, n_mode = len(design.log_energy), design.cells.n_ring, len(basis.modes)
        columns, mode_of = design.columns, basis.mode_of_column
        mode_mode, shift_shift, shift_mode = table.modes.products
        # with sources each count tells of the background by the share of it in what is expected there, and so does the
        # information; see `~gammapy_accmaker.models.source_terms`
        counts, known, additive_counts = run.counts, mu, run.additive_counts
        if run.signal is not None:
            weights, here = np.ones(mu.shape), run.signal.columns
            weights[:, here] = background_weights(mu[:, here], run.signal.values)
            counts, known = counts * weights.ravel()[run.index], mu * weights
            additive_counts = sum_additive(design, table.modes.additive, run.index, counts, run.effect_energies)
        # what the effects are fitted to, and the rate is not
        told = mu if run.effect_energies is None else mu * run.effect_energies[:, None]
        if run.signal is None:
            informs = told
        else:
            informs = known if run.effect_energies is None else known * run.effect_energies[:, None]

        # additive effects: log mu is linear in them, so the score is (counts - mu) and the information mu, each
        # weighted by the columns; columns of one camera mode share their sum over the cells, which is done first
        gradient, information = np.zeros(basis.n), np.zeros((basis.n, basis.n))
        gradient[n_shift:] = additive_counts - (columns * (told @ table.modes.additive)[:, mode_of]).sum(0)
        products = (informs @ mode_mode).reshape(n_energy, n_mode, n_mode)
        for m, own in enumerate(design.mode_columns):
            information[n_shift + own, n_shift:] = columns[:, own].T @ (columns * products[:, m, mode_of])

        # energy shift: log mu is not linear in it; its derivative by the shift is the slope of the log spectrum, so
        # this block is Fisher's information (that of the expected counts), which is never negative
        mu_slope, by_cell = informs * slope, slope
        if n_shift:
            residual = -(mu_slope if informs is told else told * slope).sum(0)
            filled = counts * slope.ravel()[run.index]
            if run.effect_energies is not None:
                filled *= run.effect_energies[run.index // mu.shape[1]]
            residual += np.bincount(run.index % mu.shape[1], filled, mu.shape[1])
            gradient[:n_shift] = residual @ table.modes.shift
            slope = slope * mu_slope if bands is not None else np.multiply(slope, mu_slope, out=slope)
            information[:n_shift, :n_shift] = (slope.sum(0) @ shift_shift).reshape(n_shift, n_shift)
            mixed = (mu_slope @ shift_mode).reshape(n_energy, n_shift, n_mode)
            for m, own in enumerate(design.mode_columns):
                information[:n_shift, n_shift + own] = mixed[:, :, m].T @ columns[:, own]
            information[n_shift:, :n_shift] = information[:n_shift, n_shift:].T
        if not full:
            return cls(gradient, information, mu)

        # rate: the gradient is exact; the information takes one shift for the whole field of view
        residual = -mu
        residual.ravel()[run.index] += counts
        weighted = residual + mu if bands is not None else np.zeros(0)
        by_offset = None
        if run.displacement is not None:
            by_sector = (residual * run.displacement[:, 0]).reshape(n_energy * n_ring, -1)
            by_offset = (by_sector @ np.ones(by_sector.shape[1])).reshape(n_energy, n_ring) @ design.ring_slopes
        size, node = len(design.energy.grid) * n_ring, node.ravel()
        # the rate of a cell is linear between two nodes of the grid: its derivative goes to both by the fraction
        upper = residual * fraction
        residual -= upper
        on_grid = np.bincount(node, residual.ravel(), size)
        on_grid[n_ring:] += np.bincount(node, upper.ravel(), size)[:-n_ring]
        on_grid = on_grid.reshape(-1, n_ring)
        rate_gradient = design.energy.grid_basis.T @ on_grid @ design.ring_basis
        if by_offset is not None:
            rate_gradient += design.energy.interpolate(run.scaled_energy).T @ by_offset
        at_energy = design.energy.interpolate(run.scaled_energy + (effects[0] if n_shift else 0.0))
        n_e, n_t = at_energy.shape[1], design.ring_basis.shape[1]
        mode_weights, shift_weights = table.modes.ring_weights
        by_ring = design.ring_sums(informs, mode_weights)
        all_by_ring = by_ring if informs is known else design.ring_sums(known, mode_weights[:, :, :1])
        rate_information = _banded_information(at_energy, all_by_ring[:, :, 0].T @ design.ring_rows)
        # how the effects and the rate can stand in for each other: what `fit` needs to integrate the effects out
        together = np.empty((n_t, n_energy, basis.n))
        together[:, :, :n_shift] = design.in_offset(design.ring_sums(mu_slope, shift_weights))
        np.multiply(design.in_offset(by_ring)[:, :, 1 + mode_of], columns, out=together[:, :, n_shift:])
        cross = np.matmul(at_energy.T, together).transpose(1, 0, 2)
        of_sources = None
        if bands is not None and run.has_sources:
            of_sources = _SourceSums.of(design, table, run, mu, by_cell, at_energy, bands)
        return cls(
            gradient,
            information,
            mu,
            rate_gradient,
            rate_information,
            cross.reshape(n_e * n_t, basis.n),
            weighted,
            of_sources,
        )

    def __add__(self, other: RunSums) -> RunSums:
        """Sum over the slices of a run."""
        return _sum_of_fields(self, other)


@dataclass(frozen=True)
class _SourceSums:
    """Derivatives of the log-likelihood of a run by the amplitudes of sources.

    Attributes
    ----------
    gradient, information : `~numpy.ndarray`, shapes (n,), (n, n)
    with_effects : `~numpy.ndarray`, shape (n_effect, n)
        Information between the effects of the run and them.
    with_rate : `~numpy.ndarray`, shape (k, n)
        Between the coefficients of the rate at the run's zenith angle and them.
    with_cells : `~numpy.ndarray`, shape (n_source, n_energy, n_cell)
        Between the log of the background in each bin and cell, and the amplitude of each source there.
    """

    gradient: np.ndarray
    information: np.ndarray
    with_effects: np.ndarray
    with_rate: np.ndarray
    with_cells: np.ndarray

    @classmethod
    def of(cls, design: RunDesign, table: RateTable, run: RunCells, mu, slope, at_energy, bands: SourceBands):
        """Evaluate for the expected counts ``mu`` of the background, and the ``slope`` of their log with the shift, in
        the cells; ``at_energy``: splines of the rate at the energies of the run."""
        basis, n_shift, shape = design.effects, design.effects.n_shift, mu.shape
        signal = run.signal if run.signal is not None else CountsPatch.nothing(shape)
        here = signal.columns  # those of all sources
        share = background_weights(mu[:, here], signal.values)
        total = np.maximum(mu[:, here] + signal.values, TINY)
        counts = np.zeros(shape)
        counts.ravel()[run.index] = run.counts
        surplus = counts[:, here] / total - 1
        unit = np.zeros((len(run.sources), len(mu), len(here)))
        for own, source in zip(unit, run.sources, strict=True):
            own[:, np.searchsorted(here, source.columns)] = source.values
        if run.energies is not None:
            unit *= run.energies[:, None]
        gradient = bands.sums((unit * surplus).sum(2))
        information = bands.pair_sums(np.einsum("kej,lej->kle", unit, unit / total, optimize=True))
        shared = unit * share  # information between the log of the background in a bin and an amplitude
        told = shared if run.effect_energies is None else shared * run.effect_energies[:, None]
        with_effects = np.zeros((len(unit), len(mu), basis.n))
        with_effects[:, :, :n_shift] = (told * slope[:, here]) @ table.modes.shift[here]
        with_effects[:, :, n_shift:] = design.columns * (told @ table.modes.additive[here])[:, :, basis.mode_of_column]
        in_offset = shared @ design.ring_basis[design.cells.ring_of_cell[here]]
        with_rate = bands.sums(at_energy[:, :, None] * in_offset[:, :, None, :])
        with_cells = np.zeros((len(unit), *shape))
        with_cells[:, :, here] = shared
        return cls(
            gradient, information, bands.sums(with_effects).T, with_rate.reshape(len(gradient), -1).T, with_cells
        )

    def without_effects(self, gain: np.ndarray, follow: np.ndarray, left: np.ndarray) -> _SourceSums:
        """The same with the effects of the run integrated out.

        ``gain``, ``follow``: by how much the effects fall as the rate, or an amplitude, rises, shapes (k, n_effect) and
        (n_effect, n); ``left``: their gradient, with their prior.
        """
        return replace(
            self,
            gradient=self.gradient - follow.T @ left,
            information=self.information - self.with_effects.T @ follow,
            with_rate=self.with_rate - gain @ self.with_effects,
        )

    def __add__(self, other: _SourceSums) -> _SourceSums:
        """Sum over the slices of a run."""
        return _sum_of_fields(self, other)


def _sum_of_fields(first, second):
    """Field by field; one that is None adds nothing."""
    pairs = ((getattr(first, one.name), getattr(second, one.name)) for one in fields(first))
    return type(first)(*(b if a is None else a if b is None else a + b for a, b in pairs))


def sum_additive(
    design: RunDesign, modes: np.ndarray, index: np.ndarray, counts: np.ndarray, effect_energies: np.ndarray | None
) -> np.ndarray:
    """Sum of the counts in the bins of a run, each times each additive effect, shape (n_additive,).

    ``modes``: of the additive effects, see `CellModes`; the others as in `RunCells`.
    """
    energy, cell = np.divmod(index, design.cells.n_cell)
    by_mode = np.zeros((len(design.log_energy), modes.shape[1]))
    for m in range(by_mode.shape[1]):
        by_mode[:, m] = np.bincount(energy, counts * modes[cell, m], len(by_mode))
    if effect_energies is not None:
        by_mode *= effect_energies[:, None]
    return (design.columns * by_mode[:, design.effects.mode_of_column]).sum(0)


def _banded_information(at_energy, by_offset):
    """Sum over the energies of the products of all pairs of splines in energy and of given weights in offset.

    Splines in energy further apart than `_NEIGHBOURS` have no product. Shapes (n_energy, n_e), (n_energy, n_t ** 2).
    """
    n_e, n_t = at_energy.shape[1], round(np.sqrt(by_offset.shape[1]))
    first, second = _neighbours(n_e)
    blocks = ((at_energy[:, first] * at_energy[:, second]).T @ by_offset).reshape(-1, n_t, n_t)
    out = np.zeros((n_e, n_t, n_e, n_t))
    out[first, :, second] = out[second, :, first] = blocks
    return out.reshape(n_e * n_t, n_e * n_t)


@lru_cache(maxsize=4)
def _neighbours(n):
    """Numbers of the splines of each pair that overlaps."""
    first, second = np.triu_indices(n)
    near = second - first <= _NEIGHBOURS
    return first[near], second[near]


def _expected(design, table, run, effects):
    """Node and fraction on the grid of u, slope and expected counts, shapes (n_energy, n_cell)."""
    basis, n_ring = design.effects, design.cells.n_ring
    shift = table.modes.shift @ effects[: basis.n_shift]
    node, fraction = design.energy.locate(run.scaled_energy[:, None], shift)
    node *= n_ring
    node += design.cells.ring_of_cell
    # in place: these arrays are what the time of a fit goes to
    interpolated = []
    for low, step in (table.log_rate, table.slope):
        values = step.take(node)
        values *= fraction
        values += low.take(node)
        interpolated.append(values)
    eta, slope = interpolated
    eta += basis.by_mode(design.columns, effects) @ table.modes.additive.T
    eta += design.log_width[:, None]
    eta += table.asymmetry
    if eta.max() > _MAX_LOG_RATE:
        np.minimum(eta, _MAX_LOG_RATE, out=eta)
    np.exp(eta, out=eta)
    eta *= run.exposure
    if run.energies is not None:
        eta *= run.energies[:, None]
    return node, fraction, slope, eta


def fit_effects(
    design: RunDesign,
    tables: list[RateTable],
    slices: list[RunCells],
    mean: np.ndarray,
    covariance: np.ndarray,
    *,
    directions: np.ndarray | None = None,
    start: np.ndarray | None = None,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Effects of a run by penalised maximum likelihood (Newton steps with Fisher's information).

    Along an energy shift the likelihood may be bent more than Fisher's information knows, and full steps would swing
    about the maximum for ever: behind a step that went too far the zero of the slope between its ends is taken.

    Parameters
    ----------
    design : `RunDesign`
    tables, slices : list of `RateTable` and of `RunCells`
        One for each slice of the run.
    mean, covariance : `~numpy.ndarray`, shapes (n,), (m, m)
        Gaussian prior: the mean of the effects and the covariance of what is free.
    directions : `~numpy.ndarray`, shape (n, m), optional
        The effects are the mean plus combinations of these columns; by default all are free, m = n.
    start : `~numpy.ndarray`, shape (n,), optional
        First values, the prior mean by default.
    max_steps : int
        Most evaluations of the likelihood.
    tolerance : float
        Largest step at convergence, in standard deviations of the prior.

    Returns
    -------
    effects : `~numpy.ndarray`, shape (n,)
    information : `~numpy.ndarray`, shape (m, m)
        Of what is free, with that of the prior.
    converged : bool
    """
    effects = (mean if start is None else start).copy()
    free = np.eye(len(mean)) if directions is None else directions
    values = np.linalg.lstsq(free, effects - mean, rcond=None)[0] if directions is not None else effects - mean
    converged, taken, before = False, None, 0.0
    precision = np.linalg.inv(covariance)
    width = np.sqrt(np.diag(covariance))
    for _ in range(max_steps):
        sums = sum_slices(design, tables, slices, mean + free @ values)
        gradient = free.T @ sums.gradient - precision @ values
        if taken is not None and gradient @ taken < -_OVERSHOOT * before:
            # secant step: the slope along the last step was `before` at its start and is `behind` at its end, with the
            # other sign; back to where the straight line through the two is zero
            behind = gradient @ taken
            values, taken = values + behind / (before - behind) * taken, None
            continue
        information = free.T @ sums.information @ free + precision
        step = np.linalg.solve(information, gradient)
        taken = step / _excess_length(design, free @ step)
        before, values = gradient @ taken, values + taken
        if np.abs(step / width).max(initial=0) < tolerance:
            converged = True
            break
    return mean + free @ values, information, converged


def fit_effects_and_weight(
    design: RunDesign,
    tables: list[RateTable],
    slices: list[RunCells],
    mean: np.ndarray,
    tails: NormTails,
    *,
    directions: np.ndarray | None = None,
    start: np.ndarray | None = None,
    weight: float = 1.0,
) -> tuple[np.ndarray, float, bool, bool]:
    """Effects of a run whose norm may be far out, and its weight in the population.

    Parameters
    ----------
    design, tables, slices, mean, directions, start
        As in `fit_effects`.
    tails : `NormTails`
        Prior of what is free.
    weight : float
        First value.

    Returns
    -------
    effects : `~numpy.ndarray`, shape (n,)
    weight : float
    unusual : bool
        Whether its norm is rather one of those far out.
    converged : bool
    """
    # effects depend on the weight through their prior, and the weight on the effects: each in turn, until both stay
    effects = mean if start is None else start
    inverse = None if directions is None else np.linalg.pinv(directions)
    for _ in range(_WEIGHT_ROUNDS):
        effects, information, converged = fit_effects(
            design,
            tables,
            slices,
            mean,
            tails.prior(weight),
            directions=directions,
            start=effects,
            tolerance=_FINAL_TOLERANCE,
        )
        values = effects - mean if inverse is None else inverse @ (effects - mean)
        last = weight
        weight, unusual = tails.weight(values, np.linalg.inv(information), weight)
        if abs(weight - last) < _WEIGHT_TOLERANCE:
            return effects, weight, unusual, converged
    return effects, weight, unusual, False


def _excess_length(design, step):
    n_shift, size = design.effects.n_shift, np.abs(step)
    return max(size[:n_shift].max(initial=0) / _NEWTON_LIMIT[0], size[n_shift:].max(initial=0) / _NEWTON_LIMIT[1], 1.0)


def sum_slices(design, tables, slices, effects, *, full: bool = False, bands: SourceBands | None = None) -> RunSums:
    """`RunSums` of all slices of a run together."""
    total = RunSums.of(design, tables[0], slices[0], effects, full=full, bands=bands)
    for table, run in zip(tables[1:], slices[1:], strict=True):
        total = total + RunSums.of(design, table, run, effects, full=full, bands=bands)
    return total


def shift_within_rate(design: RunDesign, sums: RunSums, profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Information of the effects, and between rate and effects, with the shift as a direction of the rate.

    The derivative of a spline is not quite a spline of the same knots. The small difference would look as if the
    knots told where the threshold is, and errors there would come out too small.

    Parameters
    ----------
    design : `RunDesign`
    sums : `RunSums`
        In full.
    profile : `~numpy.ndarray`, shape (n_spline_energy, n_spline_offset)
        Coefficients of the rate at the run's zenith angle.
    """
    information, cross = sums.information.copy(), sums.cross_information.copy()
    if design.effects.n_shift:
        direction = (design.energy.differentiate @ profile).ravel()
        cross[:, 0] = sums.rate_information @ direction
        information[0] = information[:, 0] = direction @ cross
    return information, cross
