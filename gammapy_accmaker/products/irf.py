"""The only place where a Background2D or Background3D is built: unit, axis order, alignment.

gammapy reads an IRF by interpolating its logarithm between bin centres, and integrates a dataset's energy bin as a
power law between the rates at its two edges. So the axes here are finer than those of the fit (the logarithm of a line
and the line of logarithms then agree), and each energy's rate is scaled until its integrals over the field of view and
over its energy bin, as gammapy reads them, are the model's.
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.irf import Background2D, Background3D, FoVAlignment
from gammapy.maps import MapAxis
from scipy.interpolate import interp1d

from gammapy_accmaker.camera.bins import offset
from gammapy_accmaker.camera.track import FovTrack, unit_vectors
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import polar_average, rate_nodes, read_polar
from gammapy_accmaker.utils.arguments import check_choice

__all__ = ["RATE_UNIT", "make_background_irf", "make_mean_irf"]

RATE_UNIT = u.Unit("s-1 MeV-1 sr-1")
ENERGIES_PER_DECADE = 40
FOV_STEP = 0.08  # deg
SPECTRUM_POSITIONS = 13  # along each side of the field of view
SUBENERGIES = 6  # of an energy bin
# Between 20 bins, at a threshold of power 6 where a dataset of 20 bins a decade reads 1 % too little, and as many as
# one likes: a dataset of 20 bins, or finer, is then within 0.5 %.
READ_PER_DECADE = 27
EDGE = 1e-6  # relative, by which the energy axis goes beyond that of the model


def make_background_irf(
    model: RateModel, track: FovTrack, alignment: str, time_step: float | None, irf_alignment: str | None = None
) -> Background2D | Background3D:
    """Background IRF of a run, averaged over its good time.

    Parameters
    ----------
    model : `RateModel`
        Acceptance, adapted to the run.
    track : `FovTrack`
        Camera track of the run.
    alignment : {"altaz", "radec"}
        Frame of the field-of-view coordinates of the model.
    time_step : float or None
        Resolution in s over which the turn of the field is followed.
    irf_alignment : {"altaz", "radec", "reverse_lon_radec"}, optional
        Frame of the IRF, that of the model by default. In the other frames the field is averaged while it turns.

    Returns
    -------
    irf : `~gammapy.irf.Background2D` or `~gammapy.irf.Background3D`
        2D for a model that depends on the offset alone.

    Raises
    ------
    ObservationError
        For a frame that the model cannot be turned to.
    """
    if irf_alignment is not None:
        check_choice(irf_alignment, [known.value.lower() for known in FoVAlignment], "fov_alignment")
    irf_alignment = alignment if irf_alignment is None else irf_alignment
    turns = irf_alignment != alignment and not model.is_radial
    if turns and (irf_alignment == "altaz" or track.pointing_drift > 1e-3):
        raise ObservationError(
            f"background IRF: got the alignment {irf_alignment!r} for a model in {alignment!r} and a pointing that "
            f"moves by {track.pointing_drift:.3g} deg on the sky, but only a tracking run is turned, "
            "from altaz to radec"
        )
    turned = None
    if turns:
        sign = -1 if irf_alignment == "reverse_lon_radec" else 1

        def turned(energy, lon, lat):
            return _turned_rate(model, track, energy, sign * lon, lat, time_step)

    return _as_irf(model, rate_nodes(model, track), irf_alignment, turned)


def make_mean_irf(model: RateModel, cos_zenith: float | None, alignment: str) -> Background2D | Background3D:
    """Background IRF of a model at one zenith angle, by default the middle of those trained."""
    z = model.middle_cos_zenith if cos_zenith is None else cos_zenith
    return _as_irf(model, [(model, z, 1.0)], alignment, None)


def _as_irf(model, nodes, alignment, turned):
    """IRF of the mean rate over nodes (see `rate_nodes`), or of that which the function ``turned`` gives."""
    energy_axis = _energy_axis(model)
    if model.is_radial:
        nbin = int(np.ceil(model.half_width / (0.5 * FOV_STEP)))
        axes = [energy_axis, MapAxis.from_bounds(0, model.half_width, nbin, unit="deg", name="offset")]
    else:
        # a square that turns reaches to where its corners were
        half_width = model.half_width if turned is None else model.offset_max
        nbin = 2 * int(np.ceil(half_width / FOV_STEP))
        if energy_axis.nbin == nbin:
            # readers tell the axes by their lengths
            nbin += 2
        names = ("fov_lon", "fov_lat")
        axes = [energy_axis, *(MapAxis.from_bounds(-half_width, half_width, nbin, unit="deg", name=n) for n in names)]

    lon, lat, solid_angle = _half_step_grid(axes[1:])
    energy = energy_axis.center.to_value("TeV")
    if turned is None:
        rate = sum(t * here.rate_grid(energy, lon.ravel(), lat.ravel(), z) for here, z, t in nodes)
        rate = rate / sum(t for _, _, t in nodes)
    else:
        rate = turned(energy, lon.ravel(), lat.ravel())
    rate = rate.reshape(-1, *lon.shape)
    data = rate[(slice(None), *[slice(None, None, 2)] * (rate.ndim - 1))]
    as_read = data
    for axis in range(1, rate.ndim):
        as_read = _with_geometric_means(as_read, axis)
    fov_axes = tuple(range(1, rate.ndim))
    # next to a bin without a rate gammapy reads none: what a rim loses there is not made good by the field inside of it
    true_sum, as_read_sum = ((x * (as_read > 0) * solid_angle).sum(fov_axes, keepdims=True) for x in (rate, as_read))
    data = data * np.divide(true_sum, as_read_sum, out=np.ones_like(as_read_sum), where=as_read_sum > 0)
    correction = _energy_correction(model, nodes, energy_axis)
    data = data * correction.reshape(-1, *[1] * (data.ndim - 1))
    fov_alignment = FoVAlignment(alignment.upper())
    cls = Background2D if model.is_radial else Background3D
    return cls(
        axes=axes,
        data=data,
        unit=RATE_UNIT,
        fov_alignment=fov_alignment,
        meta={"FOVALIGN": fov_alignment.value},
    )


def _turned_rate(model, track, energy, lon, lat, time_step):
    """Mean rate over the run at offsets in deg in the frame of right ascension and declination, shape (energy, n)."""
    average, ontime = polar_average(model, track, lambda here, x, y, z: here.rate_grid(energy, x, y, z), time_step)
    icrs = unit_vectors(np.radians(lon), np.radians(lat)) @ track.radec_matrix
    rate = read_polar(average / ontime, icrs @ track.matrices[0].T, model.offset_max)
    return np.where(offset(lon, lat) < model.offset_max, rate, 0.0)


def _energy_correction(model, nodes, axis):
    """Factors at the energies of an axis, after which a reader finds the integrals of the model.

    The spectrum over the field of view bends at the trigger threshold, and a power law between two edges of a dataset
    cuts its corner: twice as much with half as many bins. The factors are those for READ_PER_DECADE bins a decade.
    """
    x = np.linspace(-1, 1, SPECTRUM_POSITIONS) * model.half_width
    lon, lat = (a.ravel() for a in np.meshgrid(x, x))
    log_edges, log_centers = np.log(axis.edges.to_value("TeV")), np.log(axis.center.to_value("TeV"))
    within = (np.arange(SUBENERGIES) + 0.5) / SUBENERGIES
    fine = (log_edges[:-1, None] + np.diff(log_edges)[:, None] * within).ravel()
    energy = np.exp(np.concatenate([fine, log_centers]))
    spectrum = sum(t * here.rate_grid(energy, lon, lat, z).sum(1) for here, z, t in nodes)
    # times the energy: densities in its logarithm
    true, at_centers = np.split(spectrum * energy, [len(fine)])
    steps = np.repeat(np.diff(log_edges) / SUBENERGIES, SUBENERGIES)
    total = np.concatenate([[0], np.cumsum(true * steps)])
    ends = np.concatenate([log_edges[:1], log_edges[0] + np.cumsum(steps)])
    half = 0.5 * np.log(10) / READ_PER_DECADE
    low, high = (np.clip(log_centers + d, *log_edges[[0, -1]]) for d in (-half, half))
    integral = np.interp(high, ends, total) - np.interp(low, ends, total)
    with np.errstate(divide="ignore", invalid="ignore"):
        chords = interp1d(log_centers, np.log(at_centers), fill_value="extrapolate")
        first, last = np.exp(chords(low)), np.exp(chords(high))
        slope = np.log(last / first)
        mean = np.where(np.abs(slope) > 1e-6, (last - first) / slope, 0.5 * (first + last))
        ratio = integral / (mean * (high - low))
    return np.where(np.isfinite(ratio) & (ratio > 0), np.clip(ratio, 0.5, 2), 1)


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
    # gammapy reads 0 at the last edge itself, where a dataset may end too
    return MapAxis.from_energy_bounds(low * (1 - EDGE), high * (1 + EDGE), nbin, unit="TeV")
