"""Models pooled in zenith and azimuth, on simulated runs whose truth depends on both; plans of the pooling."""

import logging
from dataclasses import replace
from functools import cache

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import pytest
from gammapy.irf import FoVAlignment
from gammapy.makers.utils import make_map_background_irf
from helpers import make_observation, simulate, tracking
from pooled_stores import (
    EDGES,
    RADIUS,
    WEST,
    crossing_run,
    east_share,
    east_west_runs,
    truth_in_disc,
    zenith_runs,
)
from stores import options, sky_geom

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, fit_acceptance, plan_groups
from gammapy_accmaker.acceptance.reduction import make_bins
from gammapy_accmaker.data.counts import observation_track, reduce_observation
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.pooled import AzimuthBinned, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.products.background import expected_counts, expected_counts_directly, icrs_vectors

FINE = {"initial_width": 0.03, "min_observations": 2}
BY_ZENITH = {
    "binned": {"type": "binned", **FINE},
    "linear": {"type": "interpolated", "scale": "linear", **FINE},
    "log": {"type": "interpolated", "scale": "log", **FINE},
    "every run": {"type": "interpolated", "initial_width": 0.02, "min_observations": 1},
    "split": {"type": "interpolated", "split_runs": True, **FINE},
}


def config(zenith="log", azimuth="none", kind="radial", effects="none", **more):
    zenith = {"type": "none"} if zenith == "none" else BY_ZENITH[zenith]
    return options(kind, effects, energy={"min": "0.2 TeV", "nbins_per_decade": 8}, **more) | {
        "zenith": zenith,
        "azimuth": {"type": azimuth},
    }


@cache
def maker_of(zenith="log", azimuth="none", kind="radial", effects="none"):
    runs = zenith_runs() if azimuth == "none" else east_west_runs()
    return AcceptanceBackgroundMaker(config(zenith, azimuth, kind, effects)).fit(runs, n_jobs=1)


def in_disc(maker, run):
    """Predicted counts by energy within RADIUS of the pointing."""
    center = run.pointing.fixed_icrs
    geom = sky_geom(center, edges=EDGES, width=4.8, binsz=0.1)
    near = geom.to_image().separation(center).deg < RADIUS
    return maker.make_background(geom, run).data[:, near].sum(1)


def mean_cos_zenith(maker, run):
    table = maker.run_table
    return float(np.cos(np.radians(table["ZENITH"][table["OBS_ID"] == run.obs_id][0])))


@pytest.mark.parametrize("zenith", [pytest.param("linear", marks=pytest.mark.slow), "log", "split"])
def test_the_truth_is_recovered_at_each_zenith_angle(zenith):
    maker = maker_of(zenith)
    model = maker.model.rate_model
    assert isinstance(model, ZenithInterpolated) and len(model.models) >= 4
    within, pulls = 0, []
    for run in zenith_runs():
        # beyond the mean of the last bin the rate is clamped
        if not model.cos_zenith[0] <= mean_cos_zenith(maker, run) <= model.cos_zenith[-1]:
            continue
        background, truth = in_disc(maker, run), truth_in_disc(run.obs_id)
        within += 1
        # a group has a few times the counts of a run
        assert background.sum() == pytest.approx(truth.sum(), rel=0.01 + 2 / np.sqrt(truth.sum()))
        pulls.append((background - truth) / np.sqrt(truth))
    pulls = np.array(pulls)
    assert within >= 6
    assert np.sqrt(np.mean(pulls**2)) < 1 and np.abs(pulls.sum(0) / np.sqrt(within)).max() < 3


def test_without_zenith_the_same_runs_are_wrong():
    """So the dependence is one that a model must follow."""
    maker = AcceptanceBackgroundMaker(config("none")).fit(zenith_runs(), n_jobs=1)
    ratios = [in_disc(maker, run)[0] / truth_in_disc(run.obs_id)[0] for run in zenith_runs()]
    assert max(ratios) > 1.15 and min(ratios) < 0.9


def test_binned_zenith_conserves_the_counts_of_each_bin():
    maker = maker_of("binned", kind="grid")
    assert isinstance(maker.model.rate_model, ZenithBinned)
    plan, table = maker.model.plan, maker.run_table
    assert table["EXPECTED"].sum() == pytest.approx(table["COUNTS"].sum(), rel=0.01)
    for row in plan.table:
        runs = np.isin(table["OBS_ID"], [int(i) for i in row["RUNS"].split()])
        error = 4 / np.sqrt(row["COUNTS"])
        assert table["EXPECTED"][runs].sum() == pytest.approx(table["COUNTS"][runs].sum(), rel=0.03 + error)


