"""The maker in gammapy's chain, alone, and what bad input gets."""

import logging
import pickle
from functools import cache

import astropy.units as u
import numpy as np
import pytest
from gammapy.data import GTI
from gammapy.datasets import Datasets, MapDataset, MapDatasetOnOff, SpectrumDataset, SpectrumDatasetOnOff
from gammapy.irf import Background2D, Background3D
from gammapy.makers import (
    AdaptiveRingBackgroundMaker,
    DatasetsMaker,
    FoVBackgroundMaker,
    MapDatasetMaker,
    RingBackgroundMaker,
    SafeMaskMaker,
    SpectrumDatasetMaker,
)
from gammapy.makers.utils import make_map_background_irf
from gammapy.maps import Map, MapAxis, RegionGeom
from gammapy.modeling.models import ConstantSpectralModel, FoVBackgroundModel, PointSpatialModel, SkyModel
from helpers import opened_files
from regions import CircleSkyRegion
from stores import altered, energy_axis, full_store, observations, options, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.data import counts
from gammapy_accmaker.errors import InputError, NotFittedError, ObservationError

KINDS = ["radial", "grid"]
TRUE_AXIS = MapAxis.from_energy_bounds(0.2, 20, 6, unit="TeV", name="energy_true")
EDGES = (0.5, 1, 3, 10)


@pytest.fixture(scope="module")
def on_runs(store):
    return observations(store, store.on_obs_ids[:3])


def config(kind="grid", effects="norm", **more):
    return options(kind, effects, **more)


@cache
def _fitted(kind):
    store = full_store()
    return fit_acceptance(observations(store), config(kind), exclusion=source_region(store))


def fitted_maker(kind="grid", **more):
    return AcceptanceBackgroundMaker(config(kind, **more), model=_fitted(kind), exclusion=source_region(full_store()))


def reference(edges=EDGES, binsz=0.1, name="stacked"):
    geom = sky_geom(source_region(full_store()).center, edges=edges, width=5, binsz=binsz)
    return MapDataset.create(geom, energy_axis_true=TRUE_AXIS, name=name)


def first_steps():
    return [
        MapDatasetMaker(selection=["counts", "exposure"]),
        SafeMaskMaker(methods=["offset-max"], offset_max="2.3 deg"),
    ]


def empty(observation, edges=EDGES, binsz=0.1):
    dataset = reference(edges, binsz, name=f"run-{observation.obs_id}")
    for maker in first_steps():
        dataset = maker.run(dataset, observation)
    return dataset


def content(dataset):
    """All numbers of a dataset."""
    maps = ("counts", "background", "exposure", "mask_safe", "mask_fit", "counts_off", "acceptance", "acceptance_off")
    found = {name: getattr(dataset, name, None) for name in maps}
    return {name: m.data.copy() for name, m in found.items() if m is not None}


def same(a, b, rtol=0.0):
    a, b = content(a), content(b)
    return a.keys() == b.keys() and all(np.allclose(a[k], b[k], rtol=rtol, atol=0, equal_nan=True) for k in a)


# --- fit and what it leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["run", "make_background", "make_irf", "run_table"])
def test_before_fit(call, on_runs):
    maker = AcceptanceBackgroundMaker(config())
    with pytest.raises(NotFittedError, match="call `maker.fit"):
        if call == "run":
            maker.run(empty(on_runs[0]), on_runs[0])
        elif call == "make_background":
            maker.make_background(reference().counts.geom, on_runs[0])
        elif call == "make_irf":
            maker.make_irf(on_runs[0])
        else:
            _ = maker.run_table
    assert issubclass(NotFittedError, RuntimeError)


def test_fit_returns_the_maker_and_sets_its_model(on_runs):
    maker = AcceptanceBackgroundMaker(config("radial"))
    assert maker.fit(on_runs) is maker
    assert isinstance(maker.model, AcceptanceModel)
    assert list(maker.run_table["OBS_ID"]) == [o.obs_id for o in on_runs] and maker.run_table["USED"].all()
    here, there = maker.model, fit_acceptance(on_runs, config("radial"))
    assert np.array_equal(here.rate_model.profile, there.rate_model.profile)


