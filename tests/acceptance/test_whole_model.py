"""A model carries what its fit left out, as data: what is written, read and applied elsewhere is the same."""

import logging
import operator
import pickle
from functools import cache

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, SkyOffsetFrame
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.maps import HpxGeom, Map, MapAxis, WcsGeom
from helpers import random_in_cap, xyz_of
from numpy.testing import assert_array_equal
from regions import (
    CircleAnnulusSkyRegion,
    CircleSkyRegion,
    CompoundSkyRegion,
    EllipseAnnulusSkyRegion,
    EllipseSkyRegion,
    LineSkyRegion,
    PointSkyRegion,
    PolygonSkyRegion,
    RectangleAnnulusSkyRegion,
    RectangleSkyRegion,
    RegionMeta,
    Regions,
    SkyRegion,
)
from sources import with_source
from stores import fitted, full_store, observations, options, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.acceptance.fit import WITHOUT_EXCLUSION
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.model_file import read_model_file, write_model_file

CRAB = SkyCoord(83.633212345678912, 22.014712345678912, unit="deg")
SITE = EarthLocation.from_geodetic(16.5 * u.deg, -23.27 * u.deg, 1800 * u.m)
FRAMES = {
    "icrs": CRAB,
    "galactic": CRAB.galactic,
    "supergalactic": CRAB.supergalactic,
    "fk5 of date": CRAB.transform_to("fk5").transform_to(SkyCoord(0 * u.deg, 0 * u.deg, frame="fk5",
        equinox="J1975.3").frame),
    "fk4": CRAB.transform_to("fk4"),
    "ecliptic": CRAB.transform_to("barycentricmeanecliptic"),
    "with a distance": SkyCoord(CRAB, distance=2 * u.kpc),
    "in hours": SkyCoord("05h34m31.971s +22d00m52.1s"),
    "offset": SkyCoord(0.1 * u.deg, -0.2 * u.deg, frame=SkyOffsetFrame(origin=CRAB, rotation=30 * u.deg)),
    "horizontal": SkyCoord(CRAB).transform_to(AltAz(obstime="2020-01-01T21:00", location=SITE)),
}  # fmt: skip
DEG = u.deg


def shapes(center):
    vertices = center.directional_offset_by([10, 120, 200, 290] * DEG, [1.5, 0.8, 1.2, 0.3] * DEG)
    return {
        "circle": CircleSkyRegion(center, 0.8 / 3 * DEG),
        "ellipse": EllipseSkyRegion(center, 100 / 3 * u.arcmin, 1 * DEG, 33.3 * DEG),
        "rectangle": RectangleSkyRegion(center, 1.3 * DEG, 0.7 * DEG, 1 / 3 * u.rad),
        "polygon": PolygonSkyRegion(SkyCoord(vertices)),
        "circle annulus": CircleAnnulusSkyRegion(center, 0.5 * DEG, 1.2 * DEG),
        "ellipse annulus": EllipseAnnulusSkyRegion(center, *([1, 2, 0.5, 1] * DEG), 20 * DEG),
        "rectangle annulus": RectangleAnnulusSkyRegion(center, *([1, 2, 0.5, 1] * DEG), 70 * DEG),
        "point": PointSkyRegion(center),
        "line": LineSkyRegion(vertices[0], vertices[1]),
        "intersection": CircleSkyRegion(center, 1 * DEG) & RectangleSkyRegion(vertices[1], 1.3 * DEG, 0.7 * DEG,
            10 * DEG),
        "difference": CompoundSkyRegion(CircleSkyRegion(center, 1 * DEG), CircleSkyRegion(vertices[3], 0.5 * DEG),
            lambda a, b: a & ~b),
        "nested": (CircleSkyRegion(center, 1 * DEG) ^ CircleSkyRegion(vertices[3], 0.9 * DEG)) & CircleSkyRegion(center,
            0.9 * DEG),
    }  # fmt: skip


KINDS = list(shapes(CRAB))


