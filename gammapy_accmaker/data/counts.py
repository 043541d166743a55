"""One observation -> `ReducedRun`: counts and exposure in the field of view. The only reader of events."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation
from scipy.ndimage import binary_dilation, gaussian_filter1d
from scipy.sparse import csr_array

from gammapy_accmaker.camera.bins import FINE, CountsBins, FovBins, axis_index
from gammapy_accmaker.camera.track import (
    FovTrack,
    fov_track,
    seconds_between,
    site_numbers,
    time_nodes,
    unit_vectors,
    vectors_to_lonlat,
)
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.notes import RunNotes, find_reach
from gammapy_accmaker.data.observations import SITE_REMEDY, event_columns, named_site, observation_site
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice
from gammapy_accmaker.data.sky_counts import SkyCounts
from gammapy_accmaker.data.source_counts import SourceOnSky, expected_on_sky
from gammapy_accmaker.data.sources import NO_SOURCES, SourceList
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.source_terms import CountsPatch, add_patches
from gammapy_accmaker.utils.run_key import RunKey, run_label

MUON_EFFICIENCY = "MUONEFF"  # keyword of the event header
_MIN_COS_ZENITH = 0.02  # nothing is observed within 1 deg of the horizon: the site, or the times, are wrong
_SUBPOINTS = 5  # along each side of a bin that an exclusion touches
_AT_A_TIME = 2**16  # positions that are followed together: all those of a wide field would take a GB
_RING_TRACK_STEP = 300.0  # s, between nodes where only zenith and azimuth are wanted
_POINTING_STEP = 60.0  # s, between the nodes of the track
_EVEN = 1e-6  # deg; a displacement below is rounding
_PEAK_STEP, _PEAK_WIDTH = 0.01, 0.05  # in log10 of the energy, of the spectrum whose peak is looked for
_MIN_EXPOSURE = 0.02  # of the ontime; a bin that is seen less is left out, since its counts are edge effects


def observation_track(
    observation,
    alignment: str,
    location: EarthLocation | None = None,
    step: float = _POINTING_STEP,
    turning: bool = True,
) -> FovTrack:
    """Camera track of a gammapy observation, see `fov_track`.

    A ``location`` that is given wins over that of the observation. Zenith angle and azimuth are NaN where the site is
    not known, or cannot be true since the run would be below the horizon, and the camera frame does not need it.

    Raises
    ------
    ObservationError
        Where the site is needed and not known, or cannot be true.
    """
    gti = observation.gti
    if gti is None or len(gti.table) == 0:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no good time intervals, but some ontime is needed"
        )
    if observation.pointing is None:
        raise ObservationError(
            f"observation {observation.obs_id}: it has no pointing; its events need the keywords RA_PNT and DEC_PNT"
        )
    site, needed = (
        observation_site(observation, location),
        alignment == "altaz" or observation.pointing.fixed_icrs is None,
    )
    if needed and site is None:
        raise ObservationError(f"observation {observation.obs_id}: {_without_zenith(None, None, location)}")
    try:
        track = fov_track(observation.pointing, gti.time_start, gti.time_stop, site, alignment, step, turning)
    except ObservationError as error:
        raise ObservationError(str(error).replace("observation:", f"observation {observation.obs_id}:", 1)) from error
    if site is not None and track.cos_zenith.min() < _MIN_COS_ZENITH:
        if needed:
            raise ObservationError(f"observation {observation.obs_id}: {_without_zenith(site, track, location)}")
        unknown = np.full(len(track.seconds), np.nan)
        track = replace(track, cos_zenith=unknown, azimuth=unknown)
    return track


def check_zenith(observation, track: FovTrack, location: EarthLocation | None) -> None:
    """Raise an `ObservationError` where the zenith angle is not known, see `observation_track`."""
    if np.all(np.isfinite(track.cos_zenith)):
        return
    site = observation_site(observation, location)
    if site is not None:
        gti = observation.gti
        track = fov_track(observation.pointing, gti.time_start, gti.time_stop, site, "radec")
    raise ObservationError(f"observation {observation.obs_id}: {_without_zenith(site, track, location)}")


def _without_zenith(site, track, given):
    """Why the zenith angle of a run is not known, and what to do."""
    if site is None:
        return (
            "it has no observatory location (GEOLON, GEOLAT, ALTITUDE are missing, NaN or all 0), but the zenith "
            "angle, or the alignment 'altaz', needs one; "
            f"{SITE_REMEDY}, or use `fov_alignment: radec` with `zenith: {{type: none}}`"
        )
    zenith = np.degrees(np.arccos(np.clip(track.cos_zenith, -1, 1)))
    where = f"lon {site.lon.deg:.4f} deg, lat {site.lat.deg:.4f} deg"
    named = "its own keywords" if given is None else "`observatory_location`"
    remedy = SITE_REMEDY if given is None else "correct it"
    return (
        f"seen from the site that {named} give{'' if given is None else 's'} ({where}) it points {zenith.min():.1f} to "
        f"{zenith.max():.1f} deg from the zenith, below the horizon; {remedy}"
    )


def run_key(observation, track: FovTrack) -> RunKey:
    """What an observation with this track is recognised by where it comes alone."""
    return RunKey(run_label(observation.obs_id), float(track.start.tt.mjd), _pointing(track))


def _pointing(track):
    """Right ascension and declination in deg at the start."""
    lon, lat = np.degrees(vectors_to_lonlat(track.matrices[0, 0]))
    return float(lon), float(lat)


def reduce_observation(
    observation,
    bins: CountsBins,
    exclusion: Exclusion | None = None,
    *,
    max_zenith_change: float | None = None,
    cos_zenith_edges=(),
    azimuth_edges=(),
    time_step: float | None = 60.0,
    location: EarthLocation | None = None,
    needs_zenith: bool = False,
    covariates=(MUON_EFFICIENCY,),
    track: FovTrack | None = None,
    sources: SourceList = NO_SOURCES,
) -> ReducedRun:
    """Counts and exposure of an observation in the field of view, slice by slice in time.

    Parameters
    ----------
    observation : `~gammapy.data.Observation`
        It is not changed.
    bins : `CountsBins`
        Bins of energy and field of view.
    exclusion : `Exclusion`, optional
        Sky positions left out of counts and exposure.
    max_zenith_change : float, optional
        Over which cos zenith may change within a slice; without it, and without edges, the whole run is one slice.
    cos_zenith_edges, azimuth_edges : array-like
        Cos zenith and azimuth (deg) of the pointing at which slices end too.
    time_step : float or None
        Resolution in s at which exclusions turn through the camera; None: one step.
    location : `~astropy.coordinates.EarthLocation`, optional
        Site; it wins over that of the observation.
    needs_zenith : bool
        Whether a run whose zenith angle is not known is an error; with edges and the alignment "altaz" it always is.
    covariates : sequence of str
        Keywords of the event header whose numbers are kept.
    track : `FovTrack`, optional
        `observation_track` of the observation, where it is known already. Rings, which do not turn, make a coarser one.
    sources : `SourceList`
        Gamma-ray sources whose counts are worked out from the responses of the run.

    Returns
    -------
    run : `ReducedRun`
        The exposures of its slices sum to that of the run.

    Raises
    ------
    ObservationError
        Where the observation has no good time, no location that is needed, or no usable events, or where responses that
        the sources need are missing.
    """
    if bins.fov.is_radial:
        # rings do not notice how the field turns: what it costs to follow it is saved
        step = _RING_TRACK_STEP if len(azimuth_edges) == 0 else _POINTING_STEP
        track = observation_track(observation, bins.alignment, location, step, turning=False)
    elif track is None:
        track = observation_track(observation, bins.alignment, location)
    if needs_zenith or len(cos_zenith_edges) + len(azimuth_edges):
        check_zenith(observation, track, location)
    xyz, energy, seconds, dropped, header = _read_events(observation, track)
    read = {name: header_number(header, name) for name in covariates}
    numbers = {name: number for name, number in read.items() if number is not None}
    if exclusion is None:
        exclusion = Exclusion()
    exclusion = exclusion.near(track.matrices[0, 0], bins.fov.offset_max + track.pointing_drift)
    camera = track.to_camera(xyz, seconds)
    offsets = np.degrees(np.arctan2(np.hypot(camera[:, 1], camera[:, 2]), camera[:, 0]))
    # of a square grid the half side: its corners are no part of a round field
    half_side = min(float(edges[-1]) for edges in bins.fov.edges)
    reach = find_reach(offsets, half_side)
    notes = _notes(
        observation, header, track, location, len(xyz) + dropped["outside GTI"], dropped["outside GTI"], reach
    )
    edges = track.slice_edges(max_zenith_change, cos_zenith_edges, azimuth_edges)
    parts = [track.during(start, stop) for start, stop in itertools.pairwise(edges)]
    parts = [part for part in parts if part.ontime > 0]
    energy_bin = axis_index(bins.energy_edges, energy)
    sky = SkyCounts.of(track, parts, xyz, energy_bin, bins.energy_edges, min(bins.offset_max, half_side))
    keep = ~exclusion.contains(xyz)
    dropped["excluded"] = int((~keep).sum())
    energy_bin, seconds = energy_bin[keep], seconds[keep]
    if bins.fov.is_radial:
        fov_bin = axis_index(bins.fov.edges[0], offsets[keep])
    else:
        fov_bin = bins.fov.index(*np.degrees(vectors_to_lonlat(camera[keep])))
    inside = (fov_bin >= 0) & (energy_bin >= 0) & bins.inside[fov_bin]
    dropped["out of range"] = int((~inside).sum())
    dropped["unexposed bin"] = 0
    live = _live_fraction(observation)
    of_sources = _SourceCounts.of(observation, sources, track, bins, energy)
    if len(sources) and "psf" not in observation.available_irfs:
        notes = replace(notes, without_psf=True)

    starts = [part.intervals[0, 0] for part in parts]
    number = np.searchsorted(starts[1:], seconds, side="right")
    slices, key = [], run_key(observation, track)
    for k, part in enumerate(parts):
        fraction, displacement = _unexcluded_part(bins.fov, part, exclusion, time_step)
        fraction *= bins.inside
        here = inside & (number == k)
        seen = here & (fraction > 0)[fov_bin]
        dropped["unexposed bin"] += int((here & ~seen).sum())
        shape = (len(bins.energy_edges) - 1, bins.fov.size)
        counts = _count(energy_bin[seen], fov_bin[seen], shape)
        one = _run_slice(key, part, counts, fraction, displacement, live, numbers)
        slices.append(of_sources.added_to(one, part, exclusion, time_step))
    sky = of_sources.added_to_sky(sky, sum(part.livetime for part in slices))
    return ReducedRun(key, tuple(slices), numbers, dropped, notes, sky=sky)


def _count(row, column, shape):
    """How often each bin comes, as a sparse matrix: sorted once."""
    number, counts = np.unique(row * shape[1] + column, return_counts=True)
    row, column = np.divmod(number, shape[1])
    starts = np.searchsorted(row, np.arange(shape[0] + 1))
    return csr_array((counts.astype(np.int32), column.astype(np.int32), starts.astype(np.int32)), shape=shape)


def source_counts(
    observation, sources: SourceList, track: FovTrack, bins: CountsBins
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions on the sky, ICRS unit vectors of shape (n, 3), and counts, shape (n_energy, n), that each source of
    known flux adds to a run; what is excluded is counted too."""
    if not len(sources):
        return []
    energies = _read_events(observation, track)[1]
    of_sources = _SourceCounts.of(observation, sources, track, bins, energies)
    return of_sources.on_positions(_live_fraction(observation) * track.ontime)


