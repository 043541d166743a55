"""Configuration: what is written is read back, and what is wrong is named."""

import json

import astropy.units as u
import numpy as np
import pytest
import yaml
from astropy.coordinates import EarthLocation
from gammapy.modeling.models import PiecewiseNormSpectralModel, PowerLawNormSpectralModel
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gammapy_accmaker import AcceptanceConfig
from gammapy_accmaker.errors import InputError

BINNED = {"model": {"type": "radial"}, "run_effects": {"type": "norm"}, "zenith": {"type": "none"}}
KEYS = [
    "model", "energy", "offset_max", "fit_energy", "fov_alignment", "zenith", "azimuth", "time_step", "run_effects",
    "renormalization", "exclusion", "sources", "matching", "observatory_location",
]  # fmt: skip

EXAMPLES = {
    "radial": {"model": {"type": "radial", "offset_bins": 7}},
    "grid": {"model": {"type": "grid", "offset_bins": 5}, "run_effects": {"type": "none"}},
    "edges": {
        "model": {"type": "grid", "offset_bins": ["-2 deg", "-30 arcmin", "1 deg", "2 deg"]},
        "fit_energy": ["100 GeV", "1 TeV", "30 TeV"],
    },
    "radec": {"fov_alignment": "radec", "time_step": None, "offset_max": "1.7 deg"},
    "fov scale": {"renormalization": {"type": "fov", "min_counts": 10}},
    "fov fit": {"renormalization": {"type": "fov", "method": "fit", "fit_options": {"backend": "scipy"}}},
    "ring": {"renormalization": {"type": "ring", "r_in": "0.6 deg", "width": "18 arcmin"}},
    "adaptive ring": {"renormalization": {"type": "adaptive_ring", "r_out_max": "2 deg", "method": "fixed_r_in"}},
    "site": {"observatory_location": "hess"},
    "another site": {"observatory_location": {"lon": "16.5 deg", "lat": "-23.25 deg", "height": "1.8 km"}},
    "margin": {"exclusion": {"margin": "6 arcmin"}, "energy": {"min": "50 GeV", "max": "20 TeV"}},
}


def config(**more):
    return AcceptanceConfig.coerce({**BINNED, **more})


@pytest.mark.parametrize("given_options", EXAMPLES.values(), ids=EXAMPLES)
def test_round_trips(given_options, tmp_path):
    before = config(**given_options)
    text = before.to_yaml()
    assert list(yaml.safe_load(text)) == KEYS
    assert AcceptanceConfig.from_yaml(text).to_yaml() == text
    assert AcceptanceConfig.from_yaml(json.dumps(before.model_dump(mode="json"))).to_yaml() == text
    assert AcceptanceConfig.from_yaml(before.model_dump_json()).to_yaml() == text
    before.write(tmp_path / "config.yaml")
    assert AcceptanceConfig.read(tmp_path / "config.yaml").to_yaml() == text
    assert AcceptanceConfig.read(str(tmp_path / "config.yaml")).to_yaml() == text
    assert before.to_yaml() == text == str(before)


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(1e-3, 1), ratio=st.floats(1.01, 1e3), offset=st.floats(0.1, 80), step=st.floats(1, 1e5),
    lon=st.floats(-179, 179), lat=st.floats(-89, 89),
)  # fmt: skip
def test_quantities_survive_a_round_trip_exactly(low, ratio, offset, step, lon, lat):
    before = config(
        energy={"min": low * u.TeV, "max": low * ratio * u.TeV},
        offset_max=offset * u.deg,
        time_step=step * u.s,
        observatory_location={"lon": lon * u.deg, "lat": lat * u.deg, "height": 2 * u.km},
    )
    after = AcceptanceConfig.from_yaml(before.to_yaml())
    assert (after.energy.min, after.energy.max) == (before.energy.min, before.energy.max)
    assert (after.offset_max, after.time_step) == (before.offset_max, before.time_step)
    assert AcceptanceConfig.from_yaml(after.to_yaml()).to_yaml() == after.to_yaml()
    here, there = (np.array([q.to_value("m") for q in c.observatory_location.geocentric]) for c in (before, after))
    assert np.allclose(here, there, atol=0.01, rtol=0)