@pytest.mark.parametrize("azimuth", ["east_west", "binned"])
def test_azimuth_is_recovered(azimuth):
    maker = maker_of("every run", azimuth)
    assert isinstance(maker.model.rate_model, AzimuthBinned)
    got, truth = np.zeros(2), np.zeros(2)
    for run in east_west_runs():
        share = east_share(run.obs_id)
        factor = share + WEST * (1 - share)
        side = int(share < 0.5)
        got[side] += in_disc(maker, run).sum()
        truth[side] += factor * truth_in_disc(run.obs_id).sum()
    assert np.all(np.abs(got / truth - 1) < 0.005 + 2 / np.sqrt(truth))
    rate, at = maker.model.rate_model, (1.0, 0.5, 0.3, 0.9)
    unknown, east = rate.rate(*at, azimuth=[np.nan, 90.0])
    assert unknown == rate.rate(*at) and east == rate.rate(*at, azimuth=90.0)


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_trap_a_meridian_crossing_run(kind):
    """Its background is that of both halves by their time, in ALTAZ; the counts are right."""
    run = crossing_run()
    share = east_share(run.obs_id)
    assert 0.3 < share < 0.7
    maker = maker_of("log", "east_west", kind)
    parts = maker.model.plan.run_table
    parts = parts[parts["OBS_ID"] == run.obs_id]
    sides = np.unique(parts["AZIMUTH"] < 180)
    assert len(sides) == 2  # cut at the meridian
    assert parts["ONTIME"][parts["AZIMUTH"] < 180].sum() / parts["ONTIME"].sum() == pytest.approx(share, abs=0.01)
    background = in_disc(maker, run)
    truth = truth_in_disc(run.obs_id) * (share + WEST * (1 - share))
    assert background.sum() == pytest.approx(truth.sum(), rel=0.03 + 2 / np.sqrt(truth.sum()))
    irf = maker.make_irf(run)
    assert irf.fov_alignment == FoVAlignment.ALTAZ
    # what gammapy evaluates is the same, in total: it holds the mean of both halves for the whole run
    center = run.pointing.fixed_icrs
    geom = sky_geom(center, edges=(0.5, 1, 2, 4), width=4.8, binsz=0.1)
    near = geom.to_image().separation(center).deg < 2.2
    theirs = make_map_background_irf(
        run.pointing, run.observation_time_duration, irf, geom, run.tstart, oversampling=4,
        location=run.observatory_earth_location,
    )  # fmt: skip
    ours = maker.make_background(geom, run)
    assert np.allclose((theirs.data * near).sum((1, 2)), (ours.data * near).sum((1, 2)), rtol=0.01)


@pytest.mark.parametrize("azimuth", ["none", "east_west"])
def test_maps_follow_zenith_and_azimuth_while_the_field_turns(azimuth):
    """The fast way, the plain one, and the sum over parts of the run by itself agree."""
    maker, run = maker_of("log", azimuth, "grid"), crossing_run()
    model = maker.model.rate_model
    track = observation_track(run, "altaz")
    image = sky_geom(run.pointing.fixed_icrs, width=3.5, binsz=0.25).to_image()
    xyz, solid_angle = icrs_vectors(image), image.solid_angle().to_value("sr").ravel()
    fast, plain = (
        f(model, track, xyz, solid_angle, EDGES[:4], 60.0) for f in (expected_counts, expected_counts_directly)
    )
    assert np.allclose(fast.sum(1), plain.sum(1), rtol=3e-3)
    middle = track.azimuth_at(track.seconds) % 360
    assert {bool(a < 180) for a in middle} == {True, False}
    by_hand = np.zeros(3)
    # fine enough for the jump at the meridian
    seconds = np.arange(0, track.intervals[-1, 1], 4.0) + 2
    good = np.any([(seconds > a) & (seconds < b) for a, b in track.intervals], axis=0)
    for t in seconds[good]:
        here = model.at_azimuth(float(track.azimuth_at(np.array([t]))[0]))
        camera = xyz @ track.matrices_at(np.array([t]))[0].T
        lon, lat = np.degrees(np.arctan2(camera[:, 1], camera[:, 0])), np.degrees(np.arcsin(camera[:, 2]))
        z = float(track.cos_zenith_at(np.array([t]))[0])
        by_hand += 4 * (here.integral_grid(EDGES[:4], lon, lat, z) * solid_angle).sum(1)
    assert np.allclose(plain.sum(1), by_hand * track.ontime / (4 * good.sum()), rtol=3e-3)