def test_off_observations(store, on_runs, caplog):
    """The model is that of the OFF runs; the table has both, and the norms of the ON runs from their own events."""
    off_runs = observations(store, store.off_obs_ids[:3])
    maker = AcceptanceBackgroundMaker(config("radial"), exclusion=source_region(store)).fit(on_runs, off_runs)
    alone = fit_acceptance(off_runs, config("radial"), exclusion=source_region(store))
    assert np.array_equal(maker.model.rate_model.profile, alone.rate_model.profile)
    table = maker.run_table
    assert {str(role) for role in table["ROLE"]} == {"fit", "apply"}
    assert set(table["OBS_ID"][table["ROLE"] == "apply"]) == {o.obs_id for o in on_runs}
    assert np.all(table["NORM"] > 0)
    dataset = maker.run(empty(on_runs[0]), on_runs[0])
    outside = ~dataset.counts.geom.region_mask([source_region(store)]).data & dataset.mask_safe.data
    assert dataset.background.data[outside].sum() == pytest.approx(dataset.counts.data[outside].sum(), rel=0.15)


def test_a_model_that_is_given(store, on_runs, tmp_path):
    model = _fitted("grid")
    model.write(tmp_path / "model.fits")
    read = AcceptanceModel.read(tmp_path / "model.fits")
    here = AcceptanceBackgroundMaker(model=read, exclusion=source_region(store)).run(empty(on_runs[1]), on_runs[1])
    assert same(here, fitted_maker().run(empty(on_runs[1]), on_runs[1]))
    with pytest.raises(InputError, match="model: got str"):
        AcceptanceBackgroundMaker(model="model.fits")


@pytest.mark.parametrize(
    "given", [AcceptanceConfig.coerce(options("radial")), options("radial")], ids=["config", "dict"]
)
def test_forms_of_a_configuration(given):
    assert AcceptanceBackgroundMaker(given).config.model.type == "radial"


def test_a_wrong_configuration_is_refused_at_once():
    with pytest.raises(InputError, match="modle"):
        AcceptanceBackgroundMaker({"modle": 1})
    with pytest.raises(InputError, match="config: got int"):
        AcceptanceBackgroundMaker(3)
    with pytest.raises(InputError, match="no region file"):
        AcceptanceBackgroundMaker(config(), exclusion="no-such-file.reg")


def test_str_prints_the_settings():
    maker = AcceptanceBackgroundMaker(config("radial", offset_max="1.7 deg"))
    text = str(maker)
    assert (
        text.startswith("AcceptanceBackgroundMaker\n---")
        and "1.7 deg" in text
        and "radial" in text
        and "call fit" in text
    )
    fitted_text = str(fitted_maker())
    assert "8 used" in fitted_text and "model       : grid" in fitted_text
    assert maker.tag == "AcceptanceBackgroundMaker"


@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_maker_is_small_and_pickles(kind, on_runs):
    maker = fitted_maker(kind)
    stored = pickle.dumps(maker)
    assert len(stored) < 20e6
    again = pickle.loads(stored)
    assert same(again.run(empty(on_runs[0]), on_runs[0]), maker.run(empty(on_runs[0]), on_runs[0]))


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_run_fills_the_background(kind, store, on_runs):
    dataset = empty(on_runs[0])
    filled = fitted_maker(kind).run(dataset, on_runs[0])
    assert type(filled) is MapDataset and filled.name == dataset.name
    assert filled.background.unit == "" and np.all(filled.background.data[filled.mask_safe.data] > 0)
    assert np.array_equal(filled.counts.data, dataset.counts.data)
    assert np.array_equal(filled.mask_safe.data, dataset.mask_safe.data)
    region = source_region(store)
    outside = ~filled.counts.geom.region_mask([region]).data & filled.mask_safe.data
    counts, background = filled.counts.data[outside].sum(), filled.background.data[outside].sum()
    # a norm cannot follow the zenith angle: the spectrum of one run differs
    assert abs(counts - background) < 4 * np.sqrt(counts) + 0.1 * counts
    inside = filled.counts.geom.region_mask([source_region(store, 0.15)]).data & filled.mask_safe.data
    assert filled.counts.data[inside].sum() > filled.background.data[inside].sum() + 3 * np.sqrt(
        filled.background.data[inside].sum()
    )