def _run_slice(key, track, counts, fraction, displacement, live, covariates):
    nodes, weights = time_nodes(track.intervals, _POINTING_STEP)
    mean_time = np.average(nodes, weights=weights)
    return RunSlice(
        key=key,
        counts=counts,
        exposure=fraction * track.ontime,
        displacement=displacement,
        ontime=track.ontime,
        livetime=live * track.ontime,
        cos_zenith=track.mean_cos_zenith,
        azimuth=track.mean_azimuth,
        cos_zenith_range=track.cos_zenith_range,
        mjd=float(track.start.mjd + mean_time / 86400),
        pointing=_pointing(track),
        covariates=covariates,
    )


def _threshold(energy, at):
    """Energy in TeV at which the events of a run are most, in equal steps of its logarithm, and how many there are at
    other energies over that, which falls to 0 below the threshold of the run."""
    log = np.log10(energy)
    edges = np.arange(log.min() - 3 * _PEAK_WIDTH, log.max() + 3 * _PEAK_WIDTH, _PEAK_STEP)
    counts = gaussian_filter1d(np.histogram(log, edges)[0].astype(float), _PEAK_WIDTH / _PEAK_STEP, mode="constant")
    middle = edges[:-1] + 0.5 * _PEAK_STEP
    share = np.interp(np.log10(at), middle, counts / counts.max(), left=0.0, right=0.0)
    return float(10 ** middle[np.argmax(counts)]), share


