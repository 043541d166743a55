"""Runs of any instrument: sites, times and headers as they are met, each used rightly or named with what to do."""

import copy
import logging

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import EarthLocation
from astropy.table import MaskedColumn, Table, vstack
from astropy.time import Time
from gammapy.data import EventList, ObservationMetaData
from gammapy.maps import Map, MapAxis, WcsGeom
from helpers import HESS, START, drifting, make_observation, simulate, tracking

from gammapy_accmaker import (
    AcceptanceBackgroundMaker,
    cross_validate,
    fit_acceptance,
    match_observations,
    plan_groups,
)
from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.counts import reduce_observation
from gammapy_accmaker.data.notes import find_reach
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.validation.report import write_report

SITE_1DC = {"lon": "-70.3 deg", "lat": "-24.7 deg", "height": "2150 m"}
WRONG = EarthLocation.from_geodetic(-163 * u.deg, 23 * u.deg, 1835 * u.m)  # the other side of the Earth
LA_PALMA = EarthLocation.from_geodetic(-17.89 * u.deg, 28.76 * u.deg, 2200 * u.m)
NAN = EarthLocation.from_geocentric(*3 * [np.nan] * u.m)
NOWHERE = EarthLocation.from_geodetic(0 * u.deg, 0 * u.deg, 0 * u.m)
SITE = {"lon": "16.500222 deg", "lat": "-23.271778 deg", "height": "1835 m"}
BINS = CountsBins([0.1, 1, 10, 100], FovBins.grid(2.0, 8))
SCORE = {"offset_max": 1.8 * u.deg, "energy_edges": [0.2, 1, 5, 20] * u.TeV, "band_edges": [0.3, 1, 10] * u.TeV}


def run(number, **options):
    return simulate(tracking(20 + 3 * number, 60 + number), 4000, seed=100 + number, obs_id=number, **options)


def runs(n=4, **options):
    return [run(k + 1, **options) for k in range(n)]


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")]


def config(kind="radial", **options):
    """Small and fast."""
    few = {"energy": {"min": "0.2 TeV", "max": "20 TeV", "nbins_per_decade": 5}, "offset_max": "2 deg"}
    zenith = {} if kind == "spline" else {"zenith": {"type": "interpolated", "min_observations": 1}}
    return {"model": {"type": kind}, "run_effects": {"type": "norm"}} | few | zenith | options


@pytest.mark.parametrize("kind", ["radial", "grid", "spline"])
@pytest.mark.parametrize("site", [WRONG, NOWHERE, NAN, None], ids=["below the horizon", "0, 0, 0", "NaN", "none"])
def test_a_run_from_nowhere_is_left_out_by_name(kind, site, caplog):
    observations = [*runs(), run(5, location=site)]
    with caplog.at_level(logging.WARNING, "gammapy_accmaker"):
        model = fit_acceptance(observations, config(kind))
    left_out = model.run_table[~model.run_table["USED"]]
    assert list(left_out["OBS_ID"]) == [5] and "observatory_location" in left_out["FLAG"][0]
    assert sum("observatory_location" in text for text in messages(caplog)) == 1
    assert np.all(model.run_table["ZENITH"][model.run_table["USED"]] < 90)
    maker = AcceptanceBackgroundMaker(model=model)
    with pytest.raises(ObservationError, match="observation 5.*observatory_location"):
        maker.make_irf(observations[-1])


def test_it_is_left_out_of_plan_matching_and_scores(caplog):
    observations = [*runs(), run(5, location=WRONG)]
    assert 5 not in plan_groups(observations, config()).obs_id
    matches = match_observations(observations, observations)
    assert 5 not in matches["OFF_OBS_ID"] and "horizon" in matches.meta["LEFT_OUT"][5]
    result = cross_validate(observations, {"a": config()}, n_folds=2, n_jobs=1, **SCORE)
    assert list(result.scores["OBS_ID"]) == [1, 2, 3, 4]