def test_the_error_map_covers_both_halves():
    maker, run = maker_of("log", "east_west"), crossing_run()
    geom = sky_geom(run.pointing.fixed_icrs, edges=EDGES[:3], width=4, binsz=0.5)
    error, background = maker.make_background_error(geom, run).data, maker.make_background(geom, run).data
    assert np.all(np.isfinite(error)) and np.all(error[background > 0] > 0)
    center = (error / background)[:, 4, 4]
    assert np.all((center > 0.001) & (center < 0.5))


@pytest.mark.parametrize("zenith", ["log", "split", "binned"])
def test_norms_are_fitted_within_a_group(zenith):
    everywhere = {"type": "norm", "norm_energy": ["0.2 TeV", "100 TeV"]}
    table = fit_acceptance(east_west_runs(), config(zenith, "east_west") | {"run_effects": everywhere}).run_table
    assert np.allclose(table["EXPECTED"], table["COUNTS"])
    table = maker_of(zenith, "east_west", effects="norm").run_table
    # those of the ends of the zenith range, where the rate is clamped, differ most
    assert np.abs(np.log(table["NORM"])).max() < 0.45 and np.median(np.abs(np.log(table["NORM"]))) < 0.06


def test_slices_conserve_counts_and_exposure():
    run = crossing_run()
    bins = make_bins(AcceptanceConfig.coerce(config()))
    whole = reduce_observation(run, bins)
    edges, sectors = np.arange(0.5, 1, 0.004), np.array([0.0, 90, 180, 270])
    slices = reduce_observation(run, bins, cos_zenith_edges=edges, azimuth_edges=sectors).slices
    assert len(slices) >= 3
    assert (sum(part.counts for part in slices) != whole.counts).nnz == 0
    assert np.allclose(sum(part.exposure for part in slices), whole.exposure, rtol=1e-12)
    assert sum(part.ontime for part in slices) == pytest.approx(whole.ontime, rel=1e-12)
    assert sum(part.livetime for part in slices) == pytest.approx(whole.livetime, rel=1e-12)
    for part in slices:
        assert part.ontime >= 1 and 0 <= part.azimuth < 360
    assert np.allclose(whole.slices[0].pointing, [run.pointing.fixed_icrs.ra.deg, run.pointing.fixed_icrs.dec.deg])


def test_a_plan_conserves_counts_and_time():
    options_ = config("log", "east_west")
    plan = plan_groups(east_west_runs(), options_, n_jobs=1)
    plain = fit_acceptance(east_west_runs(), config("none"), n_jobs=1).run_table
    assert plan.table["COUNTS"].sum() == plain["COUNTS"].sum() == plan.run_table["COUNTS"].sum()
    assert plan.table["ONTIME"].quantity.sum().to_value("s") == pytest.approx(plain["ONTIME"].sum())
    assert plan.table["LIVETIME"].quantity.sum().to_value("s") == pytest.approx(plain["LIVETIME"].sum())
    assert np.all(plan.table["COUNTS"] > 0) and np.all(plan.table["N_RUNS"] >= 2)
    assert np.all(
        (plan.table["COS_ZENITH"] > plan.table["COS_ZENITH_MIN"])
        & (plan.table["COS_ZENITH"] < plan.table["COS_ZENITH_MAX"])
    )
    for k in (0, 1):
        edges = plan.edges_in(k)
        assert np.all(np.diff(edges) > 0.0299)
        inside = plan.run_table[plan.sector[plan.run_table["GROUP"]] == k]
        assert edges[0] <= inside["COS_ZENITH"].min() and inside["COS_ZENITH"].max() <= edges[-1]
        assert np.all((inside["AZIMUTH"] < 180) == (k == 0))
    assert "GroupPlan" in str(plan) and str(plan.table["COUNTS"][0]) in str(plan)


def test_the_order_of_the_runs_does_not_matter():
    runs = east_west_runs()[:6]
    orders = (runs, [runs[k] for k in (4, 2, 0, 5, 1, 3)])
    plans = [plan_groups(r, config("split", "east_west"), n_jobs=1) for r in orders]
    for name, values in plans[0].to_arrays().items():
        assert np.array_equal(values, plans[1].to_arrays()[name]), name
    models = [fit_acceptance(r, config("split", "east_west"), n_jobs=1) for r in orders]
    lon = np.linspace(-2, 2, 9)
    here, there = (m.rate_model.at_azimuth(a).integral_grid(EDGES, lon, 0 * lon, 0.85) for a in (90,) for m in models)
    assert np.allclose(here, there, rtol=1e-10)


