"""OFF runs that are matched to ON runs, and a model for each ON run from its matches."""

import logging
import pickle

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.maps import Map
from stores import IRFS, altered, full_store, observations, options, sky_geom, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel, match_observations
from gammapy_accmaker.acceptance.fit import fit_acceptance
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.simulation.store import simulate_data_store


def table(obs_id, zenith, azimuth=0.0, day=0.0, muon=0.8, tellist="1,2,3,4", **more):
    n = len(obs_id)
    columns = {
        "OBS_ID": obs_id,
        "ZEN_PNT": zenith,
        "AZ_PNT": azimuth,
        "MUONEFF": muon,
        "TELLIST": tellist,
        "ONTIME": 1800.0,
    }
    columns = {name: np.broadcast_to(value, n).copy() for name, value in (columns | more).items()}
    out = Table(columns, meta={"MJDREFI": 59000, "MJDREFF": 0.0})
    out["TSTART"] = np.broadcast_to(day, n) * 86400.0 * u.s
    return out


ON = table([1, 2], [20.0, 50.0], [350.0, 90.0])
OFF = table([11, 12, 13, 14], [20.0, 22.0, 47.0, 60.0], [10.0, 340.0, 90.0, 90.0], [3.0, 1.0, 5.0, 0.0])


def pairs(matches):
    return {int(k): [int(i) for i in matches["OFF_OBS_ID"][matches["ON_OBS_ID"] == k]] for k in matches["ON_OBS_ID"]}


def test_the_nearest_in_cos_zenith_come_first():
    matches = match_observations(ON, OFF)
    assert pairs(matches) == {1: [11, 12, 13, 14], 2: [13, 14, 12, 11]}
    assert list(matches["RANK"][:4]) == [1, 2, 3, 4]
    assert np.allclose(matches["DELTA_COS_ZENITH"][1], np.cos(np.radians(20)) - np.cos(np.radians(22)))
    assert np.allclose(matches["SUM_HOURS"][:4], [0.5, 1, 1.5, 2]) and matches["HOURS"].unit == "h"
    assert "number 1 of 4" in matches["REASON"][0] and matches.meta["LEFT_OUT"] == {}
    # inputs are as they were
    assert ON.colnames == table([1], [2]).colnames and len(OFF) == 4


def test_criteria_limits_and_weights():
    matches = match_observations(ON[:1], OFF, limits={"zenith": 5 * u.deg, "azimuth": 15}, weights={"cos_zenith": 1})
    assert pairs(matches) == {1: [12]}  # 350 to 340 deg, not to 10 deg
    assert matches["DELTA_AZIMUTH"][0] == pytest.approx(10) and matches["DELTA_AZIMUTH"].unit == "deg"
    assert matches["DELTA_ZENITH"][0] == pytest.approx(2)
    assert pairs(match_observations(ON, OFF, weights={"time": 1}, n_runs=1)) == {1: [14], 2: [14]}
    # distance: weighted mean square of the differences in units of limit or scale
    matches = match_observations(ON[:1], OFF, limits={"zenith": 4, "time": 30}, weights={"zenith": 3, "time": 1})
    assert pairs(matches) == {1: [11, 12]}
    assert np.allclose(matches["DISTANCE"], np.sqrt([(3 / 30) ** 2 / 4, (3 * (2 / 4) ** 2 + (1 / 30) ** 2) / 4]))
    # azimuth matters little near the zenith
    overhead = match_observations(table([1], [1.0], [0.0]), table([5], [1.0], [180.0]), weights="nearest")
    assert overhead["DELTA_POINTING"][0] == pytest.approx(2)
    assert overhead["DELTA_TIME"].unit == "d"


def test_any_column_and_equal_columns():
    on, off = table([1], [20.0], NSB=3.0), table([11, 12], [20.0, 20.0], NSB=[2.0, 2.5], muon=[0.8, 0.72])
    off["NSB"].unit = "GHz"
    assert pairs(match_observations(on, off, weights={"NSB": 1})) == {1: [12, 11]}
    matches = match_observations(on, off, limits={"NSB": 600 * u.MHz})
    assert pairs(matches) == {1: [12]} and matches["DELTA_NSB"].unit == "GHz"
    matches = match_observations(on, off, limits={"muon_efficiency": 0.05})
    assert pairs(matches) == {1: [11]} and matches["DELTA_MUON_EFFICIENCY"][0] == 0
    off["TELLIST"] = ["1,2,3", "1,2,3,4"]
    assert pairs(match_observations(on, off, same="TELLIST")) == {1: [12]}
    with pytest.raises(InputError, match="TELLIST = 1,2,3,4"):
        match_observations(on, off[:1], same=("TELLIST",))


