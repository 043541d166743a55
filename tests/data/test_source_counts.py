"""What sources add to the counts of a run in the camera."""

import copy

import astropy.units as u
import numpy as np
import pytest
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from gammapy.maps import MapAxis, WcsGeom, WcsNDMap
from gammapy.modeling.models import (
    ConstantSpatialModel,
    DiskSpatialModel,
    ExpCutoffPowerLawSpectralModel,
    GaussianSpatialModel,
    PointSpatialModel,
    PowerLawNormSpectralModel,
    PowerLawSpectralModel,
    ShellSpatialModel,
    SkyModel,
    TemplateSpatialModel,
    TemplateSpectralModel,
)
from regions import CircleSkyRegion
from stores import altered, full_store, observations

from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.camera.track import unit_vectors
from gammapy_accmaker.data.cache import RunCache
from gammapy_accmaker.data.counts import reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.models.source_terms import sum_patches

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


def counts_of(part):
    """Of all sources of a slice, by energy."""
    return sum_patches(part.sources).by_energy()


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
    found = sum(counts_of(part) for part in own)
    # below the threshold of the run it falls with its events
    above = sum(part.sources[0].by_energy() for part in own) > 0
    assert found[above].sum() == pytest.approx(expected[above].sum(), rel=6e-3)
    np.testing.assert_allclose(found[above], expected[above], rtol=0.04, atol=2e-3 * expected.max())
    assert np.all(found[~above] <= 1.04 * expected[~above])
    # and the same in rings, which lose nothing of it
    in_rings = reduced(observation, model, RINGS).slices
    assert sum(counts_of(p).sum() for p in in_rings) == pytest.approx(found.sum(), rel=2e-3)


def _cube():
    axis = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", nbin=4, name="energy_true")
    cube = WcsNDMap.create(skydir=position(), width=1, binsz=0.1, axes=[axis], unit="cm-2 s-1 TeV-1 sr-1")
    cube.data = axis.center.value[:, None, None] ** -2.5 + np.zeros(cube.data.shape)
    return SkyModel(PowerLawNormSpectralModel(norm=2), TemplateSpatialModel(cube, normalize=False, filename="c.fits"))


def _moved():
    shape = template()
    shape.parameters["lon_0"].value += 0.3
    return SkyModel(spectrum(), shape)


_ODD = {
    "cube": _cube,
    "moved template": _moved,
    "template with another interpolation": lambda: SkyModel(
        spectrum(), TemplateSpatialModel(template().map, interp_kwargs={"values_scale": "lin"}, filename="t.fits")
    ),
    "constant": lambda: SkyModel(spectrum(), ConstantSpatialModel(value="10 sr-1")),
    "units": lambda: SkyModel(spectrum("5e-11 m-2 s-1 GeV-1"), shapes()["disc"]),
    "nothing at high energies": lambda: SkyModel(ExpCutoffPowerLawSpectralModel(lambda_="50 TeV-1"), shapes()["disc"]),
    "two components": lambda: SkyModel(spectrum() * PowerLawNormSpectralModel(tilt=0.3), shapes()["disc"]),
}


@pytest.mark.parametrize("name", list(_ODD))
def test_what_is_stored_of_a_source_is_the_source(name):
    model = _ODD[name]()
    stored = SourceList.of(model).sources[0].model
    lon, lat = position().ra + [[0, 0.13, 0.31]] * u.deg, position().dec + [[0, 0.05, 0.07]] * u.deg
    energy = [[[0.7]], [[5]]] * u.TeV
    here = stored.spatial_model.position
    if here is not None:
        assert here.separation(model.spatial_model.position).deg < 1e-6
    np.testing.assert_allclose(stored.evaluate(lon, lat, energy), model.evaluate(lon, lat, energy), rtol=1e-4)


def test_a_source_that_would_be_stored_as_another_is_refused():
    cut = TemplateSpectralModel([0.5, 5] * u.TeV, [1e-11, 1e-13] / u.Unit("cm2 s TeV"), interp_kwargs={"fill_value": 0})
    with pytest.raises(InputError, match="its spectrum is not the same then"):
        SourceList.of(SkyModel(cut, shapes()["point"]))
    counts = TemplateSpectralModel([0.1, 100] * u.TeV, [1e-2, 1e-6] / u.TeV)
    without = {"exposure": False, "psf": True, "edisp": True}
    with pytest.raises(InputError, match="counts in place of a flux"):
        SourceList.of(SkyModel(counts, shapes()["point"], apply_irf=without))


