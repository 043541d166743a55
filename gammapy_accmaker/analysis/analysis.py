"""gammapy's config-driven analysis, with the acceptance among its background methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from astropy.io import fits
from gammapy.analysis import Analysis, AnalysisConfig
from gammapy.data import DataStore, Observations
from gammapy.maps import Map

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.analysis.config import BACKGROUND, AcceptanceAnalysisConfig, ExtendedConfig, check_file
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.errors import InputError, reading
from gammapy_accmaker.utils.describe import as_html, as_text

# what may differ between the fit of a model file and its application
_OPTIONS_OF_APPLICATION = {
    "exclusion",
    "observatory_location",
    "renormalization",
    "run_effects",
    "sources",
    "time_step",
}


class _Selection(Analysis):
    """gammapy's choice of runs, without what an analysis says of logging when it is made: that has been said."""

    def __init__(self, config):
        self.config, self.datastore, self.observations = config, None, None


def _select_observations(config, settings, key: str) -> Analysis:
    """gammapy's own selection of runs, with ``datastore`` and ``observations``; no run is asked for a background.

    ``settings`` are those found at ``key`` of the configuration.
    """
    check_file(f"{key}.datastore", settings.datastore)
    options = settings.model_dump()
    options["required_irf"] = [name for name in options["required_irf"] if name != "bkg"]
    selection = _Selection(AnalysisConfig(general={"log": config.general.log.model_dump()}, observations=options))
    try:
        selection.get_observations()
    except (KeyError, OSError) as error:
        raise InputError(f"{key}: the runs cannot be had from {settings.datastore} ({error})") from error
    return selection


def _select_off_observations(config) -> Observations | None:
    """OFF runs that a configuration names, at least one; None where it names none."""
    settings, key = config.datasets.background.off_observations, f"{BACKGROUND}.off_observations"
    if settings is None:
        return None
    settings = settings.model_copy(update={"datastore": settings.datastore or config.observations.datastore})
    observations = _select_observations(config, settings, key).observations
    if len(observations) == 0:
        raise InputError(f"{key}: it selects none of the runs in {settings.datastore}; widen the selection")
    return observations


def select_runs(config) -> tuple[DataStore, Observations, Observations | None]:
    """Data store, runs and OFF runs that a configuration names, once it is checked."""
    config.check()
    make_maker(config)  # its files can be wrong as well
    selection = _select_observations(config, config.observations, "observations")
    return selection.datastore, selection.observations, _select_off_observations(config)


def make_fitted_maker(config, observations, off_observations=None) -> AcceptanceBackgroundMaker:
    """`make_maker`, fitted where there is no model file; OFF runs that are named but not given are selected."""
    maker = make_maker(config)
    if not maker.is_fitted:
        if off_observations is None or config.datasets.background.off_observations is None:
            off_observations = _select_off_observations(config)
        maker.fit(observations, off_observations, n_jobs=config.general.n_jobs)
    return maker


def make_maker(config) -> AcceptanceBackgroundMaker:
    """Maker of a configuration, with the model of its model file, if it names one; not fitted otherwise."""
    background = config.datasets.background
    exclusion = _read_exclusion(background.exclusion)
    if background.model is None:
        return AcceptanceBackgroundMaker(background.options, exclusion=exclusion)
    model = AcceptanceModel.read(background.model)
    options = _options_with_model(model, background)
    config.check_renormalization(options.renormalization.type)
    return AcceptanceBackgroundMaker(options, model=model, exclusion=exclusion)


def _options_with_model(model, background) -> AcceptanceConfig:
    """Options of the fit of a model, with those of its application."""
    fitted = model.config.model_dump(mode="json")
    given = background.parameters
    if isinstance(given.get("exclusion"), dict):  # in addition to that of the fit
        given = given | {"exclusion": fitted["exclusion"] | given["exclusion"]}
    options = AcceptanceConfig.coerce(fitted | given)
    for key, value in options.model_dump(mode="json").items():
        if key not in _OPTIONS_OF_APPLICATION and key in background.parameters and value != fitted.get(key, value):
            raise InputError(
                f"{BACKGROUND}.parameters.{key}: got {value}, but {background.model} was fitted with {fitted[key]}; "
                "leave it out, or leave `model` out to fit anew"
            )
    return options