@pytest.mark.parametrize(
    "renormalization", [{"type": "none"}, {"type": "fov", "method": "fit"}, {"type": "fov"}, {"type": "ring"}]
)
def test_inputs_are_not_changed(renormalization, on_runs):
    edges = (0.5, 10) if renormalization["type"] == "ring" else EDGES
    maker, observation = fitted_maker(renormalization=renormalization), on_runs[0]
    dataset = empty(observation, edges)
    sky = SkyModel(ConstantSpectralModel(const="1e-14 cm-2 s-1 TeV-1"), PointSpatialModel(), name="sky")
    dataset.models = [sky, FoVBackgroundModel(dataset_name=dataset.name)] if edges == EDGES else [sky]
    events, intervals = (
        observation.events.table["RA", "DEC", "ENERGY"].as_array().tobytes(),
        observation.gti.time_start.mjd.tobytes(),
    )
    before, models, stored = content(dataset), dataset.models.to_dict(), pickle.dumps(maker)
    mask = dataset.mask_safe
    filled = maker.run(dataset, observation)
    after = content(dataset)
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
    assert dataset.models.to_dict() == models and dataset.mask_safe is mask
    assert pickle.dumps(maker) == stored
    assert observation.events.table["RA", "DEC", "ENERGY"].as_array().tobytes() == events
    assert observation.gti.time_start.mjd.tobytes() == intervals
    assert observation.bkg is None
    assert "sky" in filled.models.names
    assert same(maker.run(dataset, observation), filled)


def test_a_plain_loop_is_the_chain(on_runs):
    maker = fitted_maker()
    loop = Datasets([maker.run(dataset=empty(o), observation=o) for o in on_runs])
    chain = DatasetsMaker([*first_steps(), maker], stack_datasets=False, cutout_width="20 deg").run(
        reference(), on_runs
    )
    assert [d.name for d in loop] != [d.name for d in chain]
    assert all(same(a, b) for a, b in zip(loop, chain, strict=True))


@pytest.mark.parametrize("stack", [True, False])
def test_jobs_do_not_matter(stack, on_runs):
    one, two = (
        DatasetsMaker([*first_steps(), fitted_maker()], stack_datasets=stack, n_jobs=n).run(reference(), on_runs)
        for n in (1, 2)
    )
    assert len(one) == len(two) == (1 if stack else 3)
    # two workers may finish in any order, and gammapy stacks in single precision
    tolerance = 1e-5 if stack else 1e-12
    assert all(same(a, b, rtol=tolerance) for a, b in zip(one, two, strict=True))
    assert one[0].background.data.sum() > 100


def test_stacked_is_the_sum(on_runs):
    stacked = DatasetsMaker([*first_steps(), fitted_maker()]).run(reference(), on_runs)[0]
    single = DatasetsMaker([*first_steps(), fitted_maker()], stack_datasets=False).run(reference(), on_runs)
    assert stacked.background.data.sum() == pytest.approx(
        sum((d.background.data * d.mask_safe.data).sum() for d in single), rel=1e-6
    )


def test_a_spectrum_dataset_on_a_region(store, on_runs):
    region = CircleSkyRegion(source_region(store).center, 0.3 * u.deg)
    geom = RegionGeom.create(region, axes=[energy_axis(EDGES)])
    dataset = SpectrumDatasetMaker(selection=["counts", "exposure"]).run(
        SpectrumDataset.create(geom, energy_axis_true=TRUE_AXIS, name="spectrum"), on_runs[0]
    )
    filled = fitted_maker().run(dataset, on_runs[0])
    assert type(filled) is SpectrumDataset and dataset.background is None or dataset.background.data.sum() == 0
    cube = fitted_maker().make_background(sky_geom(region.center, edges=EDGES, width=1, binsz=0.01), on_runs[0])
    inside = cube.geom.to_image().region_mask([region]).data
    assert np.allclose(filled.background.data.ravel(), (cube.data * inside).sum((1, 2)), rtol=5e-3)
    with pytest.raises(InputError, match="region"):
        fitted_maker(renormalization={"type": "fov"}).run(dataset, on_runs[0])


