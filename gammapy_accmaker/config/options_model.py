"""Options of the models and of their energy axis."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import astropy.units as u
from pydantic import Field, PlainSerializer, model_validator

from gammapy_accmaker.config.types import (
    AngleEdges,
    OneEnergy,
    Options,
)
from gammapy_accmaker.models.parametric.function import PYTHON, check_shared, describe_function, rate_function
from gammapy_accmaker.models.parametric.shapes import READY_SHAPES

__all__ = [
    "AdaptiveEnergy",
    "EnergyOptions",
    "GridOptions",
    "ParameterOptions",
    "ParametricOptions",
    "RadialOptions",
    "SplineOptions",
]


class SplineOptions(Options):
    """Smooth rate over energy, offset and zenith angle with an asymmetry: the joint model, adapted to each run.

    ``covariates``: keywords of the event header, such as MUONEFF, that norm and energy scale may follow: any with a number
    that differs from run to run. A run that lacks one counts as the mean of the others.
    """

    type: Literal["spline"] = "spline"
    covariates: list[str] = ["MUONEFF"]


class RadialOptions(Options):
    """Rate over energy and offset; ``offset_bins``: rings from 0 to offset_max, or their edges.

    Events beyond the last ring have no part in the fit; there the rate goes on for the width of one ring, and is 0 then.
    """

    type: Literal["radial"] = "radial"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12

    @model_validator(mode="after")
    def _from_zero(self):
        if not isinstance(self.offset_bins, int) and self.offset_bins[0] < 0:
            raise ValueError(f"offset_bins: got {self.offset_bins}, but offsets >= 0 are needed")
        return self


class GridOptions(Options):
    """Rate over energy and a square grid; ``offset_bins``: bins from the centre to offset_max (24 x 24 for 12), or edges.

    The grid keeps its corners: the events of the whole square are fitted, those beyond offset_max too. Around it the rate goes on
    for the width of one bin, and is 0 then.
    """

    type: Literal["grid"] = "grid"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12


class ParameterOptions(Options):
    """Start value, limits and whether it is fixed, of one parameter of a function; what is None is left as it is.

    Ties are callables on an astropy model: ``model.sigma.tied = lambda model: 2 * model.width``.
    """

    value: float | None = None
    min: float | None = None
    max: float | None = None
    fixed: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_text_ties(cls, data):
        if isinstance(data, dict) and "tied" in data:
            raise ValueError(
                f"got tied: {data['tied']!r}, but text is not taken; tie it by a callable on the astropy model, model.name.tied"
            )
        return data


class ParametricOptions(Options):
    """A function of energy, of position or of both, fitted to counts on a grid.

    Parameters
    ----------
    function : str, `~astropy.modeling.Model`, callable or list
        In a file: gaussian, gaussian_gradient, radial_profile, power_law, power_law_cutoffs, or a product such as
        ``"power_law * gaussian"``. In Python also what `~gammapy_accmaker.models.parametric.function.rate_function` takes.
        Of energy in TeV and positions in deg; the rate in s-1 MeV-1 sr-1. A file names a Python function but holds no code:
        what is read from it applies a fitted model, and a fit asks for the function.
    parameters : dict
        `ParameterOptions` by name.
    shared : list of str
        Parameters of a function of position alone that all energies have in common.
    offset_bins : int or edges
        As for `GridOptions`.
    on_failure : {"raise", "flag"}
        What is done where the fit fails; "flag" warns and marks the result of the model.
    """

    type: Literal["parametric"] = "parametric"
    function: Annotated[Any, PlainSerializer(describe_function, when_used="json")] = None
    parameters: dict[str, ParameterOptions] = {}
    shared: list[str] = []
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12
    on_failure: Literal["raise", "flag"] = "raise"

    @model_validator(mode="after")
    def _fits(self):
        if self.function is None:
            raise ValueError(
                f"function: a parametric model needs one; name {list(READY_SHAPES)}, a product such as "
                "'power_law * gaussian', or in Python an astropy model or a plain function"
            )
        # what was read from a file may apply a model; a fit refuses it
        if not (isinstance(self.function, str) and self.function.startswith(PYTHON)):
            check_shared(rate_function(self.function, self.given_parameters()), self.shared)
        return self

    def given_parameters(self) -> dict[str, dict]:
        """What is set of each parameter."""
        return {name: options.model_dump(exclude_none=True) for name, options in self.parameters.items()}


class EnergyOptions(Options):
    """Energy axis of the fitted model."""

    min: OneEnergy = u.Quantity("0.1 TeV")
    max: OneEnergy = u.Quantity("100 TeV")
    nbins_per_decade: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _ordered(self):
        if not 0 * u.TeV < self.min < self.max:
            raise ValueError(f"got min {self.min} and max {self.max}, but 0 < min < max is needed")
        return self


class AdaptiveEnergy(Options):
    """Energy bins of the fit, merged up to a count target and a largest width.

    The model keeps its energy axis; what the merged bins share is the profile over the field of view.

    Attributes
    ----------
    min_counts : float
        Unexcluded events of all runs that each bin is to hold.
    max_width : float
        Largest width of a merged bin, in decades.
    """

    type: Literal["adaptive"] = "adaptive"
    min_counts: Annotated[float, Field(gt=0)] = 500
    max_width: Annotated[float, Field(gt=0)] = 0.5
