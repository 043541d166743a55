"""A reduced run: what is kept of one observation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from astropy.stats import circmean
from scipy.sparse import csr_array

from gammapy_accmaker.data.notes import RunNotes
from gammapy_accmaker.data.sky_counts import SkyCounts
from gammapy_accmaker.models.fit_counts import mean_displacement, zenith_range
from gammapy_accmaker.models.source_terms import AmplitudeFit, CountsPatch, add_patches, sum_patches
from gammapy_accmaker.utils.run_key import RunKey
from gammapy_accmaker.utils.threads import give_back_memory


@dataclass(frozen=True)
class RunSlice:
    """Counts and exposure of a run, or of a part of it in time.

    Attributes
    ----------
    key : `RunKey`
        Of the run, the same in all of its slices.
    counts : `~scipy.sparse.csr_array`
        Unexcluded counts, shape (energy, field-of-view bin).
    exposure : `~numpy.ndarray`
        Unexcluded ontime of each field-of-view bin in s, shape (bin,). Dead time is not taken off.
    ontime, livetime : float
        In s.
    cos_zenith, azimuth : float
        Of the pointing, mean over the good time; azimuth in deg; NaN without a location.
    cos_zenith_range : tuple of float
        Smallest and largest cos zenith of the pointing during the good time; NaN without a location.
    mjd : float
        Mean time.
    pointing : tuple of float
        Right ascension and declination in deg, at the start of the slice.
    displacement : `~numpy.ndarray`, float32, or None
        How far the mean position of the unexcluded part of each bin is from that of the bin, in deg along the axes of
        the bins, shape (bin, axis); None where it is in its middle everywhere, and for bins so fine that it does not
        matter.
    covariates : dict of float
        Those of the run, see `ReducedRun`.
    signal : `CountsPatch` or None
        Counts that gamma-ray sources of known flux add to those of the background.
    sources : tuple of `CountsPatch`
        Counts that each source with a free amplitude adds with the flux of its model: at energies above the threshold
        of the run, and then, for each again, below it.
    """

    key: RunKey
    counts: csr_array
    exposure: np.ndarray
    ontime: float
    livetime: float
    cos_zenith: float
    azimuth: float
    cos_zenith_range: tuple[float, float]
    mjd: float
    pointing: tuple[float, float] = (np.nan, np.nan)
    displacement: np.ndarray | None = None
    covariates: dict[str, float] = field(default_factory=dict)
    signal: CountsPatch | None = None
    sources: tuple[CountsPatch, ...] = ()

    def in_one_bin(self) -> RunSlice:
        """The same with its counts and exposure summed over the field of view."""
        return replace(
            self,
            counts=csr_array(self.counts.sum(axis=1)[:, None]),
            exposure=self.exposure.sum(keepdims=True),
            displacement=None,
            signal=None if self.signal is None else self.signal.in_one_bin(),
            sources=tuple(source.in_one_bin() for source in self.sources),
        )

    def with_amplitudes(self, fit: AmplitudeFit) -> RunSlice:
        """The same with what the sources add at fitted amplitudes in the signal."""
        return replace(self, signal=fit.bands.signal(self.signal, self.sources, fit.values), sources=())


@dataclass(frozen=True)
class ReducedRun:
    """What is kept of one observation; light enough to be sent to other processes.

    Attributes
    ----------
    key : `RunKey`
        What the run is recognised by; its label may repeat, or be missing.
    slices : tuple of `RunSlice`
        The run in the order of time: of nearly one zenith angle each where the model follows it, else one.
    covariates : dict of float
        What the event header tells of the state of the instrument, by keyword; one that is missing or no number is not
        here.
    dropped : dict of int
        Events that were left out, by reason.
    notes : `RunNotes`
        What a user should know of the run.
    place : int
        In the list of observations, from 0: by it runs are told apart.
    sky : `SkyCounts` or None
        Its events on the sky, those of excluded positions too.
    """

    key: RunKey
    slices: tuple[RunSlice, ...]
    covariates: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: RunNotes = field(default_factory=RunNotes)
    place: int = 0
    sky: SkyCounts | None = None

    @property
    def obs_id(self) -> int | str:
        """Label of the observation; other runs may have the same."""
        return self.key.obs_id

    @property
    def counts(self) -> csr_array:
        """Unexcluded counts of all slices, shape (energy, field-of-view bin)."""
        return self._sum("counts")

    @property
    def exposure(self) -> np.ndarray:
        """Unexcluded ontime of each field-of-view bin in s, shape (bin,)."""
        return self._sum("exposure")

    @property
    def ontime(self) -> float:
        """In s."""
        return self._sum("ontime")

    @property
    def livetime(self) -> float:
        """In s."""
        return self._sum("livetime")

    @property
    def cos_zenith(self) -> float:
        """Of the pointing, mean over the good time."""
        return self._mean("cos_zenith")

    @property
    def mjd(self) -> float:
        """Mean time."""
        return self._mean("mjd")

    @property
    def azimuth(self) -> float:
        """Of the pointing in deg, mean over the good time."""
        if len(self.slices) == 1:
            return self.slices[0].azimuth
        azimuth = np.radians([part.azimuth for part in self.slices])
        return float(np.degrees(circmean(azimuth, weights=[part.ontime for part in self.slices])) % 360)

    @property
    def cos_zenith_range(self) -> tuple[float, float]:
        """Smallest and largest cos zenith of the pointing during the good time."""
        return zenith_range(self.slices)

    @property
    def displacement(self) -> np.ndarray | None:
        """That of the slices, weighted by exposure, see `RunSlice`."""
        return self.slices[0].displacement if len(self.slices) == 1 else mean_displacement(self.slices)

    @property
    def has_sources(self) -> bool:
        """Whether gamma-ray sources are known that may add to its counts."""
        return any(part.sources or part.signal is not None for part in self.slices)

    @property
    def signal(self) -> CountsPatch | None:
        """Counts that gamma-ray sources of known flux add in all slices."""
        return add_patches([part.signal for part in self.slices])

    def with_share(self, share: float) -> ReducedRun:
        """The same with this share of what sources add, for a run of which only so many of its events are there."""

        def scaled(patch):
            return None if patch is None else patch.scaled(np.full(len(patch.values), share))

        slices = (
            replace(part, signal=scaled(part.signal), sources=tuple(map(scaled, part.sources))) for part in self.slices
        )
        return replace(self, slices=tuple(slices))

    def with_counts(self, counts: dict[int, csr_array]) -> ReducedRun:
        """The same with other counts in some of its slices, by their `id`."""
        return replace(
            self, slices=tuple(replace(part, counts=counts.get(id(part), part.counts)) for part in self.slices)
        )

    def with_amplitudes(self, fit: AmplitudeFit | None) -> ReducedRun:
        """The same with what the sources add at fitted amplitudes in the signal; without a fit as it is."""
        if fit is None:
            return self
        sky = None if self.sky is None else self.sky.with_amplitudes(fit)
        return replace(self, slices=tuple(part.with_amplitudes(fit) for part in self.slices), sky=sky)

    def whole(self) -> RunSlice:
        """The run as one slice, at its mean zenith angle and at the azimuth of the first."""
        if len(self.slices) == 1:
            return self.slices[0]
        return replace(
            self.slices[0],
            counts=self.counts,
            exposure=self.exposure,
            displacement=self.displacement,
            ontime=float(self.ontime),
            livetime=float(self.livetime),
            cos_zenith=self.cos_zenith,
            cos_zenith_range=self.cos_zenith_range,
            signal=self.signal,
            sources=tuple(map(sum_patches, zip(*(part.sources for part in self.slices), strict=True))),
        )

    def _sum(self, name):
        first, *others = (getattr(part, name) for part in self.slices)
        return sum(others, start=first)

    def _mean(self, name):
        values, ontime = ([getattr(part, k) for part in self.slices] for k in (name, "ontime"))
        return values[0] if len(values) == 1 else float(np.average(values, weights=ontime))


def handed_over(runs: list[ReducedRun]) -> Iterator[ReducedRun]:
    """Reduced runs one by one: what takes one decides what it keeps, and all that is left in the list are the spectra
    and what else is not of the field of view, less than a fifth."""
    for k, run in enumerate(runs):
        runs[k] = replace(run, slices=tuple(part.in_one_bin() for part in run.slices))
        yield run
    give_back_memory()


def in_own_order(runs: Iterable[ReducedRun]) -> list[ReducedRun]:
    """Reduced runs in an order that is theirs: sums are then the same to the last digit,
    in whatever order the runs came, and whatever their labels are."""
    return sorted(runs, key=_content)


def _content(run):
    totals = (float(sum(getattr(part, name).sum() for part in run.slices)) for name in ("counts", "exposure"))
    return run.slices[0].mjd, *totals, isinstance(run.obs_id, str), run.obs_id
