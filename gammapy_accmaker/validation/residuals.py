"""Counts of runs and what a fitted maker expects of them, stacked in the camera frame and field by field in the sky."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import astropy.units as u
import numpy as np
from regions import CircleSkyRegion

from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.camera.bins import CountsBins, FovBins, as_edges, offset
from gammapy_accmaker.data.observations import as_observations, find_unreadable, read_files
from gammapy_accmaker.data.sky_counts import SKY_PIXEL
from gammapy_accmaker.data.source_counts import model_extent
from gammapy_accmaker.errors import AcceptanceError
from gammapy_accmaker.products.background import icrs_vectors
from gammapy_accmaker.products.sky_stack import SkyField, fill_sky
from gammapy_accmaker.utils.parallel import Execution, ProcessDiedError
from gammapy_accmaker.utils.run_key import LeftOut, RunKey, reason_of, require_runs, run_label, run_names
from gammapy_accmaker.validation.stacks import DISC_RADIUS, disc_scores, make_sky_stack, sky_significance, whole_discs

PIXELS_IN_DISC = np.pi * (DISC_RADIUS / SKY_PIXEL) ** 2
_POINT_SPREAD = 0.3  # deg, around a source that is left out
_CHUNK = 64  # runs that are in memory at once


@dataclass(frozen=True)
class RunSummary:
    """What a run gave to the stacks.

    Attributes
    ----------
    key : `RunKey`
    covariates : dict
        Of the instrument, such as MUONEFF.
    dropped : dict
        Events that were not used, by reason.
    unexcluded : float
        Part of the ontime and solid angle outside of the exclusion.
    ontime : float
        In s.
    mjd : float
        Mean time of its first slice.
    counts, expected : `~numpy.ndarray`
        Outside of the exclusion, in the bins of `Residuals.energy_edges`.
    """

    key: RunKey
    covariates: dict[str, float]
    dropped: dict[str, int]
    unexcluded: float
    ontime: float
    mjd: float
    counts: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Residuals:
    """Stacked counts and expectation.

    Attributes
    ----------
    bands : `~numpy.ndarray`
        Edges of the energy bands in TeV, shape (n + 1,).
    fov : `FovBins`
        Pixels of the camera frame.
    offset_max : float
        Largest offset in deg.
    counts, expected : `~numpy.ndarray`
        Outside of the exclusion, shape (n, fov.size); known sources are part of what is expected, but not in the
        fields, which leave them out.
    fields : list of `SkyField`
    runs : list of `RunSummary`
        Runs in the stacks.
    failures : dict of `LeftOut`
        Why a run is not in the stacks, by place in the list of observations.
    energy_edges : `~numpy.ndarray`
        Of the bins of spectra, in TeV: tenths of a decade within the bands, or so.
    """

    bands: np.ndarray
    fov: FovBins
    offset_max: float
    counts: np.ndarray
    expected: np.ndarray
    fields: list[SkyField]
    runs: list[RunSummary]
    failures: dict[int, LeftOut]
    energy_edges: np.ndarray

    def spectra(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts and expectation of all runs in the bins of ``energy_edges``."""
        return np.sum([run.counts for run in self.runs], axis=0), np.sum([run.expected for run in self.runs], axis=0)

    @property
    def excluded_share(self) -> float:
        """Part of the ontime and solid angle that is excluded."""
        return 1 - float(np.average([run.unexcluded for run in self.runs], weights=[run.ontime for run in self.runs]))

    def expected_in_disc(self) -> np.ndarray:
        """Counts expected in a disc of the camera frame, the mean by energy band."""
        inside = offset(self.fov.fov_lon, self.fov.fov_lat) < self.offset_max
        return PIXELS_IN_DISC * self.expected.sum(1) / inside.sum()

    def expected_in_sky_disc(self) -> np.ndarray:
        """Counts expected in a disc of the sky, the mean over the discs of all fields by energy band."""
        total, pixels = np.zeros(len(self.bands) - 1), 0
        for sky_field in self.fields:
            whole = whole_discs(sky_field)
            total += sky_field.expected.data[:, whole].sum(1)
            pixels += int(whole.sum())
        return PIXELS_IN_DISC * total / max(pixels, 1)

    def camera_scores(self) -> np.ndarray:
        """Scores of discs in the camera frame, shape (n, n_lon, n_lat);
        NaN where a disc would reach beyond the field."""
        inside = offset(self.fov.fov_lon, self.fov.fov_lat) < self.offset_max - DISC_RADIUS
        scores = disc_scores(self.counts, self.expected, self.fov.shape, inside)
        return scores.reshape(-1, *self.fov.shape)

    def sky_scores(self) -> list[np.ndarray]:
        """Scores of all discs of all fields, by energy band."""
        by_field = ([scores for scores, _ in bands] for bands in sky_significance(self.fields))
        return [np.concatenate(scores) for scores in zip(*by_field, strict=True)]