@dataclass(frozen=True)
class _SourceCounts:
    """What sources add to a run: those that are in its field, on the sky.

    Attributes
    ----------
    sources : `SourceList`
    on_sky : list of `SourceOnSky` or None
        Of each; empty for none.
    bins : `CountsBins`
    above, below : `~numpy.ndarray`, shape (n_energy,)
        1 in the energy bins above the peak of the events of the run, else 0; and below it how many events the run has
        over those at the peak, else 0. There a threshold rules, which responses know badly, or not at all where events
        were cut: what is expected of a source falls with the events.
    """

    sources: SourceList
    on_sky: list[SourceOnSky | None]
    bins: CountsBins
    above: np.ndarray
    below: np.ndarray

    @classmethod
    def of(cls, observation, sources, track, bins, energy):
        if not len(sources):
            return cls(sources, [], bins, np.zeros(0), np.zeros(0))
        edges, reach = bins.energy_edges, bins.fov.offset_max + track.pointing_drift
        on_sky = expected_on_sky([source.model for source in sources], observation, track, edges, reach)
        peak, share = _threshold(energy, np.sqrt(edges[1:] * edges[:-1]))
        lowest = max([peak, *(one.lowest for one in on_sky if one is not None)])
        above = edges[1:] > lowest
        return cls(sources, on_sky, bins, above, np.where(above, 0.0, np.where(edges[:-1] > peak, 1.0, share)))

    def added_to(self, part, track, exclusion, time_step):
        """A slice with what the sources add to it: known fluxes in its signal, and units of those that are free."""
        here = part.livetime, part.exposure > 0, self.bins, exclusion, time_step
        return self._added(part, part.counts.shape, lambda source: source.in_camera(track, *here))

    def added_to_sky(self, sky, livetime):
        """The same for the counts of the run on the sky, with what is excluded."""
        shape = len(self.bins.energy_edges) - 1, sky.side**2
        return self._added(sky, shape, lambda source: sky.binned(source.xyz, livetime * source.rate, source.pixel))

    def _added(self, part, shape, counts):
        if not self.on_sky:
            return part
        free, free_below, known = [], [], []
        for source, on_sky in zip(self.sources, self.on_sky, strict=True):
            patch = CountsPatch.nothing(shape) if on_sky is None else counts(on_sky)
            if source.is_free:
                free.append(patch.scaled(self.above))
                free_below.append(patch.scaled(self.below))
            else:
                known.append(patch.scaled(self._factors(source)))
        return replace(part, signal=add_patches(known), sources=(*free, *free_below))

    def _factors(self, source):
        """Factor on a source of known flux in each energy bin."""
        middle = np.sqrt(self.bins.energy_edges[1:] * self.bins.energy_edges[:-1])
        return self.above * source.factors(middle) + self.below * source.factors(middle, below=True)

    def on_positions(self, livetime):
        """ICRS unit vectors and counts in the energy bins of each source of known flux that adds some."""
        some = [(source, own) for source, own in zip(self.sources, self.on_sky, strict=True) if own is not None]
        return [(own.xyz, livetime * self._factors(source)[:, None] * own.rate) for source, own in some]


