"""`AcceptanceBackgroundMaker`: the acceptance in gammapy's chain of makers."""

from __future__ import annotations

import logging
import textwrap
from contextlib import suppress
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import vstack
from gammapy.data import Observation
from gammapy.datasets import Datasets, MapDataset, MapDatasetOnOff, SpectrumDatasetOnOff
from gammapy.makers import AdaptiveRingBackgroundMaker, FoVBackgroundMaker, Maker, RingBackgroundMaker
from gammapy.maps import Map, RegionGeom
from gammapy.modeling import Fit
from gammapy.modeling.models import GaussianPrior, Models, TemplateNPredModel
from regions import PointSkyRegion

from gammapy_accmaker.acceptance.fit import (
    fit_acceptance,
    fit_sources,
    make_run_table,
    stack_run_tables,
    warn_of_covariates,
    warn_outside_zenith,
)
from gammapy_accmaker.acceptance.kept import KeptRuns, kept_by_run
from gammapy_accmaker.acceptance.matched import fit_matched
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.acceptance.nuisance import PriorErrors, held_by, nuisance_models, relative_error_of_sum
from gammapy_accmaker.acceptance.reduction import Reduction, make_bins, make_exclusion, make_sources
from gammapy_accmaker.acceptance.sources import beyond_fields, warn_of_sources
from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.camera.track import FovTrack
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.counts import in_good_time, run_key
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.notes import RunNotes, warn_of_notes, warn_outside_gti
from gammapy_accmaker.data.observations import as_observations, pointing_icrs
from gammapy_accmaker.data.reduced_run import ReducedRun
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import InputError, NotFittedError, ObservationError
from gammapy_accmaker.models.base import NOT_CONVERGED, AdaptedRun, RateModel, ScaledModel
from gammapy_accmaker.products.background import icrs_vectors, make_background_map
from gammapy_accmaker.products.irf import make_background_irf
from gammapy_accmaker.products.modes import BackgroundErrors
from gammapy_accmaker.products.rad_max import make_rad_max_background
from gammapy_accmaker.products.sky_stack import counts_on_map
from gammapy_accmaker.utils.arguments import check_whole
from gammapy_accmaker.utils.describe import as_html, as_text
from gammapy_accmaker.utils.parallel import Execution
from gammapy_accmaker.utils.run_key import find_runs, run_keys, run_label
from gammapy_accmaker.utils.threads import one_thread

log = logging.getLogger(__name__)

_BRIGHT = 0.05  # of the background; a pixel in which known sources add more is left out of rings


