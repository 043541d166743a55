"""A rate as a product of astropy models of energy, of the position in the field of view, or of both.

Energies are in TeV, positions in deg, rates in s-1 MeV-1 sr-1.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.modeling import CompoundModel, Model, custom_model

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.parametric.shapes import READY_SHAPES

PYTHON = "python: "  # how the description of a function begins that no file can hold
_INPUTS = {
    "e": "energy",
    "energy": "energy",
    "lon": "fov_lon",
    "fov_lon": "fov_lon",
    "lat": "fov_lat",
    "fov_lat": "fov_lat",
}
_ORDERS = {1: ("energy",), 2: ("fov_lon", "fov_lat"), 3: ("energy", "fov_lon", "fov_lat")}
_PARAMETER_KEYS = {"value", "min", "max", "fixed"}


@dataclass(frozen=True, eq=False)
class RateFunction:
    """Product of models, with all their parameters in one vector.

    Attributes
    ----------
    factors : tuple of `~astropy.modeling.Model`
        Each with 1 (energy), 2 (fov_lon, fov_lat) or 3 (energy, fov_lon, fov_lat) inputs. They belong to this object
        and hold start values and constraints.
    description : str
        The product in words; the name of a ready one, which `rate_function` takes back, or `PYTHON` and a name.
    given : frozenset of str
        Parameters whose start value the user gave.
    """

    factors: tuple[Model, ...]
    description: str
    given: frozenset[str] = frozenset()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each parameter; one that an earlier factor has too gets the number of its factor."""
        names = []
        for k, model in enumerate(self.factors):
            names += [f"{name}_{k}" if name in names else name for name in model.param_names]
        return tuple(names)

    @cached_property
    def _parameters(self):
        return [getattr(model, name) for model in self.factors for name in model.param_names]

    @cached_property
    def _first(self):
        return np.cumsum([0] + [len(model.param_names) for model in self.factors])

    @property
    def n_inputs(self) -> int:
        """1, 2 or 3: what the whole product depends on."""
        kinds = {model.n_inputs for model in self.factors}
        return kinds.pop() if len(kinds) == 1 else 3

    @cached_property
    def start(self) -> np.ndarray:
        """Start values of all parameters."""
        return self.tie(np.array([float(p.value) for p in self._parameters]))

    @cached_property
    def free(self) -> np.ndarray:
        """Numbers of the parameters that are neither fixed nor tied."""
        return np.array([k for k, p in enumerate(self._parameters) if not (p.fixed or p.tied)], dtype=int)

    @property
    def fixed_names(self) -> set[str]:
        """Names of the parameters that are fixed."""
        return {name for name, p in zip(self.names, self._parameters, strict=True) if p.fixed}

    @cached_property
    def has_ties(self) -> bool:
        return any(p.tied for p in self._parameters)

    @cached_property
    def bounds(self) -> list[tuple[float, float]]:
        """Limits of all parameters, infinite where there are none."""
        return [
            (-np.inf if low is None else float(low), np.inf if high is None else float(high))
            for low, high in (p.bounds for p in self._parameters)
        ]

    def tie(self, values: np.ndarray) -> np.ndarray:
        """All values, with the tied ones computed from the others by their callables."""
        values = np.array(values, dtype=float)
        if not self.has_ties:
            return values
        for i, parameter in enumerate(self._parameters):
            if parameter.tied:
                values[i] = float(parameter.tied(self._with(self.factor_of(i), values)))
        return values

    def expand(self, free_values: np.ndarray) -> np.ndarray:
        """All values, from those of the free parameters."""
        values = np.array([float(p.value) for p in self._parameters])
        values[self.free] = free_values
        return self.tie(values)

    def factor_grid(self, k: int, values: np.ndarray, energy, fov_lon, fov_lat) -> np.ndarray:
        """Factor k at n energies and m positions, shape (n, 1), (1, m) or (n, m)."""
        inputs, shape = self._inputs(k, energy, fov_lon, fov_lat)
        with np.errstate(all="ignore"):  # what is not finite is seen by the fit
            rate = self._with(k, values)(*inputs)
        if hasattr(rate, "unit") or np.shape(rate) not in ((), (1,), inputs[0].shape):
            raise InputError(
                f"function: {self.description!r} gives {type(rate).__name__} of shape {np.shape(rate)} for "
                f"{len(inputs[0])} values, but as many plain numbers are needed, in s-1 MeV-1 sr-1"
            )
        return np.broadcast_to(np.asarray(rate, dtype=float), inputs[0].shape).reshape(shape)

    def factor_slopes(self, k: int, values: np.ndarray, energy, fov_lon, fov_lat) -> np.ndarray:
        """Derivatives by its parameters of a factor k that gives them (`has_slopes`), shape (parameter, ...)."""
        model = self.factors[k]
        inputs, shape = self._inputs(k, energy, fov_lon, fov_lat)
        with np.errstate(all="ignore"):
            slopes = model.fit_deriv(*inputs, *values[self._first[k] : self._first[k + 1]])
        columns = slopes if model.col_fit_deriv else np.moveaxis(np.asarray(slopes), -1, 0)
        return np.stack([np.broadcast_to(np.asarray(c, dtype=float), inputs[0].shape).reshape(shape) for c in columns])

    def has_slopes(self, k: int) -> bool:
        """Whether factor k gives its derivatives."""
        model = self.factors[k]
        return not isinstance(model, CompoundModel) and callable(getattr(model, "fit_deriv", None))

    def factor_of(self, parameter: int) -> int:
        """Number of the factor that has a parameter."""
        return int(np.searchsorted(self._first, parameter, side="right") - 1)

    def slot(self, parameter: int) -> int:
        """Number of a parameter within its factor."""
        return int(parameter - self._first[self.factor_of(parameter)])

    def grid(self, values: np.ndarray, energy, fov_lon, fov_lat) -> np.ndarray:
        """Rate at n energies and m positions, shape (n, m); not below 0."""
        rate = np.ones((len(energy), len(fov_lon)))
        for k in range(len(self.factors)):
            rate = rate * self.factor_grid(k, values, energy, fov_lon, fov_lat)
        return np.maximum(rate, 0)

    def _with(self, k, values):
        model = self._working_copies[k]
        model.parameters = values[self._first[k] : self._first[k + 1]]
        return model

    @cached_property
    def _working_copies(self):
        return [model.copy() for model in self.factors]

    def _inputs(self, k, energy, fov_lon, fov_lat):
        energy, fov_lon, fov_lat = (np.asarray(x, dtype=float) for x in (energy, fov_lon, fov_lat))
        kind = self.factors[k].n_inputs
        if kind == 1:
            return [energy], (-1, 1)
        if kind == 2:
            return [fov_lon, fov_lat], (1, -1)
        n, m = len(energy), len(fov_lon)
        return [np.repeat(energy, m), np.tile(fov_lon, n), np.tile(fov_lat, n)], (n, m)


