"""What sources add to the counts of a run in the camera."""

import astropy.units as u
import numpy as np
import pytest
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom, WcsNDMap
from gammapy.modeling.models import (
    ConstantSpatialModel,
    DiskSpatialModel,
    GaussianSpatialModel,
    PointSpatialModel,
    PowerLawSpectralModel,
    ShellSpatialModel,
    SkyModel,
    TemplateSpatialModel,
)
from regions import CircleSkyRegion
from stores import altered, full_store, observations

from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.cache import RunCache
from gammapy_accmaker.data.counts import reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import ObservationError

EDGES = np.geomspace(0.5, 20, 17)  # TeV
GRID, RINGS = FovBins.grid(2.5, 50), FovBins.rings(2.5, 25)


def position():
    return full_store().source.spatial_model.position


def spectrum(amplitude="5e-12 cm-2 s-1 TeV-1", frozen=False):
    model = PowerLawSpectralModel(index=2.3, amplitude=amplitude, reference="1 TeV")
    model.amplitude.frozen = frozen
    return model


def template():
    geom = WcsGeom.create(skydir=position(), width=1.0, binsz=0.05)
    separation = geom.separation(position()).deg
    return TemplateSpatialModel(WcsNDMap(geom, np.exp(-0.5 * (separation / 0.2) ** 2), unit="sr-1"), filename="t.fits")


def shapes():
    here = {"lon_0": position().ra, "lat_0": position().dec, "frame": "icrs"}
    return {
        "point": PointSpatialModel(**here),
        "disc": DiskSpatialModel(r_0="0.5 deg", **here),
        "shell": ShellSpatialModel(radius="0.3 deg", width="0.2 deg", **here),
        "gaussian": GaussianSpatialModel(sigma="0.2 deg", **here),
        "template": template(),
    }


def source(shape, **more):
    return SkyModel(spectral_model=spectrum(**more), spatial_model=shape, name="a source")


def run(index=0):
    return observations(full_store(), [full_store().on_obs_ids[index]])[0]


def reduced(observation, sources, fov=GRID, exclusion=None, edges=EDGES, **more):
    bins = CountsBins(edges, fov, offset_max=2.5)
    return reduce_observation(observation, bins, exclusion, sources=SourceList.of(sources), **more)


def npred(model, observation, width=3.0, binsz=0.02):
    """By gammapy's own chain of makers, by energy."""
    geom = WcsGeom.create(
        skydir=position(), width=width, binsz=binsz, axes=[MapAxis.from_energy_edges(EDGES * u.TeV, name="energy")]
    )
    true = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=60, name="energy_true")
    dataset = MapDataset.create(geom, energy_axis_true=true, name="d")
    dataset = MapDatasetMaker(selection=["exposure", "psf", "edisp"]).run(dataset, observation)
    dataset.models = [model]
    return dataset.npred_signal().data


@pytest.mark.parametrize("name", ["point", "disc", "shell", "gaussian", "template"])
def test_counts_are_those_of_gammapy(name):
    model, observation = source(shapes()[name]), run()
    own = reduced(observation, model).slices
    expected = npred(model, observation).sum((1, 2))
    found = sum(part.sources[0].by_energy() for part in own)
    assert found.sum() == pytest.approx(expected.sum(), rel=6e-3)
    np.testing.assert_allclose(found, expected, rtol=0.04, atol=2e-3 * expected.max())
    # and the same in rings, which lose nothing of it
    in_rings = reduced(observation, model, RINGS).slices
    assert sum(p.sources[0].by_energy().sum() for p in in_rings) == pytest.approx(found.sum(), rel=2e-3)


def test_counts_lie_where_the_source_is_seen():
    """The centroid in the camera is the mean position of the source, which turns with the field."""
    observation = run()
    for alignment in ("altaz", "radec"):
        bins = CountsBins(EDGES, GRID, alignment, offset_max=2.5)
        one = reduce_observation(observation, bins, sources=SourceList.of(source(shapes()["point"])))
        image = sum(part.sources[0].toarray() for part in one.slices).sum(0)
        # simulated wobble runs point 0.5 or 0.7 deg from the source
        offset = position().separation(observation.get_pointing_icrs(observation.tmid)).deg
        rings = np.hypot(GRID.fov_lon, GRID.fov_lat)
        assert np.average(rings, weights=image) == pytest.approx(offset, abs=0.03)
    lon, lat = np.average(GRID.fov_lon, weights=image), np.average(GRID.fov_lat, weights=image)
    pointing = observation.get_pointing_icrs(observation.tmid)
    # FOV_LON grows with decreasing right ascension
    assert lon == pytest.approx(-(position().ra - pointing.ra).deg * np.cos(position().dec.rad), abs=0.03)
    assert lat == pytest.approx((position().dec - pointing.dec).deg, abs=0.03)


def test_slices_share_the_counts_and_the_dead_time():
    observation, model = run(2), source(shapes()["disc"])
    whole, parts = reduced(observation, model), reduced(observation, model, max_zenith_change=0.01)
    assert len(parts.slices) > 1
    total = sum(part.sources[0].by_energy() for part in parts.slices)
    np.testing.assert_allclose(total, whole.slices[0].sources[0].by_energy(), rtol=1e-3)
    for part in parts.slices:
        share = part.sources[0].by_energy().sum() / total.sum()
        assert share == pytest.approx(part.ontime / whole.ontime, rel=1e-2)
    assert whole.whole().sources[0].by_energy().sum() == pytest.approx(total.sum(), rel=1e-3)
    np.testing.assert_allclose(parts.whole().sources[0].by_energy(), total, rtol=1e-4)