def test_counts_lie_where_the_source_is_seen():
    """The centroid in the camera is the mean position of the source, which turns with the field."""
    observation = run()
    for alignment in ("altaz", "radec"):
        bins = CountsBins(EDGES, GRID, alignment, offset_max=2.5)
        one = reduce_observation(observation, bins, sources=SourceList.of(source(shapes()["point"])))
        image = sum(sum_patches(part.sources).toarray() for part in one.slices).sum(0)
        # simulated wobble runs point 0.5 or 0.7 deg from the source
        offset = position().separation(observation.get_pointing_icrs(observation.tmid)).deg
        rings = np.hypot(GRID.fov_lon, GRID.fov_lat)
        assert np.average(rings, weights=image) == pytest.approx(offset, abs=0.03)
    lon, lat = np.average(GRID.fov_lon, weights=image), np.average(GRID.fov_lat, weights=image)
    pointing = observation.get_pointing_icrs(observation.tmid)
    # FOV_LON grows with decreasing right ascension
    assert lon == pytest.approx(-(position().ra - pointing.ra).deg * np.cos(position().dec.rad), abs=0.03)
    assert lat == pytest.approx((position().dec - pointing.dec).deg, abs=0.03)


def test_counts_on_the_sky_are_those_in_the_camera():
    """Where the events of a run are counted on the sky, in a few bands of energy, the source is at its place."""
    observation = run()
    free, known = (reduced(observation, source(shapes()["disc"], frozen=frozen)) for frozen in (False, True))
    on_sky = free.sky.sources[0].toarray()
    in_camera = free.slices[0].sources[0].by_energy().sum()
    assert len(free.sky.sources) == 2
    assert on_sky.sum() == pytest.approx(in_camera, rel=0.01)
    # of a known flux the same, below the threshold of the run too
    units = sum(unit.toarray() for unit in free.sky.sources)
    np.testing.assert_allclose(known.sky.signal.toarray(), units, rtol=1e-6)
    xyz = free.sky.pixels @ free.sky.matrix
    here = unit_vectors(position().ra.rad, position().dec.rad)
    separation = np.degrees(np.arccos(np.clip(xyz @ here, -1, 1)))
    assert on_sky[:, separation < 0.6].sum() > 0.9 * on_sky.sum()


def test_slices_share_the_counts_and_the_dead_time():
    observation, model = run(2), source(shapes()["disc"])
    whole, parts = reduced(observation, model), reduced(observation, model, max_zenith_change=0.01)
    assert len(parts.slices) > 1
    total = sum(counts_of(part) for part in parts.slices)
    np.testing.assert_allclose(total, counts_of(whole.slices[0]), rtol=1e-3)
    for part in parts.slices:
        share = counts_of(part).sum() / total.sum()
        assert share == pytest.approx(part.ontime / whole.ontime, rel=1e-2)
    np.testing.assert_allclose(counts_of(parts.whole()), total, rtol=1e-4)


def test_what_is_excluded_of_a_source_is_not_expected():
    observation, model = run(), source(shapes()["disc"])
    half = CircleSkyRegion(position(), 0.3 * u.deg)
    seen = reduced(observation, model, exclusion=Exclusion([half]))
    patch, exposure = sum_patches(seen.slices[0].sources).toarray(), seen.exposure
    assert not patch[:, exposure == 0].any()
    expected = npred(model, observation)
    geom = WcsGeom.create(skydir=position(), width=3.0, binsz=0.02)
    outside, above = ~geom.region_mask([half]).data, seen.slices[0].sources[0].by_energy() > 0
    assert patch[above].sum() == pytest.approx(expected[above][:, outside].sum(), rel=0.02)
    # all of it
    wide = reduced(observation, model, exclusion=Exclusion([CircleSkyRegion(position(), 1.6 * u.deg)]))
    assert counts_of(wide.slices[0]).sum() < 1e-3 * patch.sum()


def test_a_frozen_source_is_a_known_signal_and_a_free_one_a_unit():
    here = shapes()
    frozen, free = source(here["point"], frozen=True), source(here["disc"])
    frozen = SkyModel(frozen.spectral_model, frozen.spatial_model, name="frozen")
    both = reduced(run(), [frozen, free]).slices[0]
    alone = reduced(run(), source(here["point"])).slices[0].sources
    # each free one has what it adds above the threshold, and below it
    assert len(both.sources) == 2 == len(alone)
    np.testing.assert_allclose(both.signal.toarray(), alone[0].toarray(), rtol=1e-6)
    fitted = SourceList.of(free).with_amplitudes({"a source": (((0.5, 2.0, 20.0), (0.0, 3.0)), ((0.5, 20.0), (0.25,)))})
    factors = np.where(np.sqrt(EDGES[1:] * EDGES[:-1]) < 2, 0, 3)
    applied = reduced(run(), fitted).slices[0]
    assert applied.sources == ()
    above, below = (patch.by_energy() for patch in both.sources)
    np.testing.assert_allclose(applied.signal.by_energy(), factors * above + 0.25 * below, rtol=1e-5)