def stored(exclusion):
    return Exclusion.from_arrays(*exclusion.to_arrays())


def same_sky(a, b, center=CRAB, radius=3.0):
    positions = xyz_of(random_in_cap(SkyCoord(center.icrs.ra, center.icrs.dec), radius, 4000, np.random.default_rng(0)))
    assert_array_equal(a.contains(positions), b.contains(positions))
    assert_array_equal(a._centers, b._centers)
    assert_array_equal(a._radii, b._radii)
    return a.contains(positions).sum()


@pytest.mark.parametrize("frame,margin", [*((frame, 0.0) for frame in FRAMES), ("galactic", 0.1)])
@pytest.mark.parametrize("kind", KINDS)
def test_regions_survive(kind, frame, margin):
    region = shapes(FRAMES[frame])[kind]
    before = Exclusion(region, margin * DEG)
    after = stored(before)
    excluded = same_sky(before, after)
    assert excluded > 0 or (kind in ("point", "line") and margin == 0)
    assert after.to_arrays() == before.to_arrays()
    assert isinstance(after[0], SkyRegion) and after.margins[0] == margin * DEG
    # as it was given, in its own frame where that is one of the sky alone
    for name in ("center", "vertices", "start", "end"):
        if hasattr(region, name):
            here, there = getattr(region, name), getattr(after[0], name)
            assert np.all(here.icrs.separation(there.icrs) < 1e-11 * DEG)
            if frame not in ("offset", "horizontal"):
                assert there.frame.is_equivalent_frame(here.frame)
    for name in ("radius", "width", "height", "inner_width", "outer_radius"):
        if hasattr(region, name):
            assert np.isclose(getattr(after[0], name), getattr(region, name), rtol=1e-14)
    if hasattr(region, "angle") and frame not in ("offset", "horizontal"):
        assert np.isclose(after[0].angle, region.angle, rtol=1e-14)


@pytest.mark.parametrize("frame", ["galactic", "offset", "horizontal"])
def test_what_is_kept_is_what_was_given(frame):
    """Against `regions` itself, in a frame that is stored and in two that are not."""
    region = EllipseSkyRegion(FRAMES[frame], 2 * DEG, 1 * DEG, 33 * DEG)
    wcs = WcsGeom.create(skydir=CRAB, binsz=0.01, npix=(1, 1), proj="TAN").wcs
    positions = random_in_cap(CRAB, 1.5, 4000, np.random.default_rng(1))
    assert_array_equal(stored(Exclusion(region)).contains(xyz_of(positions)), region.contains(positions, wcs))


def test_what_is_said_of_a_region_stays():
    region = CircleSkyRegion(CRAB, 0.5 * DEG, meta=RegionMeta({"text": "Crab nebula", "label": "αβγ"}))
    after = stored(Exclusion([region, PointSkyRegion(CRAB)], 0.25 * DEG))
    assert after[0].meta["text"] == "Crab nebula" and after[0].meta["label"] == "αβγ"
    assert after.lines()[0] == (
        "CircleSkyRegion 'Crab nebula': center icrs 83.633 +22.015, radius 0.5 deg, and 0.25 deg around it"
    )
    assert after.in_brief() == "2 sky regions" and len(str(after).splitlines()) == 2


def test_what_comes_twice_counts_once(tmp_path):
    circles = [CircleSkyRegion(CRAB, r * DEG) for r in (0.3, 0.4)]
    Regions(circles).write(tmp_path / "two.reg", format="ds9", precision=16)
    twice = Exclusion([tmp_path / "two.reg", str(tmp_path / "two.reg")])
    assert len(twice) == 2
    assert len(twice.with_regions([twice, circles[:1]])) in (2, 3)  # ds9 files hold degrees as text
    assert len(Exclusion([twice, circles], 1 * DEG)) == 4 and Exclusion([twice, circles], 1 * DEG).margins[0] == 0 * DEG


