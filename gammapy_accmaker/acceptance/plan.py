"""Which runs are pooled, before a fit: bins of zenith and sectors of azimuth with their runs, hours and counts."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, fields, replace

import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table

from gammapy_accmaker.camera.bins import azimuth_sector
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.grouping import BinMinimum, grow_zenith_bins, wobble_positions
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice, in_own_order
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.describe import counted
from gammapy_accmaker.utils.run_key import label_array

log = logging.getLogger(__name__)

_HOUR = 3600.0  # s
_FORMATS = {
    "AZIMUTH_MIN": ".0f",
    "AZIMUTH_MAX": ".0f",
    "COS_ZENITH_MIN": ".3f",
    "COS_ZENITH_MAX": ".3f",
    "COS_ZENITH": ".3f",
    "ONTIME": ".2f",
    "LIVETIME": ".2f",
}
_IN_LEGEND = 10  # groups; of more, the picture has their numbers alone


@dataclass(frozen=True, eq=False, repr=False)
class GroupPlan:
    """Groups of runs, or of parts of runs, that are pooled in a fit.

    Made by `plan_groups`; its arrays cannot be changed.

    Attributes
    ----------
    settings : str
        The zenith and azimuth options that made it.
    azimuth_edges : `~numpy.ndarray`
        In deg, see `AzimuthBinned`; empty where all azimuths are pooled.
    sector, cos_zenith_low, cos_zenith_high : `~numpy.ndarray`
        Of each group, shape (group,). The groups of a sector tile its zenith angles.
    positions : `~numpy.ndarray`
        Right ascension and declination in deg of the wobble positions that were found, shape (n, 2).
    obs_id, group, wobble, cos_zenith, azimuth, ontime, livetime, counts, run : `~numpy.ndarray`
        Of each part of a run, shape (part,): the label of the run, where it belongs, its mean pointing (deg), its time
        in s, its unexcluded counts, and a number from 0 that the parts of a run share and other runs do not have.
    """

    settings: str
    azimuth_edges: np.ndarray
    sector: np.ndarray
    cos_zenith_low: np.ndarray
    cos_zenith_high: np.ndarray
    positions: np.ndarray
    obs_id: np.ndarray
    group: np.ndarray
    wobble: np.ndarray
    cos_zenith: np.ndarray
    azimuth: np.ndarray
    ontime: np.ndarray
    livetime: np.ndarray
    counts: np.ndarray
    run: np.ndarray

    def __post_init__(self):
        for field in fields(self)[1:]:
            array = np.array(getattr(self, field.name))
            array.flags.writeable = False
            object.__setattr__(self, field.name, array)

    @property
    def n_groups(self) -> int:
        return len(self.sector)

    @property
    def azimuth_ranges(self) -> np.ndarray:
        """First and last azimuth in deg of each group, shape (group, 2); the last may be beyond 360."""
        if len(self.azimuth_edges) == 0:
            return np.tile([0.0, 360.0], (self.n_groups, 1))
        upper = np.append(self.azimuth_edges[1:], self.azimuth_edges[0] + 360)
        return np.stack([self.azimuth_edges[self.sector], upper[self.sector]], axis=1)

    def mean_cos_zenith(self) -> np.ndarray:
        """Of each group, weighted by ontime, shape (group,)."""
        return np.bincount(self.group, self.ontime * self.cos_zenith) / np.bincount(self.group, self.ontime)

    def describe_missed(self, config: AcceptanceConfig) -> str:
        """Which sectors of azimuth hold less than the minimum of a zenith bin over zenith angles that differ;
        empty for none."""
        pooled, missed = config.zenith_bins, []
        if pooled is None:
            return ""
        minimum = _minimum(pooled)
        for k in np.flatnonzero(np.bincount(self.sector)[self.sector] == 1):
            inside = self.group == k
            share = self.ontime[inside] / np.bincount(self.run, self.ontime)[self.run[inside]]
            given = self.livetime[inside], share, self.counts[inside], self.wobble[inside]
            if np.ptp(self.cos_zenith[inside]) > pooled.initial_width and not minimum.holds(*given):
                missed.append(f"{given[0].sum() / _HOUR:.2g} h in {share.sum():.3g} observations")
        return "; ".join(missed)

    def describe_one_group(self) -> str:
        """Why all runs are in one group; empty where they are in several."""
        if self.n_groups > 1:
            return ""
        zenith, azimuth = re.findall(r'"type":"(\w+)"', self.settings)
        if zenith == "continuous":
            return "one group: the rate is a smooth function of the zenith angle, fitted to all runs together"
        if (zenith, azimuth) == ("none", "none"):
            return "one group: neither zenith nor azimuth has bins in the configuration"
        return "one group: the runs are alike in zenith angle and azimuth, or too few for a second bin"

    def edges_in(self, sector: int) -> np.ndarray:
        """Edges of cos zenith of the groups of a sector, increasing."""
        groups = np.flatnonzero(self.sector == sector)
        return np.append(self.cos_zenith_low[groups], self.cos_zenith_high[groups[-1]])

    @property
    def table(self) -> Table:
        """One row for each group: its edges, runs, hours, counts and wobble positions."""
        n = self.n_groups
        obs_ids = [self._labels(k) for k in range(n)]
        wobbles = [np.unique(self.wobble[self.group == k]) for k in range(n)]
        ranges = self.azimuth_ranges
        table = Table(
            {
                "GROUP": np.arange(n),
                "AZIMUTH_MIN": ranges[:, 0],
                "AZIMUTH_MAX": ranges[:, 1],
                "COS_ZENITH_MIN": self.cos_zenith_low,
                "COS_ZENITH_MAX": self.cos_zenith_high,
                "COS_ZENITH": self.mean_cos_zenith(),
                "N_RUNS": [len(ids) for ids in obs_ids],
                "RUNS": [" ".join(str(i) for i in ids) for ids in obs_ids],
                "ONTIME": np.bincount(self.group, self.ontime, n) / _HOUR,
                "LIVETIME": np.bincount(self.group, self.livetime, n) / _HOUR,
                "COUNTS": np.bincount(self.group, self.counts, n).astype(int),
                "WOBBLES": [" ".join(str(w) for w in found) for found in wobbles],
            },
            units={"AZIMUTH_MIN": "deg", "AZIMUTH_MAX": "deg", "ONTIME": "h", "LIVETIME": "h"},
        )
        for name, form in _FORMATS.items():
            table[name].info.format = form
        return table

    def _labels(self, group):
        """Labels of the runs of a group, each run once."""
        here = np.flatnonzero(self.group == group)
        _, first = np.unique(self.run[here], return_index=True)
        return self.obs_id[here[first]]

    @property
    def run_table(self) -> Table:
        """One row for each part of a run: its group, wobble position, pointing, time and counts."""
        names = ("obs_id", "group", "wobble", "cos_zenith", "azimuth", "ontime", "livetime", "counts")
        units = {"AZIMUTH": "deg", "ONTIME": "s", "LIVETIME": "s"}
        return Table({name.upper(): getattr(self, name).copy() for name in names}, units=units)

    def check_settings(self, config: AcceptanceConfig) -> None:
        """Raise an `InputError` where a configuration asks for other groups."""
        if self.settings != _settings(config):
            raise InputError(
                f"plan: it was made for {self.settings}, but the configuration asks for {_settings(config)}; "
                "make it with plan_groups"
            )

    def assign(self, runs: list[ReducedRun], config: AcceptanceConfig) -> list[list[ReducedRun]]:
        """The runs of each group, each with the slices that belong there.

        Raises
        ------
        InputError
            Where the plan is one of other observations or options.
        """
        self.check_settings(config)
        parts = _Parts(runs, config)
        labels, planned = (array.astype(str).tolist() for array in (parts.obs_id, self.obs_id))
        if not (labels == planned and np.array_equal(parts.counts, self.counts)):
            other = sorted({*labels} ^ {*planned})
            what = (
                f"runs {', '.join(other[:10])} are in one of the two alone" if other else "their counts or times differ"
            )
            raise InputError(
                f"plan: it was made of other observations or with another exclusion ({what}); make it with plan_groups "
                "from the observations that are fitted"
            )
        groups: list[dict[int, list[RunSlice]]] = [{} for _ in range(self.n_groups)]
        for part, k, run in zip(parts.slices, self.group, self.run.tolist(), strict=True):
            groups[k].setdefault(run, []).append(part)
        return [[replace(parts.runs[k], slices=tuple(own)) for k, own in group.items()] for group in groups]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form, exact."""
        return {field.name: np.array(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> GroupPlan:
        """The inverse of `to_arrays`."""
        arrays = {"run": np.unique(arrays["obs_id"], return_inverse=True)[1], **arrays}  # older files do not have it
        given = {field.name: arrays[field.name] for field in fields(cls) if field.name != "settings"}
        return cls(str(arrays["settings"]), **given)

    def plot(self, ax=None):
        """Draw the groups and what is pooled in them, zenith angle against azimuth, or against hours where all azimuths
        are pooled; returns the axes.

        A rectangle is a group, and as wide as its hours; a dot is a run, or the part of one that is pooled with others:
        where a run changes its zenith angle or azimuth, its parts may belong to different groups.

        Parameters
        ----------
        ax : `~matplotlib.axes.Axes`, optional
            Default: the current ones.

        Returns
        -------
        ax : `~matplotlib.axes.Axes`
        """
        ax = plt.gca() if ax is None else ax
        low, high = (_zenith(z) for z in (self.cos_zenith_high, self.cos_zenith_low))
        hours, by_azimuth = np.bincount(self.group, self.livetime, self.n_groups) / _HOUR, len(self.azimuth_edges) > 0
        for k, (left, right) in enumerate(self.azimuth_ranges if by_azimuth else [(0, h) for h in hours]):
            # a sector that goes on through north is drawn in two pieces
            pieces = [(left, right)] if not by_azimuth or right <= 360 else [(left, 360), (0, right - 360)]
            name = f"group {k}: {hours[k]:.2g} h, {counted(len(self._labels(k)), 'run')}"
            for number, (a, b) in enumerate(pieces):
                ax.fill(
                    [a, b, b, a], [low[k], low[k], high[k], high[k]],
                    facecolor=f"C{k % 10}", alpha=0.25, edgecolor="0.3", label=name if number == 0 else None,
                )  # fmt: skip
            if self.n_groups > _IN_LEGEND:
                where = 0.5 * sum(pieces[0]), 0.5 * (low[k] + high[k])
                ax.annotate(str(k), where, ha="center", va="center", fontsize=8)
        colors = [f"C{k % 10}" for k in self.group]
        ax.scatter(self.azimuth if by_azimuth else self.livetime / _HOUR, _zenith(self.cos_zenith), c=colors, s=12)
        n_runs, n_parts = len(np.unique(self.run)), len(self.run)
        of_run = "a run" if n_runs == n_parts else f"a part of a run ({n_parts} parts of {n_runs} runs)"
        ax.scatter([], [], c="0.4", s=12, label=of_run)
        ax.set(
            xlabel="azimuth [deg]" if by_azimuth else f"livetime of a group, and of {of_run.split(' (')[0]} [h]",
            ylabel="zenith angle [deg]",
        )
        handles, names = ax.get_legend_handles_labels()
        if self.n_groups > _IN_LEGEND:
            handles, names = handles[-1:], [f"{names[-1]}; the numbers are those of the table"]
        ax.legend(
            handles, names, fontsize="x-small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
        )
        return ax

    def __repr__(self):
        return (
            f"GroupPlan: {counted(self.n_groups, 'group')}, {counted(len(np.unique(self.run)), 'run')} in "
            f"{counted(len(self.obs_id), 'part')}, {self.livetime.sum() / _HOUR:.3g} h, {self.counts.sum()} counts, "
            f"{counted(len(self.positions), 'wobble position')}"
        )

    def _repr_html_(self):
        why = self.describe_one_group()
        return f"<p>{repr(self)}{f'<br>{why}' if why else ''}</p>{self.table._repr_html_()}"

    def __str__(self):
        why = self.describe_one_group()
        return (
            f"{self!r}\n"
            + (f"{why}\n" if why else "")
            + "\n".join(self.table["GROUP", "AZIMUTH_MIN", "AZIMUTH_MAX", "COS_ZENITH_MIN", "COS_ZENITH_MAX", "N_RUNS",
                                   "LIVETIME", "COUNTS", "WOBBLES"].pformat(max_lines=-1, max_width=-1))
        )  # fmt: skip


def warn_missed(plan: GroupPlan, config: AcceptanceConfig) -> None:
    """One warning where runs over different zenith angles are too few for more than one bin."""
    missed = plan.describe_missed(config)
    if missed:
        log.warning(
            f"zenith: all runs, or all of a sector of azimuth, hold less than the minimum of a bin ({missed}); they "
            "are one bin, of their mean zenith angle. Give more runs, or a smaller min_observations or min_livetime"
        )


def make_plan(runs: list[ReducedRun], config: AcceptanceConfig) -> GroupPlan:
    """Plan of reduced runs."""
    parts, pooled = _Parts(runs, config), config.zenith_bins
    sector: list[int] = []
    low: list[float] = []
    high: list[float] = []
    group = np.empty(len(parts.obs_id), dtype=int)
    for k in np.unique(parts.sector):
        inside = parts.sector == k
        if pooled is None:
            edges = np.array([parts.pooled_zenith[inside].min(), parts.pooled_zenith[inside].max()])
        else:
            livetime, share, counts, wobble = (
                x[inside] for x in (parts.livetime, parts.share, parts.counts, parts.wobble)
            )
            edges = grow_zenith_bins(
                parts.pooled_zenith[inside], livetime, share, counts, wobble, pooled.initial_width, _minimum(pooled)
            )
        # a run that is pooled as a whole can reach beyond its bin
        edges[0], edges[-1] = (
            min(edges[0], parts.cos_zenith[inside].min()),
            max(edges[-1], parts.cos_zenith[inside].max()),
        )
        number = np.searchsorted(edges[1:-1], parts.pooled_zenith[inside], side="right")
        group[inside] = len(sector) + number
        sector += [k] * (len(edges) - 1)
        low, high = [*low, *edges[:-1]], [*high, *edges[1:]]
    return GroupPlan(
        _settings(config), config.azimuth.edges, np.array(sector), np.array(low), np.array(high), parts.positions,
        parts.obs_id, group, parts.wobble,
        parts.cos_zenith, parts.azimuth, parts.ontime, parts.livetime, parts.counts, parts.run,
    )  # fmt: skip


class _Parts:
    """What is pooled: the slices of all runs, in the order of time within an order of the runs,
    and arrays over them."""

    def __init__(self, runs, config):
        self.runs = in_own_order(runs)
        in_time = [sorted(run.slices, key=lambda part: part.mjd) for run in self.runs]
        self.slices = [part for slices in in_time for part in slices]
        self.run = run = np.repeat(np.arange(len(in_time)), [len(slices) for slices in in_time])
        self.obs_id = label_array(part.key.obs_id for part in self.slices)
        names = ("cos_zenith", "azimuth", "ontime", "livetime")
        self.cos_zenith, self.azimuth, self.ontime, self.livetime = (
            np.array([getattr(part, name) for part in self.slices]) for name in names
        )
        self.counts = np.array([int(part.counts.sum()) for part in self.slices])
        edges, pooled = config.azimuth.edges, config.zenith_bins
        self.sector = azimuth_sector(edges, self.azimuth) if len(edges) else np.zeros(len(self.slices), dtype=int)
        pointing = np.array([part.pointing for part in self.slices])
        separation = 0.4 if pooled is None else pooled.max_wobble_separation.deg
        self.wobble, self.positions = wobble_positions(pointing[:, 0], pointing[:, 1], separation)
        self.share = self.ontime / np.bincount(run, self.ontime)[run]
        self.pooled_zenith = self.cos_zenith
        if pooled is None or not pooled.split_runs:
            # what is in one sector is pooled as a whole
            _, piece = np.unique(np.stack([run, self.sector]), axis=1, return_inverse=True)
            piece = piece.ravel()
            mean = np.bincount(piece, self.ontime * self.cos_zenith) / np.bincount(piece, self.ontime)
            self.pooled_zenith = mean[piece]


def _minimum(pooled):
    livetime = 0.0 if pooled.min_livetime is None else pooled.min_livetime.to_value("s")
    return BinMinimum(livetime, pooled.min_observations or 0.0, pooled.per_wobble)


def _settings(config):
    """The options that a plan depends on, as text."""
    return f"zenith: {config.zenith.model_dump_json()}, azimuth: {config.azimuth.model_dump_json()}"


def _zenith(cos_zenith):
    return np.degrees(np.arccos(np.clip(cos_zenith, -1, 1)))