def test_the_example_of_the_design_is_understood():
    text = """
    model: {type: radial, offset_bins: 12}
    energy: {min: 0.1 TeV, max: 100 TeV, nbins_per_decade: 10}
    offset_max: 2.5 deg
    fit_energy: null
    fov_alignment: altaz
    zenith: {type: none}
    azimuth: {type: none}
    time_step: 1 min
    run_effects: {type: norm}
    renormalization: {type: none}
    exclusion: {regions: null, mask: null, margin: 0 deg, iterative: null}
    observatory_location: null
    """
    got = AcceptanceConfig.from_yaml(text)
    assert (got.energy.min, got.energy.max, got.energy.nbins_per_decade) == (0.1 * u.TeV, 100 * u.TeV, 10)
    assert got.offset_max == 2.5 * u.deg and got.time_step == 1 * u.min
    assert got.model.offset_bins == 12 and got.fov_alignment == "altaz"
    assert got.exclusion.files() == [] and got.observatory_location is None


def test_an_empty_text_gives_the_defaults():
    assert AcceptanceConfig.from_yaml("").to_yaml() == AcceptanceConfig().to_yaml()
    assert AcceptanceConfig.coerce(None).to_yaml() == AcceptanceConfig().to_yaml()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"modle": 1}, "modle"),
        ({"energy": {"minimum": "1 TeV"}}, "energy.minimum"),
        ({"model": {"type": "radial", "bins": 3}}, "bins"),
        ({"renormalization": {"type": "ring", "r_inn": "1 deg"}}, "r_inn"),
        ({"renormalization": {"type": "ring", "threshold_alpha": 0.1}}, "threshold_alpha"),
        ({"renormalization": {"type": "none", "r_in": "1 deg"}}, "r_in"),
        ({"exclusion": {"region": "x.reg"}}, "region"),
    ],
)
def test_unknown_keys_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        config(**wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"offset_max": "2 TeV"}, "offset_max"),
        ({"offset_max": "0 deg"}, "offset_max"),
        ({"offset_max": "120 deg"}, "offset_max"),
        ({"offset_max": "-1 deg"}, "offset_max"),
        ({"offset_max": "nan deg"}, "offset_max"),
        ({"energy": {"min": "1 m"}}, "energy.min"),
        ({"energy": {"min": "3 TeV", "max": "1 TeV"}}, "energy"),
        ({"energy": {"min": "0 TeV"}}, "energy"),
        ({"energy": {"min": "nan TeV"}}, "energy"),
        ({"energy": {"max": "inf TeV"}}, "energy"),
        ({"energy": {"nbins_per_decade": 0}}, "nbins_per_decade"),
        ({"fit_energy": ["1 TeV", "0.1 TeV"]}, "fit_energy"),
        ({"fit_energy": ["1 TeV"]}, "fit_energy"),
        ({"fit_energy": ["0 TeV", "1 TeV"]}, "fit_energy"),
        ({"fit_energy": ["-1 TeV", "1 TeV"]}, "fit_energy"),
        ({"fit_energy": ["1 TeV", "inf TeV"]}, "fit_energy"),
        ({"fit_energy": ["1 m", "2 m"]}, "fit_energy"),
        ({"time_step": "1 deg"}, "time_step"),
        ({"time_step": "0 s"}, "time_step"),
        ({"time_step": ["1 min", "2 min"]}, "time_step"),
        ({"model": {"type": "radial", "offset_bins": 0}}, "offset_bins"),
        ({"model": {"type": "radial", "offset_bins": ["1 deg", "0 deg"]}}, "offset_bins"),
        ({"model": {"type": "radial", "offset_bins": ["-1 deg", "1 deg"]}}, "offset"),
        ({"model": {"type": "foo"}}, "model"),
        ({"run_effects": {"type": "foo"}}, "run_effects"),
        ({"renormalization": {"type": "foo"}}, "renormalization"),
        ({"renormalization": {"type": "fov", "method": "guess"}}, "method"),
        ({"renormalization": {"type": "fov", "spectral_model": "pl"}}, "spectral_model"),
        ({"renormalization": {"type": "fov", "spectral_model": "no-such-model"}}, "spectral_model"),
        ({"renormalization": {"type": "fov", "spatial_model": "no-such-model"}}, "spatial_model"),
        ({"renormalization": {"type": "fov", "spatial_model": 3}}, "spatial_model"),
        ({"renormalization": {"type": "ring", "r_in": "1 TeV"}}, "r_in"),
        ({"fov_alignment": "galactic"}, "fov_alignment"),
        ({"exclusion": {"regions": "no-such-file.reg"}}, "no-such-file.reg"),
        ({"exclusion": {"mask": "no-such-file.fits"}}, "no-such-file.fits"),
        ({"observatory_location": "mars"}, "observatory_location"),
        ({"observatory_location": {"lon": "1 deg", "lat": "2 deg"}}, "observatory_location"),
        ({"observatory_location": {"lon": 16.5, "lat": -23.3, "height": 1835}}, "16.5 for lon.*such as 'deg'"),
        ({"observatory_location": {"lon": "1 deg", "lat": "2 deg", "height": "3 s"}}, "observatory_location"),
        ({"zenith": {"type": "continuous"}}, "zenith"),
    ],
)
def test_wrong_values_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        config(**wrong)