def test_it_is_named_in_the_report(tmp_path, empty_pictures):
    observations = [*runs(), run(5, location=WRONG)]
    maker = AcceptanceBackgroundMaker(config()).fit(observations)
    write_report(maker, observations, tmp_path / "report.html", n_jobs=1)
    assert "below the horizon" in (tmp_path / "report.html").read_text()


def test_a_fit_of_nothing_else_says_what_to_do():
    with pytest.raises(InputError, match="observatory_location"):
        fit_acceptance(runs(location=WRONG), config())


@pytest.mark.parametrize("site", [WRONG, NOWHERE, None], ids=["wrong", "0, 0, 0", "none"])
@pytest.mark.parametrize("kind", ["radial", "spline"])
def test_the_given_site_wins(kind, site, caplog):
    here = fit_acceptance(runs(), config(kind))
    caplog.clear()
    there = fit_acceptance(runs(location=site), config(kind, observatory_location=SITE))
    for name in ("ZENITH", "COUNTS", "EXPECTED", "NORM"):
        np.testing.assert_allclose(there.run_table[name], here.run_table[name], rtol=1e-6)
    moved = [text for text in messages(caplog) if "observatory_location" in text]
    assert [text.count("4 runs") for text in moved] == ([] if site is None else [1])


def test_a_given_site_that_is_wrong_is_named_as_such():
    elsewhere = {"lon": "-163 deg", "lat": "23 deg", "height": "0 m"}
    with pytest.raises(InputError, match="observatory_location.*correct it"):
        fit_acceptance(runs(), config(observatory_location=elsewhere))


@pytest.mark.parametrize("kind", ["radial", "grid", "spline"])
@pytest.mark.parametrize("site", [WRONG, None], ids=["wrong", "none"])
def test_radec_without_zenith_needs_no_site(kind, site):
    options = config(kind, fov_alignment="radec", zenith={"type": "none"})
    expected = fit_acceptance(runs(), options)
    model = fit_acceptance(runs(location=site), options)
    assert model.run_table["USED"].all() and np.isnan(model.run_table["ZENITH"]).all()
    np.testing.assert_allclose(model.run_table["EXPECTED"], expected.run_table["EXPECTED"])
    maker = AcceptanceBackgroundMaker(model=model)
    assert maker.make_irf(runs(location=site)[0]).data.sum() > 0


def test_a_header_without_a_site_at_all():
    """gammapy has then no metadata of the run, and its own property raises."""
    observations = runs()
    for one in observations:
        one._meta, one._location = None, None
    model = fit_acceptance(observations, config(observatory_location=SITE))
    assert model.run_table["USED"].all()
    np.testing.assert_allclose(model.run_table["EXPECTED"], fit_acceptance(runs(), config()).run_table["EXPECTED"])
    with pytest.raises(InputError, match="GEOLON"):
        fit_acceptance(observations, config())
    result = cross_validate(
        observations, {"a": config(observatory_location=SITE)}, n_folds=2, n_jobs=1, sky=True, **SCORE
    )
    assert len(result.scores) == 4


def with_times(observation, change):
    table = observation.events.table.copy()
    change(table)
    other = copy.copy(observation)
    other.events = EventList(table)
    return other


def test_a_masked_time_column_without_masked_entries():
    """As gammapy's event sampler makes it."""

    observation = run(1)
    # what its `vstack` with the events of no source does
    masked = copy.copy(observation)
    masked.events = EventList(vstack([Table(), observation.events.table]))
    masked.events.table.meta.update(observation.events.table.meta)
    assert masked.events.time.masked and not masked.events.time.mask.any()
    plain, ours = (reduce_observation(o, BINS) for o in (observation, masked))
    assert (plain.counts != ours.counts).nnz == 0 and plain.dropped == ours.dropped


