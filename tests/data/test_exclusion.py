"""Exclusion against brute force: `region.contains`, angular separations, and the map's own look-up."""

import operator
import pickle

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from gammapy.maps import HpxGeom, Map, MapAxis, RegionGeom, RegionNDMap, WcsGeom
from helpers import random_in_cap, xyz_of
from numpy.testing import assert_array_equal
from regions import (
    CircleAnnulusSkyRegion,
    CirclePixelRegion,
    CircleSkyRegion,
    CompoundSkyRegion,
    EllipseAnnulusSkyRegion,
    EllipseSkyRegion,
    LineSkyRegion,
    PixCoord,
    PointSkyRegion,
    PolygonSkyRegion,
    RectangleAnnulusSkyRegion,
    RectangleSkyRegion,
    RegionMeta,
    Regions,
)

from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import InputError

CENTERS = {
    "icrs": SkyCoord(83.63, 22.01, unit="deg"),
    "galactic": SkyCoord(359.9, 1.3, unit="deg", frame="galactic"),
    "pole": SkyCoord(40.0, 89.2, unit="deg"),
    "date line": SkyCoord(0.05, -30.0, unit="deg"),
}


def make_region(kind, center):
    """A region of a kind, about 1 deg wide."""
    vertices = center.directional_offset_by([10, 120, 200, 290] * u.deg, [1.5, 0.8, 1.2, 0.3] * u.deg)
    return {
        "circle": lambda: CircleSkyRegion(center, 0.8 * u.deg),
        "ellipse": lambda: EllipseSkyRegion(center, 3 * u.deg, 1 * u.deg, 30 * u.deg),
        "rectangle": lambda: RectangleSkyRegion(center, 2.5 * u.deg, 0.7 * u.deg, 110 * u.deg),
        "polygon": lambda: PolygonSkyRegion(SkyCoord(vertices)),
        "circle annulus": lambda: CircleAnnulusSkyRegion(center, 0.5 * u.deg, 1.2 * u.deg),
        "ellipse annulus": lambda: EllipseAnnulusSkyRegion(
            center, 1 * u.deg, 2 * u.deg, 0.5 * u.deg, 1 * u.deg, 20 * u.deg
        ),
        "rectangle annulus": lambda: RectangleAnnulusSkyRegion(
            center, 1 * u.deg, 2 * u.deg, 0.5 * u.deg, 1 * u.deg, 70 * u.deg
        ),
    }[kind]()


KINDS = ["circle", "ellipse", "rectangle", "polygon", "circle annulus", "ellipse annulus", "rectangle annulus"]


def around(center, radius=3.0, size=5000, seed=0):
    return random_in_cap(center.icrs, radius, size, np.random.default_rng(seed)).icrs


def by_region(region, center, positions):
    """What `regions` says, on a tangential plane around the region's centre."""
    wcs = WcsGeom.create(skydir=center, binsz=0.02, npix=(3, 3), proj="TAN", frame=center.frame.name).wcs
    return region.contains(positions, wcs)


def assert_some(inside):
    assert 0.01 * len(inside) < inside.sum() < 0.99 * len(inside)