def test_a_fit_takes_a_plan_and_the_model_keeps_it(tmp_path):
    runs, options_ = east_west_runs()[:6], config("log", "east_west")
    plan = plan_groups(runs, options_, n_jobs=1)
    before = fit_acceptance(runs, options_, n_jobs=1, plan=plan)
    assert before.plan is plan
    without = fit_acceptance(runs, options_, n_jobs=1)
    for name, values in without.rate_model.to_arrays().items():
        assert np.array_equal(values, before.rate_model.to_arrays()[name]), name
    before.write(tmp_path / "model.fits")
    after = AcceptanceModel.read(tmp_path / "model.fits")
    for name, values in plan.to_arrays().items():
        there = after.plan.to_arrays()[name]
        assert there.dtype.kind == values.dtype.kind and np.array_equal(there, values), name
    assert str(after.plan) == str(plan)
    lon = np.linspace(-2, 2, 9)
    for azimuth in (20.0, 200.0):
        here, there = (m.rate(1 * u.TeV, lon * u.deg, 0 * u.deg, 0.8, azimuth * u.deg) for m in (before, after))
        assert np.array_equal(here, there)
    with pytest.raises(ValueError, match="read-only"):
        plan.counts[0] = 1


@pytest.mark.parametrize("azimuth", ["none", "east_west"])
def test_a_plan_is_drawn(azimuth):
    plan = maker_of("log", azimuth).model.plan
    figure, ax = plt.subplots()
    assert plan.plot(ax) is ax and len(ax.patches) >= plan.n_groups
    assert "zenith" in ax.get_ylabel() and ("azimuth" in ax.get_xlabel()) == (azimuth != "none")
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(names) == plan.n_groups + 1  # no group twice, and what a dot is
    for row, name in zip(plan.table, names, strict=False):
        assert (
            name
            == f"group {row['GROUP']}: {row['LIVETIME']:.2g} h, {row['N_RUNS']} run{'' if row['N_RUNS'] == 1 else 's'}"
        )
    assert ("part" in names[-1]) == (len(plan.run) > len(set(plan.run.tolist())))
    plt.close(figure)


def test_a_plan_without_bins_is_one_group():
    runs = zenith_runs()[:3]
    plan = plan_groups(runs, config("none"), n_jobs=1)
    assert plan.n_groups == 1 and plan.table["N_RUNS"][0] == 3
    assert "1 group, 3 runs" in repr(plan) and "neither zenith nor azimuth" in str(plan)
    assert maker_of("none").model.plan is None
    # it is what a fit does without it
    planned, plain = (fit_acceptance(runs, config("none"), n_jobs=1, plan=p) for p in (plan, None))
    np.testing.assert_array_equal(planned.run_table["EXPECTED"], plain.run_table["EXPECTED"])


def test_a_plan_of_the_default_model_says_why_it_is_one_group():
    runs = zenith_runs()[:3]
    plan = plan_groups(runs, n_jobs=1)
    assert plan.n_groups == 1 and plan.table["N_RUNS"][0] == 3
    assert "smooth function of the zenith angle" in str(plan)
    few = plan_groups(runs[:1], config("log"), n_jobs=1)
    assert few.n_groups == 1 and "too few" in str(few)
    assert plan_groups(zenith_runs(), config("log"), n_jobs=1).describe_one_group() == ""


def test_wobble_positions_of_a_plan():
    runs = [simulate(tracking(100, 60 + 0.5 * (k % 2)), 400, obs_id=k + 1, seed=k) for k in range(4)]
    apart, one = (
        plan_groups(runs, config() | {"zenith": {**BY_ZENITH["log"], "max_wobble_separation": s}}, n_jobs=1)
        for s in ("0.3 deg", "0.7 deg")
    )
    assert len(apart.positions) == 2 and len(one.positions) == 1
    assert len(set(apart.run_table["WOBBLE"])) == 2


