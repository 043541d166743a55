"""`attach_background`: the files and index tables of the new store."""

import os
import shutil

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from gammapy.data import DataStore
from gammapy.irf import Background2D, FoVAlignment
from gammapy.utils import pbar
from helpers import contents, make_observation, tracking
from stores import AnalyticModel, observations, options, plain_files, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, attach_background
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.errors import InputError, NotFittedError, ObservationError
from gammapy_accmaker.products.irf import make_background_irf


@pytest.fixture(scope="module")
def maker():
    store = plain_store()
    return AcceptanceBackgroundMaker(options("radial", "none")).fit(observations(store, store.on_obs_ids[:2]))


@pytest.fixture
def small(tmp_path):
    return DataStore.from_dir(plain_files(tmp_path / "original", 3))


@pytest.mark.parametrize("copy", [False, True])
def test_all_of_a_run_is_there(copy, small, maker, tmp_path):
    before = contents(tmp_path / "original")
    new = attach_background(small, maker, tmp_path / "new", n_jobs=1, copy=copy)
    assert isinstance(new, DataStore) and list(new.obs_ids) == list(small.obs_ids)
    assert list(new.obs_table["BKG_USED"]) == [True] * 3
    for obs_id in small.obs_ids:
        ours, original = new.obs(obs_id), small.obs(obs_id, required_irf=["aeff", "edisp", "psf"])
        assert ours.available_hdus == ["events", "gti", "aeff", "edisp", "psf", "bkg"]
        assert np.array_equal(ours.events.table["ENERGY"], original.events.table["ENERGY"])
        assert ours.events.table.meta["MUONEFF"] == original.events.table.meta["MUONEFF"]
        assert np.array_equal(ours.aeff.data, original.aeff.data) and np.array_equal(ours.psf.data, original.psf.data)
        assert isinstance(ours.bkg, Background2D) and ours.bkg.fov_alignment == FoVAlignment.ALTAZ
        assert np.allclose(ours.bkg.data, maker.make_irf(original).data, rtol=1e-6)
    assert contents(tmp_path / "original") == before


def test_files_are_as_gammapy_and_astropy_write_them(small, maker, tmp_path):
    attach_background(small, maker, tmp_path / "new", n_jobs=1)
    for obs_id in map(int, small.obs_ids):  # the header is made for the first of them
        irf = maker.make_irf(small.obs(obs_id, required_irf=[]))
        irf.data = irf.data.astype("float32")
        irf.meta |= {"OBS_ID": obs_id, "CREATOR": "gammapy_accmaker"}
        hdulist = irf.to_hdulist()
        hdulist[1].name = "BACKGROUND"
        hdulist.writeto(tmp_path / f"{obs_id}.fits")
        written = tmp_path / "new" / "background" / f"background_{obs_id:06d}.fits"
        assert written.read_bytes() == (tmp_path / f"{obs_id}.fits").read_bytes()