def test_hours_and_numbers():
    matches = match_observations(ON, OFF, hours=0.8)
    assert pairs(matches) == {1: [11, 12], 2: [13, 14]}
    assert "1.00 of 0.80 h" in matches["REASON"][1]
    assert pairs(match_observations(ON, OFF, hours=60 * u.min, n_runs=1)) == {1: [11], 2: [13]}
    assert len(match_observations(ON, OFF, hours=1.0)) == 4
    matches = match_observations(ON[:1], OFF, hours=10)
    assert len(matches) == 4 and matches["REASON"][-1].endswith("2.00 of 10.00 h (no more runs)")


def test_hours_that_are_met_but_for_rounding_are_met():
    third = table([11, 12, 13, 14], [20.0, 21.0, 22.0, 23.0], ONTIME=360.0)  # 0.1 h, and 3 * 0.1 > 0.3
    matches = match_observations(ON[:1], third, hours=0.3)
    assert pairs(matches) == {1: [11, 12, 13]} and matches["REASON"][-1].endswith("for 0.30 of 0.30 h")
    less = np.nextafter(0.1, 0) * 3600
    matches = match_observations(ON[:1], table([11, 12], [20.0, 21.0], ONTIME=less), hours=0.1)
    assert pairs(matches) == {1: [11]} and "of 0.10 h" in matches["REASON"][0]
    assert "(n_runs reached)" in match_observations(ON[:1], third, hours=0.3, n_runs=2)["REASON"][-1]


def test_units_of_a_table_are_heeded():
    other = OFF.copy()
    other["ONTIME"], other["TSTART"] = other["ONTIME"] / 3600 * u.h, other["TSTART"].quantity.to("d")
    other["ZEN_PNT"], other["AZ_PNT"] = np.radians(OFF["ZEN_PNT"]) * u.rad, np.radians(OFF["AZ_PNT"]) * u.rad
    one, two = (match_observations(ON, off, weights="nearest", hours=0.8) for off in (OFF, other))
    assert pairs(one) == pairs(two)
    for name in ("HOURS", "SUM_HOURS", "DELTA_TIME", "DELTA_POINTING", "DISTANCE"):
        assert np.allclose(one[name], two[name], rtol=1e-6), name
    # a table needs the columns of what is asked for
    on, off = ON.copy(), OFF.copy()
    on.remove_columns(["ZEN_PNT", "AZ_PNT"]), off.remove_columns(["ZEN_PNT", "AZ_PNT"])
    assert pairs(match_observations(on, off, weights={"time": 1}, n_runs=1)) == {1: [14], 2: [14]}
    with pytest.raises(InputError, match="'ZEN_PNT or ALT_PNT'"):
        match_observations(on, off, weights={"cos_zenith": 1})
    # times are those of the middle of a run
    longer = match_observations(ON[:1], table([11], [20.0], day=0.5, ONTIME=7200.0), weights={"time": 1})
    assert longer["DELTA_TIME"][0] == pytest.approx(0.5 + (7200 - 1800) / 2 / 86400)


def test_differences_of_pointing_and_azimuth_are_angles_on_the_sky():
    zenith, azimuth = np.array([10.0, 35.0, 60.0, 50.0]), np.array([20.0, 170.0, 351.0, 181.0])
    matches = match_observations(
        table([1], [50.0], [350.0]), table([11, 12, 13, 14], zenith, azimuth), weights={"pointing": 1, "azimuth": 1e-9}
    )
    matches.sort("OFF_OBS_ID")
    here = SkyCoord(350.0, 40.0, unit="deg")
    assert np.allclose(matches["DELTA_POINTING"], here.separation(SkyCoord(azimuth, 90 - zenith, unit="deg")).deg)
    assert np.allclose(matches["DELTA_AZIMUTH"], [30, 180, 1, 169])


def test_a_run_is_never_matched_with_itself():
    both = table([1, 2, 3], [20.0, 21.0, 40.0])
    assert pairs(match_observations(both, both, n_runs=1)) == {1: [2], 2: [1], 3: [2]}
    with pytest.raises(InputError, match="but itself"):
        match_observations(both[:1], both[:1])