class AcceptanceBackgroundMaker(Maker):
    """Fill the background of datasets from an acceptance model fitted to observations.

    In a chain it stands behind `~gammapy.makers.SafeMaskMaker`. A background that the dataset has already is replaced.

    Parameters
    ----------
    config : `AcceptanceConfig`, dict, str or `~pathlib.Path`, optional
        Options, or the path of a YAML file with them. Those that it does not set are those that ``model`` was fitted
        with, or the defaults of `AcceptanceConfig`.
    model : `AcceptanceModel`, optional
        A model made earlier; without one, call `fit`.
    exclusion : sky region, region file, mask map, or a list of these, optional
        Sky positions left out of fit, run effects and renormalisation, in addition to those of the configuration and to
        those that the fit of ``model`` left out. A mask is False where excluded.
    sources : `~gammapy.modeling.models.Models`, `~gammapy.modeling.models.SkyModel`, path, or a list of these, optional
        Gamma-ray sources that stand in the likelihood beside the background, in the fit and in the effects of runs, in
        addition to those of the configuration and to those of the fit of ``model``: they need not be excluded. The
        amplitude (or norm) of a source is fitted, in bands of energy, unless it is frozen: with the model or, where the
        model is fitted to OFF runs which do not see the source, to all ON runs of `fit`, beside their effects. Where a
        given model that does not know the source is only applied, each run has an amplitude of its own. The background
        that is filled is without them.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceBackgroundMaker
    >>> maker = AcceptanceBackgroundMaker({"model": {"type": "grid"}}, exclusion="sources.reg")  # doctest: +SKIP
    >>> maker.fit(observations)  # doctest: +SKIP
    >>> makers = [MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"]), maker]  # doctest: +SKIP
    >>> datasets = DatasetsMaker(makers, stack_datasets=False).run(reference, observations)  # doctest: +SKIP
    """

    tag = "AcceptanceBackgroundMaker"

    def __init__(self, config=None, *, model: AcceptanceModel | None = None, exclusion=None, sources=None):
        self._asked = _options_asked_for(config)
        self._model = self._given_model = None if model is None else _checked_model(model)
        self.config = AcceptanceConfig.coerce(config) if model is None else _options_with_model(model, self._asked)
        if "model" in self._asked:  # as options: what they hold of code is left behind where the maker is pickled
            self._asked = self._asked | {"model": self.config.model}
        self._read_covariates()
        self._given = make_exclusion(self.config, exclusion)
        self._kept = KeptRuns()
        self._given_sources = make_sources(self.config, sources)

    @property
    def is_fitted(self) -> bool:
        """Whether there is a model, fitted or given."""
        return self._model is not None

    @property
    def model(self) -> AcceptanceModel:
        """The fitted model (`AcceptanceModel`); it can be set to another one.

        Raises
        ------
        NotFittedError
            Where there is no model yet; it says what to call.
        """
        if self._model is None:
            raise NotFittedError(
                "there is no model yet: call `maker.fit(observations)` first, or pass "
                "`model=AcceptanceModel.read(path)` when the maker is made"
            )
        return self._model

    @model.setter
    def model(self, model):
        self.config = _options_with_model(_checked_model(model), self._asked)
        self._given_model = model
        self._set_model(model)

    def _set_model(self, model):
        self._model = model
        self._read_covariates()

    def _read_covariates(self):
        """Of a run all is read that the model follows, whatever else was asked for."""
        if self._model is not None:
            options = self.config.model.following(self._model.rate_model.covariate_names)
            self.config = self.config.model_copy(update={"model": options})

    def fit(
        self,
        observations,
        off_observations=None,
        n_jobs=None,
        parallel_backend=None,
        *,
        matches=None,
        cache=None,
        on_error="skip",
    ) -> AcceptanceBackgroundMaker:
        """Fit the model.

        Parameters
        ----------
        observations : `~gammapy.data.Observations`
            Observations whose background is wanted; the model is fitted to them, outside of the exclusion.
        off_observations : `~gammapy.data.Observations`, optional
            Where given, the model is fitted to these instead, and the run effects of both are in `run_table`. With
            ``matching`` in the configuration a model for each ON run is fitted to the OFF runs that are matched to it.
        n_jobs : int, optional
            Processes that reduce the observations.
        parallel_backend : {"multiprocessing", "ray"}, optional
        matches : `~astropy.table.Table`, optional
            OFF runs for each ON run from `match_observations`, in place of the ``matching`` of the configuration.
        cache : str or `~pathlib.Path`, optional
            Folder for the reduced runs. A run whose files and settings have not changed since is not read again.
        on_error : {"skip", "raise"}
            Whether a run that cannot be used is left out, or ends the fit at once.

        Returns
        -------
        maker : `AcceptanceBackgroundMaker`
            This maker, with `model` set.

        Raises
        ------
        InputError
            Without usable observations, or for matching without OFF runs.
        ObservationError
            With ``on_error="raise"``, for the first run that cannot be used.

        Examples
        --------
        >>> maker = AcceptanceBackgroundMaker().fit(observations, off_observations=off)  # doctest: +SKIP
        """
        matched = self.config.matching is not None or matches is not None
        if off_observations is None and matched:
            raise InputError("matching: it needs OFF runs; give them as `off_observations`, or leave `matching` null")
        observations = as_observations(observations)
        if off_observations is not None:
            off_observations = as_observations(off_observations, "off_observations")
        config = self.config.without_files()  # they were read when the maker was made
        given = self._with_that_of(self._given_model)  # what an earlier fit of this maker found is looked for again
        sources = self._sources_with(self._given_model).as_free()
        reading = {"execution": Execution.of(n_jobs, parallel_backend), "cache": cache, "on_error": on_error}
        if matched:
            self._set_model(
                fit_matched(
                    observations, off_observations, config, exclusion=given, sources=sources, matches=matches, **reading
                )
            )
        else:
            fitted = observations if off_observations is None else off_observations
            elsewhere, unseen = set(), set()
            if off_observations is not None:  # the fit names a source that no run sees
                unseen = self._beyond(observations, sources)
                elsewhere = self._beyond(off_observations, sources) - unseen
            self._set_model(
                fit_acceptance(
                    fitted,
                    config,
                    exclusion=given,
                    sources=sources.without(elsewhere),
                    n_jobs=n_jobs,
                    parallel_backend=parallel_backend,
                    cache=cache,
                    on_error=on_error,
                )
            )
            if off_observations is not None:
                self._add_runs(observations, sources.without(unseen), reading)
        return self

    def _beyond(self, observations, sources):
        """Names of the sources outside of the fields of observations; one without a pointing is named by the fit."""
        site, pointings = self.config.observatory_location, []
        for observation in observations if len(sources) else ():
            with suppress(Exception):
                pointing = pointing_icrs(observation, site)
                pointings.append((pointing.ra.deg, pointing.dec.deg))
        if not pointings:
            return set()
        return set(beyond_fields(sources, SkyCoord(*np.transpose(pointings), unit="deg"), self.config.offset_max.deg))

    def _add_runs(self, observations, sources, reading):
        """The effects of ON runs that the model was not fitted to, and the amplitudes of the sources that they see."""
        others = self.model.known_sources.without(sources.names)
        reduction = replace(self._reduction(), sources=others + sources)
        runs, failures = reduction.reduce_all(observations, **reading)
        warn_of_notes(runs, self.config.offset_max.deg)
        warn_of_covariates(runs, self.config)
        rate_model, settings = self.model.rate_model, self.config.run_effects.settings
        runs, known, of_sources = fit_sources(rate_model, runs, reduction)
        warn_of_sources(of_sources)
        adapted = [rate_model.adapt(run, reduction.bins, settings) for run in runs]
        table = make_run_table(rate_model, runs, adapted, failures, self.config, role="apply")
        tables = (self.model.source_table, others.names), (of_sources, sources.names)
        told = [rows[[row["SOURCE"] in names for row in rows]] for rows, names in tables if len(rows)]
        of_sources = vstack(told, metadata_conflicts="silent") if told else of_sources
        run_table = stack_run_tables([self.model.run_table, table])
        self._set_model(replace(self.model, run_table=run_table, known_sources=known, source_table=of_sources))

    @property
    def found_sources(self):
        """What a search for sources found, see `AcceptanceModel.found_sources`."""
        return self.model.found_sources

    @property
    def found_regions(self):
        """Circles around what a search for sources found (list of `~regions.CircleSkyRegion`)."""
        return self.model.found_regions

    @property
    def exclusion(self) -> Exclusion:
        """All that is left out of a run's effects and of the renormalisation:
        what was given, and what the fit left out."""
        return self._with_that_of(self._model)

    @property
    def known_sources(self) -> SourceList:
        """The sources beside the background of a run: those of the fit as it found them, and those given besides, with
        the flux that they were given."""
        return self._sources_with(self._model).as_given()

    def _sources_with(self, model):
        """The sources of the fit of a model, and those that were given and that it did not know."""
        known = SourceList() if model is None else model.known_sources
        return known + self._given_sources.without(known.names)

    def _with_that_of(self, model):
        """What was given, and what the fit of a model left out."""
        return self._given if model is None else self._given.with_regions([model.exclusion, model.found_regions])

    @property
    def run_table(self):
        """Run by run: exposure, counts, norm and its error, and why a run was left out (`~astropy.table.Table`).

        What its columns hold, and over which bins: `gammapy_accmaker.acceptance.run_table`, or
        ``run_table.info("attributes")``.
        """
        return self.model.run_table

    def adapt(self, observation) -> RateModel:
        """The acceptance with the effects of one run, from the run's own unexcluded events.

        Parameters
        ----------
        observation : `~gammapy.data.Observation`

        Returns
        -------
        rate_model : `RateModel`
            Its arrays and units are those of `RateModel.rate`: TeV, deg, and s-1 MeV-1 sr-1.

        Raises
        ------
        NotFittedError
            Where there is no model yet.
        ObservationError
            For an observation that cannot be used.

        Examples
        --------
        >>> rate_model = maker.adapt(observation)  # doctest: +SKIP
        >>> rate_model.rate(1.0, 0.5, 0.0, 0.9)  # doctest: +SKIP
        """
        return self._apply(observation).model

    def _reduction(self) -> Reduction:
        """Of runs that the model is applied to; the files of the configuration were read when the maker was made."""
        return Reduction(self.config, make_bins(self.config), self.exclusion, self._sources_with(self._model))

    @kept_by_run
    @one_thread()
    def _apply(self, observation) -> _AppliedModel:
        """The model on one run: its events are read once, and its track is made once."""
        config, rate_model = self.config, self.model.rate_model
        reduction = self._reduction()
        track = reduction.track(observation)
        number = 0
        if rate_model.differs_by_run:
            key = run_key(observation, track)
            number, rate_model = rate_model.number_for_run(key), rate_model.for_run(key)
        effects = config.run_effects.settings
        if not (rate_model.depends_on_run(effects) or reduction.sources.free):
            shape = rate_model.at_azimuth(track.mean_azimuth).run_shape_at(track.mean_cos_zenith)
            scaled = ScaledModel(rate_model, 1.0, shape=shape)
            return _AppliedModel(
                observation, scaled, track, config.time_step_seconds, number=number, rate_model=rate_model
            )
        run, sources = reduction.reduce(observation, track), reduction.sources
        if sources.free:
            (run,), sources, _ = fit_sources(rate_model, [run], reduction)
        adapted = rate_model.adapt(run, reduction.bins, effects)
        if NOT_CONVERGED in adapted.flags:
            log.warning(
                f"observation {observation.obs_id}: the adaptation of the model to it did not converge; look at its "
                "residuals, or use run_effects 'norm' or 'none'"
            )
        return _AppliedModel(
            observation, adapted.model, track, config.time_step_seconds, run, number, adapted, rate_model, sources
        )

    def sources_in(self, observation) -> SourceList:
        """The sources beside the background of a run: `known_sources`, and where their amplitudes are free in a model
        that is only applied, as the events of the run tell.

        Parameters
        ----------
        observation : `~gammapy.data.Observation`

        Returns
        -------
        sources : `~gammapy_accmaker.data.sources.SourceList`

        Examples
        --------
        >>> [source.amplitudes for source in maker.sources_in(observation)]  # doctest: +SKIP
        """
        free = len(self._sources_with(self._model).free) > 0
        found = self._apply(observation).sources if free else None
        return self.known_sources if found is None else found

    def make_irf(self, observation, fov_alignment=None):
        """Background IRF of a run: time-averaged and adapted to it.

        Parameters
        ----------
        observation : `~gammapy.data.Observation`
        fov_alignment : {"altaz", "radec", "reverse_lon_radec"}, optional
            Frame of the IRF; default: that of the model. A model in altaz can be averaged into the others.

        Returns
        -------
        irf : `~gammapy.irf.Background2D` or `~gammapy.irf.Background3D`

        Raises
        ------
        NotFittedError
            Where there is no model yet.
        ObservationError
            For an observation that cannot be used.

        Examples
        --------
        >>> maker.make_irf(observation).peek()  # doctest: +SKIP
        """
        applied = self._apply(observation)
        self._warn_of_zenith(applied)
        return applied.irf(self.config.fov_alignment, fov_alignment)

    def make_irf_with_zenith(self, observation, fov_alignment=None):
        """`make_irf` and the mean cos zenith of the run, without a warning: for loops that warn once for all runs.

        Parameters
        ----------
        observation, fov_alignment
            As in `make_irf`.

        Returns
        -------
        irf : `~gammapy.irf.Background2D` or `~gammapy.irf.Background3D`
        cos_zenith : float
            NaN where it is not known.

        Raises
        ------
        NotFittedError
            Where there is no model yet.
        ObservationError
            For an observation that cannot be used.

        Examples
        --------
        >>> irf, cos_zenith = maker.make_irf_with_zenith(observation)  # doctest: +SKIP
        """
        applied = self._apply(observation)
        return applied.irf(self.config.fov_alignment, fov_alignment), applied.track.mean_cos_zenith

    def make_background(self, geom, observation) -> Map:
        """Expected background counts of a run.

        Parameters
        ----------
        geom : `~gammapy.maps.WcsGeom` or `~gammapy.maps.RegionGeom`
            Geometry with the reconstructed energy axis "energy". Around a `~regions.PointSkyRegion` the background is
            counted within the RAD_MAX of the observation at each energy, as gammapy counts its events there.
        observation : `~gammapy.data.Observation`

        Returns
        -------
        background : `~gammapy.maps.Map`
            0 where the model has no coverage.

        Raises
        ------
        InputError, ObservationError
            Where the geometry or the observation cannot be used.

        Examples
        --------
        >>> background = maker.make_background(dataset.counts.geom, observation)  # doctest: +SKIP
        """
        applied = self._apply(observation)
        self._warn_of_zenith(applied)
        return applied.background(geom)

    def _warn_of_zenith(self, applied):
        of_run = {run_label(applied.observation.obs_id): applied.track.mean_cos_zenith}
        warn_outside_zenith(self.model.rate_model, of_run)

    def make_background_error(self, geom, observation) -> Map:
        """Standard deviation of each bin of `make_background`, from the fit and from the effects of the run.

        Parameters
        ----------
        geom, observation
            As in `make_background`.

        Returns
        -------
        error : `~gammapy.maps.Map`
            In counts, on ``geom``. The errors of neighbouring bins are correlated.

        Raises
        ------
        InputError, ObservationError
            Where the geometry or the observation cannot be used.

        Examples
        --------
        >>> error = maker.make_background_error(dataset.counts.geom, observation)  # doctest: +SKIP
        """
        return self._apply(observation).errors(geom).error()

    def make_background_modes(self, geom, observation) -> list[Map]:
        """What one standard deviation along each leading direction of the errors changes in `make_background`.

        Errors of bins are correlated and cannot be added up; modes can. The variance of a sum of the background, over
        pixels, energies or runs, is the sum over the directions of the squares of what each changes in the sum.
        `background_sum_error` does this with all directions.

        Parameters
        ----------
        geom, observation
            As in `make_background`.

        Returns
        -------
        modes : list of `~gammapy.maps.Map`
            In counts, on ``geom``. ``meta["kind"]`` is "rate" for the directions of what all runs share, which come
            first and are the same, in one order, for all runs: in a sum over runs their changes add up. It is "run" for
            those of this run alone. ``meta["index"]`` is the number of the direction.

        Raises
        ------
        InputError, ObservationError
            Where the geometry or the observation cannot be used.

        Examples
        --------
        >>> modes = maker.make_background_modes(dataset.counts.geom, observation)  # doctest: +SKIP
        >>> error = np.sqrt(sum(mode.data.sum() ** 2 for mode in modes))  # doctest: +SKIP
        """
        return self._apply(observation).errors(geom).modes()

    def background_errors(self, geom, observation) -> BackgroundErrors:
        """What `make_background_error` and `make_background_modes` are made of, for sums of the background.

        Parameters
        ----------
        geom, observation
            As in `make_background`.

        Returns
        -------
        errors : `~gammapy_accmaker.products.modes.BackgroundErrors`

        Raises
        ------
        InputError, ObservationError
            Where the geometry or the observation cannot be used.

        Examples
        --------
        >>> shared, run = maker.background_errors(geom, observation).of_sum(weights)  # doctest: +SKIP
        """
        return self._apply(observation).errors(geom)

    def run(self, dataset, observation):
        """Fill the background of a dataset.

        Parameters
        ----------
        dataset : `~gammapy.datasets.MapDataset` or `~gammapy.datasets.SpectrumDataset`
            It is not changed.
        observation : `~gammapy.data.Observation`
            Run of the dataset. One that cannot be used is named in a warning, and its dataset is masked.

        Returns
        -------
        dataset : of the same type, or `~gammapy.datasets.MapDatasetOnOff` after a ring
            Bins that the model does not cover are taken out of ``mask_safe``.

        Raises
        ------
        NotFittedError
            Where there is no model yet.
        InputError
            For a dataset that the model or the renormalisation cannot be used with.

        Examples
        --------
        >>> dataset = maker.run(dataset, observation)  # doctest: +SKIP
        """
        _ = self.model  # an error here is clearer than one about the dataset
        self._check_dataset(dataset)
        models = dataset.models
        dataset = dataset.copy(name=dataset.name)
        # a renormalisation changes the parameters of a background model that is there already
        dataset.models = None if models is None else models.copy()
        geom = dataset.counts.geom
        applied = None
        try:
            applied = self._apply(observation)
            self._warn_of_zenith(applied)
            dataset.background = applied.background(geom)
            self._warn_of_new_run(applied)
        except ObservationError as error:
            log.warning(f"{error}. Its dataset {dataset.name} has no background and is masked.")
            dataset.background = Map.from_geom(geom, unit="")
        covered = (dataset.background.data > 0) & self._covers(dataset)[:, None, None]
        if dataset.mask_safe is not None:
            covered = covered & dataset.mask_safe.data
        dataset.mask_safe = Map.from_geom(geom, data=covered)
        if applied is None or not covered.any():
            return dataset
        return self._renormalized(dataset, applied)

    def _warn_of_new_run(self, applied):
        """Of a run that the model does not know: what a fit says of its own runs."""
        observation = applied.observation
        if find_runs([run_key(observation, applied.track)], run_keys(self.run_table))[0]:
            return
        name, keywords = run_label(observation.obs_id), {}
        if applied.run is not None:
            notes, keywords = applied.run.notes, applied.run.covariates
        else:  # a model without effects of the run, and so without covariates, did not read it
            outside = ~in_good_time(observation.events, applied.track)
            notes = RunNotes(n_events=len(outside), outside_gti=int(outside.sum()))
        warn_outside_gti({name: notes})
        lacking = [key for key in self.model.rate_model.covariate_names if key not in keywords]
        if lacking:
            log.warning(
                f"observation {name}: the header of its events has no number for {', '.join(lacking)}, which the model "
                "follows: it counts as the mean of the runs of the fit; fill it in"
            )

    def _renormalized(self, dataset, applied):
        options, observation = self.config.renormalization, applied.observation
        if options.type == "none":
            return dataset
        image, known = dataset.counts.geom.to_image(), self._known_counts(dataset, applied)
        exclusion = self.exclusion
        if options.type == "fov":
            # a ring around a position in the half with the source would find nothing in it
            exclusion = self._reduction().run_exclusion(observation)
        excluded = exclusion.contains(icrs_vectors(image)).reshape(image.data_shape)
        mask = Map.from_geom(image, data=~excluded)
        if options.type == "fov":
            maker = FoVBackgroundMaker(
                method=options.method,
                exclusion_mask=mask,
                spectral_model=self._norm_model(options, dataset, applied, ~excluded),
                spatial_model=options.spatial_model,
                min_counts=options.min_counts,
                min_npred_background=options.min_npred_background,
                fit=Fit(**options.fit_options),
            )
            return self._run_beside(maker, dataset, observation, known)
        # a ring takes what it counts for background: it leaves out what sources are known in
        signal = known.data.sum(axis=0)
        mask.data &= ~((signal > 0) & (signal > _BRIGHT * dataset.background.data.sum(axis=0)))
        # the ring makers read their mask at the coordinates of the dataset, energy included
        mask = Map.from_geom(dataset.counts.geom, data=np.broadcast_to(mask.data, dataset.counts.data.shape).copy())
        given = options.model_dump(exclude={"type"})
        cls = RingBackgroundMaker if options.type == "ring" else AdaptiveRingBackgroundMaker
        return cls(exclusion_mask=mask, **given).run(dataset, observation)

    def _known_counts(self, dataset, applied) -> Map:
        """What known sources add to the counts of a dataset."""
        geom, observation = dataset.counts.geom, applied.observation
        known, run = Map.from_geom(geom), applied.run
        if not len(self.known_sources):
            return known
        reduction = replace(self._reduction(), sources=self.known_sources)
        run = reduction.reduce(observation, applied.track) if run is None else run
        if run.sky is None or run.sky.signal is None:
            return known
        pixel = geom.pixel_scales.min().to_value("deg")
        xyz, counts = run.sky.points(run.sky.signal, 0.5 * pixel)
        known.data += counts_on_map(geom, xyz, counts, reduction.bins.energy_edges)
        return known

    def _run_beside(self, maker, dataset, observation, known):
        """A maker of gammapy that fits the background, beside what known sources add to the counts."""
        if not known.data.any():
            return maker.run(dataset, observation)
        models, names = Models(dataset.models or []), self.known_sources.names
        source = TemplateNPredModel(known, datasets_names=[dataset.name], name=f"{dataset.name}-known-sources")
        source.freeze()
        dataset.models = [*(model for model in models if model.name not in names), source]
        dataset = maker.run(dataset, observation)
        of_background = dataset.background_model
        if of_background is not None and of_background.name not in models.names:
            models.append(of_background)
        dataset.models = models
        return dataset

    def _norm_model(self, options, dataset, applied, used):
        """Norm spectral model of the renormalisation; its prior is what is known without the events of its fit."""
        model = options.spectral_model.copy()
        if options.prior:
            prior = self._prior_errors(dataset, applied)
            norm = relative_error_of_sum(dataset, [prior], used)
            for name, mean, sigma in (("norm", 1, norm), ("tilt", 0, prior.errors.model.tilt_spread)):
                if name in model.parameters.names and np.isfinite(sigma) and sigma > 0:
                    model.parameters[name].prior = GaussianPrior(mu=mean, sigma=sigma)
        return model

    def _prior_errors(self, dataset, applied) -> PriorErrors:
        """Errors of the background of a run without the events that the dataset holds."""
        geom, reduction, removed = dataset.counts.geom, self._reduction(), None
        observation, track, rate_model = applied.observation, applied.track, applied.rate_model
        effects, of_fit = self.config.run_effects.settings, self.model.is_fitted_to(run_key(observation, track))
        run, adapted = applied.run, applied.adapted
        if adapted is None and of_fit:  # nothing is fitted to it, but the rate was
            run = reduction.reduce(observation, track)
            adapted = rate_model.adapt(run, reduction.bins, effects)
        if adapted is not None:
            exclusion = reduction.run_exclusion(observation)
            slices = reduction.slices(track)
            held = held_by(dataset, slices, reduction.bins, exclusion, self.config.time_step_seconds)
            without, removed = rate_model.without(adapted, run, reduction.bins, effects, held, of_fit=of_fit)
            applied = replace(applied, model=without)
        return PriorErrors(applied.errors(geom), removed)

    def make_nuisance_models(self, dataset, observations, n: int = 10) -> Models:
        """What is not known of the background of a dataset, as models with priors for a fit of gammapy.

        Each is a `~gammapy.modeling.models.TemplateNPredModel` that adds what one standard deviation along a direction
        changes, times a free norm of 0 with the prior Gaussian(0, 1). The priors are what is known *without* the events
        that the dataset holds (within its masks, outside of the exclusion): its own likelihood tells the rest.

        Parameters
        ----------
        dataset : `~gammapy.datasets.MapDataset`, `~gammapy.datasets.SpectrumDataset`, or `~gammapy.datasets.Datasets`
            With the background of `run`. For several datasets of one fit, give all of them: models of what their runs
            share have linked norms, and a prior that weighs once although gammapy adds it for each dataset.
        observations : `~gammapy.data.Observation`, or list of them
            The run of the dataset, or the runs of a stacked one; for several datasets a list of these.
        n : int
            Most models of a dataset; of several datasets, of what they share and of what each has for itself.

        Returns
        -------
        models : `~gammapy.modeling.models.Models`
            Named after their dataset, by falling importance. Their ``filename``, in the working folder, is where
            `Models.write` puts their maps (over those of an earlier time only with ``overwrite_templates=True``) and
            `Models.read` looks for them. That of a region has one pixel.

        Raises
        ------
        InputError
            For a dataset without a background, another number of observations than datasets, and datasets of one name.
        ObservationError
            For an observation that cannot be used.

        Examples
        --------
        >>> nuisance = maker.make_nuisance_models(dataset, observation)  # doctest: +SKIP
        >>> dataset.models = [source, *nuisance]  # doctest: +SKIP
        """
        several = isinstance(dataset, (Datasets, list, tuple))
        datasets = list(dataset) if several else [dataset]
        given = list(observations) if several else [observations]
        if len(given) != len(datasets) or not datasets:
            raise InputError(
                f"observations: got {len(given)} for {len(datasets)} datasets; give for each its observation, or the "
                "list of those that were stacked"
            )
        n, names = check_whole(n, 1, "n"), [getattr(one, "name", "") for one in datasets]
        if len(set(names)) < len(names):
            raise InputError(
                f"dataset: got the names {', '.join(map(str, names))}, but each needs one of its own, by which models "
                "are assigned to it; copy them with dataset.copy(name=...)"
            )
        runs = []
        for one, own in zip(datasets, given, strict=True):
            self._check_dataset(one)
            if one.background is None or not np.any(one.background.data > 0):
                raise InputError(
                    f"dataset: {one.name} has no background; fill it with `maker.run(dataset, observation)`"
                )
            own = [own] if isinstance(own, Observation) else list(as_observations(own))
            runs.append([self._prior_errors(one, self._apply(observation)) for observation in own])
        return nuisance_models(datasets, runs, n)

    def _check_dataset(self, dataset):
        if not isinstance(dataset, MapDataset) or isinstance(dataset, (MapDatasetOnOff, SpectrumDatasetOnOff)):
            raise InputError(
                f"dataset: got {type(dataset).__name__}, but a MapDataset or SpectrumDataset is needed; "
                "put this maker before any ring or reflected regions"
            )
        kind, geom = self.config.renormalization.type, dataset.counts.geom
        if kind != "none" and geom.is_region:
            raise InputError(
                f"renormalization: got {kind!r} for a region, but it needs a map; use `renormalization: {{type: none}}`"
            )
        nbin = geom.axes["energy"].nbin
        if kind in ("ring", "adaptive_ring") and nbin != 1:
            raise InputError(
                f"renormalization: {kind!r} needs a dataset with one energy bin, but got {nbin}; "
                "use one bin or `type: fov`"
            )

    def _covers(self, dataset):
        """Whether each energy bin lies within the energies of the fit; one that sticks out is filled in part."""
        edges, fit = energy_edges_from_axis(dataset.counts.geom.axes["energy"]), make_bins(self.config).energy_edges
        inside = (edges[:-1] > fit[0] * (1 - 1e-6)) & (edges[1:] < fit[-1] * (1 + 1e-6))
        if not inside.all():
            log.warning(
                f"{dataset.name}: {(~inside).sum()} of its {len(inside)} energy bins, {edges[0]:.3g} to "
                f"{edges[-1]:.3g} TeV, reach beyond the model, {fit[0]:.3g} to {fit[-1]:.3g} TeV, and are masked"
            )
        return inside

    def _facts(self):
        """Its settings, and its model."""
        exclusion = self.exclusion.in_brief() if len(self.exclusion) else "none"
        facts = [("config", self.config.to_yaml()), ("exclusion", exclusion)]
        # without the title of the model
        model = str(self.model).split("\n\n", 1)[1] if self.is_fitted else "none yet: call fit"
        return [*facts, ("model", textwrap.dedent(model))]

    def __repr__(self):
        model = self.model.in_brief() if self.is_fitted else f"{self.config.model.type}, no model yet: call fit"
        return f"<{type(self).__name__}: {model}>"

    def __str__(self):
        return as_text(type(self).__name__, self._facts())

    def _repr_html_(self):
        if not self.is_fitted:
            return as_html(type(self).__name__, self._facts())
        (config, exclusion, _) = self._facts()
        return as_html(type(self).__name__, [exclusion, config]) + self.model._repr_html_()