def test_a_background_hdu_of_the_run_is_replaced(on_runs):
    """Runs whose DL3 carries a background are treated the same, and their IRF is neither used nor touched."""
    maker, observation = fitted_maker(), on_runs[0]
    shipped = maker.make_irf(observation)
    shipped.quantity = 7 * shipped.quantity
    with_background = altered(observation, bkg=shipped)
    makers = [MapDatasetMaker(selection=["counts", "exposure", "background"]), first_steps()[1]]
    dataset = reference(name="run")
    for other in makers:
        dataset = other.run(dataset, with_background)
    assert dataset.background.data.sum() > 0
    filled = maker.run(dataset, with_background)
    assert np.array_equal(filled.background.data, maker.run(empty(observation), observation).background.data)
    assert with_background.bkg is shipped and shipped.fov_alignment.value == "ALTAZ"


@pytest.mark.parametrize("kind", KINDS)
def test_make_irf_is_make_background(kind, on_runs):
    """gammapy's own evaluation of the IRF of a run is our background of that run, norm included."""
    maker, observation = fitted_maker(kind), on_runs[1]
    geom = sky_geom(observation.pointing.fixed_icrs, edges=(0.3, 0.6, 1.2, 2.4, 4.8), width=4.4, binsz=0.1)
    irf = maker.make_irf(observation)
    assert isinstance(irf, Background2D if kind == "radial" else Background3D)
    theirs = make_map_background_irf(
        observation.pointing, observation.observation_time_duration, irf, geom, observation.tstart,
        oversampling=10, location=observation.observatory_earth_location,
    )  # fmt: skip
    ours = maker.make_background(geom, observation)
    near = geom.to_image().separation(observation.pointing.fixed_icrs).deg < 2.15
    assert np.allclose(theirs.data[:, near].sum(1), ours.data[:, near].sum(1), rtol=5e-3)


def test_run_effects_come_from_the_run_itself(on_runs):
    """Half of the events of a run are half of its background; without run effects they do not matter."""
    half = altered(on_runs[1], keep=slice(None, None, 2))
    geom = sky_geom(on_runs[1].pointing.fixed_icrs, width=4)
    for effects, factor in (("norm", 0.5), ("none", 1.0)):
        maker = AcceptanceBackgroundMaker(
            config(effects=effects), model=_fitted("grid"), exclusion=source_region(full_store())
        )
        whole, less = (maker.make_background(geom, o).data for o in (on_runs[1], half))
        assert np.allclose(less.sum() / whole.sum(), factor, atol=0.02 if factor < 1 else 1e-12)


def test_what_the_model_does_not_cover_is_masked(on_runs, caplog):
    """A dataset wider than the field of view, and with energies beyond the model: no bin without background is safe."""
    maker = fitted_maker()
    dataset = MapDataset.create(
        sky_geom(on_runs[0].pointing.fixed_icrs, edges=(0.01, 0.05, 0.5, 5, 200, 500), width=8, binsz=0.2)
    )
    dataset.mask_safe.data[...] = True
    with caplog.at_level(logging.WARNING):
        filled = maker.run(dataset, on_runs[0])
    assert "4 of its 5 energy bins" in caplog.text
    safe = filled.mask_safe.data
    assert np.all(filled.background.data[safe] > 0)
    assert not safe[0].any() and not safe[-1].any() and safe[2].any()
    assert not safe[:, 0].any() and not safe[:, :, 0].any()
    # bins that stick out would be filled in part
    assert not safe[1].any() and not safe[3].any()


# --- renormalisation ----------------------------------------------------------------------------------------------


def exclusion_mask(dataset):
    geom = dataset.counts.geom.to_image()
    return Map.from_geom(geom, data=~geom.region_mask([source_region(full_store())]).data)


