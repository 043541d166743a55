"""A maker reads a run, and adapts the model to it, once; what it keeps is none of its state."""

import copy
import os
import pickle
import shutil

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from gammapy.data import GTI, DataStore, EventList, ObservationFilter
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker
from gammapy.maps import RegionGeom
from helpers import Calibrated, opened_files
from regions import CircleSkyRegion
from stores import IRFS, energy_axis, observations, options, plain_store, sky_geom

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance import kept
from gammapy_accmaker.models.binned import BinnedModel


@pytest.fixture(scope="module")
def fitted():
    return AcceptanceBackgroundMaker(options("grid")).fit(observations(plain_store())).model


@pytest.fixture
def maker(fitted):
    return AcceptanceBackgroundMaker(options("grid"), model=fitted)


@pytest.fixture
def run():
    return observations(plain_store())[0]


@pytest.fixture
def geom(run):
    return sky_geom(run.pointing.fixed_icrs, binsz=0.2, width=3)


@pytest.fixture
def adapts(monkeypatch):
    """Numbers of the runs that the model is adapted to."""
    found, adapt = [], BinnedModel.adapt

    def counting(self, run, *arguments):
        found.append(run.obs_id)
        return adapt(self, run, *arguments)

    monkeypatch.setattr(BinnedModel, "adapt", counting)
    return found


def file_of(run):
    return str(plain_store().path / "data" / f"simulated_{run.obs_id}.fits")


def test_a_run_on_several_geometries_is_read_and_adapted_once(maker, run, geom, adapts):
    center = geom.center_skydir
    regions = [CircleSkyRegion(center.directional_offset_by(k * u.deg, 0.5 * u.deg), 0.1 * u.deg) for k in (0, 90)]
    with opened_files() as opened:
        first = maker.make_background(geom, run)
        for region in regions:
            maker.make_background(RegionGeom.create(region, axes=[energy_axis()]), run)
        maker.make_irf(run)
        maker.adapt(run)
        again = maker.make_background(geom, observations(plain_store())[0])  # another object of the same run
    assert opened.count(file_of(run)) == 1 and adapts == [run.obs_id]
    np.testing.assert_array_equal(again.data, first.data)


def test_what_gammapy_has_read_meanwhile_is_the_same_run(maker, run, geom, adapts):
    before = maker.make_background(geom, run)
    dataset = MapDatasetMaker(selection=["counts"]).run(MapDataset.create(geom), run)
    assert run.gti is not None and run.meta is not None
    np.testing.assert_array_equal(maker.run(dataset, run).background.data, before.data)
    assert adapts == [run.obs_id]
    other = observations(plain_store())[1]
    assert other.gti is not None and other.meta is not None
    maker.adapt(other)
    maker.adapt(observations(plain_store())[1])
    assert adapts == [run.obs_id, other.obs_id]


def shifted(run):
    gti = run.gti
    changed = GTI.create(gti.time_start, gti.time_stop - 200 * u.s, gti.time_ref)
    new = copy.copy(run)
    for name, value in vars(run).items():
        if isinstance(value, GTI):
            setattr(new, name, changed)
    return new


def selected(run):
    new = copy.copy(run)
    new.obs_filter = ObservationFilter(time_filter=run.gti.time_start[0] + [0, 300] * u.s)
    return new


def thinned(run, step=2):
    new = copy.copy(run)
    new.events = EventList(run.events.table[::step])
    return new


def calibrated(run):
    new = copy.copy(run)
    new.__class__ = Calibrated
    return new


CHANGES = {"good time": shifted, "filter": selected, "events": thinned, "calibration": calibrated}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_was_changed_is_another_one(maker, run, adapts, change):
    changed = CHANGES[change](run)
    fresh = maker.adapt(run).norm
    norms = [maker.adapt(changed).norm for _ in range(2)]
    assert norms[0] == norms[1] != fresh
    assert len(adapts) == (3 if change == "calibration" else 2)  # nobody can tell what a class of its own gives
    assert maker.adapt(run).norm == maker.adapt(observations(plain_store())[0]).norm == fresh
    assert maker.adapt(changed).norm == norms[0]
    adapts[2:] = []
    if change == "events":
        assert maker.adapt(thinned(run)).norm == norms[0] and not adapts[2:]  # the same ones
        assert maker.adapt(thinned(run, 3)).norm < norms[0]


def test_a_file_that_was_changed_is_read_again(maker, run, adapts, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(plain_store().path, folder)

    def read():
        return DataStore.from_dir(folder).get_observations([run.obs_id], required_irf=IRFS)[0]

    maker.adapt(read())
    path = folder / "data" / f"simulated_{run.obs_id}.fits"
    os.utime(path, ns=(1, 1))
    maker.adapt(read())
    assert len(adapts) == 2
    path.unlink()
    with pytest.raises(Exception, match="there is no file"):
        maker.adapt(read())


def test_another_model_or_exclusion_begins_anew(maker, run, adapts, fitted):
    there = SkyCoord(run.pointing.fixed_icrs.ra, run.pointing.fixed_icrs.dec)
    maker.adapt(run)
    maker.model = fitted
    maker.adapt(run)
    maker.fit(observations(plain_store())[:2])
    adapts.clear()
    maker.adapt(run)
    assert len(adapts) == 1
    other = AcceptanceBackgroundMaker(options("grid"), model=fitted, exclusion=CircleSkyRegion(there, 0.5 * u.deg))
    assert other.adapt(run).norm != maker.adapt(run).norm


def test_what_was_made_with_another_model_meanwhile_is_not_kept(maker, run, adapts, fitted, monkeypatch):
    """As of two threads, or of a shallow copy of the maker, which keeps the same."""
    other = copy.copy(maker)
    other.model = AcceptanceBackgroundMaker(options("grid")).fit(observations(plain_store())[:2]).model
    counting, want = BinnedModel.adapt, other.adapt(run).norm

    def adapt(self, *arguments):
        monkeypatch.setattr(BinnedModel, "adapt", counting)
        other.adapt(observations(plain_store())[1])
        return counting(self, *arguments)

    monkeypatch.setattr(BinnedModel, "adapt", adapt)
    assert maker.adapt(run).norm != want
    assert other.adapt(run).norm == want


def test_what_is_kept_is_bounded_and_not_sent(maker, monkeypatch, adapts):
    runs = observations(plain_store())[:4]
    stored = pickle.dumps(maker)
    monkeypatch.setattr(kept, "_MAX_KEPT", 2)
    for run in runs:
        maker.adapt(run)
    kept_runs = next(value for value in vars(maker).values() if isinstance(value, kept.KeptRuns))
    assert len(kept_runs) == 2
    assert pickle.dumps(maker) == stored
    adapts.clear()
    copy.deepcopy(maker).adapt(runs[-1])
    assert len(adapts) == 1
    for run in reversed(runs):
        maker.adapt(run)
    assert adapts[1:] == [run.obs_id for run in reversed(runs[:2])]
    assert all(result.observation is None for *_, result in kept_runs._results.values())
