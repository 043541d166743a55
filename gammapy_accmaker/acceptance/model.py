"""`AcceptanceModel`: a fitted model with all that is needed to apply it, and its file."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import astropy.units as u
import numpy as np
import yaml
from astropy.table import Table
from gammapy.modeling.models import Models
from regions import CircleSkyRegion

from gammapy_accmaker.acceptance.plan import GroupPlan
from gammapy_accmaker.acceptance.run_table import describe_columns
from gammapy_accmaker.acceptance.sources import describe_sources
from gammapy_accmaker.camera.bins import as_values
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import RateModel, describe_cos_zenith
from gammapy_accmaker.models.binned import BinnedModel
from gammapy_accmaker.models.fit_counts import FitCounts
from gammapy_accmaker.models.goodness import describe_goodness
from gammapy_accmaker.models.parametric.model import ParametricModel
from gammapy_accmaker.models.pooled import AzimuthBinned, ModelPerRun, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.models.spline.rate import SplineRate
from gammapy_accmaker.models.tabulated import TabulatedModel
from gammapy_accmaker.products.cubes import cubes_to_hdulist, make_cubes
from gammapy_accmaker.products.excess import excess_regions
from gammapy_accmaker.products.found import FoundSource
from gammapy_accmaker.products.irf import RATE_UNIT, make_mean_irf
from gammapy_accmaker.products.plots import View, plot_model, plot_radial, plot_rate_image, plot_spectrum
from gammapy_accmaker.products.tables import model_from_irfs
from gammapy_accmaker.utils.describe import as_html, as_text, counted, in_percent, in_thousands
from gammapy_accmaker.utils.files import as_path, write_atomically
from gammapy_accmaker.utils.model_file import below, numbered, read_model_file, write_model_file
from gammapy_accmaker.utils.run_key import RunKey, find_runs, run_keys

log = logging.getLogger(__name__)

WITHOUT_EXCLUSION = "gamma-ray sources in the fields of the runs count as background"

# all that a file may hold; a model of parts finds theirs among them, since an import makes them known
STORED: tuple[type[RateModel], ...] = (
    AzimuthBinned,
    BinnedModel,
    ModelPerRun,
    ParametricModel,
    SplineRate,
    TabulatedModel,
    ZenithBinned,
    ZenithInterpolated,
)

# before the names of their arrays in a file
_PLAN, _FIT_COUNTS, _EXCLUSION, _SOURCES, _SEEN = "plan/", "fit_counts/", "exclusion/", "sources/", "seen/"
_EXTRA_TABLES = ("matches", "found", "source_table")


def _to_text(table):
    """A table as text that is read back exactly; empty for one without columns."""
    if not table.colnames:
        return ""
    text = StringIO()
    table.write(text, format="ascii.ecsv")
    return text.getvalue()


@dataclass(frozen=True, eq=False, repr=False)
class AcceptanceModel:
    """Fitted acceptance: background rate over energy and field of view.

    Made by `fit_acceptance` or `AcceptanceModel.read`; applied by `AcceptanceBackgroundMaker`.

    Attributes
    ----------
    rate_model : `RateModel`
        The fit, on plain arrays.
    config : `AcceptanceConfig`
        The configuration that made it. It names no files of the exclusion, which is in ``exclusion``.
    run_table : `~astropy.table.Table`
        One row for each run of the fit: what it gave, its norm, and why it was left out, if it was; its columns are
        described in `gammapy_accmaker.acceptance.run_table`.
    matches : `~astropy.table.Table`
        Which OFF runs the model of each ON run was fitted to, see `match_observations`; empty where nothing was
        matched.
    found : `~astropy.table.Table`
        Circles that a search (``exclusion.iterative``, or ``sources`` of type found) found and left out: RA, DEC,
        RADIUS, SIGNIFICANCE and the ITERATION; in its meta whether the search came to an end (STABLE).
    plan : `GroupPlan` or None
        Which runs were pooled, where they were in bins of zenith or azimuth.
    fit_counts : `FitCounts` or None
        Counts and exposure of the fit; None for a model that was not fitted here.
    exclusion : `Exclusion`
        Sky regions and masks that the fit left out, those of files and what was found included. A maker that is built
        on the model leaves them out too.
    known_sources : `SourceList`
        Gamma-ray sources that stood in the likelihood beside the background, with their fitted amplitudes. A maker that
        is built on the model takes them into account.
    source_table : `~astropy.table.Table`
        One row for each of them and band of energy (E_MIN, E_MAX): whether its amplitude was FREE, the AMPLITUDE as a
        factor on the flux of the model, its error, its expected COUNTS in the runs, the share of the INFORMATION on the
        amplitude that is left once the background is fitted with it, and a FLAG.
    seen : tuple of `FoundSource`
        Image, spectrum and significance of each source that was found.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceModel
    >>> model = AcceptanceModel.read("model.fits")  # doctest: +SKIP
    >>> print(model)  # doctest: +SKIP
    """

    rate_model: RateModel
    config: AcceptanceConfig
    run_table: Table
    matches: Table = field(default_factory=Table)
    found: Table = field(default_factory=Table)
    plan: GroupPlan | None = None
    fit_counts: FitCounts | None = None
    exclusion: Exclusion = field(default_factory=Exclusion)
    known_sources: SourceList = field(default_factory=SourceList)
    source_table: Table = field(default_factory=Table)
    seen: tuple[FoundSource, ...] = ()

    def __post_init__(self):
        # text is what scripts of earlier versions give
        object.__setattr__(self, "config", AcceptanceConfig.from_yaml(self.config))
        describe_columns(self.run_table)

    @property
    def sources(self) -> Models:
        """Known sources of the fit with the fluxes that were given (`~gammapy.modeling.models.Models`); what was fitted
        of them is in ``source_table``."""
        return self.known_sources.models

    @property
    def found_regions(self) -> list[CircleSkyRegion]:
        """The regions of ``found``: left out of the fit, and where the model is adapted to a run."""
        return excess_regions(self.found)

    @property
    def found_sources(self) -> Models:
        """What was found as gammapy models, an image times a spectrum each: pictures of what was left out, which hold
        the point spread, and no measurements. A source whose runs have no effective area has no spectrum, and is not
        among them; ``seen`` has all."""
        return Models([model for source in self.seen if (model := source.to_model()) is not None])

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=None, azimuth=None) -> u.Quantity:
        """Background rate per ontime of a run of norm 1.

        Parameters
        ----------
        energy : `~astropy.units.Quantity`
            Reconstructed energy.
        fov_lon, fov_lat : `~astropy.units.Quantity`
            Field-of-view coordinates, in the alignment of the configuration; all arguments broadcast.
        cos_zenith : float, optional
            Cosine of the zenith angle of the pointing; default: the middle of the trained range.
        azimuth : `~astropy.units.Quantity`, optional
            Of the pointing.

        Returns
        -------
        rate : `~astropy.units.Quantity`
            In s-1 MeV-1 sr-1; 0 outside of the trained energies and offsets.

        Raises
        ------
        InputError
            For an argument that is no quantity of the right unit.

        Examples
        --------
        >>> model.rate([1, 10] * u.TeV, 0.5 * u.deg, 0 * u.deg, cos_zenith=0.9)  # doctest: +SKIP
        """
        lon, lat = as_values(fov_lon, "deg", "fov_lon"), as_values(fov_lat, "deg", "fov_lat")
        azimuth = None if azimuth is None else as_values(azimuth, "deg", "azimuth")
        cos_zenith = self.rate_model.middle_cos_zenith if cos_zenith is None else cos_zenith
        return self.rate_model.rate(as_values(energy, "TeV", "energy"), lon, lat, cos_zenith, azimuth) * RATE_UNIT

    def cubes(self, *, cos_zenith: float | None = None, smooth_counts: float | None = None) -> dict:
        """Cubes of the fit over energy and camera.

        Longitude and latitude of the maps are FOV_LON and FOV_LAT, see `gammapy_accmaker.products.cubes`.

        Parameters
        ----------
        cos_zenith : float, optional
            Of the fitted rate; default: the middle of the trained range.
        smooth_counts : float, optional
            Smooth the measured rate of each energy, relative to the fitted one, with a Gaussian under which about so
            many counts lie.

        Returns
        -------
        cubes : dict of `~gammapy.maps.WcsNDMap`
            "counts", "exposure" (unexcluded ontime in s), "measured_rate" (counts over exposure, solid angle and
            energy, NaN without exposure) and "rate" (of the model). The first three are those of the fit, and are not
            there for a model that was not fitted here.

        Examples
        --------
        >>> cubes = model.cubes()  # doctest: +SKIP
        >>> cubes["rate"].plot_grid()  # doctest: +SKIP
        """
        return make_cubes(self.rate_model, self.fit_counts, cos_zenith, smooth_counts)

    def write_cube(self, path, format: str = "table", *, cos_zenith: float | None = None, overwrite=False) -> None:
        """Write the rate at one zenith angle.

        Parameters
        ----------
        path : str or `~pathlib.Path`
            FITS file.
        format : {"table", "image"}
            "table": background IRF in the format of GADF; "image": the maps of `cubes`, which ds9 opens.
        cos_zenith : float, optional
            Default: the middle of the trained range.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        InputError
            For another format, or an existing file without ``overwrite``.

        Examples
        --------
        >>> model.write_cube("background.fits", cos_zenith=0.9)  # doctest: +SKIP
        """
        alignment = self.config.fov_alignment
        if format == "table":
            irf = make_mean_irf(self.rate_model, cos_zenith, alignment)
            write_atomically(as_path(path), irf.write, overwrite)
        elif format == "image":
            hdulist = cubes_to_hdulist(self.cubes(cos_zenith=cos_zenith), alignment)
            write_atomically(as_path(path), hdulist.writeto, overwrite)
        else:
            raise InputError(f"format: got {format!r}, but 'table' or 'image' is needed")

    @property
    def view(self) -> View:
        """Where the model has data: what its pictures show."""
        return View.of(self.rate_model, self.fit_counts, self.config.model.largest_offset(self.config.offset_max.deg))

    def plot_image(self, energy, ax=None):
        """Image of the rate in the camera at an energy, at the middle of the trained zenith angles.

        Parameters
        ----------
        energy : `~astropy.units.Quantity`
            One energy.
        ax : `~matplotlib.axes.Axes`, optional
            Default: the current ones.

        Returns
        -------
        ax : `~matplotlib.axes.Axes`
            Those that were drawn on.

        Examples
        --------
        >>> model.plot_image(1 * u.TeV)  # doctest: +SKIP
        """
        return plot_rate_image(self.rate_model, float(u.Quantity(energy).to_value("TeV")), ax, view=self.view)

    def plot_spectrum(self, offset=None, ax=None):
        """Rate against energy, each the mean over a ring of the camera.

        Parameters
        ----------
        offset : `~astropy.units.Quantity`, optional
            One or more offsets; default: three.
        ax : `~matplotlib.axes.Axes`, optional
            Default: the current ones.

        Returns
        -------
        ax : `~matplotlib.axes.Axes`
            Those that were drawn on.

        Examples
        --------
        >>> model.plot_spectrum([0.5, 1.5] * u.deg)  # doctest: +SKIP
        """
        offset = None if offset is None else u.Quantity(offset).to_value("deg")
        return plot_spectrum(self.rate_model, ax, offset, view=self.view)

    def plot_radial(self, energy, ax=None):
        """Rate against offset, the mean over each ring of the camera.

        Parameters
        ----------
        energy : `~astropy.units.Quantity`
            One or more energies.
        ax : `~matplotlib.axes.Axes`, optional
            Default: the current ones.

        Returns
        -------
        ax : `~matplotlib.axes.Axes`
            Those that were drawn on.

        Examples
        --------
        >>> model.plot_radial([0.5, 5] * u.TeV)  # doctest: +SKIP
        """
        return plot_radial(self.rate_model, u.Quantity(energy).to_value("TeV"), ax, self.view)

    def peek(self, figsize=(12, 9)):
        """Plot the rate: its spectrum and profile with the error of the fit, an image, and its asymmetry.

        All are drawn where the fit has events, at the middle of the trained zenith angles.

        Parameters
        ----------
        figsize : tuple of float
            Width and height in inches.

        Returns
        -------
        figure : `~matplotlib.figure.Figure`
            With all of them.

        Examples
        --------
        >>> model.peek()  # doctest: +SKIP
        """
        return plot_model(self.rate_model, figsize, self.view, self.in_brief())

    def write(self, path, overwrite: bool = False) -> None:
        """Write a FITS file that `read` reads back exactly.

        Parameters
        ----------
        path : str or `~pathlib.Path`
            Of the FITS file.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        InputError
            For an existing file without ``overwrite``.

        Examples
        --------
        >>> model.write("model.fits")  # doctest: +SKIP
        """
        texts = {"kind": self.rate_model.kind, "config": self.config.to_yaml()}
        texts |= {name: _to_text(getattr(self, name)) for name in _EXTRA_TABLES}
        arrays = self.rate_model.to_arrays()
        if self.plan is not None:
            arrays |= {_PLAN + name: values for name, values in self.plan.to_arrays().items()}
        if self.fit_counts is not None:
            arrays |= {_FIT_COUNTS + name: values for name, values in self.fit_counts.to_arrays().items()}
        texts["exclusion"], masks = self.exclusion.to_arrays()
        arrays |= {_EXCLUSION + name: values for name, values in masks.items()}
        if len(self.known_sources):
            texts["sources"], templates = self.known_sources.to_arrays()
            arrays |= {_SOURCES + name: values for name, values in templates.items()}
        for k, source in enumerate(self.seen):
            arrays |= {f"{_SEEN}{k}/{name}": values for name, values in source.to_arrays().items()}
        write_model_file(as_path(path), arrays, texts, self.run_table, overwrite)

    @classmethod
    def read(cls, path) -> AcceptanceModel:
        """Read a file that `write` wrote.

        Parameters
        ----------
        path : str or `~pathlib.Path`
            Of the FITS file.

        Returns
        -------
        model : `AcceptanceModel`

        Raises
        ------
        InputError
            For a file that is none of a model, or that lacks a part.

        Examples
        --------
        >>> model = AcceptanceModel.read("model.fits")  # doctest: +SKIP
        """
        arrays, texts, run_table = read_model_file(as_path(path))
        try:
            prefixes = _PLAN, _FIT_COUNTS, _EXCLUSION, _SOURCES, _SEEN
            planned, summed, masks, templates, seen = (below(arrays, prefix) for prefix in prefixes)
            arrays = {name: values for name, values in arrays.items() if not name.startswith(prefixes)}
            rate_model = {cls.kind: cls for cls in STORED}[texts["kind"]].from_arrays(arrays)
            plan = GroupPlan.from_arrays(planned) if planned else None
            extra: dict[str, Any] = {
                name: Table.read(texts[name], format="ascii.ecsv") for name in _EXTRA_TABLES if texts.get(name)
            }
            fit_counts = FitCounts.from_arrays(summed) if summed else None
            known = (
                not len(run_table) or run_table["OBS_ID"].dtype.kind in "iuU" and run_table["USED"].dtype.kind == "b"
            )
            if not known:
                raise ValueError("columns OBS_ID and USED of the run table")
            if "exclusion" in texts:
                config, exclusion = texts["config"], Exclusion.from_arrays(texts["exclusion"], masks)
            else:
                config, exclusion = _without_files(texts["config"], path), Exclusion()
            fitted = AcceptanceConfig.from_yaml(config)
            extra["known_sources"] = SourceList.from_arrays(texts.get("sources", "[]"), templates)
            extra["seen"] = tuple(FoundSource.from_arrays(own) for own in numbered(seen, "text"))
            return cls(rate_model, fitted, run_table, plan=plan, fit_counts=fit_counts, exclusion=exclusion, **extra)
        except Exception as error:  # whatever a damaged part leads to
            raise InputError(f"model file: {path} lacks a part or holds one that does not fit ({error!r})") from error

    @classmethod
    def from_irf(cls, irf, *, run_effects: str = "none", fov_alignment: str | None = None) -> AcceptanceModel:
        """Model of a background IRF that was made elsewhere.

        The rate is read as gammapy reads it, and is 0 outside of the edges of the IRF.

        Parameters
        ----------
        irf : `~gammapy.irf.Background2D`, `~gammapy.irf.Background3D` or dict
            A dictionary has zenith angles (`~astropy.units.Quantity`, or numbers in deg) as keys; between two of them
            the rate is linear in cos zenith, beyond the ends it stays.
        run_effects : {"none", "norm"}
            Whether the maker fits the norm of each run.
        fov_alignment : {"altaz", "radec", "reverse_lon_radec"}, optional
            Where the IRF does not know its own, or a wrong one.

        Returns
        -------
        model : `AcceptanceModel`
            Its configuration has the energies, offsets and alignment of the IRF.

        Raises
        ------
        InputError
            For another object, units that cannot be converted, or IRFs that do not fit together.

        Examples
        --------
        >>> from gammapy.irf import Background3D
        >>> irf = Background3D.read("background.fits", hdu="BACKGROUND")  # doctest: +SKIP
        >>> model = AcceptanceModel.from_irf(irf, run_effects="norm")  # doctest: +SKIP
        """
        if run_effects not in ("none", "norm"):
            raise InputError(
                f"run_effects: got {run_effects!r}, but 'none' or 'norm' is needed: an IRF has no rate at energies "
                "beyond its own"
            )
        if fov_alignment not in (None, "altaz", "radec", "reverse_lon_radec"):
            raise InputError(
                f"fov_alignment: got {fov_alignment!r}, but 'altaz', 'radec' or 'reverse_lon_radec' is needed"
            )
        rate_model, alignment = model_from_irfs(irf, fov_alignment)
        edges = rate_model.energy_edges
        config = AcceptanceConfig.coerce({
            "model": {"type": "radial" if rate_model.is_radial else "grid"},
            "energy": {"min": edges[0] * u.TeV, "max": edges[-1] * u.TeV},
            "fit_energy": edges * u.TeV,
            "offset_max": rate_model.half_width * u.deg,
            "fov_alignment": alignment,
            "zenith": {"type": "none" if rate_model.zenith_range is None else "interpolated"},
            "run_effects": {"type": run_effects},
        })  # fmt: skip
        return cls(rate_model, config, Table(names=["OBS_ID", "USED"], dtype=[int, bool]))

    @property
    def energy_range(self) -> u.Quantity:
        """Reconstructed energies with events of the fit (to a bin), within those of the configuration.

        Where it was not fitted here, the energies of the model.
        """
        counts = self.fit_counts
        found = None if counts is None else counts.energy_range
        return u.Quantity(self.rate_model.energy_edges[[0, -1]] if found is None else found, "TeV")

    @property
    def n_events(self) -> int:
        """Events of the fit, outside of the exclusion."""
        return int(self._total("COUNTS"))

    @property
    def excluded_share(self) -> float:
        """Part of the exposure of the field of view that the exclusion takes from the fit; NaN where it is not known.

        In ontime and solid angle, within ``offset_max`` and over all runs.
        """
        ontime = self._total("ONTIME")
        if self.fit_counts is None or not ontime:
            return np.nan
        return self.fit_counts.excluded_share(ontime, self.config.offset_max.deg)

    def _total(self, column):
        """Of the runs of the fit; 0 in a table that does not have it."""
        fitted = self._used_runs("fit")
        return float(np.sum(fitted[column])) if column in fitted.colnames else 0.0

    def is_fitted_to(self, key: RunKey) -> bool:
        """Whether a run, recognised by its key, is one of those of the fit.

        Parameters
        ----------
        key : `RunKey`
            Number, start and pointing of the run.

        Returns
        -------
        is_fitted_to : bool

        Examples
        --------
        >>> model.is_fitted_to(reduced_run.key)  # doctest: +SKIP
        """
        return bool(find_runs([key], run_keys(self._used_runs("fit")))[0])

    def _used_runs(self, role):
        runs = self.run_table
        used = runs[np.asarray(runs["USED"], dtype=bool)] if len(runs) else runs
        return used[np.asarray(used["ROLE"]).astype(str) == role] if "ROLE" in used.colnames else used

    def _facts(self) -> list[tuple[str, str]]:
        """What it was made of and how the fit ended, each with its name."""
        model = self.rate_model
        facts = [
            ("model", self.config.model.type + ("" if len(self._used_runs("fit")) else ", not fitted here")),
            ("energy", self._energies_in_words()),
            ("offset max", self._offset_max_in_words()),
            ("zenith", self._zenith_in_words()),
            ("covariates", ", ".join(model.covariate_names)),
            ("runs", self._runs_in_words()),
            ("events", self._events_in_words()),
            ("exclusion", self._excluded_in_words()),
            *(("source", line) for line in describe_sources(self.source_table)),
            ("fit", model.convergence),
            ("goodness", describe_goodness(model.goodness) if model.goodness else ""),
        ]
        return [(name, value) for name, value in facts if value]

    def in_brief(self) -> str:
        """What it was fitted to, in one line.

        Returns
        -------
        text : str
            Kind, energies, offsets, zenith angles, runs and events, and how the fit ended.

        Examples
        --------
        >>> model.in_brief()  # doctest: +SKIP
        """
        low, high = self.energy_range.to_value("TeV")
        n_runs = len(self._used_runs("fit"))
        convergence = "not converged" if self.rate_model.not_converged else self.rate_model.convergence
        parts = [
            self.config.model.type,
            f"{low:.3g} to {high:.3g} TeV",
            f"offset to {self.config.model.largest_offset(self.config.offset_max.deg):.3g} deg",
            *([self._zenith_range_in_words()] if self._zenith_range_in_words() else []),
            *([f"{counted(n_runs, 'run')}, {in_thousands(self.n_events)} events"] if n_runs else ["not fitted here"]),
            f"{re.split('[;,]', self._excluded_in_words())[0].replace('none', 'nothing')} excluded",
            *([convergence.split(";")[0]] if convergence else []),
        ]
        return ", ".join(parts)

    def __repr__(self):
        return f"<{type(self).__name__}: {self.in_brief()}>"

    def __str__(self):
        return as_text(type(self).__name__, self._facts())

    def _repr_html_(self):
        return as_html(type(self).__name__, self._facts())

    def _energies_in_words(self):
        low, high = self.rate_model.energy_edges[[0, -1]]
        model = f"{low:.3g} to {high:.3g} TeV"
        found = None if self.fit_counts is None else self.fit_counts.energy_range
        if found is None:
            return model
        with_events = f"{found[0]:.3g} to {found[1]:.3g} TeV"
        return with_events if with_events == model else f"{with_events} with events, of {model}"

    def _zenith_range_in_words(self):
        """Of the model or, where it does not follow the zenith angle, of the runs."""
        if self.rate_model.zenith_range is not None:
            return describe_cos_zenith(self.rate_model.zenith_range)
        runs = self._used_runs("fit")
        zenith = np.asarray(runs["ZENITH"], dtype=float) if "ZENITH" in runs.colnames else np.zeros(0)
        zenith = zenith[np.isfinite(zenith)]
        return describe_cos_zenith(tuple(np.cos(np.radians([zenith.max(), zenith.min()])))) if len(zenith) else ""

    def _zenith_in_words(self):
        words, of_runs = self.rate_model.describe_zenith(), self._zenith_range_in_words()
        return words if self.rate_model.zenith_range is not None or not of_runs else f"{words}; runs at {of_runs}"

    def _runs_in_words(self):
        runs = self.run_table
        used = np.asarray(runs["USED"], dtype=bool) if len(runs) else np.zeros(0, bool)
        text = f"{used.sum()} used, {len(runs) - used.sum()} left out"
        if "ROLE" in runs.colnames:
            adapted = len(self._used_runs("apply"))
            text += f", {adapted} of them adapted to alone" if adapted else ""
        if "FLAG" in runs.colnames:
            flagged = np.sum(np.asarray(runs["FLAG"][used]).astype(str) != "")
            text += f", {flagged} flagged" if flagged else ""
        return text

    def _events_in_words(self):
        hours = self._total("ONTIME") / 3600
        if not hours:
            return ""
        text = f"{in_thousands(self.n_events)} in {hours:.3g} h"
        share = self.excluded_share
        return text if not np.isfinite(share) else f"{text}, {in_percent(share)} of the field of view excluded"

    def _offset_max_in_words(self):
        asked = self.config.model.largest_offset(self.config.offset_max.deg)
        reach = self.rate_model.offset_max
        seen = None if self.fit_counts is None else self.fit_counts.offset_range
        inner = "" if seen is None or seen[0] < 0.5 else f" from {seen[0]:.2g}"
        outer = "" if seen is None or seen[1] > 0.95 * asked else f", with events{inner} to {seen[1]:.3g} deg"
        goes_on = f", and the rate goes on to {reach:.3g} deg" if reach > asked * (1 + 1e-6) else ""
        return f"{asked:.3g} deg{outer}{goes_on}"

    def _excluded_in_words(self):
        options = self.config.exclusion
        parts = [self.exclusion.in_brief()] if len(self.exclusion) else []
        if options.wobble_half is not False:
            parts.append("the half of the camera with the source")
        if self.config.search is not None:
            parts.append(
                f"{len(self.found)} of them found in the data" if len(self.found) else "nothing found in the data"
            )
        if not parts and len(self.run_table) and not len(self.known_sources):
            return f"none; {WITHOUT_EXCLUSION}"
        return ", ".join(parts) if parts else "none"


def _without_files(config, path):
    """The configuration of a file of an earlier version,
    which named the files of the exclusion and did not hold them."""
    data = yaml.safe_load(config)
    named = {key: data["exclusion"][key] for key in ("regions", "mask", "catalog") if data["exclusion"].get(key)}
    data["exclusion"] |= dict.fromkeys(named)
    log.warning(
        f"model file: {path} was written by an earlier version, which did not store what the fit left out"
        + (f" ({', '.join(f'{key}: {value}' for key, value in named.items())})" if named else "")
        + ": give it as `exclusion` to what the model is used by, or fit and write it again"
    )
    return yaml.safe_dump(data, sort_keys=False)
