"""Runs are told apart by their place in the list: numbers that repeat, are missing or are text change no answer."""

import logging

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import Table
from astropy.time import Time
from gammapy.data import EventList, FixedPointingInfo, Observation, Observations
from gammapy.datasets import MapDataset
from gammapy.makers import DatasetsMaker, MapDatasetMaker
from helpers import HESS, event_table, random_in_cap, tracking
from stores import altered, full_store, observations, options, plain_store, sky_geom, source_region

from gammapy_accmaker import (
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    attach_background,
    cross_validate,
    fit_acceptance,
    match_observations,
    plan_groups,
)
from gammapy_accmaker.acceptance import reduction
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.models.pooled import ModelPerRun
from gammapy_accmaker.utils.run_key import RunKey, find_run, label_array, run_label, run_names
from gammapy_accmaker.validation.report import write_report
from gammapy_accmaker.validation.residuals import stack_residuals

SPLINE = {"energy": {"min": "0.3 TeV", "max": "10 TeV"}, "offset_max": "2 deg", "run_effects": {"type": "norm"}}
LABELS = {
    "the same number": [0] * 6,
    "none": [None] * 6,
    "text": ["crab-1", "crab-1", "texts []", "tuple", "node x", "Ωμέγα"],
    "some": [5, None, 5, "5", "west", 7],
}


def labelled(observations, labels):
    """Copies in memory with other labels."""
    out = [altered(o) for o in observations]
    for observation, label in zip(out, labels, strict=False):
        observation.obs_id = label
    return out


@pytest.fixture(scope="module")
def six():
    store = full_store()
    return observations(store, [*store.on_obs_ids[:3], *store.off_obs_ids[:3]])


@pytest.fixture(scope="module")
def distinct(six):
    """The model of the same runs with numbers of their own, by configuration."""
    models = {}

    def of(name, config):
        if name not in models:
            models[name] = fit_acceptance(labelled(six, range(1, 7)), config, exclusion=source_region(full_store()))
        return models[name]

    return of


def same_effects(here, there, order=slice(None)):
    for name in ("NORM", "NORM_ERR", "COUNTS", "EXPECTED", "ONTIME", "MJD", "START", "RA"):
        assert np.allclose(here.run_table[name][order], there.run_table[name], rtol=1e-10, atol=0), name


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
def test_numbers_do_not_change_the_effects(six, distinct, labels, tmp_path):
    expected = distinct("radial", options("radial"))
    model = fit_acceptance(labelled(six, labels), options("radial"), exclusion=source_region(full_store()))
    same_effects(expected, model)
    assert len(np.unique(np.round(model.run_table["NORM"], 6))) == 6
    ids = model.run_table["OBS_ID"]
    assert (
        list(ids) == [run_label(k) for k in labels]
        if ids.dtype.kind == "i"
        else list(ids) == list(label_array(run_label(k) for k in labels))
    )
    model.write(tmp_path / "model.fits")
    assert list(AcceptanceModel.read(tmp_path / "model.fits").run_table["OBS_ID"]) == list(ids)


def test_six_runs_of_one_number_have_six_norms_in_the_spline(six, distinct, tmp_path):
    expected = distinct("spline", SPLINE)
    order = [3, 0, 5, 1, 4, 2]
    some = labelled(six, LABELS["text"])
    for observation in some[3:]:
        observation.obs_id = 0
    model = fit_acceptance([some[k] for k in order], SPLINE, exclusion=source_region(full_store()), n_jobs=2)
    same_effects(expected, model, order)
    assert len(np.unique(np.round(model.run_table["NORM"], 6))) == 6
    x = np.linspace(0, 1.8, 4) * u.deg
    rates = [m.rate([0.5, 3] * u.TeV, x[:, None], 0 * u.deg, 0.95) for m in (expected, model)]
    assert u.allclose(*rates, rtol=1e-10)
    # each is recognised when it comes alone, here and from the file
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    for effect, other in zip(model.rate_model.spline.effects, again.rate_model.spline.effects, strict=True):
        assert effect.key == other.key and type(effect.obs_id) is type(other.obs_id)
    maker = AcceptanceBackgroundMaker(model=again)
    for place, k in enumerate(order):
        key = reduction.Reduction.of(maker.config).recognise(some[k])
        assert find_run(key, (e.key for e in again.rate_model.spline.effects)) == place
        assert maker.adapt(some[k]).effect.norm == pytest.approx(model.run_table["NORM"][place], rel=1e-3)