def _live_fraction(observation):
    """Livetime over ontime; 1 where the observation has no metadata that tell its dead time."""
    if observation.meta is None:
        return 1.0
    return (1.0 - observation.observation_dead_time_fraction) * observation.obs_filter.livetime_fraction


def _read_events(observation, track):
    """ICRS unit vectors, energies in TeV and seconds after the start of the track of the usable events,
    and their header."""
    try:
        columns, header = event_columns(observation)
        ra, dec = (_values(columns[name], "rad") for name in ("RA", "DEC"))
        energy = _values(columns["ENERGY"], "TeV")
    except (KeyError, TypeError, ValueError) as error:  # gammapy checks the columns as it reads them
        raise ObservationError(
            f"observation {observation.obs_id}: its events cannot be used ({error}); they need the columns TIME, "
            "RA and DEC (angles) and ENERGY (an energy)"
        ) from error
    seconds = _seconds_after_start(columns["TIME"], track)
    good = np.isfinite(ra) & np.isfinite(dec) & np.isfinite(energy) & (energy > 0) & np.isfinite(seconds)
    in_gti = _within(track.intervals, seconds)
    keep = good & in_gti
    dropped = {"not finite": int((~good).sum()), "outside GTI": int((good & ~in_gti).sum())}
    if not keep.any():
        raise ObservationError(
            f"observation {observation.obs_id}: none of its {len(keep)} events can be used ({dropped['not finite']} "
            f"masked, with NaN or energy <= 0, {dropped['outside GTI']} outside the good time intervals); "
            "leave the run out"
        )
    return unit_vectors(ra[keep], dec[keep]), energy[keep], seconds[keep], dropped, header


