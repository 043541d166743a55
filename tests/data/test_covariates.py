"""Keywords of the event header that the model follows: any number, read as it comes, and named where it is missing."""

import logging

import astropy.units as u
import numpy as np
import pytest
from gammapy.data import EventList
from gammapy.datasets import MapDataset
from gammapy.maps import MapAxis, WcsGeom
from regions import CircleSkyRegion
from stores import altered, observations, plain_store

from gammapy_accmaker import (
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    cross_validate,
    fit_acceptance,
    match_observations,
)
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.data.counts import header_number
from gammapy_accmaker.errors import InputError

SLOPE = 0.25  # of log energy for one unit of the keyword
LEVELS = [-1.0, 0.2, 1.0, -0.4, 0.7, -0.8, 0.4, 1.0]
UNADAPTED = {"type": "shift", "min_counts": 10**6}


def config(*names, **more):
    return AcceptanceConfig.coerce(
        {"model": {"type": "spline", "covariates": list(names)}, "energy": {"min": "0.3 TeV"}, "offset_max": "2 deg",
            **more}
    )  # fmt: skip


def with_header(run, shift=0.0, **header):
    """A copy of a run with other energies and more in the header of its events."""
    table = run.events.table.copy()
    table["ENERGY"] = table["ENERGY"] * np.exp(shift)
    table.meta.update(header)
    return altered(run, events=EventList(table))


@pytest.fixture(scope="module")
def runs():
    return [
        with_header(run, SLOPE * level, NSBLEVEL=100 + level, NSBTEXT=f" {100 + level} ", WORD="high")
        for run, level in zip(observations(plain_store()), LEVELS, strict=True)
    ]


@pytest.fixture(scope="module")
def region(runs):
    """Some part of the sky; the runs have no source."""
    return CircleSkyRegion(runs[0].get_pointing_icrs(runs[0].tmid), 0.2 * u.deg)