@pytest.mark.parametrize("column", ["TIME", "RA", "ENERGY"])
def test_masked_entries_are_dropped_and_counted(column):
    def mask(table):
        if column == "TIME":
            table["TIME"][:7] = np.ma.masked
        else:
            values = table[column]
            table[column] = MaskedColumn(np.array(values), unit=values.unit, mask=np.arange(len(table)) < 7)

    observation = run(1)
    first = with_times(observation, lambda table: table.remove_rows(slice(7)))
    ours, expected = reduce_observation(with_times(observation, mask), BINS), reduce_observation(first, BINS)
    assert ours.dropped["not finite"] == 7
    assert (ours.counts != expected.counts).nnz == 0


def test_intervals_that_overlap_count_once(caplog):
    pointing = tracking(20, 60)
    intervals = [(0, 1000), (600, 1500), (700, 800), (1600, 1700)]
    table = simulate(pointing, 4000, intervals=[(0, 1500), (1600, 1700)]).events.table
    observation = make_observation(pointing, intervals, table, obs_id=1)
    reduced = reduce_observation(observation, BINS)
    assert reduced.ontime == pytest.approx(1600) and reduced.livetime == pytest.approx(0.94 * 1600)
    assert (
        reduced.counts.sum()
        == reduce_observation(make_observation(pointing, [(0, 1500), (1600, 1700)], table), BINS).counts.sum()
    )
    assert observation.observation_time_duration.to_value("s") == pytest.approx(2100)  # gammapy's, in its exposure
    fit_acceptance([observation, *runs(3)][:1] + [run(k) for k in (2, 3, 4)], config())
    (text,) = [text for text in messages(caplog) if "overlap" in text]
    assert "1 run (1)" in text and "500 s" in text


def test_events_outside_of_the_good_time_are_said_once(caplog):
    observations = []
    for k in (1, 2, 3, 4):
        whole = run(k)
        half = make_observation(whole.pointing, [(0, 850)], whole.events.table, obs_id=k)
        observations.append(half if k < 3 else whole)
    model = fit_acceptance(observations, config())
    (text,) = [text for text in messages(caplog) if "outside of the good time" in text]
    assert "2 runs (1, 2)" in text and "select_time" in text
    outside = sum(np.sum((o.events.time - START).to_value("s") > 850) for o in observations[:2])
    assert f"{outside} of 8000" in text
    assert sum(model.run_table["DROPPED"]) == outside
    # the remedy that is named
    caplog.clear()
    interval = Time([START, START + 850 * u.s])
    fit_acceptance([o.select_time(interval) for o in observations], config())
    assert not [text for text in messages(caplog) if "good time" in text]


def test_several_instruments_are_named(caplog):
    observations = runs()
    for k, one in enumerate(observations):
        one.events.table.meta |= {"TELESCOP": "HESS", "INSTRUME": "H.E.S.S. Phase I" if k else "H.E.S.S. Phase II"}
    fit_acceptance(observations, config())
    (text,) = [text for text in messages(caplog) if "instruments" in text]
    assert "Phase II (1 runs)" in text and "Phase I (3 runs)" in text and "each alone" in text


def test_several_sites_are_named(caplog):
    near = EarthLocation.from_geodetic(20 * u.deg, -25 * u.deg, 1000 * u.m)
    fit_acceptance([*runs(3), run(4, location=near)], config())
    (text,) = [text for text in messages(caplog) if "sites" in text]
    assert "2 sites" in text
    caplog.clear()
    fit_acceptance([*runs(3), run(4, location=near)], config(observatory_location=SITE))
    assert not [text for text in messages(caplog) if "sites" in text]


def test_a_smaller_field_of_view_gets_a_hint(caplog):
    observations = runs(3, radius=2.5) + [run(4, radius=1.5)]
    fit_acceptance(observations, config())
    (text,) = [text for text in messages(caplog) if "no events beyond" in text]
    assert "1 run (4)" in text and "1.50 deg" in text and "offset_max" in text


def test_reach():
    rng = np.random.default_rng(0)
    uniform = np.sqrt(rng.uniform(0, 1, 3000))
    assert find_reach(1.5 * uniform, 2.5) == pytest.approx(1.5, abs=0.01)
    assert find_reach(2.5 * uniform, 2.5) == np.inf
    assert find_reach(1.5 * uniform[:20], 2.5) == np.inf  # too few to tell
    # a rate that falls steeply comes to no end
    falling = [find_reach(0.6 * np.sqrt(-2 * np.log(rng.uniform(0, 1, 3000))), 2.5) for _ in range(500)]
    assert np.isfinite(falling).sum() == 0
    assert find_reach(np.zeros(0), 2.5) == np.inf


