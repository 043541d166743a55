"""Observations and configuration to a model: what goes in, what is left out, and what does not matter."""

import logging
import multiprocessing
import weakref
from contextlib import nullcontext

import astropy.units as u
import numpy as np
import pytest
from gammapy.data import GTI, Observations
from gammapy.maps import Map, WcsGeom
from helpers import START, make_observation, simulate, tracking
from regions import CircleSkyRegion
from stores import EDGES, altered, full_store, observations, options, source_region

from gammapy_accmaker import AcceptanceConfig, AcceptanceModel, fit_acceptance
from gammapy_accmaker.acceptance.reduction import Reduction, make_bins
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.spline import fit as spline
from gammapy_accmaker.utils import parallel

KINDS = ["radial", "grid"]
SMALL = {"energy": {"min": "1 TeV", "max": "5 TeV"}, "offset_max": "1 deg"}  # of a spline fit
COLUMNS = {
    "OBS_ID",
    "USED",
    "ONTIME",
    "LIVETIME",
    "ZENITH",
    "AZIMUTH",
    "MJD",
    "COUNTS",
    "EXPECTED",
    "DROPPED",
    "NORM",
    "NORM_ERR",
    "FLAG",
}


@pytest.fixture(scope="module")
def runs():
    """Small runs in memory, evenly filled, each with a norm of its own."""
    sizes = (2000, 2400, 1500, 2100)
    return [simulate(tracking(100 + 40 * k, 60 - 5 * k), n, obs_id=k + 1, seed=k) for k, n in enumerate(sizes)]


def rates(model, kind="grid"):
    lon, lat = np.linspace(-2.3, 2.3, 15), np.linspace(0.9, -0.9, 15)
    return model.rate_model.integral_grid(EDGES, lon, lat)