def test_limits_that_no_run_meets(caplog):
    with pytest.raises(InputError, match="zenith <= 1 deg: the nearest OFF run differs by 3 deg"):
        match_observations(ON[1:], OFF, limits={"zenith": 1})
    with caplog.at_level(logging.WARNING):
        matches = match_observations(ON, OFF, limits={"zenith": 1 * u.deg})
    assert pairs(matches) == {1: [11]}
    assert list(matches.meta["LEFT_OUT"]) == [2] and "differs by 3 deg" in matches.meta["LEFT_OUT"][2]
    assert len(caplog.records) == 1 and "differs by 3 deg" in caplog.text
    # each limit is met by a run, both by none
    with pytest.raises(InputError, match=r"meets all limits; .*differs by 20 deg in azimuth, whose limit is 15 deg"):
        match_observations(ON[:1], OFF[[0, 1]], limits={"zenith": 1, "azimuth": 15})


def test_the_order_of_the_runs_does_not_matter():
    rng = np.random.default_rng(1)
    off = table(np.arange(100, 130), rng.uniform(0, 60, 30), rng.uniform(0, 360, 30), rng.uniform(0, 99, 30))
    one = match_observations(ON, off, weights="conditions", hours=4)
    two = match_observations(ON, off[rng.permutation(30)], weights="conditions", hours=4)
    assert pairs(one) == pairs(two) and np.allclose(one["DISTANCE"], two["DISTANCE"])


@pytest.mark.parametrize(
    "given, match",
    [
        ({"limits": {"NSB": 1}}, "no column 'NSB'"),
        ({"same": ("NSB",)}, "no column 'NSB'"),
        ({"weights": {"TELLIST": 1}}, "numbers are needed"),
        ({"weights": {"zenith": -1}}, "weights"),
        ({"weights": {}}, "weights"),
        ({"weights": "best"}, "conditions"),
        ({"limits": {"zenith": -1}}, "limit is >= 0"),
        ({"limits": {"zenith": 1 * u.s}}, "limits"),
        ({"hours": 0}, "hours"),
        ({"hours": 3 * u.m}, "hours"),
        ({"n_runs": 0}, "n_runs"),
    ],
)
def test_bad_input(given, match):
    with pytest.raises(InputError, match=match):
        match_observations(ON, OFF, **given)


def test_no_runs():
    with pytest.raises(InputError, match="off: got no observations"):
        match_observations(ON, OFF[:0])
    with pytest.raises(InputError, match="on: got no observations"):
        match_observations([], OFF)


@pytest.fixture(scope="module")
def on_runs(store):
    return observations(store, store.on_obs_ids)


@pytest.fixture(scope="module")
def off_runs(store):
    return observations(store, store.off_obs_ids)


def test_observations_and_their_table_agree(store, on_runs, off_runs):
    settings = {"weights": "conditions", "limits": {"time": 900}, "same": ("TELLIST", "N_TELS")}
    index = store.data_store.obs_table
    on_ids, off_ids = (np.isin(index["OBS_ID"], ids) for ids in (store.on_obs_ids, store.off_obs_ids))
    one = match_observations(on_runs, off_runs, **settings)
    two = match_observations(index[on_ids], index[off_ids], **settings)
    assert pairs(one) == pairs(two)
    assert np.allclose(one["DELTA_COS_ZENITH"], two["DELTA_COS_ZENITH"], atol=0.01)
    assert np.allclose(one["DELTA_TIME"], two["DELTA_TIME"], atol=0.02)
    assert np.allclose(one["HOURS"], 28 / 60, rtol=1e-9)


def test_an_unknown_keyword_of_an_event_header(on_runs, off_runs):
    with pytest.raises(InputError, match="no 'NSB'"):
        match_observations(on_runs, off_runs, weights={"NSB": 1})


MATCHING = {"limits": {"zenith": "15 deg"}, "n_runs": 2}


@pytest.fixture(scope="module")
def maker(store, on_runs, off_runs):
    config = options("radial", matching=MATCHING)
    return AcceptanceBackgroundMaker(config, exclusion=source_region(store)).fit(on_runs, off_observations=off_runs)


def test_each_on_run_has_the_model_of_its_matches(store, maker, on_runs, off_runs):
    model, found = maker.model, pairs(maker.model.matches)
    assert set(found) == set(store.on_obs_ids) and all(len(off) == 2 for off in found.values())
    sets = {frozenset(off) for off in found.values()}
    assert 1 < len(model.rate_model.models) == len(sets) < 4  # equal matches share a fit
    bins = np.geomspace(0.3, 10, 4), np.linspace(0, 2, 9), np.zeros(8)
    for observation in on_runs:
        taken = [o for o in off_runs if o.obs_id in found[observation.obs_id]]
        alone = fit_acceptance(taken, options("radial"), exclusion=source_region(store)).rate_model
        mine = model.rate_model.for_run(Reduction.of(maker.config).recognise(observation))
        assert np.array_equal(mine.integral_grid(*bins[:2], np.zeros(9)), alone.integral_grid(*bins[:2], np.zeros(9)))


