"""Paths of index tables stay inside the data store unless that is allowed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from gammapy.data import DataStore, Observations
from gammapy.datasets import MapDataset
from gammapy.maps import MapAxis, WcsGeom
from stores import IRFS, options, plain_store

from gammapy_accmaker import (
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceModel,
    attach_background,
    cross_validate,
    fit_acceptance,
    match_observations,
)
from gammapy_accmaker.analysis import make_maker, select_observations
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.run_files import find_unreadable
from gammapy_accmaker.validation.report import write_report

CONFIG, ALLOWED = options("radial"), options("radial", outside_files=True)
BROKEN = 2  # which of the runs of a store has its file outside


@pytest.fixture
def folder(tmp_path):
    """A store of four runs with files of its own."""
    original, folder = plain_store(), tmp_path / "store"
    (folder / "data").mkdir(parents=True)
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        table = Table.read(original.path / name)
        table[np.isin(table["OBS_ID"], original.on_obs_ids)].write(folder / name)
    for obs_id in original.on_obs_ids:
        shutil.copy(original.path / "data" / f"simulated_{obs_id}.fits", folder / "data")
    return folder


def read(folder, irfs=tuple(IRFS)):
    return list(DataStore.from_dir(folder).get_observations(required_irf=list(irfs)))


def name_of(number):
    return f"simulated_{plain_store().on_obs_ids[number]}.fits"


def change_index(folder, number, file_dir, file_name=None):
    """Another place for the file of a run in the index table."""
    path = folder / "hdu-index.fits.gz"
    table = Table.read(path)
    rows = table["OBS_ID"] == plain_store().on_obs_ids[number]
    for key, value in {"FILE_DIR": file_dir, "FILE_NAME": file_name or name_of(number)}.items():
        table[key] = np.where(rows, value, np.array(table[key], dtype=str))
    table.write(path, overwrite=True)


def move_out(folder):
    """The file of a run, next to the store."""
    outside = folder.parent / "private"
    outside.mkdir()
    shutil.move(folder / "data" / name_of(BROKEN), outside)
    return outside


def refused(observations, allowed=False):
    """Reasons by observation number."""
    return {
        observations[k].obs_id: reason for k, reason in find_unreadable(observations, outside_files=allowed).items()
    }


PLACES = {
    "climbing": lambda outside: ("../private", None),
    "climbing from a folder": lambda outside: ("data/../../private", None),
    "climbing in the name": lambda outside: ("data", f"../../private/{name_of(BROKEN)}"),
    "absolute": lambda outside: (str(outside), None),
    "absolute in the name": lambda outside: ("data", str(outside / name_of(BROKEN))),
    "a variable": lambda outside: ("$ACCMAKER_TEST_PRIVATE", None),
    "the working directory": lambda outside: ("private", None),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_leads_out_is_refused_unless_it_is_allowed(folder, place, monkeypatch):
    outside = move_out(folder)
    monkeypatch.setenv("ACCMAKER_TEST_PRIVATE", str(outside))
    monkeypatch.chdir(folder.parent)
    change_index(folder, BROKEN, *PLACES[place](outside))
    observations = read(folder)
    assert len(observations[BROKEN].gti.table)  # gammapy reads it
    obs_id = observations[BROKEN].obs_id

    ((number, reason),) = refused(read(folder)).items()
    assert number == obs_id and "outside" in reason
    assert not refused(read(folder), allowed=True)


def test_a_file_that_is_not_there_is_named_as_such(folder):
    move_out(folder)
    assert ["there is no file" in reason for reason in refused(read(folder)).values()] == [True]


@pytest.fixture
def hostile(folder):
    change_index(folder, BROKEN, str(move_out(folder)))
    return folder


def test_it_costs_a_fit_that_run_only(hostile, caplog):
    obs_id = plain_store().on_obs_ids[BROKEN]
    table = fit_acceptance(read(hostile), CONFIG).run_table
    (flag,) = table["FLAG"][~table["USED"]]
    assert list(table["OBS_ID"][~table["USED"]]) == [obs_id]
    assert str(obs_id) in flag and "outside_files" in flag and str(hostile) in flag and name_of(BROKEN) in flag
    assert sum(str(obs_id) in r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")) == 1
    with pytest.raises(ObservationError, match=f"{obs_id}.*outside_files"):
        fit_acceptance(read(hostile), CONFIG, on_error="raise")
    assert fit_acceptance(read(hostile), ALLOWED).run_table["USED"].all()


@pytest.mark.parametrize("relative", [False, True])
def test_files_that_the_user_names_may_lie_anywhere(folder, relative, monkeypatch):
    (folder.parent / "here").mkdir()
    monkeypatch.chdir(folder.parent / "here")
    paths = sorted((folder / "data").iterdir())
    if relative:
        paths = [os.path.relpath(path) for path in paths]
        assert paths[0].startswith("..")
    runs = list(DataStore.from_events_files(paths).get_observations(required_irf=[]))
    assert len(runs) == 4 and not refused(runs)


@pytest.mark.parametrize("base", [".", "../store", "$ACCMAKER_TEST_STORE"])
def test_the_store_may_be_named_in_any_way(folder, base, monkeypatch):
    monkeypatch.setenv("ACCMAKER_TEST_STORE", str(folder))
    monkeypatch.chdir(folder)
    assert not refused(read(base))
    outside = move_out(folder)
    change_index(folder, BROKEN, str(outside))
    assert ["outside" in reason for reason in refused(read(base)).values()] == [True]


@pytest.mark.parametrize("linked", ["file", "folder", "store"])
def test_links_of_the_owner_are_followed(folder, linked):
    disk = folder.parent / "disk"
    if linked == "file":
        outside = move_out(folder)
        (folder / "data" / name_of(BROKEN)).symlink_to(outside / name_of(BROKEN))
    elif linked == "folder":
        shutil.move(folder / "data", disk)
        (folder / "data").symlink_to(disk)
    else:  # and the index has the real paths
        shutil.move(folder, disk)
        folder.symlink_to(disk)
        change_index(folder, BROKEN, str(disk / "data"))
    assert not refused(read(folder))


def test_an_absolute_path_to_a_link_within_the_store(folder):
    outside = move_out(folder)
    (folder / "data" / name_of(BROKEN)).symlink_to(outside / name_of(BROKEN))
    change_index(folder, BROKEN, str(folder / "data"))
    assert not refused(read(folder))


def test_no_climbing_through_a_link(folder):
    """``data/../private`` is inside as it is written, and not where it leads to."""
    (folder.parent / "disk").mkdir()
    outside = folder.parent / "disk" / "private"
    shutil.move(folder / "data", folder.parent / "disk" / "data")
    (folder / "data").symlink_to(folder.parent / "disk" / "data")
    outside.mkdir()
    shutil.move(folder / "data" / name_of(BROKEN), outside)
    change_index(folder, BROKEN, "data/../private")
    assert ["outside" in reason for reason in refused(read(folder)).values()] == [True]


def test_climbing_that_stays_inside(folder):
    change_index(folder, BROKEN, "data/../data")
    assert not refused(read(folder))


def test_a_folder_with_the_same_beginning_is_another_one(folder):
    shutil.move(move_out(folder), folder.parent / "store2")
    change_index(folder, BROKEN, str(folder.parent / "store2"))
    assert len(refused(read(folder))) == 1


def test_what_is_cached_is_not_what_is_allowed(hostile, tmp_path):
    assert fit_acceptance(read(hostile), ALLOWED, cache=tmp_path / "cache").run_table["USED"].all()
    assert list(fit_acceptance(read(hostile), CONFIG, cache=tmp_path / "cache").run_table["USED"]).count(False) == 1


@pytest.mark.parametrize("effects", ["none", "norm"])
def test_application(hostile, effects, tmp_path, caplog):
    allowed = options("radial", effects, outside_files=True)
    maker = AcceptanceBackgroundMaker(allowed).fit(read(hostile))
    maker.model.write(tmp_path / "model.fits")
    geom = WcsGeom.create(
        skydir=read(hostile)[0].get_pointing_icrs(read(hostile)[0].tmid),
        width=2,
        axes=[MapAxis.from_energy_bounds("1 TeV", "5 TeV", 2)],
    )
    assert maker.make_background(geom, read(hostile)[BROKEN]).data.sum() > 0
    # what the fit was allowed does not come with its file
    again = AcceptanceBackgroundMaker(model=AcceptanceModel.read(tmp_path / "model.fits"))
    assert again.make_background(geom, read(hostile)[0]).data.sum() > 0
    for make in (
        lambda run: again.make_background(geom, run),
        lambda run: again.make_background_error(geom, run),
        again.make_irf,
    ):
        with pytest.raises(ObservationError, match="outside_files"):
            make(read(hostile)[BROKEN])
    dataset = again.run(MapDataset.create(geom, name="a"), read(hostile)[BROKEN])
    assert not dataset.mask_safe.data.any() and "outside_files" in caplog.text


def test_matching(hostile):
    runs = Observations(read(hostile))
    matches = match_observations(runs, runs)
    broken = runs[BROKEN].obs_id
    assert broken not in matches["ON_OBS_ID"] and broken not in matches["OFF_OBS_ID"]
    assert "outside_files" in matches.meta["LEFT_OUT"][broken]
    assert broken in match_observations(runs, runs, outside_files=True)["ON_OBS_ID"]
    vars(runs[0])["__events_hdu"].path().unlink()
    assert "there is no file" in match_observations(runs, runs).meta["LEFT_OUT"][runs[0].obs_id]
    matching = {"limits": {"cos_zenith": 1}}
    for allowed in (False, True):
        config = options("radial", matching=matching, outside_files=allowed)
        table = AcceptanceBackgroundMaker(config).fit(runs, runs).run_table
        assert set(table["OBS_ID"][~table["USED"]]) == {runs[0].obs_id} | (set() if allowed else {broken})


@pytest.mark.parametrize("copy", [False, True])
def test_a_new_store_takes_no_files_from_outside(hostile, copy, tmp_path, caplog):
    store, obs_id = DataStore.from_dir(hostile), plain_store().on_obs_ids[BROKEN]
    maker = AcceptanceBackgroundMaker(CONFIG).fit(read(hostile))
    new = attach_background(store, maker, tmp_path / "new", n_jobs=1, copy=copy)
    assert obs_id not in new.obs_ids and len(new.obs_ids) == 3
    assert any("outside_files" in r.getMessage() and str(obs_id) in r.getMessage() for r in caplog.records)
    names = [p.name for p in (tmp_path / "new").rglob("*") if str(obs_id) in p.name]
    assert names == []
    maker = AcceptanceBackgroundMaker(ALLOWED).fit(read(hostile))
    new = attach_background(store, maker, tmp_path / "new", n_jobs=1, copy=copy, overwrite=True)
    assert len(new.get_observations()) == 4
    # links of the new store lead out of it, and were made by its owner
    assert not refused(read(tmp_path / "new"))


def test_a_new_store_of_nothing_else(hostile, tmp_path):
    maker = AcceptanceBackgroundMaker(CONFIG).fit(read(hostile))
    with pytest.raises(InputError, match="no file"):
        attach_background(
            DataStore.from_dir(hostile), maker, tmp_path / "new", obs_ids=[plain_store().on_obs_ids[BROKEN]]
        )


@pytest.mark.slow
def test_validation(hostile, tmp_path):
    broken = plain_store().on_obs_ids[BROKEN]
    result = cross_validate(read(hostile), {"a": CONFIG}, n_folds=3, sky=True, n_jobs=1)
    assert broken not in result.scores["OBS_ID"] and len(result.scores) == 3
    maker = AcceptanceBackgroundMaker(CONFIG).fit(read(hostile))
    write_report(maker, read(hostile), tmp_path / "report.html", n_jobs=1)
    assert "outside_files" in (tmp_path / "report.html").read_text()


def test_the_search_for_sources(hostile):
    search = {"iterative": {"threshold": 8, "max_iterations": 1}}
    model = fit_acceptance(read(hostile), options("radial", exclusion=search))
    assert list(model.run_table["USED"]).count(False) == 1


def test_an_analysis_knows_its_store(hostile, monkeypatch, tmp_path):
    """Also where the table has another name than gammapy's, and the folder is the working directory."""
    monkeypatch.chdir(hostile)
    background = {"method": "acceptance", "parameters": CONFIG}
    settings = {"datastore": ".", "required_irf": ["aeff", "edisp", "psf"]}
    config = AcceptanceAnalysisConfig.from_options({"observations": settings, "datasets": {"background": background}})
    runs = select_observations(config, config.observations, "observations").observations
    Path("hdu-index.fits.gz").rename("another.fits.gz")
    assert ["outside" in reason for reason in refused(list(runs)).values()] == [True]
    # a model file that is applied with other options than it was fitted with
    fit_acceptance(runs, ALLOWED).write(tmp_path / "model.fits")
    background = {"method": "acceptance", "model": str(tmp_path / "model.fits")}
    for allowed in (False, True):
        background["parameters"] = {"outside_files": True} if allowed else {}
        options_given = {"observations": settings, "datasets": {"background": background}}
        assert make_maker(AcceptanceAnalysisConfig.from_options(options_given)).config.outside_files is allowed