@pytest.mark.parametrize(
    "name", ["NSBLEVEL", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nsblevel", "NSBTEXT"))]
)
def test_any_keyword_is_followed(name, runs, region):
    """Runs that the fit has not seen, told by their keyword alone: their events have no say."""
    seen, new = runs[1:7], [runs[0], runs[7]]
    ratio = {}
    for names in ((), (name,)):
        model = fit_acceptance(seen, config(*names), exclusion=region)
        assert model.rate_model.covariate_names == names
        maker = AcceptanceBackgroundMaker(config(*names, run_effects=UNADAPTED), model=model)
        low, high = (
            maker.adapt(run).integral_grid(np.array([1.0, 10.0]), np.zeros(1), np.zeros(1), 0.95)[0, 0] for run in new
        )
        ratio[names] = np.log(high / low)
    assert abs(ratio[()]) < 0.1  # the same for both
    # between -1 and 1 the energies of the truth differ by 2 SLOPE, and its spectrum has an index near 2.7; of six runs
    # the fit takes half of it, since what the keyword does has a prior around nothing that weighs as four
    assert 0.3 < ratio[(name,)] / (2 * SLOPE * 1.7) < 1.1


def test_what_the_model_follows_is_read_whatever_the_maker_is_asked(runs, region, tmp_path):
    model = fit_acceptance(runs, config("NSBLEVEL"), exclusion=region)
    model.write(tmp_path / "model.fits")
    model = AcceptanceModel.read(tmp_path / "model.fits")
    assert model.rate_model.covariate_names == ("NSBLEVEL",)
    for maker in (AcceptanceBackgroundMaker(model=model), AcceptanceBackgroundMaker(config("OTHER"), model=model)):
        assert maker.adapt(runs[0]).covariates["NSBLEVEL"] == 99


@pytest.mark.parametrize(
    "value,number",
    [(0.8, 0.8), ("0.8", 0.8), (" 8e-1 ", 0.8), (1, 1.0), (True, 1.0), ("", None), ("high", None), (None, None),
        ("nan", None),
     (np.inf, None), ([1.0, 2.0], None), (1 + 1j, None)],
)  # fmt: skip
def test_numbers_of_a_header(value, number):
    assert header_number({"A": value}, "A") == number
    assert header_number({"A": value}, "a") == number
    assert header_number({}, "A") is None


@pytest.mark.parametrize("value", ["", "n/a", np.nan])
def test_a_run_without_muon_efficiency_is_not_lost(value, runs, region, caplog):
    some = [*runs[:3], with_header(runs[3], MUONEFF=value)]
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(some, config("MUONEFF"), exclusion=region)
    assert all(model.run_table["USED"]) and len(model.run_table) == 4
    assert (
        len(caplog.records) == 1
        and f"MUONEFF is missing from the event header, or is no number there, of 1 of 4 runs ({runs[3].obs_id})"
        in caplog.text
    )


def test_keywords_that_runs_lack_are_named_once(runs, region, caplog):
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(runs[:4], config("MUONEFF", "WORD", "NOTHING"), exclusion=region, n_jobs=2)
    assert len(caplog.records) == 2 and model.rate_model.covariate_names == ("MUONEFF",)
    for name in ("WORD", "NOTHING"):
        assert (
            f"{name} is missing from the event header, or is no number there, of all 4 runs, and the model does not"
            in caplog.text
        )
    caplog.clear()
    bare = []
    for run in runs[:4]:
        bare.append(with_header(run))
        del bare[-1].events.table.meta["MUONEFF"]
    with caplog.at_level(logging.WARNING):
        fit_acceptance(bare, config("MUONEFF"), exclusion=region)  # as runs of most instruments
        fit_acceptance(bare, {"model": {"type": "radial"}}, exclusion=region)
    assert not caplog.records
    settings = {"a": config("NSBLEVEL", "NOTHING")}
    with caplog.at_level(logging.WARNING):
        cross_validate(runs[:4], settings, exclusion=region, n_folds=2, offset_max=1.8 * u.deg)
    assert len(caplog.records) == 1 and "NOTHING" in caplog.text


def test_a_new_run_that_lacks_what_the_model_follows_is_named(runs, region, caplog):
    model = fit_acceptance(runs[:6], config("NSBLEVEL"), exclusion=region)
    maker = AcceptanceBackgroundMaker(model=model)
    bare = with_header(runs[6])
    del bare.events.table.meta["NSBLEVEL"]
    axis = MapAxis.from_energy_bounds("0.5 TeV", "5 TeV", 2)
    with caplog.at_level(logging.WARNING):
        for run in (runs[6], bare, with_header(runs[0], NSBLEVEL="")):  # the last is of the fit
            geom = WcsGeom.create(skydir=run.pointing.fixed_icrs, width=3, binsz=0.2, axes=[axis])
            maker.run(MapDataset.create(geom), run)
    assert len(caplog.records) == 1
    assert f"observation {runs[6].obs_id}: the header of its events has no number for NSBLEVEL" in caplog.text


def test_the_cache_knows_which_keywords_were_read(runs, tmp_path):
    settings = {Reduction.of(config(*names)).open_cache(tmp_path).settings for names in ((), ("A",), ("A", "B"))}
    assert len(settings) == 3
    assert len({Reduction.of(config(*names)).open_cache(tmp_path).settings for names in ((), ("MUONEFF",))}) == 1


def test_a_run_that_cannot_be_matched_by_its_muon_efficiency_is_named(runs, caplog):
    on, off = runs[:2], [runs[4], with_header(runs[5], MUONEFF="")]
    with caplog.at_level(logging.WARNING):
        matches = match_observations(on, off, weights={"muon_efficiency": 1.0})
    assert set(matches["OFF_OBS_ID"]) == {runs[4].obs_id}
    assert f"observation {runs[5].obs_id}: the header of its events has no number for 'MUONEFF'" in caplog.text
    with pytest.raises(InputError, match="MUONEFF"):
        match_observations(on, off[1:], weights={"muon_efficiency": 1.0})