def test_a_run_outside_of_the_trained_zenith_angles_is_clamped_with_one_warning(caplog):
    maker = maker_of("log")
    low = simulate(tracking(120, 25), 3000, obs_id=77)
    geom = sky_geom(low.pointing.fixed_icrs, width=3, binsz=0.1)
    with caplog.at_level(logging.WARNING):
        background = maker.make_background(geom, low)
    warnings = [r.getMessage() for r in caplog.records if "trained" in r.getMessage()]
    assert (
        len(warnings) == 1
        and "77 (0.4" in warnings[0]
        and f"{maker.model.rate_model.zenith_range[0]:.3f}" in warnings[0]
    )
    assert np.all(np.isfinite(background.data)) and background.data.sum() > 0
    lon, end = np.linspace(-2, 2, 5), maker.model.rate_model.zenith_range[0]
    assert end > 0.5
    clamped, there = (maker.model.rate_model.integral_grid(EDGES, lon, lon, z) for z in (0.42, end))
    assert np.array_equal(clamped, there)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        maker.make_background(sky_geom(crossing_run().pointing.fixed_icrs, width=3, binsz=0.1), crossing_run())
    assert not [r for r in caplog.records if "trained" in r.getMessage()]


def test_off_runs_at_other_zenith_angles_are_named(caplog):
    maker = AcceptanceBackgroundMaker(config("log"))
    on = simulate(tracking(120, 25), 3000, obs_id=78)
    with caplog.at_level(logging.WARNING):
        maker.fit([on], zenith_runs()[:4], n_jobs=1)
    assert len([r for r in caplog.records if "78 (0.4" in r.getMessage()]) == 1
    assert maker.model.plan is not None and 78 not in maker.model.plan.obs_id


def test_a_sector_without_runs_takes_the_nearest(caplog):
    east = [run for run in zenith_runs() if east_share(run.obs_id) == 1]
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(east, config("none", "east_west"), n_jobs=1).rate_model
    assert len([r for r in caplog.records if "1 of 2 sectors" in r.getMessage()]) == 1
    assert model.at_azimuth(200) is model.at_azimuth(20)


def test_too_little_for_one_bin_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        plan = plan_groups(
            zenith_runs()[::7], config() | {"zenith": {"type": "binned", "min_livetime": "100 h"}}, n_jobs=1
        )
    assert plan.n_groups == 1
    assert len([r for r in caplog.records if "less than the minimum" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"zenith": {"type": "binned"}, "model": {"type": "spline"}}, "zenith.*'binned'"),
        ({"zenith": {"type": "interpolated"}, "model": {"type": "spline"}}, "zenith.*'interpolated'"),
        ({"azimuth": {"type": "east_west"}, "model": {"type": "spline"}, "zenith": {"type": "none"}}, "azimuth"),
        ({"zenith": {"type": "continuous"}}, "zenith.*spline"),
        ({"zenith": {"type": "binned", "scale": "log"}}, "scale"),
        ({"zenith": {"type": "binned", "min_observations": None}}, "one of them is needed"),
        ({"zenith": {"type": "binned", "min_livetime": "0 h"}}, "min_livetime"),
        ({"zenith": {"type": "binned", "min_livetime": "3 deg"}}, "min_livetime"),
        ({"zenith": {"type": "binned", "initial_width": 0}}, "initial_width"),
        ({"zenith": {"type": "binned", "max_wobble_separation": "0 deg"}}, "max_wobble_separation"),
        ({"zenith": {"type": "none", "initial_width": 0.1}}, "initial_width"),
        ({"zenith": {"type": "tilted"}}, "zenith"),
        ({"azimuth": {"type": "east_west", "bins": 3}}, "bins"),
        ({"azimuth": {"type": "binned", "bins": 1}}, "bins"),
        ({"azimuth": {"type": "binned", "bins": ["0 deg", "360 deg"]}}, "two sectors"),
        ({"azimuth": {"type": "binned", "bins": ["0 deg", "100 deg", "500 deg"]}}, "one turn"),
    ],
)
def test_contradictory_options(wrong, named):
    with pytest.raises(InputError, match=named):
        AcceptanceConfig.coerce({"model": {"type": "radial"}, **wrong})


def test_options_round_trip():
    given = {
        "model": {"type": "radial"},
        "zenith": {"type": "interpolated", "min_livetime": "1.5 h", "min_observations": None, "per_wobble": True},
        "azimuth": {"type": "binned", "bins": ["10 deg", "100 deg", "190 deg"]},
    }
    before = AcceptanceConfig.coerce(given)
    after = AcceptanceConfig.from_yaml(before.to_yaml())
    assert after.to_yaml() == before.to_yaml() and np.allclose(after.azimuth.edges, [10, 100, 190])
    assert after.zenith.min_livetime == 1.5 * u.h and after.zenith.scale == "log"
    assert np.allclose(
        AcceptanceConfig.coerce({"model": {"type": "grid"}, "azimuth": {"type": "binned", "bins": 3}}).azimuth.edges,
        [0, 120, 240],
    )
    for model in ({"type": "radial"}, {"type": "grid"}, {"type": "parametric", "function": "gaussian"}):
        assert AcceptanceConfig.coerce({"model": model}).zenith.type == "interpolated"