@pytest.mark.parametrize(
    "region",
    [
        CircleSkyRegion(SkyCoord(np.nan * DEG, 0 * DEG), 1 * DEG),
        CompoundSkyRegion(CircleSkyRegion(CRAB, 1 * DEG), CircleSkyRegion(CRAB, 2 * DEG), lambda a, b: ~a),
        CompoundSkyRegion(CircleSkyRegion(CRAB, 1 * DEG), CircleSkyRegion(CRAB, 2 * DEG), operator.eq),
        CircleSkyRegion(CRAB, 1 * DEG, meta=RegionMeta({"include": False})) & CircleSkyRegion(CRAB, 1 * DEG),
    ],
)
def test_regions_that_cannot_be_kept_are_refused_at_once(region):
    with pytest.raises(InputError, match="exclusion"):
        Exclusion(region)


def masks():
    energy = MapAxis.from_energy_bounds("0.1 TeV", "10 TeV", 3)
    near, far = SkyCoord(CRAB), SkyCoord(0 * DEG, 0 * DEG, frame="galactic")
    geoms = {
        "TAN": WcsGeom.create(skydir=near, width=4, binsz=1 / 30, proj="TAN"),
        "galactic CAR": WcsGeom.create(skydir=far, width=(40, 10), binsz=0.1, proj="CAR", frame="galactic"),
        "AIT of the sky": WcsGeom.create(skydir=far, binsz=0.5, proj="AIT", frame="galactic"),
        "CAR of the sky": WcsGeom.create(skydir=(10, 0), binsz=0.5, proj="CAR"),
        "energies": WcsGeom.create(skydir=near, width=4, binsz=0.1, axes=[energy]),
        "two axes": WcsGeom.create(skydir=near, width=4, binsz=0.1,
            axes=[energy, MapAxis.from_edges([0, 1, 2], name="phase")]),
        "nest": HpxGeom.create(nside=256, nest=True, frame="galactic"),
        "ring": HpxGeom.create(nside=64, nest=False, frame="icrs"),
        "partial": HpxGeom.create(nside=256, nest=False, frame="icrs", region="DISK(83.6,22,5)"),
        "partial, energies": HpxGeom.create(nside=256, nest=True, frame="galactic", region="DISK(184,-5.8,5)",
            axes=[energy]),
    }  # fmt: skip
    for name, geom in geoms.items():
        mask = Map.from_geom(geom, data=np.ones(geom.data_shape, bool))
        separation = geom.to_image().separation(far if name in ("galactic CAR", "AIT of the sky") else near).deg
        # another hole at each energy
        number = np.arange(max(int(np.prod(geom.data_shape[: len(geom.axes)])), 1)).reshape(
            geom.data_shape[: len(geom.axes)]
        )
        hole = (
            (separation > 0.1 * number[..., None, None]) & (separation < 1.5)
            if not geom.is_hpx
            else separation < 1 + 0.1 * number[..., None]
        )
        mask.data = ~hole.reshape(geom.data_shape)
        yield name, mask, far if name in ("galactic CAR", "AIT of the sky") else near


MASKS = {name: (mask, center) for name, mask, center in masks()}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_masks_survive(name, margin):
    mask, center = MASKS[name]
    before = Exclusion(mask, margin * DEG)
    after = stored(before)
    assert same_sky(before, after, center) > 0 and same_sky(before, pickle.loads(pickle.dumps(before)), center) > 0
    assert isinstance(after[0], Map) and after[0].is_mask and not after[0].geom.axes
    # against the map itself: what is excluded at any energy is excluded
    positions = random_in_cap(SkyCoord(center.icrs.ra, center.icrs.dec), 3, 4000, np.random.default_rng(0))
    image = mask.reduce_over_axes(np.logical_and) if mask.geom.axes else mask
    direct = np.asarray(image.get_by_coord(positions), dtype=float) == 0
    if margin == 0:
        # pixels are the same; a position on an edge, to rounding, may lie in either
        assert np.sum(after.contains(xyz_of(positions)) != direct) <= 1
    else:
        assert np.all(after.contains(xyz_of(positions))[direct])