def in_good_time(events, track: FovTrack) -> np.ndarray:
    """Whether each event lies within the good time intervals."""
    return _within(track.intervals, _seconds_after_start(events.time, track))


def _seconds_after_start(time, track):
    """NaN where the time is masked."""
    return _filled(seconds_between(track.start, time))


def _within(intervals, seconds):
    """Whether times lie in one of the intervals, which do not overlap."""
    number = np.searchsorted(intervals[:, 0], seconds, side="right") - 1
    return (number >= 0) & (seconds <= intervals[np.maximum(number, 0), 1])


def _values(column, unit):
    """Numbers of a column in a unit; NaN where it is masked."""
    return _filled(column) * u.Unit(column.unit).to(unit)


def _filled(values):
    """Numbers as floats, NaN where they are masked, in the way of numpy or of astropy."""
    mask = getattr(values, "mask", False)
    plain = np.ma.getdata(getattr(values, "unmasked", values))
    return np.where(mask, np.nan, np.asarray(getattr(plain, "value", plain), dtype=float))


def _notes(observation, meta, track, location, n_events, outside_gti, reach):
    own, site = named_site(observation), observation_site(observation, location)
    ontime = seconds_between(observation.gti.time_start, observation.gti.time_stop)
    return RunNotes(
        instrument=" ".join(str(meta[key]).strip() for key in ("TELESCOP", "INSTRUME") if meta.get(key)),
        site=None if site is None else site_numbers(site),
        site_moved=0.0 if own is None or location is None else float(np.nan_to_num(_distance(own, location))),
        n_events=n_events,
        outside_gti=outside_gti,
        overlap=max(round(float(ontime[ontime > 0].sum()) - track.ontime, 3), 0.0),
        reach=reach,
    )


def _distance(a, b):
    """Between two sites in km."""
    return np.sqrt(sum((x - y).to_value("km") ** 2 for x, y in zip(a.geocentric, b.geocentric, strict=True)))


def _drifts(matrices):
    """Whether the pointing moves on the sky."""
    return np.ptp(matrices[:, 0], axis=0).max() > 1e-9