def test_the_error_says_what_came_and_is_a_value_error():
    with pytest.raises(ValueError, match="3.0 TeV.*1.0 TeV.*min < max"):
        config(energy={"min": "3 TeV", "max": "1 TeV"})


@pytest.mark.parametrize("text", ["[1, 2]", "radial", "3", "model: {type: radial", "a: b: c"])
def test_text_that_is_no_mapping(text):
    with pytest.raises(InputError, match="config"):
        AcceptanceConfig.from_yaml(text)


@pytest.mark.parametrize("thing", [3, "radial", [("offset_max", "1 deg")]])
def test_things_that_are_no_configuration(thing):
    with pytest.raises(InputError, match="config: got"):
        AcceptanceConfig.coerce(thing)


def test_files(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(InputError, match="no file"):
        AcceptanceConfig.read(path)
    config().write(path)
    with pytest.raises(InputError, match="overwrite=True"):
        config(offset_max="1 deg").write(path)
    assert AcceptanceConfig.read(path).offset_max == 2.5 * u.deg
    config(offset_max="1 deg").write(path, overwrite=True)
    assert AcceptanceConfig.read(path).offset_max == 1 * u.deg
    path.write_text("model: {type: radial")
    with pytest.raises(InputError, match="YAML"):
        AcceptanceConfig.read(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="config"):
        AcceptanceConfig.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_exclusion_files_are_kept(tmp_path):
    files = [tmp_path / "a.reg", tmp_path / "b.reg"]
    for file in files:
        file.write_text("icrs\ncircle(10, 20, 0.3)\n")
    one = config(exclusion={"regions": files[0]})
    two = config(exclusion={"regions": [str(f) for f in files], "mask": files[1]})
    assert one.exclusion.files() == files[:1]
    assert two.exclusion.files() == [*files, files[1]]
    assert AcceptanceConfig.from_yaml(two.to_yaml()).exclusion.files() == two.exclusion.files()


def test_it_is_frozen_and_update_makes_another():
    before = config()
    with pytest.raises(ValidationError, match="frozen"):
        before.offset_max = 1 * u.deg
    with pytest.raises(ValidationError, match="frozen"):
        before.energy.min = 1 * u.TeV
    after = before.update({"offset_max": "1 deg"})
    assert (before.offset_max, after.offset_max) == (2.5 * u.deg, 1 * u.deg)
    assert after.update({"offset_max": "2.5 deg"}).to_yaml() == before.to_yaml()
    with pytest.raises(InputError, match="nothing"):
        before.update({"nothing": 1})
    with pytest.raises(InputError, match="offset_max"):
        before.update({"offset_max": "1 TeV"})


def test_a_mapping_given_is_not_changed():
    given_options = {
        "model": {"type": "radial"},
        "renormalization": {"type": "fov", "fit_options": {"backend": "scipy"}},
    }
    given_options |= {"zenith": {"type": "none"}}
    before = json.dumps(given_options)
    AcceptanceConfig.coerce(given_options).to_yaml()
    assert json.dumps(given_options) == before


@pytest.mark.parametrize(
    "given_model",
    [
        "pl-norm",
        {"type": "pl-norm", "parameters": [{"name": "tilt", "frozen": False, "value": 0.1}]},
        PowerLawNormSpectralModel(tilt=0.1),
        PiecewiseNormSpectralModel(energy=[0.5, 1, 10] * u.TeV, norms=[1, 2, 0.5]),
    ],
    ids=["name", "mapping", "model", "piecewise"],
)
def test_norm_spectral_models_survive_a_round_trip(given_model):
    before = config(renormalization={"type": "fov", "spectral_model": given_model})
    after = AcceptanceConfig.from_yaml(before.to_yaml())
    assert after.to_yaml() == before.to_yaml()
    here, there = before.renormalization.spectral_model, after.renormalization.spectral_model
    assert type(here) is type(there)
    assert here.parameters.names == there.parameters.names
    assert np.array_equal(here.parameters.value, there.parameters.value)
    assert [p.frozen for p in here.parameters] == [p.frozen for p in there.parameters]
    energy = [0.6, 3] * u.TeV
    assert np.allclose(here(energy), there(energy), rtol=1e-14)


def test_a_spatial_norm_survives_a_round_trip():
    before = config(renormalization={"type": "fov", "spatial_model": "const"})
    after = AcceptanceConfig.from_yaml(before.to_yaml())
    assert after.to_yaml() == before.to_yaml()
    assert after.renormalization.spatial_model.tag[0] == "ConstantSpatialModel"


def test_sites():
    here = EarthLocation.from_geodetic(lon=10 * u.deg, lat=20 * u.deg, height=1 * u.km)
    assert config(observatory_location=here).observatory_location == here
    for name in ("hess", "magic", "veritas", "cta_south"):
        assert isinstance(config(observatory_location=name).observatory_location, EarthLocation)


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"renormalization": "fov"}, "got 'fov', but `renormalization: {type: fov}` is needed"),
        ({"renormalization": {"typ": "fov"}}, "one of the types none, fov, ring, adaptive_ring"),
        ({"model": {"type": "radil"}}, "`model: {type: radial}` is needed"),
        ({"zenith": "binned"}, "`zenith: {type: binned}` is needed"),
        ({"run_effects": "norm"}, "`run_effects: {type: norm}` is needed"),
        ({"exclusion": "a.reg"}, "options by their names are needed: regions, mask, margin"),
        ({"energy": "1 TeV"}, "options by their names are needed: min, max, nbins_per_decade"),
    ],
)
def test_options_given_as_a_word_are_told_the_form_that_is_needed(given, form):
    with pytest.raises(InputError) as error:
        AcceptanceConfig.coerce(given)
    assert form in str(error.value)


def test_energies_of_a_norm_ask_for_a_norm():
    """What a binned model adapts to a run by default is a shift; energies of the norm are for a norm alone."""
    for kind in ("radial", "grid"):
        effects = AcceptanceConfig.coerce({"model": {"type": kind}}).run_effects
        assert effects.type == "shift"
        given = {"model": {"type": kind}, "run_effects": {"norm_energy": ["0.5 TeV", "20 TeV"]}}
        assert AcceptanceConfig.coerce(given).run_effects.type == "norm"