def _check_offsets(observations) -> None:
    """gammapy makes no exposure map from an effective area for one offset: after the fit it raises an IndexError about
    shapes. The runs of a store are of one kind, so the first one tells."""
    for run in observations[:1]:
        if run.aeff is not None and run.aeff.axes["offset"].nbin == 1:
            raise InputError(
                f"datasets.type: the effective area of run {run.obs_id} is that of one offset (point-like), and "
                "gammapy makes no map of it; use `type: 1d` with an `on_region`, or files with IRFs for several offsets"
            )


def _read_exclusion(path: Path | None):
    """Mask that is False where excluded, as gammapy reads it, or the path of a region file."""
    if path is None or not {".fits", ".fit"} & set(path.suffixes) or _holds_regions(path):
        return path
    with reading(f"{BACKGROUND}.exclusion: {path} cannot be read as a map"):
        mask = Map.read(path)
    mask.data = mask.data.astype(bool)
    return mask


def _holds_regions(path):
    with reading(f"{BACKGROUND}.exclusion: {path} cannot be read"), fits.open(path) as hdus:
        return "REGION" in hdus


_GAMMAPYS: Any = object  # gammapy's class, which only the child of both names


class AcceptanceReduction(ABC, _GAMMAPYS):
    """Goes before gammapy's class that makes datasets: the acceptance stands in the place of a background maker.

    That class has ``config``; the child of both says how the maker is made.
    """

    @property
    def uses_acceptance(self) -> bool:
        """Whether ``datasets.background.method`` is "acceptance"."""
        return self.config.datasets.background.method == "acceptance"

    @abstractmethod
    def get_acceptance(self) -> AcceptanceBackgroundMaker:
        """Maker with a model."""

    def get_datasets(self):
        """Produce reduced datasets, with the background of the acceptance where the configuration asks for it.

        Raises
        ------
        InputError
            For a configuration that lacks what datasets need, or runs that cannot be used together.

        Examples
        --------
        >>> analysis.get_observations()  # doctest: +SKIP
        >>> analysis.get_datasets()  # doctest: +SKIP
        """
        if self.uses_acceptance:
            self.config.check_complete()
        options = self.config.datasets
        if options.type == "3d" and "exposure" in options.map_selection:
            _check_offsets((self.inputs if hasattr(self, "inputs") else self).observations or [])
        super().get_datasets()

    def _create_dataset_maker(self):
        maker = super()._create_dataset_maker()
        if self.uses_acceptance:
            maker.selection = [name for name in maker.selection if name != "background"]
        return maker

    def _create_background_maker(self):
        return self.get_acceptance() if self.uses_acceptance else super()._create_background_maker()

    def _spectrum_extraction(self):
        if self.uses_acceptance:
            self._map_making()  # of spectra as well; gammapy's loop over spectra asks each for OFF counts
        else:
            super()._spectrum_extraction()