FOV_OPTIONS = {
    "scale": {},
    "fit": {"method": "fit"},
    "tilt": {"method": "fit", "spectral_model": {"type": "pl-norm", "parameters": [{"name": "tilt", "frozen": False}]}},
    "piecewise": {
        "method": "fit",
        "spectral_model": {
            "type": "piecewise-norm",
            "energy": {"data": [0.5, 2.0, 10.0], "unit": "TeV"},
            "interp": "log",
            "parameters": [{"name": f"norm_{k}", "value": 1.0} for k in range(3)],
        },
    },
    "spatial": {"method": "fit", "spatial_model": "const"},
    "min counts": {"min_counts": 3, "min_npred_background": 3, "fit_options": {"backend": "minuit"}},
}


@pytest.mark.parametrize("chosen", FOV_OPTIONS.values(), ids=FOV_OPTIONS)
def test_fov_renormalisation_is_that_of_gammapy(chosen, on_runs):
    dataset = empty(on_runs[0])
    ours = fitted_maker(renormalization={"type": "fov", **chosen}).run(dataset, on_runs[0])
    options_read = AcceptanceConfig.coerce(config(renormalization={"type": "fov", **chosen})).renormalization
    plain = fitted_maker().run(dataset, on_runs[0])
    gammapy_maker = FoVBackgroundMaker(
        method=options_read.method, exclusion_mask=exclusion_mask(dataset),
        spectral_model=options_read.spectral_model, spatial_model=options_read.spatial_model,
    )  # fmt: skip
    theirs = gammapy_maker.run(plain)
    assert np.allclose(ours.npred_background().data, theirs.npred_background().data, rtol=1e-6)
    here, there = ours.background_model.parameters, theirs.background_model.parameters
    assert here.names == there.names and np.allclose(here.value, there.value, rtol=1e-6, atol=1e-9)
    norm = ours.npred_background().data.sum() / ours.background.data.sum()
    assert 0.8 < norm < 1.2
    if "tilt" in here.names and chosen.get("spectral_model"):
        assert not here["tilt"].frozen and here["tilt"].value != 0


@pytest.mark.parametrize("appended", [True, False])
def test_fov_renormalisation_scales_to_the_counts(appended, on_runs):
    """Without run effects the norm of the run is left to gammapy's maker."""
    dataset = empty(on_runs[0])
    if appended:
        plain = fitted_maker(effects="none").run(dataset, on_runs[0])
        done = FoVBackgroundMaker(method="scale", exclusion_mask=exclusion_mask(dataset)).run(plain)
    else:
        done = fitted_maker(effects="none", renormalization={"type": "fov"}).run(dataset, on_runs[0])
    outside = exclusion_mask(dataset).data & done.mask_safe.data
    assert done.npred_background().data[outside].sum() == pytest.approx(done.counts.data[outside].sum(), rel=1e-6)


def ring_like(kind, mask=None):
    given = {"r_in": "0.5 deg", "width": "0.3 deg"} | ({"r_out_max": "1.2 deg"} if kind == "adaptive_ring" else {})
    cls = RingBackgroundMaker if kind == "ring" else AdaptiveRingBackgroundMaker
    return given if mask is None else cls(exclusion_mask=mask, **given)


@pytest.mark.parametrize("kind", ["ring", "adaptive_ring"])
def test_ring_is_that_of_gammapy(kind, on_runs):
    dataset = empty(on_runs[0], (0.5, 10))
    ours = fitted_maker(renormalization={"type": kind, **ring_like(kind)}).run(dataset, on_runs[0])
    assert type(ours) is MapDatasetOnOff and ours.name == dataset.name
    image = exclusion_mask(dataset)
    mask = Map.from_geom(dataset.counts.geom, data=image.data[None])
    theirs = ring_like(kind, mask).run(fitted_maker().run(dataset, on_runs[0]))
    assert same(ours, theirs, rtol=1e-12)
    assert ours.counts_off.data.sum() > 0


