"""The only place where a Background2D or Background3D is built: unit, axis order, alignment.

gammapy reads an IRF by interpolating its logarithm between bin centres, and integrates a dataset's energy bin as a
power law between the rates at its two edges: where the spectrum bends, at a threshold above all, it cuts the corner, by
some percent with 20 bins a decade. No IRF makes that good for every reader. This one is a chain of power laws between
nodes, 20 a decade from the lowest energy of the model to the highest as in `MapAxis.from_energy_bounds`, and its
integral between any two nodes is the model's: what gammapy reads is right for energy bins that end at nodes,
oversampled or not, and near it for any others that are oversampled. In the field of view, the rate of each energy is
scaled until its integral, as gammapy reads it, is the model's.
"""

from __future__ import annotations

from functools import partial

import astropy.units as u
import numpy as np
from gammapy.irf import Background2D, Background3D, FoVAlignment
from gammapy.maps import MapAxis

from gammapy_accmaker.camera.bins import TEV_IN_MEV, offset
from gammapy_accmaker.camera.track import FovTrack, unit_vectors
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.products.background import polar_average, rate_nodes, read_polar
from gammapy_accmaker.utils.arguments import check_choice
from gammapy_accmaker.utils.threads import one_thread

RATE_UNIT = u.Unit("s-1 MeV-1 sr-1")
_NODES_PER_DECADE = 20
_FOV_STEP = 0.08  # deg
_NODE_ROUNDS = 40
_BLOCK = 512  # positions
_EDGE = 1e-6  # relative, by which the energy axis goes beyond that of the model


@one_thread()
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
    if turns:
        sign = -1 if irf_alignment == "reverse_lon_radec" else 1

        def mean(evaluate, lon, lat):
            return _turned_mean(model, track, evaluate, sign * lon, lat, time_step)

        return _as_irf(model, irf_alignment, mean, model.offset_max)  # a square that turns reaches to its corners
    return _as_irf(model, irf_alignment, partial(_mean_at, rate_nodes(model, track)), model.half_width)


def make_mean_irf(model: RateModel, cos_zenith: float | None, alignment: str) -> Background2D | Background3D:
    """Background IRF of a model at one zenith angle, by default the middle of those trained."""
    z = model.middle_cos_zenith if cos_zenith is None else cos_zenith
    return _as_irf(model, alignment, partial(_mean_at, [(model, z, 1.0)]), model.half_width)


def _mean_at(nodes, evaluate, lon, lat):
    """Mean of a function of a model, a position and a cos zenith over nodes, see `rate_nodes`."""
    return sum(t * evaluate(here, lon, lat, z) for here, z, t in nodes) / sum(t for _, _, t in nodes)


def _as_irf(model, alignment, mean, half_width):
    """IRF of a model.

    ``mean``: function that gives, of a function of model, fov_lon, fov_lat (in deg) and cos zenith, its mean over a
    run, at fov_lon and fov_lat.
    """
    energy_axis, nodes = _energy_axis(model)
    if model.is_radial:
        nbin = int(np.ceil(half_width / (0.5 * _FOV_STEP)))
        axes = [energy_axis, MapAxis.from_bounds(0, half_width, nbin, unit="deg", name="offset")]
    else:
        nbin = 2 * int(np.ceil(half_width / _FOV_STEP))
        if energy_axis.nbin == nbin:
            # readers tell the axes by their lengths
            nbin += 2
        names = ("fov_lon", "fov_lat")
        axes = [energy_axis, *(MapAxis.from_bounds(-half_width, half_width, nbin, unit="deg", name=n) for n in names)]

    lon, lat, solid_angle = _half_step_grid(axes[1:])
    rate = mean(lambda here, x, y, z: here.rate_grid(nodes, x, y, z), lon.ravel(), lat.ravel())
    rate = rate.reshape(-1, *lon.shape)
    at_centers = (slice(None, None, 2),) * lon.ndim
    data = rate[(slice(None), *at_centers)]
    as_read = data
    for axis in range(1, rate.ndim):
        as_read = _with_geometric_means(as_read, axis)
    fov_axes = tuple(range(1, rate.ndim))
    # next to a bin without a rate gammapy reads none: what a rim loses there is not made good by the field inside of it
    true_sum, as_read_sum = ((x * (as_read > 0) * solid_angle).sum(fov_axes, keepdims=True) for x in (rate, as_read))
    scale = np.divide(true_sum, as_read_sum, out=np.ones_like(as_read_sum), where=as_read_sum > 0)

    integral = mean(
        lambda here, x, y, z: here.integral_grid(nodes, x, y, z), lon[at_centers].ravel(), lat[at_centers].ravel()
    )
    data = _nodes_with_integrals(nodes, data, integral.reshape(-1, *data.shape[1:])) * scale
    # gammapy continues the line through the two outermost centres up to the edges
    data = _at_energies(energy_axis.center.to_value("TeV"), nodes, data)
    fov_alignment = FoVAlignment(alignment.upper())
    cls = Background2D if model.is_radial else Background3D
    return cls(
        axes=axes,
        data=data,
        unit=RATE_UNIT,
        fov_alignment=fov_alignment,
        meta={"FOVALIGN": fov_alignment.value},
    )