@pytest.mark.parametrize("where", CENTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_region_agrees_with_regions(kind, where):
    center = CENTERS[where]
    region, positions = make_region(kind, center), around(center)
    inside = Exclusion(region).contains(xyz_of(positions))
    assert_some(inside)
    assert_array_equal(inside, by_region(region, center, positions))


@pytest.mark.parametrize("where", CENTERS)
def test_circle_and_annulus_agree_with_separation(where):
    center, positions = CENTERS[where], around(CENTERS[where])
    separation = positions.separation(center).deg
    inside = Exclusion(make_region("circle", center)).contains(xyz_of(positions))
    assert_array_equal(inside, separation < 0.8)
    inside = Exclusion(make_region("circle annulus", center)).contains(xyz_of(positions))
    clear = np.abs(separation[:, None] - [0.5, 1.2]).min(1) > 1e-3  # an annulus is one on the tangential plane
    assert_array_equal(inside[clear], ((separation > 0.5) & (separation < 1.2))[clear])


def test_polygon_has_great_circles_as_sides():
    vertices = SkyCoord([10, 14, 12], [60, 60, 66], unit="deg")
    positions = around(SkyCoord(12, 62, unit="deg"), 5)
    corners, xyz = xyz_of(vertices), xyz_of(positions)
    sides = np.cross(corners, np.roll(corners, -1, axis=0))
    same_side = np.sign(xyz @ sides.T) == np.sign(corners.mean(0) @ sides.T)
    inside = Exclusion(PolygonSkyRegion(vertices)).contains(xyz)
    assert_some(inside)
    assert_array_equal(inside, same_side.all(1))


def test_large_circle():
    center, positions = CENTERS["galactic"], around(CENTERS["galactic"], 180)
    inside = Exclusion(CircleSkyRegion(center, 120 * u.deg)).contains(xyz_of(positions))
    assert_array_equal(inside, positions.separation(center).deg < 120)


def test_everything():
    positions = around(CENTERS["icrs"], 180)
    assert Exclusion(CircleSkyRegion(CENTERS["pole"], 180 * u.deg), 10 * u.deg).contains(xyz_of(positions)).all()


def test_long_rectangle_along_the_galactic_plane():
    center, positions = SkyCoord(0, 0, unit="deg", frame="galactic"), around(CENTERS["galactic"], 60)
    inside = Exclusion(RectangleSkyRegion(center, 60 * u.deg, 4 * u.deg)).contains(xyz_of(positions))
    galactic = positions.galactic
    assert inside[(np.abs(galactic.l.wrap_at("180d").deg) < 20) & (np.abs(galactic.b.deg) < 1.5)].all()
    assert not inside[np.abs(galactic.b.deg) > 2.3].any()


def test_far_apart_regions():
    regions = [make_region(kind, center) for kind in KINDS for center in CENTERS.values()]
    exclusion = Exclusion(regions)
    assert len(exclusion) == len(regions)
    for center in CENTERS.values():
        positions = around(center, size=1000)
        expected = np.any([by_region(make_region(kind, center), center, positions) for kind in KINDS], axis=0)
        assert_array_equal(exclusion.contains(xyz_of(positions)), expected)


def test_opposite_side_of_the_sky_is_not_excluded():
    for kind in KINDS:
        center = CENTERS["galactic"].icrs
        opposite = SkyCoord(center.ra + 180 * u.deg, -center.dec)
        assert not Exclusion(make_region(kind, center), 0.3 * u.deg).contains(xyz_of(around(opposite))).any()


def test_point_excludes_only_with_a_margin():
    center, positions = CENTERS["icrs"], around(CENTERS["icrs"])
    assert not Exclusion(PointSkyRegion(center)).contains(xyz_of(positions)).any()
    inside = Exclusion(PointSkyRegion(center), margin=0.5 * u.deg).contains(xyz_of(positions))
    assert_array_equal(inside, positions.separation(center).deg < 0.5)


def test_line_excludes_only_with_a_margin():
    line = LineSkyRegion(SkyCoord(80, 10, unit="deg"), SkyCoord(80, 12, unit="deg"))
    positions = around(SkyCoord(80, 11, unit="deg"))
    assert not Exclusion(line).contains(xyz_of(positions)).any()
    dec = np.clip(positions.dec.deg, 10, 12) * u.deg
    separation = positions.separation(SkyCoord(np.full(len(dec), 80) * u.deg, dec)).deg
    inside = Exclusion(line, margin=0.4 * u.deg).contains(xyz_of(positions))
    clear = np.abs(separation - 0.4) > 0.002
    assert_array_equal(inside[clear], (separation < 0.4)[clear])


@pytest.mark.parametrize("where", CENTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_margin_agrees_with_the_distance_to_the_region(kind, where):
    center, margin = CENTERS[where], 0.3
    region, positions = make_region(kind, center), around(center, size=600)
    dense = around(center, 1.8, 100_000, seed=1)
    dense = xyz_of(dense[by_region(region, center, dense)])
    nearest = np.array([np.degrees(np.arccos(np.clip(dense @ xyz, -1, 1)).min()) for xyz in xyz_of(positions)])
    inside = Exclusion(region, margin=margin * u.deg).contains(xyz_of(positions))
    clear = np.abs(nearest - margin) > 0.03
    assert_some(inside)
    assert_array_equal(inside[clear], (nearest < margin)[clear])


def test_margin_only_adds():
    positions = xyz_of(around(CENTERS["icrs"]))
    for kind in KINDS:
        region = make_region(kind, CENTERS["icrs"])
        narrow, wide = (Exclusion(region, margin=m * u.deg).contains(positions) for m in (0, 0.01))
        assert wide[narrow].all()
        assert wide.sum() <= narrow.sum() * 1.2


def test_margin_of_a_circle_is_a_larger_circle():
    center, positions = CENTERS["pole"], around(CENTERS["pole"])
    inside = Exclusion(make_region("circle", center), margin="30 arcmin").contains(xyz_of(positions))
    assert_array_equal(inside, positions.separation(center).deg < 1.3)


@pytest.mark.parametrize("combine", [operator.or_, operator.and_, operator.xor])
@pytest.mark.parametrize("margin", [0, 0.2])
def test_compound(combine, margin):
    centers = SkyCoord([83.0, 84.0], [22.0, 22.3], unit="deg")
    circles = [CircleSkyRegion(c, 0.9 * u.deg) for c in centers]
    region = CompoundSkyRegion(*circles, combine)
    positions, dense = around(centers[0]), around(centers[0], 2.5, 200_000, seed=1)

    def brute_force(where):
        return combine(*(where.separation(c).deg < 0.9 for c in centers))

    inside = Exclusion(region, margin=margin * u.deg).contains(xyz_of(positions))
    assert_some(inside)
    if margin == 0:
        assert_array_equal(inside, brute_force(positions))
        return
    dense = xyz_of(dense[brute_force(dense)])
    nearest = np.array([np.degrees(np.arccos(np.clip(dense @ xyz, -1, 1)).min()) for xyz in xyz_of(positions[:1000])])
    clear = np.abs(nearest - margin) > 0.03
    assert_array_equal(inside[:1000][clear], (nearest < margin)[clear])


def test_compound_of_far_apart_regions_and_nested():
    first, second = CENTERS["icrs"], CENTERS["galactic"]
    far = make_region("circle", first) | make_region("ellipse", second)
    nested = far | (make_region("circle", CENTERS["pole"]) ^ CircleSkyRegion(CENTERS["pole"], 0.3 * u.deg))
    exclusion = Exclusion(nested)
    for center, kind in ((first, "circle"), (second, "ellipse")):
        positions = around(center)
        expected = by_region(make_region(kind, center), center, positions)
        assert_array_equal(exclusion.contains(xyz_of(positions)), expected)
    positions = around(CENTERS["pole"])
    separation = positions.separation(CENTERS["pole"]).deg
    assert_array_equal(exclusion.contains(xyz_of(positions)), (separation < 0.8) & (separation >= 0.3))


def test_compound_that_covers_the_rest_of_the_sky_is_refused():
    region = CompoundSkyRegion(*[make_region("circle", CENTERS[c]) for c in ("icrs", "pole")], lambda a, b: a == b)
    with pytest.raises(InputError, match="outside"):
        Exclusion(region)


@pytest.mark.parametrize("suffix", ["reg", "crtf"])
def test_region_file_round_trip(tmp_path, suffix):
    # the crtf writer of `regions` turns galactic centres, but not angles, to equatorial
    kinds = ["circle", "polygon", "circle annulus", *(["ellipse", "rectangle"] if suffix == "reg" else [])]
    centers = [CENTERS["icrs"], CENTERS["galactic"]]
    path = tmp_path / f"exclusion.{suffix}"
    Regions([make_region(kind, center) for kind in kinds for center in centers]).write(str(path))
    for name in (path, str(path)):
        exclusion = Exclusion(name)
        assert len(exclusion) == 2 * len(kinds)
        for center in centers:
            positions = around(center)
            expected = np.any([by_region(make_region(kind, center), center, positions) for kind in kinds], axis=0)
            assert (exclusion.contains(xyz_of(positions)) != expected).sum() <= 5  # files hold 4 digits and more


def test_crtf_file_in_galactic_coordinates(tmp_path):
    center, path = CENTERS["galactic"], tmp_path / "exclusion.crtf"
    path.write_text("#CRTFv0\nglobal coord=GALACTIC\nellipse[[359.9deg, 1.3deg], [1.5deg, 0.5deg], 30deg]\n")
    positions = around(center)
    region = EllipseSkyRegion(center, 1.0 * u.deg, 3.0 * u.deg, 30 * u.deg)
    assert_array_equal(Exclusion(path).contains(xyz_of(positions)), by_region(region, center, positions))


def test_fits_region_file_with_a_wcs(tmp_path):
    center, path = CENTERS["galactic"], tmp_path / "exclusion.fits"
    regions = [make_region(kind, center) for kind in ("circle", "ellipse", "rectangle")]
    wcs = WcsGeom.create(skydir=center, binsz=0.02, npix=300, proj="TAN", frame="galactic").wcs
    geom = RegionGeom.from_regions(regions, wcs=wcs, axes=[MapAxis.from_energy_bounds("1 TeV", "10 TeV", nbin=1)])
    geom.to_hdulist(format="ogip").writeto(path)
    positions = around(center)
    expected = np.any([by_region(region, center, positions) for region in regions], axis=0)
    assert (Exclusion(path).contains(xyz_of(positions)) != expected).mean() < 1e-3


def test_environment_variables_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_REGIONS", str(tmp_path))
    Regions([make_region("circle", CENTERS["icrs"])]).write(str(tmp_path / "a.reg"))
    assert len(Exclusion("$MY_REGIONS/a.reg")) == 1


def galactic_band(dtype=bool, **kwargs):
    mask = Map.from_geom(WcsGeom.create(frame="galactic", **kwargs), dtype=dtype)
    coords = mask.geom.get_coord()
    mask.data[...] = np.abs(coords["lat"].to_value("deg") - 0.2 * np.sin(20 * coords["lon"].to_value("rad"))) > 0.4
    return mask


def by_mask(mask, positions):
    """What the map says; outside of it nothing is excluded."""
    value = mask.get_by_coord({"skycoord": positions})
    return np.isfinite(value) & (value == 0)


@pytest.mark.parametrize("dtype", [bool, int, float, np.uint8])
def test_mask_in_galactic_frame(dtype):
    mask = galactic_band(dtype, skydir=(0, 0), binsz=0.05, width=(8, 4))
    positions = around(SkyCoord(0, 0, unit="deg", frame="galactic"))
    inside = Exclusion(mask).contains(xyz_of(positions))
    assert_some(inside)
    assert_array_equal(inside, by_mask(mask, positions))


def test_mask_in_icrs():
    geom = WcsGeom.create(skydir=CENTERS["icrs"], binsz=0.02, width=5, proj="TAN")
    mask = ~geom.region_mask([make_region("ellipse", CENTERS["icrs"])])
    positions = around(CENTERS["icrs"])
    inside = Exclusion(mask).contains(xyz_of(positions))
    assert_array_equal(inside, by_mask(mask, positions))
    assert (inside != by_region(make_region("ellipse", CENTERS["icrs"]), CENTERS["icrs"], positions)).mean() < 0.01


@pytest.mark.parametrize("frame", ["icrs", "galactic"])
@pytest.mark.parametrize("region", [None, "DISK(10,5,3)"])
@pytest.mark.parametrize("margin", [0, 0.5])
def test_healpix_mask(frame, region, margin):
    pytest.importorskip("healpy")
    geom = HpxGeom.create(nside=256, frame=frame, region=region)
    mask = Map.from_geom(geom, dtype=bool)
    center = SkyCoord(10, 5, unit="deg", frame=frame)
    mask.data[...] = geom.get_coord().skycoord.separation(center).deg > 1
    positions = around(center, 4)
    inside = Exclusion(mask, margin=margin * u.deg).contains(xyz_of(positions))
    assert_some(inside)
    if margin == 0:
        assert_array_equal(inside, by_mask(mask, positions))
    clear = np.abs(positions.separation(center).deg - 1 - margin) > 0.25  # of a pixel of 0.23 deg
    assert_array_equal(inside[clear], (positions.separation(center).deg < 1 + margin)[clear])


def test_mask_with_an_energy_axis_excludes_what_any_energy_excludes():
    axis = MapAxis.from_energy_bounds("1 TeV", "10 TeV", nbin=3)
    geom = WcsGeom.create(skydir=CENTERS["icrs"], binsz=0.05, width=5, proj="TAN", axes=[axis])
    mask = Map.from_geom(geom, data=np.ones(geom.data_shape, dtype=bool))
    images = []
    for i, kind in enumerate(["circle", "ellipse"]):
        images.append(~geom.to_image().region_mask([make_region(kind, CENTERS["icrs"])]))
        mask.data[i] = images[-1].data
    positions = around(CENTERS["icrs"])
    expected = by_mask(images[0], positions) | by_mask(images[1], positions)
    assert_array_equal(Exclusion(mask).contains(xyz_of(positions)), expected)


def test_outside_of_the_mask_nothing_is_excluded_but_by_the_margin():
    # the excluded square touches the border of the map
    geom = WcsGeom.create(skydir=(83, 0), binsz=0.02, width=(2, 2), proj="CAR", frame="icrs")
    lon, lat = (geom.get_coord()[name].to_value("deg") for name in ("lon", "lat"))
    mask = Map.from_geom(geom, data=~((lon > 83.5) & (np.abs(lat) < 0.3)))
    positions = around(SkyCoord(83, 0, unit="deg"), 2)
    lon, lat = positions.ra.deg, positions.dec.deg
    inside = Exclusion(mask).contains(xyz_of(positions))
    assert not inside[(np.abs(lon - 83) > 1.0) | (np.abs(lat) > 1.0)].any()
    inside = Exclusion(mask, margin=0.2 * u.deg).contains(xyz_of(positions))
    x, y = np.maximum(0, np.abs(lon - 83.75) - 0.25), np.maximum(0, np.abs(lat) - 0.3)
    clear = np.abs(np.hypot(x, y) - 0.2) > 0.02
    assert_some(inside)
    assert_array_equal(inside[clear], (np.hypot(x, y) < 0.2)[clear])


def test_mask_margin_starts_at_the_border_of_a_pixel():
    geom = WcsGeom.create(skydir=(83, 0), binsz=0.2, width=(4, 4), proj="CAR", frame="icrs")
    lon, lat = (geom.get_coord()[name].to_value("deg") for name in ("lon", "lat"))
    mask = Map.from_geom(geom, data=~((np.abs(lon - 83) < 0.6) & (np.abs(lat) < 0.4)))
    positions = around(SkyCoord(83, 0, unit="deg"), 2)
    x = np.maximum(0, np.abs(positions.ra.deg - 83) - 0.6)
    y = np.maximum(0, np.abs(positions.dec.deg) - 0.4)
    inside = Exclusion(mask, margin=0.3 * u.deg).contains(xyz_of(positions))
    clear = np.abs(np.hypot(x, y) - 0.3) > 0.05  # a quarter of a pixel
    assert_array_equal(inside[clear], (np.hypot(x, y) < 0.3)[clear])


def test_mask_margin_is_an_angle_on_the_sky_far_from_the_equator():
    geom = WcsGeom.create(skydir=(83, 60), binsz=0.05, width=(20, 10), proj="CAR", frame="icrs")
    center = SkyCoord(83, 62, unit="deg")
    mask = Map.from_geom(geom, data=geom.separation(center).deg > 0.5)
    positions = around(center)
    separation = positions.separation(center).deg
    inside = Exclusion(mask, margin=1 * u.deg).contains(xyz_of(positions))
    clear = np.abs(separation - 1.5) > 0.06
    assert_array_equal(inside[clear], (separation < 1.5)[clear])


def test_margin_of_large_regions_is_an_angle_on_the_sky():
    """A margin around what two circles have in common, the smaller one."""
    center = CENTERS["icrs"]
    small, large = (CircleSkyRegion(center, radius * u.deg) for radius in (40, 45))
    positions = around(center, 60, 5000)
    inside = Exclusion(CompoundSkyRegion(small, large, operator.and_), margin=2 * u.deg).contains(xyz_of(positions))
    separation = positions.separation(center).deg
    clear = np.abs(separation - 42) > 0.15
    assert_some(inside)
    assert_array_equal(inside[clear], separation[clear] < 42)


def test_mask_that_excludes_nothing():
    mask = galactic_band(skydir=(0, 0), binsz=0.1, width=2)
    mask.data[...] = True
    exclusion = Exclusion(mask, margin=1 * u.deg)
    positions = around(SkyCoord(0, 0, unit="deg", frame="galactic"))
    assert not exclusion.contains(xyz_of(positions)).any()
    assert len(exclusion.near(xyz_of(positions)[0], 3.0)) == 0


def test_list_that_mixes(tmp_path):
    path = tmp_path / "a.reg"
    Regions([make_region("circle", CENTERS["icrs"])]).write(str(path))
    mask = galactic_band(skydir=(0, 0), binsz=0.05, width=(8, 4))
    region = make_region("polygon", CENTERS["pole"])
    exclusion = Exclusion([str(path), [mask, (region, None)], Regions([make_region("ellipse", CENTERS["date line"])])])
    assert len(exclusion) == 4
    for center, part in (
        (CENTERS["icrs"], path),
        (CENTERS["galactic"], mask),
        (CENTERS["pole"], region),
        (CENTERS["date line"], make_region("ellipse", CENTERS["date line"])),
    ):
        positions = xyz_of(around(center))
        inside = exclusion.contains(positions)
        assert inside.any()
        assert_array_equal(inside, Exclusion(part).contains(positions))


def test_nothing_is_excluded_without_an_exclusion():
    positions = xyz_of(around(CENTERS["icrs"], 180, 100))
    for empty in (None, [], Exclusion()):
        assert len(Exclusion(empty)) == 0
        assert not Exclusion(empty).contains(positions).any()


@pytest.mark.parametrize("margin", [0, 0.4])
def test_near_keeps_all_that_touches_the_circle(margin):
    regions = [make_region(kind, center) for kind in KINDS for center in CENTERS.values()]
    exclusion = Exclusion([*regions, galactic_band(skydir=(0, 0), binsz=0.05, width=(8, 4))], margin=margin * u.deg)
    rng = np.random.default_rng(5)
    dropped = 0
    for center in CENTERS.values():
        for pointing in random_in_cap(center.icrs, 6, 5, rng):
            positions = xyz_of(around(pointing, 3, 500))
            near = exclusion.near(xyz_of(pointing), 3.0)
            assert_array_equal(near.contains(positions), exclusion.contains(positions))
            dropped += len(exclusion) - len(near)
    assert dropped > 0.5 * 20 * len(exclusion)


def test_exclusion_pickles():
    mask = galactic_band(skydir=(0, 0), binsz=0.05, width=(8, 4))
    exclusion = Exclusion([make_region(kind, CENTERS["galactic"]) for kind in KINDS] + [mask], margin=0.1 * u.deg)
    text = pickle.dumps(exclusion)
    positions = xyz_of(around(CENTERS["galactic"]))
    assert_array_equal(pickle.loads(text).contains(positions), exclusion.contains(positions))
    assert len(text) < 3e6


def test_inputs_are_not_changed():
    axis = MapAxis.from_energy_bounds("1 TeV", "10 TeV", nbin=2)
    mask = Map.from_geom(WcsGeom.create(skydir=(0, 0), binsz=0.1, width=3, frame="galactic", axes=[axis]), dtype=int)
    mask.data[0] = 1
    before = mask.copy()
    region = make_region("polygon", CENTERS["icrs"])
    text = Regions([region]).serialize(format="ds9")
    Exclusion([mask, region], margin=0.2 * u.deg).contains(xyz_of(around(CENTERS["icrs"])))
    assert mask.data.dtype == before.data.dtype
    assert_array_equal(mask.data, before.data)
    assert Regions([region]).serialize(format="ds9") == text


@pytest.mark.parametrize(
    "wrong", [3, object(), CirclePixelRegion(PixCoord(1, 2), 3), np.ones(3), CENTERS["icrs"], [[1]], {"a": 1}.values()]
)
def test_wrong_type_says_what_is_needed(wrong):
    with pytest.raises(InputError, match=r"sky regions.*mask map"):
        Exclusion(wrong)


# what writes it, and what is told beside its name
BAD_FILES = {
    "nowhere.reg": (lambda path: None, "no region file"),
    "pixels.fits": (
        lambda path: Regions([CirclePixelRegion(PixCoord(10, 10), 3)]).write(str(path)),
        r"pixels.fits.*CirclePixelRegion.*WCS",
    ),
    "image.reg": (
        lambda path: path.write_text("# Region file format: DS9\nimage\ncircle(100, 100, 20)\n"),
        r"image.reg.*CirclePixelRegion.*sky",
    ),
    "image.fits": (lambda path: fits.PrimaryHDU(np.ones((2, 2))).writeto(path), ""),
} | dict.fromkeys(
    ("bad.reg", "bad.crtf", "bad.fits", "bad.txt"), (lambda path: path.write_text("this is no region file\n"), "")
)


@pytest.mark.parametrize("name", BAD_FILES)
def test_unusable_file_is_named(tmp_path, name):
    make, told = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=told) as caught:
        Exclusion(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize("shape", ["circle(83, 22, 1)", "ellipse(83, 22, 1, 2, 0)"])
def test_minus_sign_is_refused(tmp_path, shape):
    path = tmp_path / "minus.reg"
    path.write_text(f"# Region file format: DS9\nicrs\n-{shape}\n")
    with pytest.raises(InputError, match="minus sign"):
        Exclusion(path)


def test_minus_sign_inside_a_compound_is_refused():
    inner = CircleSkyRegion(CENTERS["icrs"], 0.3 * u.deg, meta=RegionMeta({"include": False}))
    with pytest.raises(InputError, match="minus sign"):
        Exclusion(make_region("circle", CENTERS["icrs"]) & inner)


def test_region_wider_than_its_plane_is_refused():
    vertices = SkyCoord([0, 1, 150], [0, 1, 10], unit="deg")
    with pytest.raises(InputError, match="half of the sky"):
        Exclusion(PolygonSkyRegion(vertices))


@pytest.mark.parametrize("values", [2, 0.5, np.nan])
def test_mask_of_other_values_is_refused(values):
    mask = Map.create(skydir=(0, 0), binsz=0.5, width=2)
    mask.data[1, 1] = values
    with pytest.raises(InputError, match="mask > 0"):
        Exclusion(mask)


def test_region_map_is_refused():
    mask = RegionNDMap.create(region="icrs;circle(83, 22, 1)")
    with pytest.raises(InputError, match=r"RegionGeom.*WCS"):
        Exclusion(mask)


@pytest.mark.parametrize("margin", [-0.1 * u.deg, np.nan * u.deg])
def test_negative_margin_is_refused(margin):
    with pytest.raises(InputError, match="margin"):
        Exclusion(None, margin=margin)