@pytest.mark.parametrize("stack", [True, False])
@pytest.mark.parametrize("kind", ["ring", "adaptive_ring"])
def test_ring_chains(kind, stack, on_runs):
    inside = fitted_maker(renormalization={"type": kind, **ring_like(kind)})
    mask = Map.from_geom(reference((0.5, 10)).counts.geom, data=exclusion_mask(reference((0.5, 10))).data[None])
    chains = ([*first_steps(), inside], [*first_steps(), fitted_maker(), ring_like(kind, mask)])
    ours, theirs = (DatasetsMaker(c, stack_datasets=stack).run(reference((0.5, 10)), on_runs) for c in chains)
    # gammapy stacks ON-OFF datasets on a MapDataset as such
    assert all(type(d) is (MapDataset if stack else MapDatasetOnOff) for d in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert same(a, b, rtol=1e-6)
        safe = a.mask_safe.data
        assert a.counts.data[safe].sum() == pytest.approx(a.background.data[safe].sum(), rel=0.1)


@pytest.mark.parametrize("kind", ["ring", "adaptive_ring"])
def test_ring_with_several_energy_bins(kind, on_runs):
    with pytest.raises(InputError, match=f"{kind}.*one energy bin.*got 3"):
        fitted_maker(renormalization={"type": kind}).run(empty(on_runs[0]), on_runs[0])


# --- bad input
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [(0.001, 0.01), (300, 500)])
def test_a_dataset_whose_energies_lie_outside(edges, on_runs):
    with pytest.raises(InputError, match="energy axis.*outside of the model"):
        fitted_maker().run(MapDataset.create(sky_geom(on_runs[0].pointing.fixed_icrs, edges=edges)), on_runs[0])


def test_other_datasets(on_runs):
    geom = sky_geom(on_runs[0].pointing.fixed_icrs, binsz=0.5)
    with pytest.raises(InputError, match="MapDatasetOnOff.*before any ring"):
        fitted_maker().run(MapDatasetOnOff.create(geom), on_runs[0])
    region = RegionGeom.create(source_region(full_store()), axes=[energy_axis()])
    with pytest.raises(InputError, match="SpectrumDatasetOnOff"):
        fitted_maker().run(SpectrumDatasetOnOff.create(region), on_runs[0])
    with pytest.raises(InputError, match="got str"):
        fitted_maker().run("dataset", on_runs[0])


def test_no_overlap(on_runs, caplog):
    """An error from make_background; in a chain one warning and a dataset that is masked."""
    observation = on_runs[0]
    geom = sky_geom(observation.pointing.fixed_icrs.directional_offset_by(0 * u.deg, 30 * u.deg), binsz=0.2)
    with pytest.raises(ObservationError, match="no pixel"):
        fitted_maker().make_background(geom, observation)
    with caplog.at_level(logging.WARNING):
        done = fitted_maker(renormalization={"type": "fov"}).run(MapDataset.create(geom, name="far"), observation)
    assert not done.mask_safe.data.any() and not done.background.data.any()
    assert len(caplog.records) == 1 and "far" in caplog.records[0].getMessage()


def test_a_run_that_cannot_be_used_is_masked_and_the_others_go_on(on_runs, caplog):
    nothing = altered(on_runs[1], keep=np.zeros(len(on_runs[1].events.table), bool))
    runs = [on_runs[0], nothing, on_runs[2]]
    with caplog.at_level(logging.WARNING):
        maker = AcceptanceBackgroundMaker(config(), exclusion=source_region(full_store())).fit(runs)
        assert len(caplog.records) == 1 and str(nothing.obs_id) in caplog.records[0].getMessage()
        caplog.clear()
        datasets = DatasetsMaker([*first_steps(), maker], stack_datasets=False).run(reference(), runs)
    assert [bool(d.mask_safe.data.any()) for d in datasets] == [True, False, True]
    ours = [r for r in caplog.records if r.name.startswith("gammapy_accmaker")]
    assert len(ours) == 1 and str(nothing.obs_id) in ours[0].getMessage()
    assert list(maker.run_table["USED"]) == [True, False, True] and "events" in maker.run_table["FLAG"][1]
    stacked = DatasetsMaker([*first_steps(), maker]).run(reference(), runs)[0]
    assert np.isfinite(stacked.background.data).all() and stacked.background.data.sum() > 0