def _turned_mean(model, track, evaluate, lon, lat, time_step):
    """Mean over the run at offsets in deg in the frame of right ascension and declination, shape (energy, n)."""
    average, ontime = polar_average(model, track, evaluate, time_step)
    icrs = unit_vectors(np.radians(lon), np.radians(lat)) @ track.radec_matrix
    mean = read_polar(average / ontime, icrs @ track.matrices[0].T, model.offset_max)
    return np.where(offset(lon, lat) < model.offset_max, mean, 0.0)


def _nodes_with_integrals(energy, rate, integral):
    """Rates at n + 1 nodes between which power laws have the given n integrals, from those of the model.

    A node moves by the mean of what its two bins lack, in logs, over and over. What a node could only take from one bin
    to give it to the other moves least: the nodes of an exact solution would swing up and down far from the bend.
    """
    rates, integrals = (values.reshape(len(values), -1) for values in (rate, integral))
    out, somewhere = np.zeros(rates.shape), np.flatnonzero(rates.any(axis=0))
    # some positions at a time, which stay in the processor's cache: 40 rounds take 0.6 of the time
    for start in range(0, len(somewhere), _BLOCK):
        part = somewhere[start : start + _BLOCK]
        out[:, part] = _moved_nodes(energy, rates.take(part, axis=1), integrals.take(part, axis=1))
    return out.reshape(rate.shape)


def _moved_nodes(energy, rate, integral):
    """`_nodes_with_integrals` at each of some positions."""
    seen = (rate[1:] > 0) & (rate[:-1] > 0) & (integral > 0)
    log_energy, log_width = np.log(energy * TEV_IN_MEV)[:, None], np.log(np.log(energy[1:] / energy[:-1]))[:, None]
    # energy times rate over the log of energy: a power law is an exponential between its ends
    log_rate = np.log(np.where(rate > 0, rate, 1.0)) + log_energy
    log_integral = np.log(np.where(seen, integral, 1.0)) - log_width
    counted = seen.astype(float)
    for _ in range(_NODE_ROUNDS):
        half = 0.5 * np.abs(log_rate[1:] - log_rate[:-1]) + 1e-6
        found = 0.5 * (log_rate[1:] + log_rate[:-1]) + np.log(np.sinh(half) / half)
        lack = (log_integral - found) * counted
        log_rate[1:-1] += 0.5 * (lack[1:] + lack[:-1])
        log_rate[[0, -1]] += lack[[0, -1]]
    return np.where(rate > 0, np.exp(log_rate - log_energy), 0.0)


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
    """Energy axis of an IRF, and its nodes in TeV.

    The first and the last node are its ends, the others its centres: gammapy continues the line through the two
    outermost centres up to the ends.
    """
    low, high = model.energy_edges[[0, -1]]
    nodes = MapAxis.from_energy_bounds(low, high, _NODES_PER_DECADE, unit="TeV", per_decade=True).edges.to_value("TeV")
    # gammapy reads 0 at the last edge itself, where a dataset may end too
    ends = low * (1 - _EDGE), high * (1 + _EDGE)
    edges = np.concatenate([ends[:1], np.sqrt(nodes[1:] * nodes[:-1]), ends[1:]])
    return MapAxis.from_energy_edges(edges, unit="TeV"), nodes


def _at_energies(energy, nodes, rate):
    """A chain of power laws between nodes, at other energies."""
    k = np.clip(np.searchsorted(nodes, energy) - 1, 0, len(nodes) - 2)
    share = (np.log(energy / nodes[k]) / np.log(nodes[k + 1] / nodes[k])).reshape(-1, *[1] * (rate.ndim - 1))
    inside = (rate[k] > 0) & (rate[k + 1] > 0)
    low, high = (np.log(np.where(inside, x, 1.0)) for x in (rate[k], rate[k + 1]))
    return np.where(inside, np.exp(low + (high - low) * share), 0.0)