def rate_function(function, parameters: dict[str, dict] | None = None) -> RateFunction:
    """Rate function from what a user gives.

    Parameters
    ----------
    function : str, `~astropy.modeling.Model`, callable or list
        A ready shape (`READY_SHAPES`) or a product such as ``"power_law * gaussian"``; an astropy model with 1
        (energy), 2 (fov_lon, fov_lat) or 3 (energy, fov_lon, fov_lat) inputs; a plain function whose first arguments
        have these names (or e, lon, lat) and whose others are parameters with defaults; or a list of these, for their
        product. Energy in TeV, positions in deg, rate in s-1 MeV-1 sr-1.
    parameters : dict, optional
        For parameters by name, a dict with any of "value", "min", "max", "fixed".

    Returns
    -------
    rate_function : `RateFunction`
        With models of its own; those given are not changed.

    Raises
    ------
    InputError
        For a function or a parameter that is not known or does not fit.
    """
    description = describe_function(function)
    if description.startswith(PYTHON) and isinstance(function, str):
        raise InputError(
            f"function: this configuration names {function.removeprefix(PYTHON)!r}, but a file holds no code; to fit "
            "again, give the function itself, as in AcceptanceConfig(model={'type': 'parametric', "
            "'function': my_function})"
        )
    if isinstance(function, str):
        factors = [_ready(name.strip()) for name in function.split("*")]
        for model in factors[1:]:
            model.amplitude, model.amplitude.fixed = 1, True
    else:
        parts = function if isinstance(function, (list, tuple)) else [function]
        if not parts:
            raise InputError("function: got an empty list, but at least one factor is needed")
        factors = [_factor(part) for part in parts]
    made = RateFunction(
        tuple(factors), description, frozenset(k for k, p in (parameters or {}).items() if "value" in p)
    )
    _set_parameters(made, parameters or {})
    if not len(made.free):
        raise InputError(f"parameters: all of {made.description!r} are fixed or tied; leave at least one free")
    # once more, so that nothing was computed before the parameters were set
    return RateFunction(made.factors, made.description, made.given)


def describe_function(function) -> str:
    """The function in one line of text: a ready product as it is, code by its name."""
    if isinstance(function, str):
        return function
    parts = function if isinstance(function, (list, tuple)) else [function]
    return PYTHON + " * ".join(p if isinstance(p, str) else _name_of(p) for p in parts)