def test_pieces_of_a_run_are_runs(six):
    middle = [o.gti.time_start[0] + 0.5 * (o.gti.time_stop[-1] - o.gti.time_start[0]) for o in six[3:5]]
    pieces = []
    for observation, cut in zip(six[3:5], middle, strict=True):
        one = Observations([observation])
        pieces += [*one.select_time(Time([cut - 1 * u.d, cut])), *one.select_time(Time([cut, cut + 1 * u.d]))]
    table = fit_acceptance(pieces, options("radial")).run_table
    assert list(table["OBS_ID"]) == [o.obs_id for o in six[3:5] for _ in range(2)]
    whole = fit_acceptance(six[3:5], options("radial")).run_table
    for name in ("ONTIME", "COUNTS"):
        assert np.allclose(table[name].reshape(2, 2).sum(1), whole[name], rtol=2e-3), name
    assert len(set(table["NORM"])) == 4 and np.all(np.diff(table["START"])[::2] > 0)


def created(sizes):
    """Observations of gammapy's defaults: number 0, one start and one pointing."""
    rng, out = np.random.default_rng(5), []
    position = tracking(100, 60).fixed_icrs
    for size in sizes:
        start = Time("2020-05-01T22:00:00", scale="tt")
        observation = Observation.create(
            FixedPointingInfo(fixed_icrs=position), location=HESS, livetime=1700 * u.s, reference_time=start, irfs={}
        )
        seconds = np.sort(rng.uniform(0, 1700, size))
        center = SkyCoord(np.full(size, position.ra.deg), np.full(size, position.dec.deg), unit="deg")
        positions = random_in_cap(center, 2.5, size, rng)
        table = event_table(seconds, positions, 10 ** rng.uniform(-0.5, 1, size))
        table["TIME"] = start + seconds * u.s
        observation._events = EventList(table)
        out.append(observation)
    return out


def test_observations_as_create_makes_them():
    some = created([3000, 4000, 5000])
    assert {o.obs_id for o in some} == {0}
    config = {**options("radial"), "fov_alignment": "radec"}
    model = fit_acceptance(some, config)
    table = model.run_table
    assert np.allclose(table["NORM"] / table["NORM"][0], table["COUNTS"] / table["COUNTS"][0], rtol=1e-3)
    assert list(table["OBS_ID"]) == [0, 0, 0]
    # nothing tells them apart when they come alone: each is what its own events say
    maker = AcceptanceBackgroundMaker(model=model)
    assert [maker.adapt(o).norm for o in some] == pytest.approx(list(table["NORM"]))