def test_the_links_are_relative_and_stay_in_the_store(small, maker, tmp_path):
    new = attach_background(small, maker, tmp_path / "new", n_jobs=1)
    files = [p for p in (tmp_path / "new").rglob("*") if p.is_symlink()]
    assert len(files) == 3 and not any(os.path.isabs(os.readlink(p)) for p in files)
    assert all(".." not in d and not os.path.isabs(d) for d in new.hdu_table["FILE_DIR"])
    # both moved together
    (tmp_path / "elsewhere").mkdir()
    for name in ("original", "new"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert len(DataStore.from_dir(tmp_path / "elsewhere" / "new").get_observations()) == 3


def test_copies_can_be_moved_alone(small, maker, tmp_path):
    attach_background(small, maker, tmp_path / "new", n_jobs=1, copy=True)
    shutil.rmtree(tmp_path / "original")
    shutil.move(tmp_path / "new", tmp_path / "moved")
    runs = DataStore.from_dir(tmp_path / "moved").get_observations()
    assert len(runs) == 3 and all(run.bkg.data.max() > 0 and len(run.events.table) for run in runs)


def test_files_outside_of_the_store(small, maker, tmp_path):
    """Index tables with absolute paths."""
    small.hdu_table["FILE_DIR"] = [str(tmp_path / "original" / "data")] * len(small.hdu_table)
    small.hdu_table.meta["BASE_DIR"] = str(tmp_path / "other")
    new = attach_background(small, maker, tmp_path / "new", n_jobs=1)
    assert len(new.get_observations()) == 3
    assert all((tmp_path / "new") in p.absolute().parents for p in (tmp_path / "new").rglob("*.fits"))


@pytest.mark.parametrize("copy", [False, True])
def test_irfs_in_a_file_that_runs_share(copy, small, maker, tmp_path):
    """As for CTA 1DC, with names in the index in small letters, and a background that came with the IRFs."""
    folder, table = tmp_path / "original", small.hdu_table
    with fits.open(folder / "data" / f"simulated_{small.obs_ids[0]}.fits") as hdulist:
        old = fits.BinTableHDU(hdulist["AEFF"].data, name="BACKGROUND")
        fits.HDUList([hdulist[0], hdulist["AEFF"], hdulist["EDISP"], hdulist["PSF"], old]).writeto(folder / "irfs.fits")
    shared = np.isin(np.char.strip(np.array(table["HDU_TYPE"], dtype=str)), ["aeff", "edisp", "psf"])
    table["FILE_NAME"] = np.where(shared, "irfs.fits", table["FILE_NAME"])
    table["FILE_DIR"] = np.where(shared, ".", table["FILE_DIR"])
    table["HDU_NAME"] = np.char.lower(np.array(table["HDU_NAME"], dtype=str))
    new = attach_background(small, maker, tmp_path / "new", obs_ids=small.obs_ids[1:2], n_jobs=1, copy=copy)
    (run,) = new.get_observations()
    assert np.array_equal(run.aeff.data, small.obs(small.obs_ids[0], required_irf=[]).aeff.data)
    assert len(run.events.table) == len(small.obs(run.obs_id, required_irf=[]).events.table)
    assert isinstance(run.bkg, Background2D)


def test_missing_files_are_named_and_the_others_go_on(small, maker, tmp_path, caplog):
    first, second, third = small.obs_ids
    (tmp_path / "original" / "data" / f"simulated_{second}.fits").unlink()
    new = attach_background(small, maker, tmp_path / "new", n_jobs=1)
    assert f"simulated_{second}.fits" in caplog.text and str(first) not in caplog.text
    assert [o.obs_id for o in new.get_observations()] == [first, third]


def test_a_run_that_cannot_be_used_stays_without_background(small, maker, tmp_path, caplog):
    first, second, _ = small.obs_ids
    path = tmp_path / "original" / "data" / f"simulated_{second}.fits"
    with fits.open(path, mode="update") as hdulist:
        hdulist["GTI"].data["STOP"] = hdulist["GTI"].data["START"]
    # the background that came with it is not taken over: nobody could tell them apart
    new = attach_background(small, maker, tmp_path / "new", n_jobs=1)
    assert "1 runs have no background" in caplog.text and str(second) in caplog.text
    assert list(new.obs_table["BKG_USED"]) == [True, False, True]
    assert "good time" in new.obs_table["BKG_FLAG"][1] and new.obs_table["BKG_FLAG"][0] in ("", "--", np.ma.masked)
    assert "bkg" not in new.obs(second, required_irf=["aeff"]).available_hdus
    assert len(new.get_observations()) == 2


def test_jobs_and_overwrite_do_not_matter(small, maker, tmp_path):
    one = attach_background(small, maker, tmp_path / "one", n_jobs=1)
    two = attach_background(small, maker, tmp_path / "two", n_jobs=2)
    again = attach_background(small, maker, tmp_path / "two", n_jobs=1, overwrite=True)
    for a, b, c in zip(*(s.get_observations() for s in (one, two, again)), strict=True):
        assert np.array_equal(a.bkg.data, b.bkg.data) and np.array_equal(a.bkg.data, c.bkg.data)
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_some_runs(small, maker, tmp_path):
    new = attach_background(small, maker, tmp_path / "new", obs_ids=[small.obs_ids[1]], n_jobs=1)
    assert list(new.obs_ids) == [small.obs_ids[1]] == list(new.obs_table["OBS_ID"])


def test_bad_input(small, maker, tmp_path):
    with pytest.raises(NotFittedError, match="call `maker.fit"):
        attach_background(small, AcceptanceBackgroundMaker(), tmp_path / "new")
    with pytest.raises(InputError, match="DataStore is needed"):
        attach_background("store", maker, tmp_path / "new")
    with pytest.raises(InputError, match="original data store"):
        attach_background(small, maker, tmp_path / "original", overwrite=True)
    with pytest.raises(InputError, match="obs_ids: got \\[5\\]"):
        attach_background(small, maker, tmp_path / "new", obs_ids=[5])
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        attach_background(small, maker, tmp_path / "file")
    attach_background(small, maker, tmp_path / "new", obs_ids=small.obs_ids[:1], n_jobs=1)
    with pytest.raises(InputError, match="overwrite=True"):
        attach_background(small, maker, tmp_path / "new")


@pytest.mark.parametrize("alignment", ["radec", "reverse_lon_radec"])
def test_irf_in_another_frame_is_the_mean_over_the_turning_field(alignment):
    observation = make_observation(tracking(150, 75), [(0, 300), (900, 1800)])
    track = observation_track(observation, "altaz")
    model = AnalyticModel()
    irf = make_background_irf(model, track, "altaz", 60.0, alignment)
    assert irf.fov_alignment == FoVAlignment(alignment.upper())
    seconds = np.concatenate([np.arange(5, 300, 10.0), np.arange(905, 1800, 10.0)])
    lon, lat = np.array([0.5, -1.3, 1.0]), np.array([0.8, 0.2, -1.5])
    v = np.stack([np.cos(np.radians(lat)) * np.cos(np.radians(lon)), np.cos(np.radians(lat)) * np.sin(np.radians(lon)),
                  np.sin(np.radians(lat))], axis=-1)  # fmt: skip
    icrs, want = v @ track.radec_matrix, 0.0
    for matrix, z in zip(track.matrices_at(seconds), track.cos_zenith_at(seconds), strict=True):
        x, y, w = (icrs @ matrix.T).T
        want = want + model.truth.rate(1.0, np.degrees(np.arctan2(y, x)), np.degrees(np.arcsin(w)), z) / len(seconds)
    sign = -1 if alignment == "reverse_lon_radec" else 1
    got = irf.evaluate(energy=1 * u.TeV, fov_lon=sign * lon * u.deg, fov_lat=lat * u.deg).to_value("s-1 MeV-1 sr-1")
    assert np.allclose(np.ravel(got), want, rtol=5e-3)


def test_a_frame_that_the_model_cannot_be_turned_to():
    observation = make_observation(tracking(150, 75), [(0, 300)])
    with pytest.raises(ObservationError, match="alignment 'altaz' for a model in 'radec'"):
        make_background_irf(AnalyticModel(), observation_track(observation, "radec"), "radec", 60.0, "altaz")


def test_one_warning_names_all_runs_and_a_bar_shows_the_progress(small, tmp_path, caplog, capsys, monkeypatch):
    runs = list(small.get_observations(required_irf=[]))
    config = options("radial", "none", zenith={"type": "interpolated", "min_observations": 1})
    maker = AcceptanceBackgroundMaker(config).fit(runs)
    # a model of zenith angles that none of the runs has
    maker.model.rate_model.zenith_range = (0.995, 0.999)
    monkeypatch.setattr(pbar, "SHOW_PROGRESS_BAR", True)
    caplog.clear()
    attach_background(small, maker, tmp_path / "new", obs_ids=small.obs_ids[1:], n_jobs=1)
    (text,) = [r.getMessage() for r in caplog.records if "trained range" in r.getMessage()]
    assert [str(k) in text for k in small.obs_ids] == [False, True, True]
    shown = capsys.readouterr().err
    assert "Backgrounds" in shown and "2/2" in shown