def check_shared(function: RateFunction, shared) -> None:
    """Refuse shared parameters that the function has not, or where the fit shares all of them anyhow."""
    unknown = [name for name in shared if name not in function.names]
    if unknown:
        raise InputError(
            f"shared: got {unknown}, but the parameters of {function.description!r} are {list(function.names)}"
        )
    if shared and function.n_inputs != 2:
        raise InputError(
            f"shared: got {list(shared)}, but {function.description!r} depends on energy itself and is fitted at all "
            "energies at once; leave it empty, or use a function of fov_lon and fov_lat"
        )


def _name_of(part):
    if isinstance(part, Model):
        return part.name or type(part).__name__
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', type(part).__name__)}"


def _ready(name):
    if name not in READY_SHAPES:
        raise InputError(
            f"function: got {name!r}, but one of {list(READY_SHAPES)} or a product of them with '*' is needed; other "
            "models are given in Python"
        )
    return READY_SHAPES[name]()


def _factor(part):
    if isinstance(part, str):
        return _ready(part)
    if isinstance(part, type) and issubclass(part, Model):
        raise InputError(f"function: got the class {part.__name__}; give a model, {part.__name__}(...)")
    if isinstance(part, Model):
        model = part.copy()
        _check_order(_name_of(part), model.n_inputs, [n for n in model.inputs if n in _INPUTS], model.inputs)
    elif callable(part):
        model = _from_plain(part)
    else:
        raise InputError(f"function: got {part!r}, but a name, an astropy model or a plain function is needed")
    if model.n_outputs != 1 or len(model) != 1:
        raise InputError(
            f"function: {_name_of(part)} gives {model.n_outputs} outputs for {len(model)} models, "
            "but one rate is needed"
        )
    for name in model.param_names:
        parameter = getattr(model, name)
        if parameter.unit is not None or parameter.shape not in ((), (1,)):
            raise InputError(
                f"function: the parameter {name!r} of {_name_of(part)} has a unit or a shape, but plain numbers are "
                "needed: TeV, deg and s-1 MeV-1 sr-1"
            )
        if parameter.tied and not callable(parameter.tied):
            raise InputError(
                f"function: the parameter {name!r} of {_name_of(part)} is tied to {parameter.tied!r}, but only a "
                "callable of the model is taken"
            )
    return model


def _from_plain(part):
    arguments = list(inspect.signature(part).parameters.values())
    if any(a.kind not in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY) for a in arguments):
        raise InputError(
            f"function: {_name_of(part)} has *args, **kwargs or positional-only arguments, but named ones are needed"
        )
    inputs = [a.name for a in arguments if a.default is a.empty]
    parameters = {a.name: a.default for a in arguments if a.default is not a.empty}
    _check_order(_name_of(part), len(inputs), inputs, inputs)
    if not parameters:
        raise InputError(f"function: {_name_of(part)} has no parameters; give it arguments with default values")
    if any(isinstance(v, bool) or not isinstance(v, (int, float, np.number)) for v in parameters.values()):
        raise InputError(
            f"function: the defaults of {_name_of(part)} are {parameters}, "
            "but numbers are needed: they are the start values"
        )
    model = custom_model(part)()
    for name, value in parameters.items():
        setattr(model, name, value)
    return model


def _check_order(name, n_inputs, named, inputs):
    if n_inputs not in _ORDERS:
        raise InputError(
            f"function: {name} has the {n_inputs} inputs {list(inputs)}, but (energy), (fov_lon, fov_lat) or "
            "(energy, fov_lon, fov_lat) are needed; give the others default values"
        )
    # astropy's x, y are taken by their place
    if named and tuple(_INPUTS.get(n, n) for n in inputs) != _ORDERS[n_inputs]:
        raise InputError(
            f"function: {name} takes {list(inputs)}, but {list(_ORDERS[n_inputs])} are needed, in this order"
        )


def _set_parameters(function, options):
    owner = dict(zip(function.names, function._parameters, strict=True))
    for name, changes in options.items():
        if name not in owner:
            raise InputError(f"parameters: got {name!r}, but those of {function.description!r} are {list(owner)}")
        if "tied" in changes:
            raise InputError(
                f"parameters: {name!r} is tied to {changes['tied']!r}, but text is not taken: tie it on the astropy "
                f"model, model.{name}.tied = callable"
            )
        if set(changes) - _PARAMETER_KEYS:
            raise InputError(
                f"parameters: {name!r} has the keys {sorted(changes)}, but only {sorted(_PARAMETER_KEYS)} are known"
            )
        parameter = owner[name]
        for key in ("value", "min", "max", "fixed"):
            if key in changes:
                setattr(parameter, key, changes[key])
    for name, parameter in owner.items():
        low, high = (s if b is None else b for b, s in zip(parameter.bounds, (-np.inf, np.inf), strict=True))
        if not (np.isfinite(parameter.value) and low <= parameter.value <= high and low < high):
            raise InputError(
                f"parameters: {name!r} starts at {float(parameter.value)}, outside of its limits [{low}, {high}]; "
                "give another value"
            )