def test_matched_observations_as_create_makes_them():
    some, config = created([3000, 4000, 5000, 6000]), {**options("radial"), "fov_alignment": "radec"}
    matches = match_observations(some[:2], some)  # ON runs are OFF runs too, but not their own
    assert list(zip(matches["ON_PLACE"], matches["OFF_PLACE"], strict=True)) == [
        (0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]  # fmt: skip
    maker = AcceptanceBackgroundMaker(config).fit(
        some[:2], off_observations=some[2:], matches=match_observations(some[:2], some[2:])
    )
    table = maker.run_table[maker.run_table["ROLE"] == "apply"]
    assert len(maker.model.rate_model.models) == 1
    assert [maker.adapt(o).norm for o in some[:2]] == pytest.approx(list(table["NORM"]))
    maker.fit(some[:2], off_observations=some, matches=matches)
    with pytest.raises(ObservationError, match="several runs with this number, start and pointing"):
        maker.adapt(some[0])


MATCHING = {"matching": {"limits": {"cos_zenith": 0.2}, "n_runs": 2}}


def test_matched_runs_of_one_number(six, tmp_path):
    on, off = six[:3], six[3:]
    config, region = options("radial", **MATCHING), source_region(full_store())
    models = []
    for ids in (range(1, 7), [0] * 6, [None] * 6):
        both = labelled(on + off, ids)
        maker = AcceptanceBackgroundMaker(config, exclusion=region).fit(both[:3], off_observations=both[3:])
        maker.model.write(tmp_path / "model.fits", overwrite=True)
        read = AcceptanceBackgroundMaker(model=AcceptanceModel.read(tmp_path / "model.fits"), exclusion=region)
        models.append(maker.model)
        for adapting in (maker, read):
            for place, observation in enumerate(both[:3]):
                norm = maker.run_table["NORM"][maker.run_table["ROLE"] == "apply"][place]
                assert adapting.adapt(observation).norm == pytest.approx(norm, rel=1e-12)
    for other in models[1:]:
        same_effects(models[0], other)
        for name in ("ON_PLACE", "OFF_PLACE", "RANK", "DISTANCE"):
            assert np.array_equal(models[0].matches[name], other.matches[name])
        assert np.array_equal(models[0].rate_model.which, other.rate_model.which)


def test_matches_that_name_no_single_run_are_refused(six):
    some = labelled(six, [0] * 6)
    matches = match_observations(some[:3], some[3:])
    assert list(matches["ON_PLACE"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    maker = AcceptanceBackgroundMaker(options("radial"))
    maker.fit(some[:3], off_observations=some[3:], matches=matches)
    matches.remove_columns(["ON_PLACE", "OFF_PLACE"])
    with pytest.raises(InputError, match="several ON runs have the number 0"):
        maker.fit(some[:3], off_observations=some[3:], matches=matches)


def test_a_run_is_not_matched_with_itself_by_number_start_and_pointing(six):
    some = labelled(six[:3], [0] * 3)
    matches = match_observations(some, some)
    assert np.all(matches["ON_PLACE"] != matches["OFF_PLACE"]) and len(matches) == 6
    table = full_store().data_store.obs_table
    table = Table(table[:3], copy=True)
    table["OBS_ID"] = ["a", "a", "a"]
    matches = match_observations(table, table)
    assert len(matches) == 6 and set(matches["ON_OBS_ID"]) == {"a"}


def test_cross_validation(six):
    scores = [
        cross_validate(labelled(six[2:], ids), {"radial": options("radial")}, n_folds=2, offset_max=1.5 * u.deg)
        for ids in (range(4), [None] * 4, ["a", "a", 0, 0])
    ]
    for other in scores[1:]:
        assert np.allclose(scores[0].scores["radial"], other.scores["radial"], rtol=1e-10)
    assert list(scores[2].scores["OBS_ID"]) == ["a", "a", "0", "0"]


def test_iterative_exclusion(six):
    search = {"exclusion": {"iterative": {"threshold": 6, "max_iterations": 2}}}
    here, there = (fit_acceptance(labelled(six, ids), options("radial", **search)) for ids in (range(6), [0] * 6))
    assert len(here.found) and np.allclose(here.found["RA"], there.found["RA"], rtol=1e-10)
    same_effects(here, there)


def test_stores_with_the_same_numbers_share_no_entry_of_the_cache(tmp_path, monkeypatch):
    """The two stores have runs of the same numbers."""
    read = []

    def counting(self, observation, reduce=reduction.Reduction.reduce):
        read.append(observation)
        return reduce(self, observation)

    monkeypatch.setattr(reduction.Reduction, "reduce", counting)
    config = AcceptanceConfig.coerce(options("radial"))
    reading = reduction.Reduction.of(config)
    found = []
    for _ in range(2):
        both = [observations(store, store.on_obs_ids[:2]) for store in (plain_store(), full_store())]
        assert [o.obs_id for o in both[0]] == [o.obs_id for o in both[1]]
        pieces = [
            piece
            for o in both[0][1:]
            for piece in Observations([o]).select_time(o.gti.time_start[[0, 0]] + [0, 600] * u.s)
        ]
        found.append(reading.reduce_all([*both[0], *both[1], *pieces], cache=tmp_path)[0])
    assert len(read) == 5 and len(list(tmp_path.glob("run-*.fits"))) == 5
    for here, there in zip(*found, strict=True):
        assert here.key == there.key and np.array_equal(here.counts.toarray(), there.counts.toarray())
    assert len({run.counts.sum() for run in found[0]}) == 5


def test_labels_that_are_no_file_names_are_cached(tmp_path):
    store = plain_store()
    config = AcceptanceConfig.coerce(options("radial"))
    reading = reduction.Reduction.of(config)
    for label in ("../a b/ü", None, "x" * 300):
        for _ in range(2):
            (observation,) = observations(store, store.on_obs_ids[:1])
            observation.obs_id = label
            ((run,), _) = reading.reduce_all([observation], cache=tmp_path)
            assert run.obs_id == run_label(label)
    assert len(list(tmp_path.glob("run-*.fits"))) == 3


@pytest.mark.parametrize("ids", [[0] * 6, LABELS["some"]], ids=["same", "some"])
def test_plan(six, ids):
    config = options("radial", zenith={"type": "binned", "min_observations": 3, "initial_width": 0.02})
    here, there = (plan_groups(labelled(six, k), config) for k in (range(6), ids))
    assert list(here.table["N_RUNS"]) == list(there.table["N_RUNS"]) and here.table["N_RUNS"].sum() >= 6
    first, second = (
        fit_acceptance(labelled(six, range(6)), config),
        fit_acceptance(labelled(six, ids)[::-1], config, plan=there),
    )
    same_effects(first, second, slice(None, None, -1))
    assert sum(len(text.split()) for text in there.table["RUNS"]) >= 5


def test_makers_of_datasets(six):
    some = labelled(six[:3], [0] * 3)
    geom = sky_geom(some[0].get_pointing_icrs(some[0].tmid), edges=(0.5, 2, 8), width=4.0)
    maker = AcceptanceBackgroundMaker(options("radial"), exclusion=source_region(full_store())).fit(some)
    reference = MapDataset.create(geom, energy_axis_true=geom.axes["energy"].copy(name="energy_true"))
    chain = DatasetsMaker([MapDatasetMaker(selection=["counts"]), maker], stack_datasets=True)
    stacked = chain.run(reference, Observations(some))[0]
    alone = sum(maker.make_background(geom, o).data for o in some)
    inside = stacked.mask_safe.data
    assert np.allclose(stacked.background.data[inside], alone[inside], rtol=1e-6)


def test_reports_and_residuals(six, tmp_path, empty_pictures):
    empty = altered(six[0], keep=[])
    some = [*labelled(six[:2], [0, None]), empty, *labelled(six[2:4], ["<b>x</b>", 0])]
    empty.obs_id = 0
    maker = AcceptanceBackgroundMaker(options("radial"), exclusion=source_region(full_store())).fit(some)
    found = stack_residuals(maker, some, [0.5, 5] * u.TeV)
    assert list(found.failures) == [2] and found.failures[2].name == "0 (run 3 of the list)" and len(found.runs) == 4
    assert list(maker.run_table["USED"]) == [True, True, False, True, True]
    write_report(maker, some, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "4 of these 4 runs have trained" in text and "&lt;b&gt;x" in text and "0 (run 3 of the list)" in text


def test_warnings_name_runs_of_one_number_by_their_place(six, caplog):
    some = labelled([altered(o, keep=[]) for o in six[:2]] + six[2:4], [0, None, 0, 0])
    with caplog.at_level(logging.WARNING):
        table = fit_acceptance(some, options("radial")).run_table
    (text,) = (r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    assert "0 (run 1 of the list)" in text and "(run 2 of the list)" in text
    assert list(table["USED"]) == [False, False, True, True] and list(table["OBS_ID"]) == ["0", "", "0", "0"]


def test_on_and_off_runs_with_numbers_and_names(six):
    maker = AcceptanceBackgroundMaker(options("radial")).fit(labelled(six[:2], ["a", "a"]), off_observations=six[3:])
    assert list(maker.run_table["OBS_ID"]) == [*(str(o.obs_id) for o in six[3:]), "a", "a"]


def test_a_store_whose_numbers_repeat_cannot_be_written(tmp_path):
    store = plain_store().data_store
    copy = type(store)(hdu_table=store.hdu_table, obs_table=store.obs_table.copy())
    copy.obs_table["OBS_ID"][1] = copy.obs_table["OBS_ID"][0]
    maker = AcceptanceBackgroundMaker(options("radial", "none")).fit(observations(plain_store())[:2])
    with pytest.raises(InputError, match="names the run .* more than once"):
        attach_background(copy, maker, tmp_path / "new")


def test_keys():
    key = RunKey(7, 59000.0, (10.0, 20.0))
    assert key.is_same_run(RunKey("7", 59000.0 + 1e-7, (10.001, 20.0)))
    assert not key.is_same_run(RunKey(8, 59000.0, (10.0, 20.0)))
    assert not key.is_same_run(RunKey(7, 59000.0 + 1e-5, (10.0, 20.0)))
    assert not key.is_same_run(RunKey(7, 59000.0, (10.0, 20.1)))
    assert key.is_same_run(RunKey(7)) and find_run(key, [RunKey(7), key]) is None  # of an old file
    assert find_run(key, [RunKey(6), key]) == 1 and find_run(key, []) is None
    near_pole = RunKey(7, 59000.0, (10.0, 90.0)), RunKey(7, 59000.0, (359.0, 90.0))
    assert near_pole[0].is_same_run(near_pole[1]) and RunKey(1, 0.0, (0.001, 0)).is_same_run(
        RunKey(1, 0.0, (359.999, 0))
    )


def test_labels_and_names():
    values = [np.int32(3), 3.0, "3", b"x", None, np.ma.masked, np.str_("y"), 2.5]
    assert [run_label(v) for v in values] == [3, 3, "3", "x", "", "", "y", "2.5"]
    assert run_names([1, 2, 1, ""]) == ["1 (run 1 of the list)", 2, "1 (run 3 of the list)", "(run 4 of the list)"]
    assert label_array([1, 2]).dtype.kind == "i" and list(label_array([1, "a"])) == ["1", "a"]
    assert label_array([]).dtype.kind == "i"


def test_models_by_run_that_cannot_be_told_apart():
    first, second = (fit_acceptance(observations(plain_store())[:k], options("radial")).rate_model for k in (1, 2))
    model = ModelPerRun([first, second], [RunKey(0, 1.0), RunKey(0, 1.0), RunKey(0, 2.0)], [0, 1, 1])
    with pytest.raises(ObservationError, match="several runs with this number"):
        model.for_run(RunKey(0, 1.0))
    assert model.for_run(RunKey(0, 2.0)) is second
    # an older file has numbers alone
    arrays = {k: v for k, v in model.to_arrays().items() if k not in ("start", "pointing")} | {
        "obs_id": np.array([1, 2, 3])
    }
    assert ModelPerRun.from_arrays(arrays).for_run(RunKey(2, 59000.0, (1.0, 2.0))).counts.sum() == second.counts.sum()