def test_large_masks_stay_small(tmp_path):
    """The whole sky in pixels of 0.1 deg, and a cube of many energies, with pixels left out here and there."""
    sky = WcsGeom.create(skydir=(0, 0), binsz=0.1, proj="CAR", frame="galactic")
    cube = WcsGeom.create(skydir=CRAB, width=10, binsz=0.02, axes=[MapAxis.from_energy_bounds("0.1 TeV", "10 TeV", 40)])
    rng = np.random.default_rng(0)
    for geom in (sky, cube):
        mask = Map.from_geom(geom, data=rng.random(geom.data_shape) < 0.99)
        maker = AcceptanceBackgroundMaker(
            model=AcceptanceModel(fitted("radial"), AcceptanceConfig.coerce(options("radial")).to_yaml(), Table()),
            exclusion=mask,
        )
        assert len(pickle.dumps(maker)) < 3e6
        text, arrays = maker.exclusion.to_arrays()
        assert len(text) < 2e4 and sum(a.nbytes for a in arrays.values()) < 3e6


def test_a_healpix_mask_with_a_margin_keeps_its_edge():
    """Against all of its pixels, one by one; and the half of the sky stays small."""
    geom = HpxGeom.create(nside=64, nest=False, frame="galactic")
    lon, lat = (x.to_value("deg") for x in (geom.get_coord().skycoord.l, geom.get_coord().skycoord.b))
    mask = Map.from_geom(geom, data=~((np.abs(lat) < 30) & (np.hypot(lon - 200, lat) > 8)))
    exclusion = Exclusion(mask, 2 * DEG)
    positions = SkyCoord(
        200 + 60 * np.random.default_rng(0).uniform(-1, 1, 500),
        60 * np.random.default_rng(1).uniform(-1, 1, 500),
        unit="deg",
        frame="galactic",
    ).icrs
    pixels = SkyCoord(lon[~mask.data], lat[~mask.data], unit="deg", frame="galactic").icrs
    pixel = np.sqrt(geom.solid_angle().to_value("deg2").max())
    nearest = positions.match_to_catalog_sky(pixels)[1].deg
    near = nearest < 2 + 0.5 * pixel
    assert np.array_equal(exclusion.contains(xyz_of(positions)), near) and 100 < near.sum() < 450
    large = HpxGeom.create(nside=256, nest=True, frame="galactic")
    half = Map.from_geom(large, data=large.get_coord().skycoord.b.deg > 0)
    assert len(pickle.dumps(Exclusion(half, 0.5 * DEG))) < 1e6
    assert f"HEALPix mask, {np.sum(~half.data)} pixels excluded" in str(Exclusion(half))


def model_with(exclusion):
    config = AcceptanceConfig.coerce(options("grid", offset_max="2.5 deg")).to_yaml()
    return AcceptanceModel(fitted("grid"), config, Table({"OBS_ID": [1], "USED": [True]}), exclusion=exclusion)


def test_a_file_holds_all_of_it(tmp_path):
    given = [*shapes(CRAB.galactic).values(), *(mask for mask, _ in MASKS.values())]
    model = model_with(Exclusion(given, 0.2 * DEG))
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert len(again.exclusion) == len(model.exclusion) == 21  # two masks are the same without their axes
    same_sky(again.exclusion, model.exclusion, radius=5)
    assert str(again) == str(model) and "12 sky regions and 9 masks" in str(again)
    assert again.exclusion.lines() == model.exclusion.lines()
    with fits.open(tmp_path / "model.fits") as hdulist:
        hdulist.verify("exception")