def total_ratio(store, model, observation):
    """Counts that a model expects in a run within 2 deg and 0.3 to 10 TeV, over the truth."""
    edges, x = np.array([0.3, 0.6, 1, 3, 10]), np.linspace(-2, 2, 41)
    center = 0.5 * (x[1:] + x[:-1])
    lon, lat = (a.ravel() for a in np.meshgrid(center, center, indexing="ij"))
    inside = np.hypot(lon, lat) < 2
    rate = model.integral_grid(edges, lon, lat).sum(0)[inside].sum() * np.radians(0.1) ** 2
    truth = store.expected_counts(observation.obs_id, edges, x, x).sum(0).ravel()[inside].sum()
    return rate * observation.observation_time_duration.to_value("s") / truth


def test_background_of_an_on_run_from_its_matches(tmp_path):
    """The rate follows the zenith angle: a binned model of the matched runs does, one of all OFF runs does not."""
    store = simulate_data_store(
        tmp_path / "dl3", n_wobble=3, n_off=5, ontime=12 * u.min, norm_scatter=0, shift_scatter=0, source=False
    )
    on, off = (observations(store, ids) for ids in (store.on_obs_ids, store.off_obs_ids))
    maker = AcceptanceBackgroundMaker(options("radial", "none", matching={"limits": {"cos_zenith": 0.06}, "n_runs": 2}))
    maker.fit(on, off_observations=off)
    together = AcceptanceBackgroundMaker(options("radial", "none")).fit(on, off_observations=off)
    used = [o for o in on if o.obs_id in maker.model.matches["ON_OBS_ID"]]
    assert len(used) >= 2
    errors = np.abs([[total_ratio(store, m.adapt(o), o) - 1 for o in used] for m in (maker, together)])
    assert errors[0].max() < 0.1 < errors[1].max()
    geom = sky_geom(used[0].get_pointing_icrs(used[0].tmid), edges=(0.3, 1, 10), width=3.5)
    assert isinstance(maker.make_background(geom, used[0]), Map)


def test_the_run_table_and_the_file(store, maker, on_runs, tmp_path):
    runs = maker.run_table
    assert list(runs["OBS_ID"][runs["ROLE"] == "apply"]) == list(store.on_obs_ids)
    unused = runs[(runs["ROLE"] == "fit") & ~runs["USED"]]
    taken = set(maker.model.matches["OFF_OBS_ID"])
    assert set(unused["OBS_ID"]) == set(store.off_obs_ids) - taken
    assert all(flag == "no ON run takes it" for flag in unused["FLAG"])
    maker.model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert again.matches.colnames == maker.model.matches.colnames
    for name in again.matches.colnames:
        assert np.array_equal(again.matches[name], maker.model.matches[name])
    assert again.matches["HOURS"].unit == "h"
    for observation in on_runs:
        key = Reduction.of(maker.config).recognise(observation)
        here, there = (m.rate_model.for_run(key).profile for m in (maker.model, again))
        assert np.array_equal(here, there)
    x = np.linspace(0, 2, 5) * u.deg
    assert np.array_equal(again.rate(1 * u.TeV, x, 0 * u.deg), maker.model.rate(1 * u.TeV, x, 0 * u.deg))
    assert len(pickle.dumps(maker)) < 20e6 and "4 used" in str(again) or "used" in str(again)


def test_a_run_without_matches_is_left_out_and_named(store, on_runs, off_runs, caplog):
    limits = {"zenith": "6 deg"}
    maker = AcceptanceBackgroundMaker(options("radial", matching={"limits": limits}), exclusion=source_region(store))
    with caplog.at_level(logging.WARNING):
        maker.fit(on_runs, off_observations=off_runs[1:3])
    left_out = maker.run_table[(maker.run_table["ROLE"] == "apply") & ~maker.run_table["USED"]]
    assert 0 < len(left_out) < 4 and all("nearest OFF run differs by" in flag for flag in left_out["FLAG"])
    obs_id = int(left_out["OBS_ID"][0])
    assert str(obs_id) in caplog.text
    (observation,) = observations(store, [obs_id])
    with pytest.raises(ObservationError, match="no model was made for it"):
        maker.adapt(observation)