def stack_residuals(maker, observations, bands: u.Quantity, *, n_jobs=None, parallel_backend=None) -> Residuals:
    """Adapt a fitted maker to runs and stack their counts and expectation.

    Parameters
    ----------
    maker : `~gammapy_accmaker.AcceptanceBackgroundMaker`
        With a model.
    observations : `~gammapy.data.Observations` or list of `~gammapy.data.Observation`
        Those that cannot be used are listed in ``failures``.
    bands : `~astropy.units.Quantity`
        Edges of the energy bands.
    n_jobs : int, optional
        Processes.
    parallel_backend : {"multiprocessing", "ray"}, optional

    Raises
    ------
    InputError
        Without observations, or where none can be used.
    """
    observations, execution = as_observations(observations), Execution.of(n_jobs, parallel_backend)
    bands, config = as_edges(bands, "TeV", "bands"), maker.config
    offset_max = config.offset_max.to_value("deg")
    half = int(np.ceil(offset_max / SKY_PIXEL - 1e-6))
    # each band in tenths of a decade: what is summed over them is what is stacked
    steps = [max(int(round(10 * np.log10(b / a))), 1) for a, b in zip(bands[:-1], bands[1:], strict=True)]
    pieces = [np.geomspace(a, b, n + 1)[:-1] for a, b, n in zip(bands[:-1], bands[1:], steps, strict=True)]
    edges, starts = np.append(np.concatenate(pieces), bands[-1]), np.cumsum([0, *steps[:-1]])
    bins = CountsBins(edges, FovBins.grid(half * SKY_PIXEL, 2 * half), config.fov_alignment, offset_max)
    exclusion = maker.exclusion
    reduction = Reduction(config, bins, exclusion, maker.known_sources)
    unreadable = find_unreadable(observations, config.observatory_location)
    readable = {k: o for k, o in enumerate(observations) if k not in unreadable}
    # in the camera frame sources are part of what is expected; what they add on the sky is not worked out
    on_sky = exclusion.with_regions(_around(maker.known_sources))
    sky = make_sky_stack(readable, bands, offset_max, config, on_sky)
    counts, expected = np.zeros((2, len(bands) - 1, bins.fov.size))
    labels = [run_label(observation.obs_id) for observation in observations]
    names = run_names(labels)
    runs, failures = [], {k: LeftOut(labels[k], names[k], reason) for k, reason in unreadable.items()}
    for first in range(0, len(readable), _CHUNK):
        numbers = list(readable)[first : first + _CHUNK]
        tasks = [(observations[k], sky.field_of(k).counts.geom) for k in numbers]
        results = execution.map(partial(_residuals_of_run, maker, reduction), tasks, "Residuals")
        for k, result in zip(numbers, results, strict=True):
            if isinstance(result, (str, ProcessDiedError)):
                failures[k] = LeftOut(labels[k], names[k], str(result))
                continue
            summary, in_camera, in_sky = result
            runs.append(summary)
            counts += np.add.reduceat(in_camera[0], starts, axis=0)
            expected += np.add.reduceat(in_camera[1], starts, axis=0)
            sky.add_arrays(k, *in_sky)
    require_runs(runs, failures.values())
    return Residuals(bands, bins.fov, offset_max, counts, expected, sky.fields, runs, failures, edges)


def _around(sources) -> list[CircleSkyRegion]:
    """Circles around known sources, as wide as they are and their point spread; none around what is everywhere."""
    circles = []
    for source in sources:
        center, radius = model_extent(source.model)
        if center is not None:
            circles.append(CircleSkyRegion(center, (radius + _POINT_SPREAD) * u.deg))
    return circles


def _residuals_of_run(maker, reduction, observation, geom):
    bins = reduction.bins
    try:
        observation, config = read_files(observation), maker.config  # once, for fit, camera and sky
        track = reduction.track(observation)
        model, reduction = maker.adapt(observation), replace(reduction, sources=maker.sources_in(observation))
        run = reduction.reduce(observation, track)
        in_sky = fill_sky(
            observation,
            track,
            model,
            geom,
            config.offset_max.deg,
            config.time_step_seconds,
            config.observatory_location,
        )
    except (AcceptanceError, OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        return reason_of(error, observation.obs_id)
    if maker.config.exclusion.wobble_half is not False:  # what is left out of this run alone
        excluded = reduction.run_exclusion(observation).contains(icrs_vectors(geom.to_image()))
        in_sky = tuple(values * ~excluded.reshape(geom.to_image().data_shape) for values in in_sky)
    counts, expected = run.counts.toarray(), model.expected_counts(run.slices, bins.energy_edges, bins.fov)
    if run.signal is not None:
        expected = expected + run.signal.toarray()
    unexcluded = np.average(run.exposure[bins.inside], weights=bins.fov.solid_angle[bins.inside]) / run.ontime
    summary = RunSummary(
        run.key,
        run.covariates,
        run.dropped,
        float(unexcluded),
        run.ontime,
        run.slices[0].mjd,
        counts.sum(1),
        expected.sum(1),
    )
    return summary, (counts, expected), in_sky
