"""Files are read wherever gammapy finds them; one that is not there costs its run, not the fit."""

import shutil

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from gammapy.data import DataStore, ObservationFilter, Observations
from helpers import opened_files
from stores import IRFS, options, plain_files, plain_store

from gammapy_accmaker import (
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    attach_background,
    fit_acceptance,
    match_observations,
)
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.analysis.analysis import make_maker
from gammapy_accmaker.data.cache import fingerprint
from gammapy_accmaker.data.observations import find_unreadable, read_files
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.utils.model_file import read_model_file, write_model_file

CONFIG = options("radial")
BROKEN = 2  # which of the runs of a store has its file outside


@pytest.fixture
def folder(tmp_path):
    return plain_files(tmp_path / "store")


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


@pytest.mark.parametrize("model", ["radial", "spline"])
def test_the_file_of_a_run_is_opened_once(model):
    """gammapy opens it for each of events, good time intervals, pointing and metadata."""
    store = plain_store()
    observations = read(store.path)[:3]
    files = [str(store.path / "data" / f"simulated_{o.obs_id}.fits") for o in observations]
    with opened_files() as opened:
        maker = AcceptanceBackgroundMaker(options(model)).fit(observations)
    assert sorted(path for path in opened if path in files) == files
    with opened_files() as opened:
        maker.make_irf(observations[0])
    assert opened.count(files[0]) == 1


def check_read(observation):
    """What is read at once is what gammapy reads."""
    ours, events = read_files(observation), observation.events
    for name in ("RA", "DEC", "ENERGY"):
        assert ours.events.table[name].unit == events.table[name].unit
        np.testing.assert_array_equal(np.asarray(ours.events.table[name]), np.asarray(events.table[name]))
    assert np.abs((ours.events.time - events.time).to_value("s")).max() < 1e-9
    for name in ("time_start", "time_stop"):
        assert np.abs((getattr(ours.gti, name) - getattr(observation.gti, name)).to_value("s")).max() < 1e-9
    for name in ("fixed_icrs", "fixed_altaz"):
        assert fingerprint(getattr(ours.pointing, name)) == fingerprint(getattr(observation.pointing, name))
    assert fingerprint(ours.meta) == fingerprint(observation.meta)
    assert fingerprint(ours.meta.target.position) == fingerprint(observation.meta.target.position)
    assert read_files(ours) is ours
    assert all(str(ours.events.table.meta[key]) == str(value) for key, value in headers(events))


def headers(events):
    return [(key, value) for key, value in events.table.meta.items() if isinstance(value, (int, float, str)) and key]


def test_runs_of_a_simulated_store_are_read_as_gammapy_reads_them():
    check_read(read(plain_store().path)[0])


@pytest.mark.gammapy_data
@pytest.mark.parametrize("store", ["hess-dl3-dr1", "magic/rad_max/data", "cta-1dc/index/gps"])
def test_runs_of_telescopes_are_read_as_gammapy_reads_them(store):
    check_read(DataStore.from_dir(f"$GAMMAPY_DATA/{store}").get_observations(required_irf=[])[0])


def test_filters_of_an_observation_hold_for_what_is_read():
    observation = read(plain_store().path)[0]
    start = observation.gti.time_start[0]
    by_column = {"type": "custom", "opts": {"parameter": "ENERGY", "values": (1 * u.TeV, 5 * u.TeV)}}
    for chosen in ({"time_filter": start + [100, 400] * u.s}, {"event_filters": [by_column]}):
        observation.obs_filter = ObservationFilter(**chosen)
        ours = read_files(observation)
        assert 0 < len(ours.events.table) == len(observation.events.table)
        assert ours.gti.time_sum == observation.gti.time_sum


@pytest.mark.parametrize("extra", [{}, {"TNULL": -1}])
def test_events_of_unusual_columns_are_left_to_gammapy(folder, extra):
    """Energies as whole numbers of GeV, some of which stand for none."""
    path = folder / "data" / name_of(0)
    with fits.open(path, mode="update", memmap=False) as hdulist:
        table, header = Table(hdulist["EVENTS"].data), hdulist["EVENTS"].header
        energy = np.maximum((1000 * np.asarray(table["ENERGY"])).astype("i4"), 1)
        energy[:10] = -1
        table["ENERGY"] = energy
        new = fits.BinTableHDU(table, name="EVENTS")
        for key in ("MJDREFI", "MJDREFF", "TIMESYS", "RA_PNT", "DEC_PNT", "GEOLON", "GEOLAT", "ALTITUDE", "DEADC"):
            new.header[key] = header[key]
        number = 1 + table.colnames.index("ENERGY")
        new.header[f"TUNIT{number}"] = "GeV"
        if extra:
            new.header[f"TNULL{number}"] = -1
        for k, name in enumerate(table.colnames, 1):
            new.header.setdefault(f"TUNIT{k}", {"RA": "deg", "DEC": "deg", "TIME": "s"}.get(name, ""))
        hdulist["EVENTS"] = new
    run = Reduction.of(AcceptanceConfig.coerce(CONFIG)).reduce(read(folder)[0])
    assert run.dropped["not finite"] == 10
    assert sum(part.counts.sum() for part in run.slices) > 100