def test_what_is_excluded_of_a_source_is_not_expected():
    observation, model = run(), source(shapes()["disc"])
    half = CircleSkyRegion(position(), 0.3 * u.deg)
    seen = reduced(observation, model, exclusion=Exclusion([half]))
    patch, exposure = seen.slices[0].sources[0].toarray(), seen.exposure
    assert not patch[:, exposure == 0].any()
    expected = npred(model, observation)
    geom = WcsGeom.create(skydir=position(), width=3.0, binsz=0.02)
    outside = ~geom.region_mask([half]).data
    assert patch.sum() == pytest.approx(expected[:, outside].sum(), rel=0.02)
    # all of it
    wide = reduced(observation, model, exclusion=Exclusion([CircleSkyRegion(position(), 1.6 * u.deg)]))
    assert wide.slices[0].sources[0].by_energy().sum() < 1e-3 * patch.sum()


def test_a_frozen_source_is_a_known_signal_and_a_free_one_a_unit():
    here = shapes()
    frozen, free = source(here["point"], frozen=True), source(here["disc"])
    frozen = SkyModel(frozen.spectral_model, frozen.spatial_model, name="frozen")
    both = reduced(run(), [frozen, free]).slices[0]
    assert len(both.sources) == 1 and both.signal is not None
    alone = reduced(run(), source(here["point"])).slices[0].sources[0]
    np.testing.assert_allclose(both.signal.toarray(), alone.toarray(), rtol=1e-6)
    fitted = SourceList.of(free).with_amplitudes({"a source": ((0.5, 2.0, 20.0), (0.0, 3.0))})
    factors = np.where(np.sqrt(EDGES[1:] * EDGES[:-1]) < 2, 0, 3)
    applied = reduced(run(), fitted).slices[0]
    assert applied.sources == ()
    np.testing.assert_allclose(applied.signal.by_energy(), factors * both.sources[0].by_energy(), rtol=1e-5)


def test_a_source_far_from_the_pointing_adds_nothing():
    there = PointSpatialModel(lon_0=position().ra + 20 * u.deg, lat_0=position().dec, frame="icrs")
    observation = altered(run(), aeff=None)  # its responses are not even read
    one = reduced(observation, source(there)).slices[0]
    assert one.signal is None and not len(one.sources[0].columns)


def test_a_source_everywhere_fills_the_field():
    flat = ConstantSpatialModel(value="1 sr-1")
    one = reduced(run(), SkyModel(spectrum(), flat, name="flat")).slices[0]
    seen = one.sources[0].toarray().sum(0) > 0
    assert np.all(seen[np.hypot(GRID.fov_lon, GRID.fov_lat) < 2.4])


def test_nothing_is_expected_below_the_energies_of_the_events():
    observation = run()
    energy = observation.events.energy.to_value("TeV")
    cut = altered(observation, keep=energy > 1.2)
    whole, above = (reduced(o, source(shapes()["point"])).slices[0].sources[0].by_energy() for o in (observation, cut))
    assert whole[0] > 0
    below = EDGES[1:] < 1.2
    assert not above[below].any()
    np.testing.assert_allclose(above[~below], whole[~below], rtol=1e-6)


def test_responses_that_are_missing():
    observation, model = run(), source(shapes()["point"])
    with pytest.raises(ObservationError, match="no effective area.*exclude the sources"):
        reduced(altered(observation, aeff=None), model)
    whole = reduced(observation, model)
    without = reduced(altered(observation, psf=None), model)
    assert without.notes.without_psf and not whole.notes.without_psf
    sharp, wide = (one.slices[0].sources[0] for one in (without, whole))
    assert len(sharp.columns) < len(wide.columns)
    assert sharp.by_energy().sum() == pytest.approx(wide.by_energy().sum(), rel=0.01)
    # without energy dispersion the reconstructed energy is the true one
    undispersed = reduced(altered(observation, edisp=None), model).slices[0].sources[0].by_energy()
    assert undispersed.sum() == pytest.approx(wide.by_energy().sum(), rel=0.1)


def test_a_reduced_run_with_sources_goes_through_the_cache(tmp_path):
    frozen = source(shapes()["point"], frozen=True)
    frozen = SkyModel(frozen.spectral_model, frozen.spatial_model, name="frozen")
    one = reduced(run(), [frozen, source(shapes()["disc"])], max_zenith_change=0.01)
    cache = RunCache.open(tmp_path, "settings", (len(EDGES) - 1, GRID.size), responses=True)
    observation = run()
    cache.put(observation, one, {})
    again = cache.get(observation)
    for before, after in zip(one.slices, again.slices, strict=True):
        np.testing.assert_array_equal(after.signal.toarray(), before.signal.toarray())
        np.testing.assert_array_equal(after.sources[0].toarray(), before.sources[0].toarray())
        assert after.sources[0].columns.dtype == before.sources[0].columns.dtype
    observation.psf = run().psf  # responses that are not those of the file
    assert cache.get(observation) is None
