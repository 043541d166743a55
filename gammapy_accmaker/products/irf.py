"""The only place where a Background2D or Background3D is built: unit, axis order, alignment.

gammapy reads an IRF by interpolating its logarithm between bin centres, and integrates a dataset's energy bin as a
power law between the rates at its two edges. So the axes here are finer than those of the fit (the logarithm of a line and the line of
logarithms then agree), and each energy's rate is scaled until its integral over the field of view, as gammapy reads it, is the model's.
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.irf import Background2D, Background3D, FoVAlignment
from gammapy.maps import MapAxis

from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import rate_nodes
from gammapy_accmaker.reduction.fov import FovTrack

__all__ = ["RATE_UNIT", "make_background_irf"]

RATE_UNIT = u.Unit("s-1 MeV-1 sr-1")
ENERGIES_PER_DECADE = 40
FOV_STEP = 0.08  # deg


def make_background_irf(
    model: RateModel, track: FovTrack, alignment: str, time_step: float | None
) -> Background2D | Background3D:
    """Background IRF of a run, averaged over its good time.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
        Camera track of the run.
    alignment : {"altaz", "radec"}
        Frame of the field-of-view coordinates.
    time_step : float or None
        Resolution in s over which zenith and azimuth are followed.

    Returns
    -------
    irf : `~gammapy.irf.Background2D` or `~gammapy.irf.Background3D`
        2D for a model that depends on the offset alone.
    """
    energy_axis = _energy_axis(model)
    if model.is_radial:
        nbin = int(np.ceil(model.half_width / (0.5 * FOV_STEP)))
        axes = [energy_axis, MapAxis.from_bounds(0, model.half_width, nbin, unit="deg", name="offset")]
    else:
        nbin = 2 * int(np.ceil(model.half_width / FOV_STEP))
        if energy_axis.nbin == nbin:
            # readers tell the axes by their lengths
            nbin += 2
        names = ("fov_lon", "fov_lat")
        axes = [
            energy_axis,
            *(MapAxis.from_bounds(-model.half_width, model.half_width, nbin, unit="deg", name=n) for n in names),
        ]

    nodes = rate_nodes(model, track, time_step)
    lon, lat, solid_angle = _half_step_grid(axes[1:])
    rate = 0.0
    for here, z, seconds in nodes:
        rate = rate + seconds * here.rate_grid(energy_axis.center.to_value("TeV"), lon.ravel(), lat.ravel(), z)
    rate = rate.reshape(-1, *lon.shape) / sum(seconds for _, _, seconds in nodes)
    data = rate[(slice(None), *[slice(None, None, 2)] * (rate.ndim - 1))]
    as_read = data
    for axis in range(1, rate.ndim):
        as_read = _with_geometric_means(as_read, axis)
    fov_axes = tuple(range(1, rate.ndim))
    as_read_sum = (as_read * solid_angle).sum(fov_axes, keepdims=True)
    data = data * np.divide(
        (rate * solid_angle).sum(fov_axes, keepdims=True),
        as_read_sum,
        out=np.ones_like(as_read_sum),
        where=as_read_sum > 0,
    )
    fov_alignment = FoVAlignment.ALTAZ if alignment == "altaz" else FoVAlignment.RADEC
    cls = Background2D if model.is_radial else Background3D
    return cls(
        axes=axes,
        data=data,
        unit=RATE_UNIT,
        fov_alignment=fov_alignment,
        meta={"FOVALIGN": fov_alignment.value},
    )


def _half_step_grid(axes):
    """Positions in deg at the bin centres and half way between them, and their relative weight in an integral.

    The weights are those of Simpson's rule: between two centres the logarithm is a line, and the rate is a curve.
    """
    steps = [np.linspace(a.center.value[0], a.center.value[-1], 2 * a.nbin - 1) for a in axes]
    weights = [np.where(np.arange(len(s)) % 2, 4.0, 2.0) for s in steps]
    for weight in weights:
        weight[[0, -1]] = 1
    if len(steps) == 1:
        return steps[0], np.zeros_like(steps[0]), weights[0] * np.sin(np.radians(steps[0]))
    lon, lat = np.meshgrid(*steps, indexing="ij")
    return lon, lat, np.outer(*weights) * np.cos(np.radians(lat))


def _with_geometric_means(values, axis):
    """Values with what gammapy reads half way between them, along one axis."""
    values = np.moveaxis(values, axis, 0)
    out = np.empty((2 * len(values) - 1, *values.shape[1:]))
    out[::2] = values
    out[1::2] = np.sqrt(values[1:] * values[:-1])
    return np.moveaxis(out, 0, axis)


def _energy_axis(model):
    low, high = model.energy_edges[[0, -1]]
    nbin = max(int(np.ceil(np.log10(high / low) * ENERGIES_PER_DECADE)), 2)
    return MapAxis.from_energy_bounds(low, high, nbin, unit="TeV")