def test_events_of_a_new_run_outside_of_its_good_time_are_said(store, on_runs, tmp_path, caplog):
    """They are in the dataset that gammapy made. Of runs that the fit has seen the fit has said so."""
    fitted_maker().model.write(tmp_path / "model.fits")
    maker = AcceptanceBackgroundMaker(model=AcceptanceModel.read(tmp_path / "model.fits"))
    start, stop = on_runs[1].gti.time_start, on_runs[1].gti.time_stop
    short = GTI.create(0 * u.s, (stop - start).to("s") - 5 * u.min, reference_time=start[0])
    for number, expected in ((990001, 1), (on_runs[1].obs_id, 0)):
        run = altered(on_runs[1], gti=short, obs_id=number)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(expected + 1):
                maker.run(empty(run), run)
        said = [r.getMessage() for r in caplog.records if "good time" in r.getMessage()]
        assert len(said) == 2 * expected and all(f"1 run ({number})" in text for text in said)
    n = int((on_runs[1].events.time > short.time_stop[-1]).sum())
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run = altered(on_runs[1], gti=short, obs_id=990001)
        plain = AcceptanceBackgroundMaker({**options("grid"), "run_effects": {"type": "none"}}, model=maker.model)
        plain.run(empty(run), run)
        new = altered(on_runs[1], obs_id=990001)
        plain.run(empty(new), new)
    (text,) = [r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")]
    assert f"{n} of {len(run.events.table)} events" in text


def test_a_run_without_good_time_is_masked(on_runs, caplog):
    lost = altered(on_runs[0], gti=GTI(on_runs[0].gti.table[:0]))
    with caplog.at_level(logging.WARNING):
        done = fitted_maker().run(empty(on_runs[0]), lost)
    assert not done.mask_safe.data.any() and "good time" in caplog.text
    with pytest.raises(ObservationError, match="good time"):
        fitted_maker().make_irf(lost)


def test_no_location(on_runs):
    lost = altered(on_runs[0], location=None, meta=None)
    if lost.observatory_earth_location is not None:
        pytest.skip("this gammapy finds a location elsewhere")
    with pytest.raises(ObservationError, match="observatory_location"):
        fitted_maker().make_background(reference().counts.geom, lost)
    maker = fitted_maker(observatory_location={"lon": "16.5002 deg", "lat": "-23.2718 deg", "height": "1835 m"})
    geom = reference().counts.geom
    here, there = maker.make_background(geom, lost), fitted_maker().make_background(geom, on_runs[0])
    assert np.allclose(here.data, there.data, rtol=1e-6)


def test_radec_alignment(store, on_runs):
    """The field does not turn: the background follows the sky, and gammapy agrees."""
    maker = AcceptanceBackgroundMaker(config(fov_alignment="radec"), exclusion=source_region(store)).fit(on_runs)
    observation = on_runs[0]
    irf = maker.make_irf(observation)
    assert irf.fov_alignment.value == "RADEC"
    geom = sky_geom(observation.pointing.fixed_icrs, edges=(0.3, 1, 3, 10), width=4.4, binsz=0.1)
    theirs = make_map_background_irf(
        observation.pointing, observation.observation_time_duration, irf, geom, observation.tstart, oversampling=5
    )
    near = geom.to_image().separation(observation.pointing.fixed_icrs).deg < 2.15
    ours = maker.make_background(geom, observation)
    assert np.allclose(theirs.data[:, near].sum(1), ours.data[:, near].sum(1), rtol=5e-3)


@pytest.mark.parametrize("product", ["run", "make_irf", "make_background_error"])
def test_a_run_is_read_once_and_followed_once(on_runs, monkeypatch, product):
    """With a prior, which needs the effects of the run as the background does; both are of the same adaptation."""
    maker = fitted_maker(renormalization={"type": "fov", "prior": True})
    dataset = MapDatasetMaker(selection=["counts"]).run(reference(), on_runs[0])
    tracks, fov_track = [], counts.fov_track
    monkeypatch.setattr(
        counts, "fov_track", lambda *given, **more: tracks.append(fov_track(*given, **more)) or tracks[-1]
    )
    arguments = {
        "run": (dataset, on_runs[0]),
        "make_irf": (on_runs[0],),
        "make_background_error": (dataset.counts.geom, on_runs[0]),
    }
    with opened_files() as opened:
        getattr(maker, product)(*arguments[product])
    assert sum(path.endswith(f"simulated_{on_runs[0].obs_id}.fits") for path in opened) == 1
    assert len(tracks) == 1