def test_an_unusable_off_run_is_left_out(store, on_runs, off_runs, caplog):
    table = match_observations(on_runs, off_runs, n_runs=2)
    first = int(table["OFF_OBS_ID"][0])
    broken = [altered(o, keep=slice(0, 0)) if o.obs_id == first else o for o in off_runs]
    maker = AcceptanceBackgroundMaker(options("radial"), exclusion=source_region(store))
    with caplog.at_level(logging.WARNING):
        maker.fit(on_runs, off_observations=broken, matches=table)
    row = maker.run_table[maker.run_table["OBS_ID"] == first][0]
    assert not row["USED"] and str(first) in caplog.text
    assert first not in maker.model.matches["OFF_OBS_ID"]
    assert set(maker.model.matches["ON_OBS_ID"]) == set(store.on_obs_ids)


def test_what_the_maker_refuses(on_runs, off_runs):
    maker = AcceptanceBackgroundMaker(options("radial", matching={}))
    with pytest.raises(InputError, match="off_observations"):
        maker.fit(on_runs)
    with pytest.raises(InputError, match="off_observations: got none"):
        AcceptanceBackgroundMaker(options("radial")).fit(on_runs, off_observations=[])
    with pytest.raises(InputError, match="limit zenith <= 1e-09 deg"):
        AcceptanceBackgroundMaker(options("radial", matching={"limits": {"zenith": 1e-9}})).fit(on_runs, off_runs)
    with pytest.raises(InputError, match="ON and OFF"):
        fit_acceptance(on_runs, options("radial", matching={}))
    with pytest.raises(InputError, match="OFF_OBS_ID"):
        AcceptanceBackgroundMaker(options("radial")).fit(on_runs, off_runs, matches=Table({"ON_OBS_ID": [1]}))
    for bad in ({"weights": "best"}, {"hours": "x"}, {"n_runs": 0}, {"limits": {"zenith": [1, 2]}}, {"nights": 3}):
        with pytest.raises(InputError, match="matching"):
            AcceptanceConfig.coerce(options("radial", matching=bad))


def test_options_round_trip():
    given = {"limits": {"zenith": "5 deg", "NSB": 0.3}, "weights": "nearest", "hours": "10 h", "same": ["TELLIST"]}
    config = AcceptanceConfig.coerce(options("radial", matching=given))
    assert config.matching.limits["zenith"] == 5 * u.deg and config.matching.limits["NSB"] == 0.3
    assert AcceptanceConfig.from_yaml(config.to_yaml()).to_yaml() == config.to_yaml()


@pytest.mark.gammapy_data
def test_matches_and_models_on_dr1():
    """Crab runs and OFF runs of DR1 at 45 to 55 deg."""
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    index = store.obs_table
    on = index[np.isin(index["OBS_ID"], [23523, 23526])]
    off = index[(index["TARGET_NAME"] == "Off data")]
    settings = {"limits": {"zenith": 5 * u.deg, "muon_efficiency": 0.2}, "same": ("TELLIST",)}
    matches = match_observations(on, off, hours=1.2, **settings)
    assert set(matches["ON_OBS_ID"]) == {23523, 23526}
    assert np.all(matches["DELTA_ZENITH"] <= 5) and np.all(matches["DELTA_MUON_EFFICIENCY"] <= 0.2)
    for obs_id in (23523, 23526):
        hours = matches["HOURS"][matches["ON_OBS_ID"] == obs_id]
        assert hours.sum() >= 1.2 > hours.sum() - hours[-1]
    runs = [list(store.get_observations(np.unique(matches[c]), required_irf=IRFS)) for c in ("ON_OBS_ID", "OFF_OBS_ID")]
    config = options("radial", energy={"min": "0.5 TeV", "max": "20 TeV"})
    crab = source_region(full_store()).__class__(runs[0][0].target_radec, 0.4 * u.deg)
    maker = AcceptanceBackgroundMaker(config, exclusion=crab).fit(runs[0], off_observations=runs[1], matches=matches)
    applied = maker.run_table[maker.run_table["ROLE"] == "apply"]
    assert np.all(np.abs(applied["NORM"] - 1) < 0.35)
    again = match_observations(*runs, hours=1.2, **settings)
    assert np.allclose(again["DELTA_ZENITH"][0], matches["DELTA_ZENITH"][0], atol=1.5)