@dataclass(frozen=True)
class _AppliedModel:
    """The acceptance on one run: the model with the effects of the run, and the track over which it is integrated."""

    observation: Observation
    model: RateModel
    track: FovTrack
    time_step: float | None
    run: ReducedRun | None = None  # where its events were not read
    number: int = 0  # of the model, where runs have different ones
    adapted: AdaptedRun | None = None  # from the model of all runs, where the run was read
    rate_model: RateModel | None = None  # of all runs
    sources: SourceList | None = None  # beside it; None where its events were not read

    def background(self, geom) -> Map:
        if isinstance(geom, RegionGeom) and isinstance(geom.region, PointSkyRegion):
            return make_rad_max_background(self.model, self.track, geom, self.observation, self.time_step)
        return make_background_map(self.model, self.track, geom, self.time_step)

    def errors(self, geom) -> BackgroundErrors:
        return BackgroundErrors(self.model, self.track, self.background(geom), self.time_step, self.number)

    def irf(self, model_alignment, fov_alignment=None):
        return make_background_irf(self.model, self.track, model_alignment, self.time_step, fov_alignment)


def _options_asked_for(config) -> dict:
    """The options that a configuration sets, by their keys; what is wrong with them `AcceptanceConfig` says."""
    if isinstance(config, dict):
        return config
    config = AcceptanceConfig.coerce(config)
    return {name: getattr(config, name) for name in AcceptanceConfig.model_fields if name in config.model_fields_set}