BAD = {
    "no JSON": lambda entry: "[{",
    "no list": lambda entry: "7",
    "no region": lambda entry: '[{"margin": 0}]',
    "NaN": lambda entry: entry.replace("0.3", "NaN"),
    "negative": lambda entry: entry.replace("0.3", "-0.3"),
    "beyond the pole": lambda entry: entry.replace('"lat": 22', '"lat": 122'),
    "kind": lambda entry: entry.replace('"circle"', '"crystal"'),
    "frame": lambda entry: entry.replace('"icrs"', '"fk7"'),
    "a frame that needs more": lambda entry: entry.replace('"icrs"', '"altaz"'),
    "margin": lambda entry: entry.replace('"margin": 0.0', '"margin": -1'),
    "no such mask": lambda entry: '[{"margin": 0, "origin": "", "mask": "mask 9", "header": "", "shape": [1, 1]}]',
    "text for a number": lambda entry: entry.replace("0.3", '"x"'),
    "deep": lambda entry: "[" * 100000,
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_text_is_refused(name, tmp_path):
    model_with(Exclusion(CircleSkyRegion(CRAB, 0.3 * DEG))).write(tmp_path / "model.fits")
    arrays, texts, runs = read_model_file(tmp_path / "model.fits")
    damaged = BAD[name](texts["exclusion"])
    assert damaged != texts["exclusion"]
    write_model_file(tmp_path / "model.fits", arrays, texts | {"exclusion": damaged}, runs, overwrite=True)
    with pytest.raises(InputError):
        AcceptanceModel.read(tmp_path / "model.fits")


@pytest.mark.parametrize("name", ["TAN", "nest"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "shape", "huge", "header", "bomb"])
def test_damaged_masks_are_refused_or_read(name, damage):
    text, arrays = Exclusion(MASKS[name][0]).to_arrays()
    pixels = arrays["mask 0"].copy()
    if damage == "cut":
        pixels = pixels[: len(pixels) // 2]
    elif damage == "flipped":
        pixels[len(pixels) // 2] ^= 255
    elif damage == "shape":
        text = text.replace('"shape": [', '"shape": [3')
    elif damage == "huge":
        text = text.replace('"shape": [', '"shape": [99999999999')
    elif damage == "header":
        text = text.replace("CTYPE", "CXXXX").replace("nside", "mside")
    else:
        import zlib

        pixels = np.frombuffer(zlib.compress(bytes(10**8)), dtype=np.uint8)
    with pytest.raises(InputError):
        Exclusion.from_arrays(text, {"mask 0": pixels})


@pytest.fixture(scope="module")
def on_runs(store):
    position = store.source.spatial_model.position
    return [with_source(run, position, 300) for run in observations(store, store.on_obs_ids[:3])]


def files(store, folder):
    """A configuration whose exclusion is in files: the source as region and as mask, and a star in a catalogue."""
    region = source_region(store)
    Regions([region]).write(folder / "source.reg", format="ds9")
    geom = WcsGeom.create(skydir=region.center, width=6, binsz=0.05, frame="galactic")
    mask = geom.region_mask([CircleSkyRegion(region.center, 0.6 * DEG)], inside=False)
    mask.write(folder / "mask.fits")
    star = region.center.directional_offset_by(30 * DEG, 1 * DEG)
    Table({"ra": [star.ra.deg], "dec": [star.dec.deg]}).write(folder / "stars.csv")
    catalog = {"path": str(folder / "stars.csv"), "radius": "0.2 deg"}
    return {
        "regions": str(folder / "source.reg"),
        "mask": str(folder / "mask.fits"),
        "margin": "0.05 deg",
        "catalog": catalog,
    }


@pytest.mark.parametrize("kind", ["grid", "spline"])
def test_the_recipe_of_the_readme(kind, store, on_runs, tmp_path):
    """Fit, write, throw the files away, read, make a maker:
    the same background, and a norm that the source does not raise."""
    (tmp_path / "files").mkdir()
    more = {"exclusion": files(store, tmp_path / "files")}
    settings = options(kind, **more) if kind == "grid" else {"offset_max": "2 deg", **more}
    given = CircleSkyRegion(source_region(store).center.directional_offset_by(200 * DEG, 1.2 * DEG), 0.15 * DEG)
    maker = AcceptanceBackgroundMaker(settings, exclusion=given).fit(on_runs)
    maker.model.write(tmp_path / "model.fits")
    for file in (tmp_path / "files").iterdir():
        file.unlink()
    model = AcceptanceModel.read(tmp_path / "model.fits")
    again = AcceptanceBackgroundMaker(model=model)
    options_of = model.config.exclusion
    assert options_of.files() == [] and options_of.margin == 0.05 * DEG
    assert len(model.exclusion) == 4 and len(again.exclusion) == 4 and len(maker.exclusion) == 4
    assert all(f"({name})" in str(again.exclusion) for name in ("source.reg", "mask.fits", "stars.csv"))
    geom = sky_geom(source_region(store).center, width=4, binsz=0.1)
    for run in on_runs:
        here, there = (m.make_background(geom, run).data for m in (maker, again))
        assert np.allclose(here, there, rtol=1e-12, atol=0) and here.sum() > 0
    for format in ("table", "image"):
        model.write_cube(tmp_path / f"{format}.fits", format=format)
    # without the exclusion the source counts as background
    bare = AcceptanceModel(model.rate_model, model.config, model.run_table)
    spoilt = AcceptanceBackgroundMaker(model=bare)
    assert spoilt.make_background(geom, on_runs[0]).data.sum() > 1.02 * here.sum()
    # what is given besides is added
    added = AcceptanceBackgroundMaker(model=model, exclusion=CircleSkyRegion(geom.center_skydir, 1.4 * DEG))
    assert len(added.exclusion) == 5 and added.exclusion.margins[0] == 0.05 * DEG
    assert len(pickle.loads(pickle.dumps(again)).exclusion) == 4
    # and a fit anew leaves the same out
    assert len(again.fit(on_runs).model.exclusion) == 4


def test_a_file_of_an_earlier_version(store, tmp_path, caplog):
    """It names the files of its exclusion and does not hold them: it is read, and says so."""
    model = model_with(Exclusion())
    config = AcceptanceConfig.coerce(options("grid", exclusion=files(store, tmp_path)))
    AcceptanceModel(model.rate_model, config.to_yaml(), model.run_table).write(tmp_path / "model.fits")
    arrays, texts, runs = read_model_file(tmp_path / "model.fits")
    del texts["exclusion"]
    write_model_file(tmp_path / "model.fits", arrays, texts, runs, overwrite=True)
    with fits.open(tmp_path / "model.fits", mode="update") as hdulist:
        hdulist[0].header["VERSION"] = 2
    (tmp_path / "source.reg").unlink()
    with caplog.at_level(logging.WARNING):
        again = AcceptanceModel.read(tmp_path / "model.fits")
    assert len(caplog.records) == 1 and "source.reg" in caplog.text and "give it as `exclusion`" in caplog.text
    assert AcceptanceBackgroundMaker(model=again, exclusion=source_region(store)).exclusion[0].radius == 0.4 * DEG
    assert again.config.exclusion.margin == 0.05 * DEG


def test_a_fit_without_an_exclusion_says_so_once(store, on_runs, caplog):
    with caplog.at_level(logging.WARNING):
        maker = AcceptanceBackgroundMaker(options("radial")).fit(on_runs, n_jobs=2)
        for run in on_runs:
            maker.make_irf(run)
    assert caplog.text.count(WITHOUT_EXCLUSION) == 1 and "`exclusion`" in caplog.text
    assert f"exclusion   : none; {WITHOUT_EXCLUSION}" in str(maker.model)
    assert WITHOUT_EXCLUSION in str(maker)


@pytest.mark.parametrize(
    "given", [{"exclusion": {"wobble_half": True}}, {"exclusion": {"iterative": {}}}, {"region": True}, {"point": True}]
)
def test_whether_anything_is_excluded(given, store, on_runs, caplog):
    given = dict(given)
    region = source_region(store) if given.pop("region", False) else None
    region = PointSkyRegion(CRAB) if given.pop("point", False) else region
    settings = options("grid", **given)
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(on_runs, settings, exclusion=region)
    nothing = isinstance(region, PointSkyRegion)  # it has no margin
    assert (WITHOUT_EXCLUSION in caplog.text) == nothing
    assert "exclusion   :" in str(model)


@pytest.mark.gammapy_data
def test_the_recipe_of_the_readme_on_the_crab(tmp_path):
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    runs = store.get_observations([23523, 23526, 23559, 23592], required_irf=[])
    crab = SkyCoord(83.633, 22.014, unit="deg")
    Regions([CircleSkyRegion(crab, 0.5 * DEG)]).write(tmp_path / "crab.reg", format="ds9")
    settings = options("radial", exclusion={"regions": str(tmp_path / "crab.reg")})
    maker = AcceptanceBackgroundMaker(settings).fit(runs)
    maker.model.write(tmp_path / "model.fits")
    (tmp_path / "crab.reg").unlink()
    model = AcceptanceModel.read(tmp_path / "model.fits")
    again = AcceptanceBackgroundMaker(model=model)
    bare = AcceptanceBackgroundMaker(model=AcceptanceModel(model.rate_model, model.config, model.run_table))
    geom = sky_geom(crab, edges=(0.6, 1, 10), width=4, binsz=0.1)
    for run in runs:
        total = maker.make_background(geom, run).data.sum()
        assert again.make_background(geom, run).data.sum() == pytest.approx(total, rel=1e-12)
        assert bare.make_background(geom, run).data.sum() > 1.03 * total


@cache
def radec_model(kind):
    """A model whose options are none of the defaults."""
    store, effects = full_store(), {"type": "shift" if kind == "spline" else "norm"}
    settings = {"model": {"type": kind}, "energy": {"min": "0.5 TeV"}, "offset_max": "2 deg", "run_effects": effects}
    settings |= {"fov_alignment": "radec", "zenith": {"type": "none"}}
    return fit_acceptance(observations(store, store.on_obs_ids), settings, exclusion=source_region(store))


@pytest.mark.parametrize("kind", ["grid", "spline"])
@pytest.mark.parametrize("given", ["dict", "config", "file", "set later"])
def test_options_that_are_not_given_are_those_of_the_model(kind, given, store, on_runs, tmp_path):
    """Else the effects of a run are lost, and the model is read in another frame: 1.7 times the background here."""
    model, options_ = radec_model(kind), {"renormalization": {"type": "fov"}}
    (tmp_path / "a.yaml").write_text("renormalization: {type: fov}")
    config = {"config": AcceptanceConfig(**options_), "file": tmp_path / "a.yaml"}.get(given, options_)
    if given == "set later":
        maker = AcceptanceBackgroundMaker(config)
        maker.model = model
    else:
        maker = AcceptanceBackgroundMaker(config, model=model)
    assert maker.config.renormalization.type == "fov"
    geom = sky_geom(source_region(store).center, edges=(0.6, 1, 10), width=4, binsz=0.1)
    own = AcceptanceBackgroundMaker(model=model).make_background(geom, on_runs[0])
    assert_array_equal(maker.make_background(geom, on_runs[0]).data, own.data)


@pytest.mark.parametrize(
    "kind,given,match",
    [("grid", {"fov_alignment": "altaz"}, "fov_alignment: got altaz.*fitted with radec.*leave it out"),
     ("grid", {"model": {"type": "spline"}}, "model: got spline.*fitted with grid"),
     ("spline", {"fov_alignment": "altaz"}, "fov_alignment: got altaz"),
     ("spline", {"offset_max": "2.5 deg"}, "offset_max: got 2.5 deg.*fitted with 2 deg"),
     ("spline", {"energy": {"min": "0.5 TeV", "max": "30 TeV"}}, "energy.max: got 30 TeV.*fitted with 100 TeV"),
     ("spline", {"model": {"type": "radial"}}, "model: got radial.*fitted with spline")],
)  # fmt: skip
def test_options_that_contradict_the_model_are_refused(kind, given, match):
    with pytest.raises(InputError, match=match):
        AcceptanceBackgroundMaker(given, model=radec_model(kind))
