"""Files are read wherever gammapy finds them; one that is not there costs its run, not the fit."""

import shutil

import numpy as np
import pytest
from astropy.table import Table
from gammapy.data import DataStore, EventList, Observations
from stores import IRFS, options, plain_store

from gammapy_accmaker import (
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    attach_background,
    fit_acceptance,
    match_observations,
)
from gammapy_accmaker.analysis.analysis import make_maker
from gammapy_accmaker.data.observations import find_unreadable
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.utils.model_file import read_model_file, write_model_file

CONFIG = options("radial")
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


PLACES = {
    "climbing": lambda outside: ("../private", None),
    "climbing in the name": lambda outside: ("data", f"../../private/{name_of(BROKEN)}"),
    "absolute": lambda outside: (str(outside), None),
    "a variable": lambda outside: ("$ACCMAKER_TEST_PRIVATE", None),
    "the working directory": lambda outside: ("private", None),
}


@pytest.mark.parametrize("place", PLACES)
def test_files_may_lie_anywhere(folder, place, monkeypatch):
    """As those of CTA 1DC, whose index names ``../../data``."""
    outside = move_out(folder)
    monkeypatch.setenv("ACCMAKER_TEST_PRIVATE", str(outside))
    monkeypatch.chdir(folder.parent)
    change_index(folder, BROKEN, *PLACES[place](outside))
    assert not find_unreadable(read(folder))
    assert fit_acceptance(read(folder), CONFIG).run_table["USED"].all()


def test_a_file_that_is_not_there_costs_its_run(folder, caplog):
    move_out(folder)
    obs_id = plain_store().on_obs_ids[BROKEN]
    ((number, reason),) = find_unreadable(read(folder)).items()
    assert number == BROKEN and "there is no file" in reason
    table = fit_acceptance(read(folder), CONFIG).run_table
    assert list(table["OBS_ID"][~table["USED"]]) == [obs_id]
    assert sum(str(obs_id) in r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")) == 1
    matches = match_observations(Observations(read(folder)), Observations(read(folder)))
    assert "there is no file" in matches.meta["LEFT_OUT"][obs_id]
    maker = AcceptanceBackgroundMaker(options("radial", "none")).fit(read(folder))
    with pytest.raises(ObservationError, match="there is no file"):
        maker.make_irf(read(folder)[BROKEN])


@pytest.mark.parametrize("copy", [False, True])
def test_a_new_store_has_the_files_from_elsewhere(folder, copy, tmp_path):
    change_index(folder, BROKEN, str(move_out(folder)))
    maker = AcceptanceBackgroundMaker(CONFIG).fit(read(folder))
    new = attach_background(DataStore.from_dir(folder), maker, tmp_path / "new", n_jobs=1, copy=copy)
    assert len(new.get_observations()) == 4


def warned(caplog):
    return [r.getMessage() for r in caplog.records if "outside_files" in r.getMessage()]


def test_a_configuration_of_an_older_version(tmp_path, caplog):
    assert AcceptanceConfig.coerce(CONFIG | {"outside_files": True}) == AcceptanceConfig.coerce(CONFIG)
    assert len(warned(caplog)) == 1
    caplog.clear()
    path = tmp_path / "config.yaml"
    AcceptanceConfig.coerce(CONFIG).write(path)
    path.write_text(path.read_text() + "outside_files: false\n")
    assert "outside_files" not in AcceptanceConfig.read(path).to_yaml()
    assert len(warned(caplog)) == 1


def test_a_model_file_of_an_older_version(folder, tmp_path, caplog):
    model = fit_acceptance(read(folder), CONFIG)
    model.write(tmp_path / "model.fits")
    arrays, texts, table = read_model_file(tmp_path / "model.fits")
    texts["config"] += "outside_files: true\n"
    write_model_file(tmp_path / "model.fits", arrays, texts, table, overwrite=True)
    again = AcceptanceModel.read(tmp_path / "model.fits")
    AcceptanceBackgroundMaker(model=again)
    again.write_cube(tmp_path / "cube.fits")
    assert again.config == model.config and len(warned(caplog)) == 1


def test_an_analysis_of_an_older_version(folder, tmp_path, caplog):
    background = {"method": "acceptance", "parameters": CONFIG | {"outside_files": True}}
    settings = {"datastore": str(folder), "required_irf": ["aeff", "edisp", "psf"]}
    config = AcceptanceAnalysisConfig.from_options({"observations": settings, "datasets": {"background": background}})
    assert make_maker(config).config == AcceptanceConfig.coerce(CONFIG) and len(warned(caplog)) == 1


def test_the_events_of_a_run_are_read_once(monkeypatch):
    """gammapy reads them from the file whenever they are asked for."""
    observations, reads, read_events = read(plain_store().path)[:3], [], EventList.read

    def counting(path, **kwargs):
        reads.append(path)
        return read_events(path, **kwargs)

    monkeypatch.setattr(EventList, "read", counting)
    fit_acceptance(observations, CONFIG)
    assert len(reads) == len(set(reads)) == 3