def unexcluded_exposure(bins: CountsBins, track: FovTrack, exclusion: Exclusion, time_step: float | None) -> np.ndarray:
    """Ontime in s of each field-of-view bin outside of an exclusion, for a slice with this track, shape (fov.size,)."""
    exclusion = exclusion.near(track.matrices[0, 0], bins.fov.offset_max + track.pointing_drift)
    return _unexcluded_part(bins.fov, track, exclusion, time_step)[0] * bins.inside * track.ontime


def _unexcluded_part(fov, track, exclusion, time_step):
    """What of the ontime and of the solid angle of each bin is not excluded.

    Its share, 0 where below _MIN_EXPOSURE, and the displacement of its mean position, see `RunSlice`.
    """
    fraction = np.ones(fov.size)
    if not len(exclusion):
        return fraction, None
    seconds, weights = time_nodes(track.intervals, time_step)
    if fov.is_radial and not _drifts(track.matrices):
        # rings do not notice that the field turns
        seconds, weights = seconds[:1], weights.sum(keepdims=True)
    camera = fov.subpoint_vectors(_SUBPOINTS)
    matrices = track.matrices_at(seconds)
    touched = _touched_bins(fov, camera, matrices, exclusion)
    points, excluded = camera[touched].reshape(-1, 3), np.zeros((len(touched), camera.shape[1]))
    for matrix, weight in zip(matrices, weights / weights.sum(), strict=True):
        excluded += weight * exclusion.contains(points @ matrix).reshape(excluded.shape)
    fraction[touched] -= excluded.mean(1)
    fraction[fraction < _MIN_EXPOSURE * (1 - 1e-9)] = 0  # but for rounding: one of the points, half of the time
    positions = fov.subpoint_positions(_SUBPOINTS)[touched]
    positions -= positions.mean(axis=1, keepdims=True)
    displacement = np.zeros((fov.size, positions.shape[2]), dtype=np.float32)
    if fov.step > FINE * (1 + 1e-6):
        part = np.where(fraction > 0, fraction, np.inf)[touched, None]
        displacement[touched] = -np.einsum("bp,bpa->ba", excluded, positions) / camera.shape[1] / part
        displacement[np.abs(displacement) < _EVEN] = 0
    return fraction, displacement if displacement.any() else None


def _touched_bins(fov, camera, matrices, exclusion):
    """Numbers of the bins that an excluded position can enter at some node."""
    if len(matrices) == 1:
        return np.flatnonzero(exclusion.contains(camera.reshape(-1, 3) @ matrices[0]).reshape(fov.size, -1).any(1))
    if _drifts(matrices):
        return np.arange(fov.size)  # the sky itself moves through the camera
    # the excluded sky within the circle around the grid, found at the first node, turns with the field
    step = min(np.diff(e).min() for e in fov.edges)
    circle = FovBins.grid(fov.offset_max, int(np.ceil(2 * fov.offset_max / step)))
    points = exclusion.inside(circle.subpoint_vectors(_SUBPOINTS).reshape(-1, 3), matrices[0])
    touched = np.zeros(fov.shape, dtype=bool)
    # between nodes that lie up to 1.5 bins apart all is within 0.75 bins of where it is at one of them
    moved = fov.offset_max * np.linalg.norm(np.diff(matrices, axis=0), axis=(1, 2)).max()
    chosen = np.concatenate([matrices[:: max(int(1.5 * step / max(moved, 1e-9)), 1)], matrices[-1:]])
    together = max(_AT_A_TIME // max(len(points), 1), 1)
    for k in range(0, len(chosen), together):
        lon, lat = vectors_to_lonlat(points @ chosen[k : k + together].transpose(0, 2, 1))
        bins = fov.index(np.degrees(lon), np.degrees(lat))
        touched.flat[bins[bins >= 0]] = True
    # one bin more all around, since only sample points were followed
    return np.flatnonzero(binary_dilation(touched, np.ones((3, 3))))


def header_number(header, name: str) -> float | None:
    """Finite number of a keyword, which may be written as text; None where there is none."""
    try:
        number = float(header.get(name, header.get(name.upper())))
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
