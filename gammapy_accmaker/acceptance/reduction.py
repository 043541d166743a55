"""Configuration + observations -> reduced runs: which bins, which exclusion, which runs can be used."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass, replace
from functools import partial

from astropy.coordinates import SkyCoord
from gammapy.maps import Map

from gammapy_accmaker.camera.bins import CountsBins
from gammapy_accmaker.camera.track import MAX_ZENITH_CHANGE, FovTrack
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.cache import RunCache, fingerprint, in_memory
from gammapy_accmaker.data.counts import (
    MUON_EFFICIENCY,
    check_zenith,
    observation_track,
    reduce_observation,
    run_key,
)
from gammapy_accmaker.data.exclusion import Exclusion, without_source_half
from gammapy_accmaker.data.grouping import zenith_cells
from gammapy_accmaker.data.observations import read_files
from gammapy_accmaker.data.reduced_run import ReducedRun
from gammapy_accmaker.data.region_files import catalog_regions
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import ObservationError, reading
from gammapy_accmaker.utils.arguments import check_choice
from gammapy_accmaker.utils.parallel import SERIAL, Execution, ProcessDiedError
from gammapy_accmaker.utils.run_key import LeftOut, RunKey, reason_of, run_label, run_names

log = logging.getLogger(__name__)


def make_bins(config: AcceptanceConfig) -> CountsBins:
    """Bins that the configuration asks for."""
    return config.model.make_bins(config.energy, config.fit_energy, config.offset_max.deg, config.fov_alignment)


def make_exclusion(config: AcceptanceConfig, exclusion=None) -> Exclusion:
    """Exclusion of the configuration and what is given besides it."""
    options, items = config.exclusion, []
    if options.mask is not None:
        with reading(f"exclusion.mask: {options.mask} cannot be read as a map"):
            mask = Map.read(options.mask)
        items.append(Exclusion(mask, options.margin, options.mask.name))
    if options.catalog is not None:
        circles = catalog_regions(**dict(options.catalog))
        items.append(Exclusion(circles, options.margin, options.catalog.path.name))
    return Exclusion([options.regions, *items, exclusion], options.margin)


def make_sources(config: AcceptanceConfig, sources=None) -> SourceList:
    """Sources of the file that the configuration names, and what is given besides them."""
    return SourceList.of([*config.sources.files(), SourceList.of(sources)])


def _reading(observation):
    return reading(f"observation {observation.obs_id}: it cannot be read", kind=ObservationError)


@dataclass(frozen=True)
class Reduction:
    """How observations become reduced runs: made once from a configuration, for one observation or many.

    Attributes
    ----------
    config : `AcceptanceConfig`
        It says how a run is cut in time, which site it is seen from, and which keywords are read.
    bins : `CountsBins`
        Of energy and field of view.
    exclusion : `Exclusion`
        Left out of counts and exposure of all runs.
    sources : `SourceList`
        Whose counts in the field of view of each run are worked out.
    """

    config: AcceptanceConfig
    bins: CountsBins
    exclusion: Exclusion
    sources: SourceList = SourceList()

    @classmethod
    def of(cls, config: AcceptanceConfig, exclusion=None, sources=None) -> Reduction:
        """The bins that a configuration asks for, its exclusion and its sources, whose files are read, and what is
        given besides them."""
        return cls(config, make_bins(config), make_exclusion(config, exclusion), make_sources(config, sources))

    def run_exclusion(self, observation) -> Exclusion:
        """The exclusion and what is left out of this run alone."""
        half = self.config.exclusion.wobble_half
        if half is False:
            return self.exclusion
        source = None if half is True else SkyCoord(half.lon, half.lat, frame=half.frame)
        offset_max, site = self.config.offset_max.deg, self.config.observatory_location
        return without_source_half(observation, self.exclusion, source, offset_max, site)

    def recognise(self, observation) -> RunKey:
        """What an observation that comes alone is recognised by; its events are not read."""
        observation = read_files(observation)
        with _reading(observation):
            site = self.config.observatory_location
            return run_key(observation, observation_track(observation, "radec", site, turning=False))

    def track(self, observation) -> FovTrack:
        """Its track in the camera, with a zenith angle where the model follows it; its events are not read."""
        observation = read_files(observation)
        location = self.config.observatory_location
        with _reading(observation):
            track = observation_track(observation, self.bins.alignment, location)
            if self.config.needs_zenith:
                check_zenith(observation, track, location)
            return track

    def _where_slices_end(self):
        """Change of cos zenith in a slice, and the cos zenith and azimuth at which slices end too."""
        config, pooled = self.config, self.config.zenith_bins
        change = MAX_ZENITH_CHANGE if config.zenith.type in ("continuous", "interpolated") else None
        return change, () if pooled is None else zenith_cells(pooled.initial_width), config.azimuth.edges

    def slices(self, track: FovTrack) -> list[FovTrack]:
        """The track of a run in each of its slices."""
        edges = track.slice_edges(*self._where_slices_end())
        parts = [track.during(start, stop) for start, stop in itertools.pairwise(edges)]
        return [part for part in parts if part.ontime > 0]

    def reduce(self, observation, track: FovTrack | None = None) -> ReducedRun:
        """Counts and exposure of one observation, which must have some of each, in slices of nearly one zenith angle.

        ``track``: that of `track`, where it is known already.
        """
        config, (change, zeniths, azimuths) = self.config, self._where_slices_end()
        observation = read_files(observation)
        with _reading(observation):
            run = reduce_observation(
                observation,
                self.bins,
                self.run_exclusion(observation),
                max_zenith_change=change,
                cos_zenith_edges=zeniths,
                azimuth_edges=azimuths,
                time_step=config.time_step_seconds,
                location=config.observatory_location,
                needs_zenith=config.needs_zenith,
                covariates=self._keywords,
                track=track,
                sources=self.sources,
            )
        if not any(part.exposure.any() for part in run.slices):
            raise ObservationError(
                f"observation {observation.obs_id}: the exclusion covers its whole field of view; make it smaller"
            )
        if not any(part.counts.nnz for part in run.slices):
            raise ObservationError(
                f"observation {observation.obs_id}: it has no events in the energies and offsets of the model outside "
                "of the exclusion"
            )
        return run

    def reduce_all(
        self, observations, execution: Execution = SERIAL, *, cache=None, on_error="skip", places=None
    ) -> tuple[list[ReducedRun], dict[int, LeftOut]]:
        """The runs that can be used, in the order of the observations, and by place in the list those that cannot, with
        the reason.

        ``places``: of the observations that are wanted; all by default. One warning names those that are left out; with
        ``on_error="raise"`` the first of them ends the reduction. ``cache``: folder of reduced runs, see `RunCache`.
        """
        check_choice(on_error, ("skip", "raise"), "on_error")
        if cache is not None:
            cache = self.open_cache(cache)
        places = range(len(observations)) if places is None else places
        labels = [run_label(observation.obs_id) for observation in observations]
        names = run_names(labels)
        inputs = [(observations[place],) for place in places]
        runs, failures = [], {}
        results = execution.map(partial(_reduce_or_explain, self, cache), inputs, "Reduction of observations")
        for place, result in zip(places, results, strict=True):
            if isinstance(result, ReducedRun):
                runs.append(replace(result, place=place))
                continue
            reason = f"{type(result).__name__}: {result}" if isinstance(result, ProcessDiedError) else result
            if on_error == "raise":
                raise ObservationError(f"observation {names[place]} cannot be used: {reason}")
            failures[place] = LeftOut(labels[place], names[place], reason)
        if failures:
            reasons = "\n".join(f"  {left_out}" for left_out in failures.values())
            log.warning(f"{len(failures)} of {len(inputs)} observations are left out:\n{reasons}")
        return runs, failures

    def open_cache(self, folder) -> RunCache:
        """The cache of the runs that this reduces, in a folder."""
        shape = len(self.bins.energy_edges) - 1, self.bins.fov.size
        return RunCache.open(folder, self.fingerprint, shape, responses=len(self.sources) > 0)

    @property
    def fingerprint(self) -> str:
        """One number for all that `reduce` depends on besides the observation: equal ones give equal runs."""
        config, pooled = self.config, self.config.zenith_bins
        return fingerprint(
            self.bins,
            MAX_ZENITH_CHANGE,
            self.exclusion,
            config.zenith.type,
            None if pooled is None else pooled.initial_width,
            config.azimuth.edges,
            str(config.exclusion.wobble_half),
            config.time_step_seconds,
            config.observatory_location,
            self._keywords,
            self.sources.sources,
        )

    @property
    def _keywords(self):
        """Keywords of the event header that are read of each run:
        what the model follows, and the muon efficiency to be shown."""
        return tuple(dict.fromkeys((MUON_EFFICIENCY, *self.config.model.keywords)))


def _reduce_or_explain(reduction, cache, observation):
    try:
        run = None if cache is None else cache.get(observation)
        if run is None:
            held = in_memory(observation)
            observation = read_files(observation)
            run = reduction.reduce(observation)
            if cache is not None:
                cache.put(observation, run, held)
        return run
    except Exception as error:  # of whatever kind, it costs this run, not the fit
        return reason_of(error, observation.obs_id)
