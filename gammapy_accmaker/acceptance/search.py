"""Fit, look for sources in the residuals, leave them out and fit again, until none is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack

from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.config.options import IterativeOptions
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.observations import pointing_icrs
from gammapy_accmaker.data.reduced_run import ReducedRun
from gammapy_accmaker.data.sky_counts import sky_bands
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.excess import excess_fields, excess_regions, find_excess, search_bands
from gammapy_accmaker.products.found import FoundSource, measure_sources

log = logging.getLogger(__name__)

_MOST_NAMED = 3
_ONE_POINTING = 0.1  # deg


@dataclass(frozen=True)
class Fitted:
    """A fit and what it was made of.

    Attributes
    ----------
    model : `AcceptanceModel`
    runs : sequence of `ReducedRun`
    adapted : sequence of `RateModel`
        What the model is adapted to each of them.
    energy_edges : `~numpy.ndarray`
        Of the reduction, in TeV.
    """

    model: AcceptanceModel
    runs: Sequence[ReducedRun]
    adapted: Sequence[RateModel]
    energy_edges: np.ndarray

    def find_excess(self, options: IterativeOptions, found: Exclusion) -> Table:
        """Circles around what stands out of the background and is not excluded; ``found``: what was found before."""
        bands, edges = search_bands(self.runs, self.energy_edges), self.energy_edges
        offset_max, exclusion = self.model.config.offset_max.deg, self.model.exclusion
        return find_excess(
            excess_fields(self.runs, self.adapted, bands, edges, offset_max, exclusion),
            exclusion,
            found,
            options.threshold,
            options.correlation_radius.deg,
            options.dilation.deg,
            self.model.rate_model.is_radial,
        )

    def sources(self, found: Table, observations) -> tuple[FoundSource, ...]:
        """Image and spectrum of what was found; ``observations`` have the effective areas."""
        config, edges = self.model.config, self.energy_edges
        bands, offset_max = sky_bands(edges), config.offset_max.deg
        fields = excess_fields(self.runs, self.adapted, bands, edges, offset_max)
        livetime = {run.place: run.livetime for run in self.runs}

        def exposure(place, position, energy):
            observation = observations[place]
            offset = pointing_icrs(observation, config.observatory_location).separation(position)
            if offset.deg > offset_max:
                return np.zeros(len(energy))
            aeff = observation.aeff
            if aeff is None:
                return np.full(len(energy), np.nan)
            return livetime[place] * aeff.evaluate(energy_true=energy * u.TeV, offset=offset).to_value("cm2")

        return tuple(measure_sources(found, fields, bands, exposure))


def fit_until_stable(
    fit: Callable[[Exclusion], Fitted], options: IterativeOptions, exclusion: Exclusion, observations
) -> Fitted:
    """Repeat a fit, with the significant excess of the runs left out, until no more is found.

    Parameters
    ----------
    fit : callable
        Fits outside of an exclusion.
    options : `IterativeOptions`
        Of the search.
    exclusion : `Exclusion`
        Left out from the beginning.
    observations : list of `~gammapy.data.Observation`

    Returns
    -------
    fitted : `Fitted`
        Its model has what was found in ``found``; a search that did not end is named in a warning and in
        ``found.meta["STABLE"]``.
    """
    found, stable = Table(), False
    fitted = fit(exclusion)
    for iteration in range(1, options.max_iterations + 1):
        new = fitted.find_excess(options, Exclusion(excess_regions(found)))
        if len(new) == 0:
            stable = True
            break
        new["ITERATION"] = iteration
        found = vstack([found, new]) if len(found) else new
        log.info(
            f"search {iteration} for sources: {len(new)} found, the strongest of {new['SIGNIFICANCE'].max():.1f} sigma"
        )
        del fitted  # what is kept of its runs
        fitted = fit(exclusion.with_regions(excess_regions(found)))
    if not stable:
        log.warning(
            f"search for sources: the last of {options.max_iterations} searches still found {len(new)}, the "
            f"strongest of {new['SIGNIFICANCE'].max():.1f} sigma; "
            "raise max_iterations or the threshold, or exclude what is known"
        )
    if len(found):
        found.meta["STABLE"] = stable
    _warn_of_one_pointing(fitted)
    seen = fitted.sources(found, observations) if len(found) else ()
    return replace(fitted, model=replace(fitted.model, found=found, seen=seen))


def _warn_of_one_pointing(fitted: Fitted) -> None:
    """One warning where nothing is excluded and all runs point to one position: what is fixed on the sky is then fixed
    in the camera as well, but for the turn of the field, and no search can tell it from the acceptance."""
    model, pointings = fitted.model, [run.sky.matrix[0] for run in fitted.runs if run.sky is not None]
    if len(pointings) < 2 or not model.exclusion.is_empty or model.config.exclusion.wobble_half is not False:
        return
    if np.min(pointings @ pointings[0]) > np.cos(np.radians(_ONE_POINTING)):
        log.warning(
            f"observations: all {len(pointings)} runs point to one position and nothing is excluded: a source there "
            "looks like the acceptance, which holds most of it, and cannot be found; fit the model to OFF runs "
            "(off_observations), exclude the source, or use wobble positions"
        )


def warn_of_excess(fitted: Fitted) -> None:
    """One warning where a significant excess stands that the fit did not leave out."""
    _warn_of_one_pointing(fitted)
    options = fitted.model.config.exclusion
    if options.wobble_half is not False:  # what the excluded half holds is seen here, and not by the fit
        return
    found = fitted.find_excess(IterativeOptions(), Exclusion())
    if len(found) == 0:
        return
    named = [
        f"RA {row['RA']:.2f} deg, Dec {row['DEC']:+.2f} deg, radius {row['RADIUS']:.2f} deg, "
        f"{row['SIGNIFICANCE']:.1f} sigma"
        for row in found[:_MOST_NAMED]
    ]
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    log.warning(
        f"exclusion: there is significant excess outside of what is excluded: {'; '.join(named)}{more}; the background "
        "holds a part of it. Exclude it, or set `sources: {type: found}`, which finds it and leaves it out"
    )
