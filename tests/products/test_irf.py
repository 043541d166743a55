"""Background IRFs: their conventions, and that gammapy reads our counts in them."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from gammapy.datasets import MapDataset
from gammapy.irf import Background2D, Background3D, FoVAlignment
from gammapy.makers import MapDatasetMaker
from gammapy.makers.utils import make_map_background_irf
from gammapy.maps import MapAxis
from helpers import make_observation, tracking
from scipy.special import expit
from stores import AnalyticModel, altered, fitted, sky_geom

from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.models.binned import BinnedModel
from gammapy_accmaker.products.background import make_background_map
from gammapy_accmaker.products.irf import RATE_UNIT, make_background_irf, make_mean_irf
from gammapy_accmaker.simulation.irfs import make_irfs

KINDS = ["radial", "grid"]


@pytest.fixture(scope="module")
def observation():
    """Ten minutes: gammapy evaluates an IRF anew for each degree that the field turns."""
    return make_observation(tracking(130, 65), [(0, 600)])


def irf_of(kind, observation, alignment="altaz"):
    model = AnalyticModel() if kind == "analytic" else fitted(kind)
    return make_background_irf(model, observation_track(observation, alignment), alignment, 60.0)


@pytest.mark.parametrize("kind", [*KINDS, "analytic"])
def test_unit_axes_and_alignment(kind, observation):
    irf = irf_of(kind, observation)
    assert type(irf) is (Background2D if kind == "radial" else Background3D)
    assert irf.unit == u.Unit("s-1 MeV-1 sr-1") == RATE_UNIT
    assert irf.axes.names == (["energy", "offset"] if kind == "radial" else ["energy", "fov_lon", "fov_lat"])
    assert irf.fov_alignment == FoVAlignment.ALTAZ
    assert np.all(np.isfinite(irf.data)) and np.all(irf.data > 0)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("kind", KINDS)
def test_trap_fovalign_is_always_written(kind, alignment, observation, tmp_path):
    irf = irf_of(kind, observation, alignment)
    path = tmp_path / "irf.fits"
    hdu = irf.to_table_hdu()
    assert hdu.header["FOVALIGN"] == alignment.upper()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
    again = type(irf).read(path, hdu=1)
    assert again.fov_alignment == irf.fov_alignment
    assert again.fov_alignment == FoVAlignment(alignment.upper())
    assert again.unit == RATE_UNIT and again.axes.names == irf.axes.names
    assert np.array_equal(again.data, irf.data)
    assert all(np.allclose(a.edges.value, b.edges.value) for a, b in zip(again.axes, irf.axes, strict=True))


def test_trap_an_energy_axis_as_long_as_fov_lon_is_not_ambiguous(observation, tmp_path):
    """from_table guesses the order of the axes from their lengths:
    50 energies and 50 x 50 positions would be swapped."""
    model = fitted("grid")
    arrays = model.to_arrays()
    low = model.energy_edges[0]
    for nbin in (48, 50, 52):
        high = low * 10 ** ((nbin - 1.5) / 20)
        # the same model, that ends at another energy
        cut = BinnedModel.from_arrays(arrays | {"energy_edges": np.append(model.energy_edges[:-1], high)})
        object.__setattr__(cut, "energy_edges", np.array([low, high]))
        object.__setattr__(cut, "profile", cut.profile[:1])
        irf = make_background_irf(cut, observation_track(observation, "altaz"), "altaz", 60.0)
        assert irf.axes["energy"].nbin == nbin
        assert irf.axes["fov_lon"].nbin != nbin and irf.axes["fov_lat"].nbin != nbin
        again = Background3D.from_table(Table.read(irf.to_table_hdu()))
        assert again.data.shape == irf.data.shape and np.array_equal(again.data, irf.data)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_model(kind, observation):
    """At the centres the rate itself, up to the correction of a few parts in a thousand that
    integrates to its counts."""
    irf, model = irf_of(kind, observation), fitted(kind)
    energy = irf.axes["energy"].center.to_value("TeV")
    if kind == "radial":
        lon = irf.axes["offset"].center.to_value("deg")
        want = model.rate_grid(energy, lon, np.zeros_like(lon))
    else:
        lon, lat = np.meshgrid(*(irf.axes[n].center.to_value("deg") for n in ("fov_lon", "fov_lat")), indexing="ij")
        want = model.rate_grid(energy, lon.ravel(), lat.ravel())
    bias = np.abs(irf.data.reshape(want.shape) / want - 1)
    assert np.all(bias[:-4] < 0.02)
    assert np.all(bias[-4:] < 0.2)  # where the spectrum of the last counts bends down


@pytest.mark.parametrize("kind", [*KINDS, "analytic"])
@pytest.mark.parametrize("alignment", ["altaz", "radec"])
def test_trap_gammapy_reads_our_counts(kind, alignment, observation):
    """A plain histogram written as an IRF came back 6 % low: gammapy interpolates, and cuts corners of the spectrum."""
    model = AnalyticModel() if kind == "analytic" else fitted(kind)
    pointing = observation.pointing.fixed_icrs
    axis = MapAxis.from_energy_bounds(0.2, 20, 8, unit="TeV")
    geom = sky_geom(pointing, width=4.4, edges=axis.edges.value, binsz=0.1)
    ours = make_background_map(model, observation_track(observation, alignment), geom, 60.0).data
    theirs = make_map_background_irf(
        observation.pointing,
        observation.observation_time_duration,
        irf_of(kind, observation, alignment),
        geom,
        observation.tstart,
        oversampling=6,
        location=observation.observatory_earth_location,
    ).data
    near = geom.to_image().separation(pointing).deg < 2.15
    ratio = theirs[:, near].sum(1) / ours[:, near].sum(1)
    assert np.all(np.abs(ratio - 1) < 5e-3)
    assert (theirs[:, near].sum() / ours[:, near].sum()) == pytest.approx(1, abs=3e-3)


class SharpModel(AnalyticModel):
    """The truth behind a trigger that opens within a tenth of a decade, later at the rim."""

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        threshold = np.log(0.45) + 0.05 * np.hypot(fov_lon, fov_lat)
        return super().rate_grid(energy, fov_lon, fov_lat, cos_zenith) * expit(
            (np.log(energy)[:, None] - threshold) / 0.06
        )

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        out = []
        for low, high in zip(energy_edges[:-1], energy_edges[1:], strict=True):
            fine = np.geomspace(low, high, 41)
            middle = np.sqrt(fine[1:] * fine[:-1])
            out.append(np.diff(fine) * 1e6 @ self.rate_grid(middle, fov_lon, fov_lat, cos_zenith))
        return np.array(out)


NODES = 10 ** (np.arange(41) / 20)  # over the lowest energy


@pytest.mark.parametrize(
    "bins, oversampling, total, each",
    [
        (NODES, None, 1e-3, 5e-3),
        (NODES, 2, 1e-3, 5e-3),
        (NODES, 5, 1e-3, 5e-3),
        (NODES[::2], 2, 1e-3, 5e-3),
        (NODES[::4], 8, 1e-3, 5e-3),
        (1.07 * NODES[:-1], 6, 3e-3, 2e-2),
        (1.03 * NODES[:-1:3], 12, 1e-3, 1e-2),
    ],
)
def test_gammapy_reads_a_sharp_threshold(observation, bins, oversampling, total, each):
    """Where gammapy's integral cuts a corner of 10 %: bins that end at the nodes are right as they are, others
    where they are oversampled."""
    model, track = SharpModel(offset_max=2.5), observation_track(observation, "altaz")
    edges = bins * model.energy_edges[0]
    geom = sky_geom(observation.pointing.fixed_icrs, width=4.4, edges=edges[edges < 10], binsz=0.1)
    ours = make_background_map(model, track, geom, 60.0).data
    theirs = make_map_background_irf(
        observation.pointing,
        observation.observation_time_duration,
        make_background_irf(model, track, "altaz", 60.0),
        geom,
        observation.tstart,
        oversampling=oversampling,
        location=observation.observatory_earth_location,
    ).data
    near = geom.to_image().separation(observation.pointing.fixed_icrs).deg < 2.15
    ours, theirs = ours[:, near].sum(1), theirs[:, near].sum(1)
    assert theirs.sum() == pytest.approx(ours.sum(), rel=total)
    some = ours > 1e-3 * ours.max()
    assert np.allclose(theirs[some], ours[some], rtol=each), np.round(theirs / ours - 1, 4)


@pytest.mark.parametrize("high", [9.0, 9.7, 10.0, 10.3, 0.105, 0.13])
def test_the_energies_of_an_irf_are_those_of_the_model(high):
    """Nodes 20 a decade, that are centres of bins; the ends are edges."""
    axis = make_mean_irf(AnalyticModel(energy_edges=np.array([0.1, high])), 0.9, "altaz").axes["energy"]
    edges, nodes = axis.edges.to_value("TeV"), MapAxis.from_energy_bounds(0.1, high, 20, unit="TeV", per_decade=True)
    assert edges[[0, -1]] == pytest.approx([0.1, high], rel=2e-6)
    assert axis.center.to_value("TeV")[1:-1] == pytest.approx(nodes.edges.to_value("TeV")[1:-1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_map_dataset_maker_fills_the_background_from_it(kind, observation):
    """In memory, as a user would who hands the IRF on."""
    irf = irf_of(kind, observation)
    with_background = altered(observation, bkg=irf, aeff=make_irfs(0.9, 0.2)["aeff"], edisp=None, psf=None)
    geom = sky_geom(observation.pointing.fixed_icrs, edges=np.geomspace(0.3, 10, 13), width=4.4, binsz=0.1)
    empty = MapDataset.create(geom, name="test")
    dataset = MapDatasetMaker(selection=["background"], background_oversampling=4).run(empty, with_background)
    ours = make_background_map(fitted(kind), observation_track(observation, "altaz"), geom, 60.0)
    near = geom.to_image().separation(observation.pointing.fixed_icrs).deg < 2.15
    assert np.allclose(dataset.background.data[:, near].sum(1), ours.data[:, near].sum(1), rtol=5e-3)
    assert irf.fov_alignment == FoVAlignment.ALTAZ


def test_the_zenith_angle_is_averaged_over_the_good_time():
    """An hour at low altitude: the rate is the mean over the run, not that of its middle."""
    observation = make_observation(tracking(250, 45), [(0, 600), (4000, 5200)])
    track = observation_track(observation, "altaz")
    irf = make_background_irf(AnalyticModel(), track, "altaz", 60.0)
    energy = irf.axes["energy"].center[20].to_value("TeV")
    seconds = np.concatenate([np.arange(5, 600, 10.0), np.arange(4005, 5200, 10.0)])
    want = np.mean([AnalyticModel().truth.rate(energy, 0.05, 0.05, z) for z in track.cos_zenith_at(seconds)])
    lon, lat = (irf.axes[n].coord_to_idx(0.05 * u.deg).item() for n in ("fov_lon", "fov_lat"))
    assert irf.data[20, lon, lat] == pytest.approx(want, rel=1e-2)


def test_the_model_is_not_changed(observation):
    model = fitted("grid")
    before = {k: v.copy() for k, v in model.to_arrays().items()}
    irf_of("grid", observation)
    make_background_map(model, observation_track(observation, "altaz"), sky_geom(observation.pointing.fixed_icrs), 60.0)
    assert all(np.array_equal(before[k], v) for k, v in model.to_arrays().items())
