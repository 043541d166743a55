"""Columns of the run table, `AcceptanceBackgroundMaker.run_table`: their units and what they mean.

Each row is a run, in the order of the observations. All counts of a row are counted over the same bins: those of the
fit in energy and field of view, outside of the exclusion. The bins are, for the model

- ``spline``: the pixels of 0.1 deg whose centre lies within ``offset_max``;
- ``radial``: the rings from 0 to ``offset_max``, or those given;
- ``grid``, ``parametric``: the whole square, its corners beyond ``offset_max`` included.

The columns (also ``run_table.info("attributes")``):
"""

from __future__ import annotations

from dataclasses import dataclass

from astropy.table import Table


@dataclass(frozen=True)
class RunColumn:
    """What a column of the run table holds.

    Attributes
    ----------
    description : str
    unit : str or None
    format : str or None
        Of its numbers in print: the digits that matter; the values keep all.
    """

    description: str
    unit: str | None = None
    format: str | None = None


RUN_COLUMNS = {
    "OBS_ID": RunColumn("number or name of the observation, as it is given: a label that may repeat"),
    "ROLE": RunColumn("'fit': the model was fitted to the run; 'apply': the fitted model was only adapted to it"),
    "USED": RunColumn("whether the run could be used; FLAG says why not"),
    "ONTIME": RunColumn("sum of the good time intervals", "s", ".0f"),
    "LIVETIME": RunColumn("ontime less dead time", "s", ".0f"),
    "ZENITH": RunColumn("zenith angle of the mean cos zenith of the pointing over the good time", "deg", ".2f"),
    "AZIMUTH": RunColumn("azimuth of the pointing, mean over the good time", "deg", ".1f"),
    "MJD": RunColumn("mean time of the first slice of the run", "d", ".4f"),
    "COUNTS": RunColumn("events in the bins of the fit, outside of the exclusion"),
    "EXPECTED": RunColumn("background expected there, with the effects of the run", None, ".1f"),
    "DROPPED": RunColumn("events that are not finite or lie outside of the good time intervals"),
    "NORM": RunColumn(
        "rate of the run over that of a mean run at the same zenith angle, once energies are shifted by SHIFT",
        None,
        ".3f",
    ),
    "NORM_ERR": RunColumn("standard deviation of NORM, measured from the mean over the runs of the fit", None, ".3f"),
    "SHIFT": RunColumn(
        "shift in ln(energy): the run has at E the rate of the mean run at E exp(SHIFT); > 0 for a lower threshold",
        None,
        "+.3f",
    ),
    "SHIFT_ERR": RunColumn(
        "standard deviation of the part of SHIFT that covariates do not foretell, measured from the mean over the runs "
        "of the fit",
        None,
        ".3f",
    ),
    "DEVIANCE": RunColumn(
        "by how many standard deviations the Poisson deviance of the counts over the field of view is larger than its "
        "mean, in the group of energies where it is so most; where a norm alone is fitted, in the energies of the norm",
        None,
        ".2f",
    ),
    "FLAG": RunColumn(
        "why to look at the run, or why it was left out; empty for a good one. 'poor fit': DEVIANCE is large; 'poor "
        "fit of the model': the model does not describe all runs together, see print(model); 'counts off': COUNTS and "
        "EXPECTED differ by more than 10 % and 5 standard deviations"
    ),
    "NORM_EMIN": RunColumn("lower end of the energies to which NORM was fitted; NaN where it was not", "TeV", ".3f"),
    "NORM_EMAX": RunColumn("upper end of the energies to which NORM was fitted; NaN where it was not", "TeV", ".1f"),
    "START": RunColumn(
        "MJD (TT) of the first good time; a run is known by it, its number and its pointing", "d", ".5f"
    ),
    "RA": RunColumn("right ascension (ICRS) of the pointing at the start", "deg", ".3f"),
    "DEC": RunColumn("declination (ICRS) of the pointing at the start", "deg", ".3f"),
}


def describe_columns(table: Table) -> None:
    """Give the columns of a run table their descriptions and formats, in place."""
    for name, column in RUN_COLUMNS.items():
        if name in table.colnames:
            table[name].info.description, table[name].info.format = column.description, column.format


__doc__ += "".join(f"\n- {name}{f' [{c.unit}]' if c.unit else ''}: {c.description}" for name, c in RUN_COLUMNS.items())
__doc__ += "\n"