def test_a_run_table(runs):
    model = fit_acceptance(runs, options("radial"))
    table = model.run_table
    assert COLUMNS <= set(table.colnames)
    assert list(table["OBS_ID"]) == [1, 2, 3, 4] and all(table["USED"]) and set(table["FLAG"]) == {""}
    assert np.allclose(table["ONTIME"], 1700) and np.allclose(table["LIVETIME"], 1700 * 0.94)
    assert np.allclose(table["ZENITH"], [30, 35, 40, 45], atol=4)
    assert np.exp(np.log(table["NORM"]).mean()) == pytest.approx(1, abs=0.02)
    assert np.allclose(table["NORM_ERR"] / table["NORM"], 1 / np.sqrt(table["COUNTS"]))
    assert np.allclose(table["EXPECTED"], table["COUNTS"])
    assert np.allclose(table["NORM"] / table["NORM"][0], table["COUNTS"] / table["COUNTS"][0], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_without_run_effects_all_norms_are_1(runs, kind):
    table = fit_acceptance(runs, options(kind, "none")).run_table
    assert np.all(table["NORM"] == 1) and np.all(table["NORM_ERR"] == 0)
    assert table["EXPECTED"].sum() == pytest.approx(table["COUNTS"].sum(), rel=5e-3)


@pytest.mark.parametrize("effects", ["none", "norm"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_runs_does_not_matter(runs, kind, effects):
    order = [2, 0, 3, 1]
    here, there = (fit_acceptance(r, options(kind, effects)) for r in (runs, [runs[k] for k in order]))
    assert np.allclose(rates(here), rates(there), rtol=1e-10)
    assert np.array_equal(here.run_table["OBS_ID"][order], there.run_table["OBS_ID"])
    assert np.allclose(here.run_table["NORM"][order], there.run_table["NORM"], rtol=1e-10)


def test_jobs_do_not_matter(runs):
    here, there = (fit_acceptance(runs, options("grid"), n_jobs=n) for n in (1, 2))
    assert np.allclose(rates(here), rates(there), rtol=1e-12, atol=0)
    assert all(np.array_equal(here.run_table[c], there.run_table[c]) for c in here.run_table.colnames)


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_shares_its_processes_and_leaves_none(runs, fails, monkeypatch):
    pool, model, opened, loops = parallel._pool, spline._JointFit.model, [], []

    def at_the_end(fit):
        assert len(opened) == 1 and 0 < len(multiprocessing.active_children()) <= 2
        return 1 / 0 if fails else model(fit)

    monkeypatch.setattr(parallel, "_pool", lambda n_jobs, folder: opened.append(n_jobs) or pool(n_jobs, folder))
    monkeypatch.setattr(spline._JointFit, "model", at_the_end)
    monkeypatch.setattr(spline, "chunk_starts", lambda n_run: loops.append(n_run) or range(0, n_run, 2))
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        fit_acceptance(runs, SMALL, n_jobs=2)
    assert len(loops) > 4 and opened == [2] and not multiprocessing.active_children()


@pytest.mark.parametrize("min_counts", [0, 5])
def test_counts_of_runs_are_let_go_before_the_rounds_of_a_fit_that_needs_them_no_more(runs, min_counts, monkeypatch):
    reduce_all, rounds, seen, alive = Reduction.reduce_all, spline._JointFit.run, [], []

    def watched(*args, **options):
        reduced, failures = reduce_all(*args, **options)
        seen.extend(weakref.ref(part.counts) for run in reduced for part in run.slices)
        return reduced, failures

    def at_the_rounds(fit, max_rounds):
        alive.append(sum(counts() is not None for counts in seen))
        return rounds(fit, max_rounds)

    monkeypatch.setattr(Reduction, "reduce_all", watched)
    monkeypatch.setattr(spline._JointFit, "run", at_the_rounds)
    model = fit_acceptance(runs, SMALL | {"run_effects": {"type": "shift", "min_counts": min_counts}})
    assert len(seen) >= 4 and alive == [len(seen) if min_counts else 0]
    assert sum(model.run_table["COUNTS"]) == model.fit_counts.counts.sum() > 100


def test_observations_in_any_container(runs):
    here, there = (rates(fit_acceptance(r, options("radial"))) for r in (runs, Observations(runs)))
    assert np.array_equal(here, there)
    assert np.array_equal(here, rates(fit_acceptance(runs, AcceptanceConfig.coerce(options("radial")))))


def test_the_observations_are_not_changed(runs):
    def content():
        return [
            (
                o.events.table["RA", "DEC", "ENERGY"].as_array().tobytes(),
                o.events.time.mjd.tobytes(),
                o.gti.time_start.mjd.tobytes(),
                o.bkg,
            )
            for o in runs
        ]

    before = content()
    fit_acceptance(runs, options("grid"), exclusion=CircleSkyRegion(runs[0].pointing.fixed_icrs, 0.5 * u.deg))
    assert before == content()


@pytest.mark.parametrize("given", [[], (), Observations()])
def test_no_observations(given):
    with pytest.raises(InputError, match="observations: got none"):
        fit_acceptance(given, options("radial"))


def test_no_events_in_range(runs, caplog):
    with pytest.raises(InputError, match=r"none of the 4 can be used \(.*no events.*; and 3 more\)$"):
        fit_acceptance(runs, options("radial", energy={"min": "200 TeV", "max": "300 TeV"}))
    # each run by its name, once, and a sentence without the kind of the error
    assert [caplog.text.count(f"  {run.obs_id}: ") for run in runs] == [1, 1, 1, 1]
    assert "Error" not in caplog.text and "observation 1" not in caplog.text


def test_no_location(runs):
    lost = [make_observation(tracking(100, 60), location=None)]
    for kind in ("radial", "grid"):
        with pytest.raises(InputError, match="observatory_location"):
            fit_acceptance(lost, options(kind))
    assert fit_acceptance(lost, options("radial", fov_alignment="radec")).run_table["USED"].all()
    configured = fit_acceptance(lost, options("radial", observatory_location="hess")).run_table
    assert configured["USED"].all() and configured["ZENITH"][0] == pytest.approx(30, abs=4)


def test_everything_excluded(runs):
    with pytest.raises(InputError, match="exclusion covers"):
        fit_acceptance(
            runs, options("grid"), exclusion=[CircleSkyRegion(o.pointing.fixed_icrs, 5 * u.deg) for o in runs]
        )


def unusable(runs):
    """Runs that cannot be used, by the word that the reason must hold."""
    good = runs[0]
    nan = good.events.table.copy()
    nan["ENERGY"] = np.nan * nan["ENERGY"].unit
    gti = GTI(good.gti.table[:0])
    return {
        "events": altered(good, obs_id=11, keep=np.zeros(len(good.events.table), bool)),
        "good time": altered(good, obs_id=12, gti=gti),
        "NaN": make_observation(good.pointing, table=nan, obs_id=13),
        "exclusion": simulate(tracking(200, 30), 300, obs_id=14),
    }


def test_unusable_runs_are_left_out_with_one_warning_that_names_them(runs, caplog):
    bad = unusable(runs)
    exclusion = CircleSkyRegion(bad["exclusion"].pointing.fixed_icrs, 4 * u.deg)
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance([*bad.values(), *runs], options("grid"), exclusion=exclusion)
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "4 of 8" in warnings[0] and all(str(n) in warnings[0] for n in (11, 12, 13, 14))
    table = model.run_table
    assert list(table["OBS_ID"]) == [11, 12, 13, 14, 1, 2, 3, 4]  # as the observations came
    assert list(table["USED"]) == 4 * [False] + 4 * [True]
    for row, word in zip(table[:4], bad, strict=True):
        assert word.lower() in row["FLAG"].lower() and "observation" not in row["FLAG"], (row["FLAG"], word)
    # the others are as if alone
    assert np.allclose(rates(model), rates(fit_acceptance(runs, options("grid"), exclusion=exclusion)), rtol=1e-12)


def test_nan_events_are_counted_and_dropped(runs):
    table = runs[0].events.table.copy()
    whole = fit_acceptance(runs[:2], options("radial"))
    more = make_observation(runs[0].pointing, table=table, obs_id=1)
    for name, k in (("ENERGY", 3), ("RA", 5), ("DEC", 7)):
        more.events.table[name][k] = np.nan
    kept = np.delete(np.arange(len(table)), [3, 5, 7])
    fewer = make_observation(runs[0].pointing, table=table[kept], obs_id=1)
    here, there = (fit_acceptance([o, runs[1]], options("radial")) for o in (more, fewer))
    assert list(here.run_table["DROPPED"]) == [3, 0]
    assert np.array_equal(rates(here), rates(there))
    assert not np.array_equal(rates(here), rates(whole))


def test_exposure_scales():
    """The same events in twice the time are half the rate."""
    pointing = tracking(130, 55)
    table = simulate(pointing, 3000, intervals=[(0, 800)]).events.table
    short, long = (make_observation(pointing, [(0, t)], table) for t in (800, 1600))
    here, there = (fit_acceptance([o], options("radial", "none")) for o in (short, long))
    assert np.allclose(rates(here), 2 * rates(there), rtol=1e-10)


def test_trap_dead_time_does_not_enter_the_rate():
    table = simulate(tracking(130, 55), 1000).events.table
    some, none = (make_observation(tracking(130, 55), table=table, deadtime=d) for d in (0.2, 0.0))
    here, there = (fit_acceptance([o], options("radial", "none")) for o in (some, none))
    assert np.array_equal(rates(here), rates(there))


def test_fit_energy_and_offset_edges(runs):
    config = options("radial", fit_energy=["0.2 TeV", "1 TeV", "3 TeV", "20 TeV"])
    config["model"] = {"type": "radial", "offset_bins": ["0 deg", "0.5 deg", "1.5 deg"]}
    model = fit_acceptance(runs, config).rate_model
    assert np.allclose(model.bin_edges, [0.2, 1, 3, 20]) and np.allclose(model.fov.edges[0], [0, 0.5, 1.5])
    bins = make_bins(
        AcceptanceConfig.coerce(options("grid", energy={"min": "1 TeV", "max": "10 TeV", "nbins_per_decade": 4}))
    )
    assert np.allclose(bins.energy_edges, np.geomspace(1, 10, 5)) and bins.fov.shape == (24, 24)


@pytest.mark.parametrize("form", ["region", "list", "file", "mask", "mixed", "config file", "config mask"])
def test_forms_of_an_exclusion(form, tmp_path):
    store = full_store()
    runs = observations(store, store.on_obs_ids[:2])
    region = source_region(store)
    geom = WcsGeom.create(skydir=region.center, width=4, binsz=0.01)
    mask = Map.from_geom(geom, data=~geom.region_mask([region]).data)
    path, mask_path = tmp_path / "exclusion.reg", tmp_path / "mask.fits"
    region.write(path, format="ds9")
    Map.from_geom(geom, data=mask.data.astype(int)).write(mask_path)
    given = {"region": region, "list": [region], "file": path, "mask": mask, "mixed": [mask, path, [region]]}.get(form)
    in_config = {"config file": {"regions": str(path)}, "config mask": {"mask": str(mask_path)}}.get(form, {})
    want = fit_acceptance(runs, options("radial"), exclusion=region)
    got = fit_acceptance(runs, options("radial", exclusion=in_config), exclusion=given)
    tolerance = 0.01 if "mask" in form or form == "mixed" else 1e-9
    assert np.allclose(got.run_table["COUNTS"], want.run_table["COUNTS"], atol=12 if tolerance == 0.01 else 0)
    assert np.allclose(rates(got)[5:15], rates(want)[5:15], rtol=max(tolerance, 1e-9), atol=0) or tolerance == 0.01
    assert np.all(got.run_table["COUNTS"] < fit_acceptance(runs, options("radial")).run_table["COUNTS"])


def test_a_damaged_mask_file(runs, tmp_path):
    (tmp_path / "mask.fits").write_text("nothing")
    with pytest.raises(InputError, match="exclusion.mask.*cannot be read"):
        fit_acceptance(runs, options("radial", exclusion={"mask": str(tmp_path / "mask.fits")}))


def test_a_source_in_the_exclusion_does_not_bias_the_rate():
    store = full_store()
    runs = observations(store, store.on_obs_ids)
    with_source = fit_acceptance(runs, options("grid"))
    without = fit_acceptance(runs, options("grid"), exclusion=source_region(store))
    assert with_source.run_table["COUNTS"].sum() > without.run_table["COUNTS"].sum() + 300
    assert isinstance(without, AcceptanceModel)


def test_time_of_a_run_is_in_the_table(runs):
    table = fit_acceptance(runs[:1], options("radial")).run_table
    assert table["MJD"][0] == pytest.approx((START + 850 * u.s).mjd, abs=1e-3)