def _options_with_model(model: AcceptanceModel, asked: dict) -> AcceptanceConfig:
    """The options that a model was fitted with, and those of its application in their place.

    A model is read in the frame that it was fitted in, and the effects of a run in its own bins, where it has some.
    """
    fitted = model.config
    if "model" in asked:
        kind = AcceptanceConfig.coerce({"model": asked["model"]}).model
        if kind.adapts_in_own_bins != fitted.model.adapts_in_own_bins:
            _refuse("model", kind.type, fitted.model.type)
    options = fitted.update(asked)
    if options.fov_alignment != fitted.fov_alignment:
        _refuse("fov_alignment", options.fov_alignment, fitted.fov_alignment)
    if fitted.model.adapts_in_own_bins:
        if not np.isclose(options.offset_max.deg, fitted.offset_max.deg, rtol=1e-9):
            _refuse("offset_max", f"{options.offset_max.deg:g} deg", f"{fitted.offset_max.deg:g} deg")
        for end in ("min", "max"):
            given, own = (getattr(of.energy, end).to("TeV") for of in (options, fitted))
            if not u.isclose(given, own, rtol=1e-9):
                _refuse(f"energy.{end}", f"{given:g}", f"{own:g}")
    return options


def _refuse(key: str, given, fitted) -> None:
    raise InputError(
        f"{key}: got {given}, but the model that is given was fitted with {fitted}; "
        "leave it out, or fit anew without `model`"
    )


def _checked_model(model):
    if not isinstance(model, AcceptanceModel):
        raise InputError(
            f"model: got {type(model).__name__}, but an AcceptanceModel is needed; read one with "
            "AcceptanceModel.read(path)"
        )
    return model
