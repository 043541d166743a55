"""`AcceptanceModel`: a fitted model with all that is needed to apply it, and its file."""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.table import Table
from gammapy.utils.scripts import make_path

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import MODEL_KINDS, RateModel
from gammapy_accmaker.plan import GroupPlan
from gammapy_accmaker.products.io import read_model_file, write_model_file
from gammapy_accmaker.products.irf import RATE_UNIT
from gammapy_accmaker.products.plots import plot_model

__all__ = ["AcceptanceModel"]

PLAN = "plan/"  # before the arrays of the plan in a file


@dataclass(frozen=True, eq=False)
class AcceptanceModel:
    """Fitted acceptance: background rate over energy and field of view.

    Made by `fit_acceptance` or `AcceptanceModel.read`; applied by `AcceptanceBackgroundMaker`.

    Attributes
    ----------
    rate_model : `RateModel`
        The fit, on plain arrays.
    config : str
        The configuration that made it, as YAML.
    run_table : `~astropy.table.Table`
        One row for each run of the fit: what it gave, its norm, and why it was left out, if it was.
    plan : `GroupPlan` or None
        Which runs were pooled, where they were in bins of zenith or azimuth.
    """

    rate_model: RateModel
    config: str
    run_table: Table
    plan: GroupPlan | None = None

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=1.0, azimuth=None) -> u.Quantity:
        """Background rate per ontime of a run of norm 1.

        Parameters
        ----------
        energy : `~astropy.units.Quantity`
            Reconstructed energy.
        fov_lon, fov_lat : `~astropy.units.Quantity`
            Field-of-view coordinates, in the alignment of the configuration; all arguments broadcast.
        cos_zenith : float
            Cosine of the zenith angle of the pointing.
        azimuth : `~astropy.units.Quantity`, optional
            Of the pointing.

        Returns
        -------
        rate : `~astropy.units.Quantity`
            In s-1 MeV-1 sr-1; 0 outside of the trained energies and offsets.
        """
        lon, lat = (u.Quantity(x).to_value("deg") for x in (fov_lon, fov_lat))
        azimuth = None if azimuth is None else u.Quantity(azimuth).to_value("deg")
        return self.rate_model.rate(u.Quantity(energy).to_value("TeV"), lon, lat, cos_zenith, azimuth) * RATE_UNIT

    def peek(self, figsize=(12, 8)):
        """Plot spectrum, profile and images of the rate; returns the figure."""
        return plot_model(self.rate_model, figsize)

    def write(self, path, overwrite: bool = False) -> None:
        """Write a FITS file that `read` reads back exactly; an existing file is kept unless ``overwrite``."""
        texts = {"kind": self.rate_model.kind, "config": self.config}
        arrays = self.rate_model.to_arrays()
        if self.plan is not None:
            arrays |= {PLAN + name: values for name, values in self.plan.to_arrays().items()}
        write_model_file(make_path(path), arrays, texts, self.run_table, overwrite)

    @classmethod
    def read(cls, path) -> AcceptanceModel:
        """Read a file that `write` wrote."""
        arrays, texts, run_table = read_model_file(make_path(path))
        try:
            planned = {name.removeprefix(PLAN): arrays.pop(name) for name in [*arrays] if name.startswith(PLAN)}
            rate_model = MODEL_KINDS[texts["kind"]].from_arrays(arrays)
            plan = GroupPlan.from_arrays(planned) if planned else None
            return cls(rate_model, texts["config"], run_table, plan=plan)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise InputError(f"model file: {path} lacks a part or holds one that does not fit ({error!r})") from error

    def __str__(self):
        model = self.rate_model
        runs = self.run_table
        used = runs["USED"] if len(runs) else np.zeros(0, bool)
        low, high = model.energy_edges[[0, -1]]
        return (
            f"{type(self).__name__}\n{'-' * len(type(self).__name__)}\n\n"
            f"  model       : {type(model).__name__}\n"
            f"  energy      : {low:.3g} to {high:.3g} TeV\n"
            f"  offset max  : {model.offset_max:.3g} deg\n"
            f"  runs        : {used.sum()} used, {len(runs) - used.sum()} left out\n"
        )