def test_a_source_far_from_the_pointing_adds_nothing():
    there = PointSpatialModel(lon_0=position().ra + 20 * u.deg, lat_0=position().dec, frame="icrs")
    observation = altered(run(), aeff=None)  # its responses are not even read
    one = reduced(observation, source(there)).slices[0]
    assert one.signal is None and not len(one.sources[0].columns)


def test_a_source_everywhere_fills_the_field():
    flat = ConstantSpatialModel(value="1 sr-1")
    one = reduced(run(), SkyModel(spectrum(), flat, name="flat")).slices[0]
    seen = sum_patches(one.sources).toarray().sum(0) > 0
    assert np.all(seen[np.hypot(GRID.fov_lon, GRID.fov_lat) < 2.4])


def test_an_even_source_is_even_in_the_camera():
    """Pixels of its map do not beat with the bins of the camera, nor with those of the sky."""
    flat = SkyModel(spectrum(), ConstantSpatialModel(value="1 sr-1"), name="flat")
    bins = CountsBins(EDGES, GRID, "radec", offset_max=2.5)
    one = reduce_observation(run(), bins, sources=SourceList.of(flat))
    image = one.slices[0].sources[0].toarray().sum(0) / GRID.solid_angle
    sky = one.sky.sources[0].toarray().sum(0).reshape(one.sky.side, -1)
    middle = slice(one.sky.side // 2 - 5, one.sky.side // 2 + 5)
    assert np.ptp(image[np.hypot(GRID.fov_lon, GRID.fov_lat) < 0.5]) < 0.05 * image.max()
    assert np.ptp(sky[middle, middle]) < 0.1 * sky.max()


def test_a_threshold_parts_the_counts():
    """Below the peak of the events of a run its responses are not to be trusted, and below all of them next to nothing
    is expected."""
    observation = run()
    energy = observation.events.energy.to_value("TeV")
    cut = altered(observation, keep=energy > 1.2)
    whole, above = (reduced(o, source(shapes()["point"])).slices[0] for o in (observation, cut))
    below = EDGES[1:] < 1.2
    assert counts_of(above)[below].sum() < 0.02 * counts_of(whole)[below].sum()
    beyond = EDGES[:-1] > 1.2  # the bin of the cut has a part of its events
    np.testing.assert_allclose(counts_of(above)[beyond], counts_of(whole)[beyond], rtol=1e-6)
    main, threshold = (patch.by_energy() > 0 for patch in above.sources)
    assert not np.any(main & threshold) and np.all(np.flatnonzero(main) >= np.max(np.flatnonzero(threshold), initial=0))
    # what the responses say themselves
    aeff = copy.deepcopy(observation.aeff)
    aeff.meta["LO_THRES"] = 3.0
    said = reduced(altered(observation, aeff=aeff), source(shapes()["point"])).slices[0]
    assert not said.sources[0].by_energy()[EDGES[1:] <= 3.0].any()
    assert said.sources[1].by_energy()[EDGES[1:] <= 3.0].sum() > 0
    peak = whole.sources[0].by_energy() > 0
    np.testing.assert_allclose(counts_of(said)[peak], counts_of(whole)[peak], rtol=1e-6)


def test_responses_that_are_missing():
    observation, model = run(), source(shapes()["point"])
    with pytest.raises(ObservationError, match="no effective area.*exclude the sources"):
        reduced(altered(observation, aeff=None), model)
    whole = reduced(observation, model)
    without = reduced(altered(observation, psf=None), model)
    assert without.notes.without_psf and not whole.notes.without_psf
    sharp, wide = (sum_patches(one.slices[0].sources) for one in (without, whole))
    assert len(sharp.columns) < len(wide.columns)
    assert sharp.by_energy().sum() == pytest.approx(wide.by_energy().sum(), rel=0.01)
    # without energy dispersion the reconstructed energy is the true one
    undispersed = reduced(altered(observation, edisp=None), model).slices[0]
    undispersed = counts_of(undispersed)
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
    np.testing.assert_array_equal(again.sky.signal.toarray(), one.sky.signal.toarray())
    np.testing.assert_array_equal(again.sky.sources[0].toarray(), one.sky.sources[0].toarray())
    observation.psf = run().psf  # responses that are not those of the file
    assert cache.get(observation) is None


def test_a_run_that_does_not_see_the_source_goes_through_the_cache(tmp_path, caplog):
    there = PointSpatialModel(lon_0=position().ra + 20 * u.deg, lat_0=position().dec, frame="icrs")
    observation = run()
    cache = RunCache.open(tmp_path, "settings", (len(EDGES) - 1, GRID.size), responses=True)
    one = reduced(observation, source(there))
    cache.put(observation, one, {})
    again = cache.get(observation)
    assert again is not None and not caplog.messages
    assert [len(unit.columns) for unit in again.slices[0].sources] == [0, 0]