def other(**changes):
    """A run with other attributes."""
    observation = run(9)
    for name, value in changes.items():
        setattr(observation, name, value)
    return observation


def with_table(change):
    return with_times(run(9), change)


def set_energy(table):
    table["ENERGY"] = table["ENERGY"].quantity.to("GeV").astype(">f4")


UNUSABLE = {
    "no events": (lambda: with_table(lambda table: table.remove_rows(slice(None))), "none of its 0 events"),
    "no event list": (lambda: other(_events=None), "no event list"),
    "no pointing": (lambda: other(_pointing=None), "RA_PNT"),
    "no GTI": (lambda: other(_gti=None), "good time intervals"),
    "NaN positions": (lambda: with_table(lambda table: table["RA"].fill(np.nan)), "NaN"),
    "a drift without site": (
        lambda: simulate(drifting(100, 60), 4000, obs_id=9, location=None),
        "observatory_location",
    ),
}
UNUSUAL = {
    "GeV, 4 bytes": lambda: with_table(set_energy),
    "UTC": lambda: with_table(lambda table: table.replace_column("TIME", table["TIME"].utc)),
    "no keywords": lambda: with_table(lambda table: table.meta.clear()),
    "no livetime": lambda: other(_meta=ObservationMetaData(deadtime_fraction=1.0, location=HESS)),
    "10 s": lambda: simulate(tracking(20, 60), 30, intervals=[(0, 10)], obs_id=9, seed=200),
    "8 h over the meridian": lambda: simulate(tracking(60, 50), 40000, intervals=[(0, 28800)], obs_id=9, seed=201),
    "the zenith": lambda: simulate(tracking(0, 89.99, after=800), 4000, obs_id=9, seed=202),
    "the north": lambda: simulate(tracking(180, 70, location=LA_PALMA), 4000, location=LA_PALMA, obs_id=9, seed=203),
    # its events go through the whole field: none beyond the model
    "a drift": lambda: simulate(drifting(100, 60), 2000, radius=2.0, obs_id=9, seed=204),
}


@pytest.mark.parametrize("kind", ["radial", "spline"])
@pytest.mark.parametrize("what", UNUSABLE)
def test_an_unusable_run_costs_itself_alone(kind, what):
    make, word = UNUSABLE[what]
    model = fit_acceptance([*runs(), make()], config(kind))
    left_out = model.run_table[~model.run_table["USED"]]
    assert list(left_out["OBS_ID"]) == [9] and word in left_out["FLAG"][0]
    with pytest.raises(ObservationError, match="observation 9"):
        AcceptanceBackgroundMaker(model=model).make_irf(make())


@pytest.mark.parametrize("kind", ["radial", "spline"])
@pytest.mark.parametrize("what", UNUSUAL)
def test_an_unusual_run_is_used(kind, what):
    observation = UNUSUAL[what]()
    maker = AcceptanceBackgroundMaker(config(kind)).fit([*runs(), observation])
    row = maker.run_table[maker.run_table["OBS_ID"] == 9][0]
    assert row["USED"] and row["EXPECTED"] == pytest.approx(row["COUNTS"], rel=0.03)
    pointing = observation.get_pointing_icrs(observation.tmid)
    geom = WcsGeom.create(skydir=pointing, width=2, axes=[MapAxis.from_energy_bounds("0.5 TeV", "5 TeV", 2)], binsz=0.1)
    expected, counts = maker.make_background(geom, observation).data.sum(), Map.from_geom(geom)
    counts.fill_events(observation.events)
    assert expected == pytest.approx(counts.data.sum(), abs=4 * np.sqrt(max(expected, 1)))
    assert np.all(np.isfinite(maker.make_irf(observation).data))