class Described(_GAMMAPYS):
    """What an analysis or a workflow has by now, in print and in notebooks; goes before gammapy's class."""

    config_class: ClassVar[type[ExtendedConfig]]
    observations: Observations | None
    datasets: Any
    fit_result: Any

    def __init__(self, config):
        super().__init__(config)
        self.off_observations: Observations | None = None
        self.acceptance_maker: AcceptanceBackgroundMaker | None = None

    @property
    def config(self) -> Any:
        """Options; a dict or gammapy's own configuration becomes one with the acceptance among its methods."""
        return self._config

    @config.setter
    def config(self, value):
        self._config = self.config_class.coerce(value)

    def _facts(self):
        off, maker, method = self.off_observations, self.acceptance_maker, self.config.datasets.background.method
        facts = [
            ("datastore", str(self.config.observations.datastore)),
            ("runs", _number(self.observations) + (f"; OFF runs: {len(off)}" if off is not None else "")),
            ("background", "none" if method is None else str(getattr(method, "value", method))),
            ("model", maker.model.in_brief() if maker is not None else "none yet"),
            ("datasets", ", ".join(f"{d.name} ({d.tag})" for d in self.datasets or []) or "none yet"),
            ("fit", "none yet" if self.fit_result is None else f"success: {self.fit_result.success}"),
        ]
        return facts if method == "acceptance" else [fact for fact in facts if fact[0] != "model"]

    def __repr__(self):
        facts = dict(self._facts())
        shown = [f"{name}: {facts[name]}" for name in ("runs", "background", "model", "datasets") if name in facts]
        return f"<{type(self).__name__}: {'; '.join(shown)}>"

    def __str__(self):
        return as_text(type(self).__name__, self._facts())

    def _repr_html_(self):
        return as_html(type(self).__name__, [*self._facts(), ("config", self.config.to_yaml())])


def _number(observations):
    return "none selected yet" if observations is None else f"{len(observations)} selected"


class AcceptanceAnalysis(Described, AcceptanceReduction, Analysis):
    """`~gammapy.analysis.Analysis` with ``acceptance`` among the background methods.

    With ``datasets.background.method: acceptance``, `get_datasets` fits the acceptance to the OFF observations, or to
    the observations where none are named, or reads the model file, and fills the background of each dataset. All else
    is gammapy's.

    Parameters
    ----------
    config : dict, `AcceptanceAnalysisConfig` or `~gammapy.analysis.AnalysisConfig`
        Options.

    Attributes
    ----------
    off_observations : `~gammapy.data.Observations` or None
        OFF runs; set by `get_observations`.
    acceptance_maker : `AcceptanceBackgroundMaker` or None
        Maker with its model and ``run_table``; set by `get_acceptance` and `get_datasets`.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceAnalysis, AcceptanceAnalysisConfig
    >>> analysis = AcceptanceAnalysis(AcceptanceAnalysisConfig.read("config.yaml"))  # doctest: +SKIP
    >>> analysis.get_observations()  # doctest: +SKIP
    >>> analysis.get_datasets()  # doctest: +SKIP
    >>> analysis.acceptance_maker.model.write("model.fits")  # doctest: +SKIP
    """

    config_class = AcceptanceAnalysisConfig

    def get_observations(self):
        """Fetch observations, and OFF observations, from the data store.

        They are then in ``observations`` and ``off_observations``.

        Raises
        ------
        InputError
            For choices that contradict each other, files that are not there, or runs that the store does not have.

        Examples
        --------
        >>> analysis.get_observations()  # doctest: +SKIP
        >>> len(analysis.observations)  # doctest: +SKIP
        """
        if not self.uses_acceptance:
            super().get_observations()
            return
        self.datastore, self.observations, self.off_observations = select_runs(self.config)

    def get_acceptance(self) -> AcceptanceBackgroundMaker:
        """Fit the acceptance, or read the model file.

        Returns
        -------
        maker : `AcceptanceBackgroundMaker`
            It stays in `acceptance_maker`.

        Raises
        ------
        InputError
            Without ``method: acceptance``, or where the observations or the model file cannot be used.
        RuntimeError
            Where observations are needed and have not been selected yet, as gammapy's own steps do.

        Examples
        --------
        >>> maker = analysis.get_acceptance()  # doctest: +SKIP
        >>> maker.model.peek()  # doctest: +SKIP
        """
        if not self.uses_acceptance:
            method = self.config.datasets.background.method
            raise InputError(f"{BACKGROUND}.method: got {method!r}, but an acceptance needs `method: acceptance`")
        self.config.check()
        if not self.observations and self.config.datasets.background.model is None:
            raise RuntimeError("No observations have been selected.")
        self.acceptance_maker = make_fitted_maker(self.config, self.observations, self.off_observations)
        return self.acceptance_maker