@pytest.mark.parametrize("kind", ["radial", "grid", "parametric"])
def test_without_options_binned_models_follow_the_zenith_angle(kind, caplog):
    """Runs of any zenith angles pooled to one mean, without a word, are wrong for each of them."""
    model = {"type": kind, "offset_bins": 6} | ({"function": "radial_profile"} if kind == "parametric" else {})
    given = {"model": model, "energy": {"min": "0.3 TeV", "nbins_per_decade": 8}, "run_effects": {"type": "none"}}
    with caplog.at_level(logging.INFO):
        maker = AcceptanceBackgroundMaker(given).fit(zenith_runs(), n_jobs=1)
    said = [r.getMessage() for r in caplog.records if "zenith " in r.getMessage() and r.levelno == logging.INFO]
    assert len(said) == 1 and f"interpolated, {maker.model.plan.n_groups} bins" in said[0]
    assert maker.model.rate_model.describe_zenith() in said[0]
    assert maker.model.rate_model.describe_zenith() in str(maker.model)
    assert isinstance(maker.model.rate_model, ZenithInterpolated) and maker.model.plan.n_groups > 2
    pooled = AcceptanceBackgroundMaker(given | {"zenith": {"type": "none"}}).fit(zenith_runs(), n_jobs=1)
    follows, not_followed = (np.array(m.run_table["EXPECTED"] / m.run_table["COUNTS"]) - 1 for m in (maker, pooled))
    assert np.std(follows) < 0.03 < 0.1 < np.std(not_followed)


def test_runs_that_are_alike_are_one_bin(caplog):
    """Also on both sides of an edge of the cells, where half of the counts each would make two noisy models."""
    runs = [
        simulate(tracking(100, h), 400, obs_id=k + 1, seed=k) for k, h in enumerate([53, 53.1, 53.2, 53.3, 52, 52.5])
    ]
    with caplog.at_level(logging.INFO):
        model = fit_acceptance(runs, {"model": {"type": "radial"}}, n_jobs=1)
    assert model.plan.n_groups == 1 and "one bin" in str(model)
    assert [r.levelname for r in caplog.records if "zenith" in r.getMessage()] == ["INFO"]
    # so it is what no bins give, but for the threshold that moves within the bin
    plain = fit_acceptance(runs, {"model": {"type": "radial"}, "zenith": {"type": "none"}}, n_jobs=1)
    lon, middle = np.linspace(-2, 2, 9), model.rate_model.cos_zenith[0]
    here, there = (m.rate_model.integral_grid(EDGES, lon, 0 * lon, middle) for m in (model, plain))
    assert np.allclose(here.sum(0), there.sum(0), rtol=0.02) and np.allclose(here[:5], there[:5], rtol=0.05)


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_runs_need_no_options(number):
    model = fit_acceptance(zenith_runs()[:number], {"model": {"type": "radial"}}, n_jobs=1)
    assert model.plan.n_groups == 1
    assert np.all(np.isfinite(model.run_table["EXPECTED"])) and "one bin" in str(model)


def test_a_plan_of_other_observations_or_options():
    runs = zenith_runs()[:4]
    plan = plan_groups(runs, config("log"), n_jobs=1)
    with pytest.raises(InputError, match="plan.*other observations.*100001"):
        fit_acceptance(runs[1:], config("log"), n_jobs=1, plan=plan)
    with pytest.raises(InputError, match="plan.*made for"):
        fit_acceptance(runs, config("binned"), n_jobs=1, plan=plan)
    with pytest.raises(InputError, match="plan.*made for"):
        fit_acceptance(runs, config("none"), n_jobs=1, plan=plan)
    with pytest.raises(InputError, match="counts or times differ"):
        counts = plan.counts.copy()
        counts[0] += 1
        fit_acceptance(runs, config("log"), n_jobs=1, plan=replace(plan, counts=counts))
    with pytest.raises(InputError, match="observations: got none"):
        plan_groups([], config("log"))


def test_bins_of_zenith_need_a_location():
    lost = [make_observation(tracking(100, 60), location=None)]
    with pytest.raises(InputError, match="observatory_location"):
        fit_acceptance(lost, config("log", fov_alignment="radec"), n_jobs=1)
