"""Known gamma-ray sources: gammapy models as plain data, checked, with the amplitudes that a fit found for them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io import fits
from gammapy.maps import Map
from gammapy.modeling.models import (
    SPECTRAL_MODEL_REGISTRY,
    DatasetModels,
    FoVBackgroundModel,
    Models,
    SkyModel,
    TemplateNPredModel,
    TemplateSpatialModel,
)

from gammapy_accmaker.errors import InputError, reading
from gammapy_accmaker.utils.files import as_path

_Bands = tuple[Sequence[float], Sequence[float]]  # edges in TeV, and an amplitude for each band between them
_NO_BANDS: _Bands = ((), ())
_BANDS = ("edges", "amplitudes", "edges_below", "amplitudes_below")
_AMPLITUDES = ("amplitude", "norm")  # parameters of a spectral model that scale it
_REMEDY = "give a gammapy SkyModel, Models, a list of these, or a models file"


@dataclass(frozen=True, eq=False)
class Source:
    """A source, and what a fit found of it.

    Attributes
    ----------
    text : str
        Its gammapy model, as in a models file (JSON).
    template : bytes
        FITS file of the map of a template; empty for other models.
    edges : tuple of float
        Energies in TeV between which it has one amplitude; empty where none was fitted.
    amplitudes : tuple of float
        Factor on the flux of the model in each of these bands.
    edges_below, amplitudes_below : tuple of float
        The same at energies below the threshold of a run, where its responses are not to be trusted: the factors are
        no fluxes.
    """

    text: str
    template: bytes = b""
    edges: tuple[float, ...] = ()
    amplitudes: tuple[float, ...] = ()
    edges_below: tuple[float, ...] = ()
    amplitudes_below: tuple[float, ...] = ()

    @classmethod
    def of(cls, model: SkyModel) -> Source:
        """Check a model, and keep it as data.

        Raises
        ------
        InputError
            For a model that has no counts on the sky, varies in time, or has a wrong amplitude.
        """
        _check(model)
        data, spatial = model.to_dict(full_output=True), model.spatial_model
        data.pop("datasets_names", None)  # it is a source of all runs
        # gammapy leaves out that of a constant, and how a template is interpolated
        data["spatial"]["parameters"] = spatial.parameters.to_dict()
        template = b""
        if isinstance(spatial, TemplateSpatialModel):
            data["spatial"] |= {"filename": None, "interp_kwargs": spatial._interp_kwargs}
            template = _map_to_bytes(spatial.map)
        source = cls(json.dumps(data, default=float), template)
        try:
            stored, energy = source.model, np.geomspace(0.01, 100, 9) * u.TeV
            if [(p.name, p.quantity) for p in stored.parameters] != [(p.name, p.quantity) for p in model.parameters]:
                raise ValueError("its parameters are not the same then")
            if not u.allclose(stored.spectral_model(energy), model.spectral_model(energy), equal_nan=True):
                raise ValueError("its spectrum is not the same then")
        except Exception as error:  # of whatever kind: gammapy does not know the model by its name
            raise InputError(
                f"sources: {model.name!r} cannot be stored and read again ({type(error).__name__}: {error}); register "
                "its classes with gammapy, or give a template of it"
            ) from error
        return source

    @cached_property
    def model(self) -> SkyModel:
        """Its gammapy model, with the flux that was given."""
        data = json.loads(self.text)
        if not self.template:
            return SkyModel.from_dict(data)
        spatial, spectral = data["spatial"], data["spectral"]
        with fits.open(io.BytesIO(self.template)) as hdulist:
            template = TemplateSpatialModel(
                Map.from_hdulist(hdulist),
                normalize=spatial["normalize"],
                interp_kwargs=spatial.get("interp_kwargs"),
                filename=f"{data['name']}.fits",
            )
        for parameter in spatial.get("parameters", ()):  # a template may be moved
            template.parameters[parameter["name"]].value = parameter["value"]
        return SkyModel(
            SPECTRAL_MODEL_REGISTRY.get_cls(spectral["type"]).from_dict({"spectral": spectral}),
            template,
            name=data["name"],
            apply_irf=data.get("apply_irf"),
        )

    def __getstate__(self):
        # the model is made again from its data in another process
        return {own.name: getattr(self, own.name) for own in fields(self)}

    def __setstate__(self, state):
        self.__dict__.update(state)

    @property
    def name(self) -> str:
        return json.loads(self.text)["name"]

    @property
    def is_free(self) -> bool:
        """Whether its amplitude is to be fitted: it is not frozen, and not known from a fit."""
        parameter = _amplitude(self.model)
        return parameter is not None and not parameter.frozen and not self.amplitudes

    def factors(self, energy: np.ndarray, *, below: bool = False) -> np.ndarray:
        """Fitted factor on its flux at reconstructed energies in TeV; ``below``: the threshold of a run.

        Where none was fitted it is 1.
        """
        edges, amplitudes = (self.edges_below, self.amplitudes_below) if below else (self.edges, self.amplitudes)
        if not amplitudes:
            return np.ones(len(energy))
        return np.asarray(amplitudes)[np.searchsorted(edges[1:-1], energy, side="right")]

    def fitted(self, above: _Bands, below: _Bands = _NO_BANDS) -> Source:
        """The source with the amplitudes of a fit: edges of bands in TeV and one for each band, above and below the
        thresholds of the runs."""
        edges, amplitudes, edges_below, amplitudes_below = (tuple(map(float, a)) for a in (*above, *below))
        other = replace(
            self,
            edges=edges,
            amplitudes=amplitudes,
            edges_below=edges_below,
            amplitudes_below=amplitudes_below,
        )
        if "model" in vars(self):  # made once: nobody changes it
            vars(other)["model"] = self.model
        return other


@dataclass(frozen=True, eq=False)
class SourceList:
    """Known sources, each under a name of its own."""

    sources: tuple[Source, ...] = field(default=())

    def __post_init__(self):
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(
                f"sources: got {', '.join(map(repr, twice))} more than once, but each needs a name of its own; "
                "leave out those that are the same source, or rename"
            )

    @classmethod
    def of(cls, given) -> SourceList:
        """Sources from gammapy models.

        Parameters
        ----------
        given : `~gammapy.modeling.models.Models`, `~gammapy.modeling.models.SkyModel`, path, a list of these, or None

        Raises
        ------
        InputError
            For anything else, a file that cannot be read, and models that cannot be used.
        """
        return cls(tuple(_flatten(given)))

    def __len__(self) -> int:
        return len(self.sources)

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __add__(self, other: SourceList) -> SourceList:
        return SourceList((*self.sources, *other.sources))

    @property
    def free(self) -> tuple[Source, ...]:
        """Those whose amplitude is to be fitted."""
        return tuple(source for source in self.sources if source.is_free)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def models(self) -> Models:
        """As gammapy models, with the fluxes that were given."""
        return Models([source.model.copy(name=source.name) for source in self.sources])

    def as_given(self) -> SourceList:
        """The sources with the fluxes of their models, or of a fit, where they have some; none of them free."""
        return SourceList(tuple(s.fitted(((0.0, np.inf), (1.0,))) if s.is_free else s for s in self.sources))

    def as_free(self) -> SourceList:
        """The sources without what a fit found of them."""
        return SourceList(tuple(s.fitted(_NO_BANDS) for s in self.sources))

    def without(self, names: Iterable[str]) -> SourceList:
        """Those of other names."""
        names = set(names)
        return SourceList(tuple(source for source in self.sources if source.name not in names))

    def with_amplitudes(self, fitted: dict[str, tuple[_Bands, _Bands]]) -> SourceList:
        """The sources with what a fit found, by name, see `Source.fitted`."""
        return SourceList(tuple(s.fitted(*fitted[s.name]) if s.name in fitted else s for s in self.sources))

    def to_arrays(self) -> tuple[str, dict[str, np.ndarray]]:
        """Serial form, exact: text, and the maps of templates as bytes."""
        entries, arrays = [], {}
        for k, source in enumerate(self.sources):
            bands = {name: getattr(source, name) for name in _BANDS}
            entries.append({"model": json.loads(source.text), **bands})
            if source.template:
                arrays[f"template {k}"] = np.frombuffer(source.template, dtype=np.uint8)
        return json.dumps(entries), arrays

    @classmethod
    def from_arrays(cls, text: str, arrays: dict[str, np.ndarray]) -> SourceList:
        """The inverse of `to_arrays`.

        Raises
        ------
        InputError
            Where a part is missing or does not fit.
        """
        with reading("sources: one cannot be read"):
            sources = []
            for k, entry in enumerate(json.loads(text)):
                template = arrays.get(f"template {k}", np.zeros(0)).astype(np.uint8).tobytes()
                bands = {name: tuple(map(float, entry[name])) for name in _BANDS}
                source = Source(json.dumps(entry["model"]), template, **bands)
                _check(source.model)
                sources.append(source)
            return cls(tuple(sources))


NO_SOURCES = SourceList()


def _flatten(given) -> Iterator[Source]:
    if given is None:
        return
    if isinstance(given, SourceList):
        yield from given
    elif isinstance(given, Source):
        yield given
    elif isinstance(given, SkyModel):
        yield Source.of(given)
    elif isinstance(given, FoVBackgroundModel):
        return  # a models file of a dataset has those of its background too, which is what is fitted here
    elif isinstance(given, TemplateNPredModel):
        raise InputError(
            f"sources: {given.name!r} is a TemplateNPredModel, which has counts for one dataset and no flux; {_REMEDY}"
        )
    elif isinstance(given, (str, Path)):
        path = as_path(given, "sources")
        if not path.is_file():
            raise InputError(f"sources: there is no file {path}; give the path of a models file of gammapy (YAML)")
        remedy = "; write one with `Models(...).write(path, write_covariance=False)`"
        with reading(f"sources: {path} cannot be read as a models file", remedy):
            models = Models.read(path)
        yield from _flatten(models)
    elif isinstance(given, (DatasetModels, Iterable)) and not isinstance(given, dict | bytes):
        for model in given:
            yield from _flatten(model)
    else:
        raise InputError(f"sources: got {type(given).__name__}; {_REMEDY}")


def _amplitude(model):
    """The parameter that scales the spectrum; None where it has none."""
    if model.spectral_model is None:
        return None
    known = {parameter.name: parameter for parameter in model.spectral_model.parameters}
    return next((known[name] for name in _AMPLITUDES if name in known), None)


def _check(model):
    name = f"sources: {model.name!r}"
    if model.spectral_model is None or model.spatial_model is None:
        lacking = "spectral" if model.spectral_model is None else "spatial"
        raise InputError(f"{name} has no {lacking} model, but its counts on the sky are needed; give it one")
    if model.temporal_model is not None:
        raise InputError(
            f"{name} has a temporal model, but a source is taken as constant; give its mean flux (without the "
            "temporal model), or a source for each state with the runs of it alone"
        )
    if not model.apply_irf["exposure"]:
        raise InputError(f"{name} has counts in place of a flux (apply_irf: exposure False); give it a flux")
    for parameter in model.parameters:
        if not np.isfinite(parameter.value):
            raise InputError(f"{name} has {parameter.name} = {parameter.value:g}, but a finite number is needed")
    amplitude = _amplitude(model)
    if amplitude is not None and amplitude.value <= 0:
        raise InputError(
            f"{name} has {amplitude.name} = {amplitude.value:g} {amplitude.unit}, but a flux > 0 is needed: a free one "
            "is fitted as a factor on it"
        )
    if isinstance(model.spatial_model, TemplateSpatialModel):
        values = model.spatial_model.map.data
        if not np.all(np.isfinite(values)) or values.min(initial=0.0) < 0 or not values.any():
            raise InputError(
                f"{name} has a template that is empty, not finite or negative somewhere, but a flux >= 0 is needed; "
                "clip its map"
            )
    flux = model.spectral_model.integral(1 * u.TeV, 10 * u.TeV)
    if not flux.value >= 0 or not np.isfinite(flux.value):
        raise InputError(f"{name} has a flux of {flux:.3g} from 1 to 10 TeV, but a finite one >= 0 is needed")


def _map_to_bytes(template):
    buffer = io.BytesIO()
    template.to_hdulist().writeto(buffer)
    return buffer.getvalue()
