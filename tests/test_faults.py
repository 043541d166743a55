"""Broken files and dying processes: a run that cannot be used is named, left out and listed,
and the others are fitted."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from gammapy.data import DataStore, Observation
from stores import IRFS, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, fit_acceptance
from gammapy_accmaker.acceptance import reduction as runs
from gammapy_accmaker.errors import InputError, NotFittedError, ObservationError
from gammapy_accmaker.utils.parallel import Execution, ProcessDiedError

CONFIG = options("radial")
BROKEN = 2  # which of the runs of a store is broken


@pytest.fixture
def store(tmp_path):
    """A copy of the simulated store, to be broken: its folder, and the file of one of its runs."""
    folder = tmp_path / "store"
    shutil.copytree(plain_store().path, folder)
    return folder


def read(folder):
    data_store = DataStore.from_dir(folder)
    ids = sorted(data_store.obs_table["OBS_ID"])[:4]
    return list(data_store.get_observations(ids, required_irf=IRFS))


def file_of(observation):
    return vars(observation)["__events_hdu"].path()


def rewrite(path, change):
    with fits.open(path, memmap=False) as hdulist:
        hdus = fits.HDUList([hdu.copy() for hdu in hdulist])
    change(hdus)
    hdus.writeto(path, overwrite=True, output_verify="ignore")


def without(column):
    def change(hdus):
        columns = [c for c in hdus["EVENTS"].columns if c.name != column]
        hdus["EVENTS"] = fits.BinTableHDU.from_columns(columns, header=_without_columns(hdus["EVENTS"].header))

    return lambda path: rewrite(path, change)


def _without_columns(header):
    header = header.copy()
    for key in list(header):
        if key[:5] in ("TTYPE", "TFORM", "TUNIT"):
            del header[key]
    return header


def unit(column, name):
    def change(hdus):
        table = hdus["EVENTS"]
        table.columns[column].unit = name
        if name is None:
            del table.header[f"TUNIT{table.columns.names.index(column) + 1}"]

    return lambda path: rewrite(path, change)


def header(key, value):
    """A header card is overwritten on disk, where no library can object."""

    def damage(path):
        content = path.read_bytes()
        at = content.index(f"{key:8s}=".encode(), content.index(b"XTENSION"))
        card = f"{key:8s}= {value:>20s}".ljust(80).encode()
        path.write_bytes(content[:at] + card + content[at + 80 :])

    return damage


def no_gti(hdus):
    hdus["GTI"].data = hdus["GTI"].data[:0]


def late_gti(hdus):
    hdus["GTI"].data["START"] += 5 * 86400
    hdus["GTI"].data["STOP"] += 5 * 86400


def nan_times(hdus):
    hdus["EVENTS"].data["TIME"] = np.nan


FAULTS = {
    "missing": (Path.unlink, "no file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]), "truncated"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:4000]), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "FITS"),
    "text": (lambda path: path.write_text("no events, sorry\n" * 100), "FITS"),
    "zeros": (lambda path: path.write_bytes(bytes(10000)), "FITS"),
    "without ENERGY": (without("ENERGY"), "ENERGY"),
    "without TIME": (without("TIME"), "TIME"),
    "energy in s": (unit("ENERGY", "s"), "ENERGY"),
    "energy without unit": (unit("ENERGY", None), "ENERGY"),
    "unknown unit": (unit("RA", "furlong"), "RA"),
    "no good time": (lambda path: rewrite(path, no_gti), "good time"),
    "good time elsewhere": (lambda path: rewrite(path, late_gti), "outside the good time"),
    "times are NaN": (lambda path: rewrite(path, nan_times), "NaN"),
    "no events HDU": (lambda path: rewrite(path, lambda hdus: hdus.pop("EVENTS")), "no HDU EVENTS"),
    "no GTI HDU": (lambda path: rewrite(path, lambda hdus: hdus.pop("GTI")), "no HDU GTI"),
    "10^12 rows": (header("NAXIS2", "1000000000000"), "damaged"),
    "10^12 bytes a row": (header("NAXIS1", "1000000000000"), "damaged"),
    "negative rows": (header("NAXIS2", "-5"), "claims"),
    "rows are text": (header("NAXIS2", "'many'"), "damaged"),
    "999 axes": (header("NAXIS", "999"), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_costs_its_run_only(store, fault, caplog):
    observations = read(store)
    broken = observations[BROKEN]
    damage, word = FAULTS[fault]
    damage(file_of(broken))
    others = [o for o in observations if o is not broken]
    with caplog.at_level(logging.WARNING, "gammapy_accmaker"):
        model = fit_acceptance(read(store), CONFIG)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("gammapy_accmaker")]
    ours = [message for message in ours if not message.startswith("exclusion: nothing is excluded")]
    assert len(ours) == 1 and str(broken.obs_id) in ours[0] and word.lower() in ours[0].lower()
    table = model.run_table
    assert list(table["OBS_ID"][~table["USED"]]) == [broken.obs_id]
    assert word.lower() in table["FLAG"][~table["USED"]][0].lower()
    alone = fit_acceptance(others, CONFIG).rate_model
    assert np.array_equal(model.rate_model.counts, alone.counts)
    assert np.array_equal(model.rate_model.exposure, alone.exposure)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_fit_stops_at_once_where_it_is_told_to(store, n_jobs):
    observations = read(store)
    file_of(observations[BROKEN]).unlink()
    maker = AcceptanceBackgroundMaker(CONFIG)
    with pytest.raises(ObservationError, match=f"{observations[BROKEN].obs_id} cannot be used"):
        maker.fit(observations, n_jobs=n_jobs, on_error="raise")
    assert not maker.is_fitted
    with pytest.raises(NotFittedError, match="call `maker.fit"):
        maker.model.peek()
    assert len(maker.fit(observations, n_jobs=n_jobs).run_table) == 4


@pytest.mark.parametrize(
    "argument", [{"on_error": "ignore"}, {"n_jobs": 0}, {"n_jobs": 1.5}, {"parallel_backend": "threads"}]
)
def test_arguments_that_do_not_exist(argument):
    with pytest.raises(InputError, match=next(iter(argument))):
        fit_acceptance(read(plain_store().path), CONFIG, **argument)


DEATHS = {"exit": lambda: os._exit(3), "kill": lambda: os.kill(os.getpid(), signal.SIGKILL)}


class DeadlyObservation(Observation):
    """Whoever reads its events dies."""

    @property
    def events(self):
        DEATHS[self.death]()


@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_costs_its_run_only(death):
    observations = read(plain_store().path)
    deadly = observations[BROKEN]
    deadly.__class__, deadly.death = DeadlyObservation, death
    table = fit_acceptance(observations, CONFIG, n_jobs=2).run_table
    assert list(table["OBS_ID"][~table["USED"]]) == [deadly.obs_id]
    assert "died" in table["FLAG"][~table["USED"]][0]
    with pytest.raises(ObservationError, match=f"{deadly.obs_id} cannot be used.*died"):
        fit_acceptance(observations, CONFIG, n_jobs=2, on_error="raise")


def _square_unless(number, dying):
    if number in dying:
        os._exit(1)
    return number**2


def test_many_processes_that_die():
    dying = {0, 7, 8, 29}
    results = list(Execution(2).map(_square_unless, [(k, dying) for k in range(30)]))
    assert {k for k, result in enumerate(results) if isinstance(result, ProcessDiedError)} == dying
    assert all(result == k**2 for k, result in enumerate(results) if k not in dying)


def test_work_that_cannot_be_left_out_ends_with_the_error():
    starmap = Execution(2).starmap("")
    assert list(starmap(_square_unless, [(k, set()) for k in range(5)])) == [0, 1, 4, 9, 16]
    with pytest.raises(ProcessDiedError, match="died"):
        list(starmap(_square_unless, [(k, {3}) for k in range(5)]))


def _raise(number):
    raise OSError(f"number {number}")


def test_exceptions_come_back():
    with pytest.raises(OSError, match="number"):
        list(Execution(2).map(_raise, [(k,) for k in range(5)]))


RUN_AND_DIE = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from gammapy.data import DataStore, Observation
    from gammapy_accmaker.data import cache
    from gammapy_accmaker.acceptance import reduction as runs
    from gammapy_accmaker import fit_acceptance
    from test_faults import CONFIG, read

    write, written = cache.write_atomically, []

    def write_some(path, writer, overwrite):
        if len(written) == 2:
            def half(temporary):
                writer(temporary)
                os.truncate(temporary, 3000)
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, half, overwrite)
        written.append(path)
        return write(path, writer, overwrite)

    cache.write_atomically = write_some
    fit_acceptance(read({store!r}), CONFIG, cache={folder!r})
"""


def test_a_killed_process_leaves_no_half_entry_and_a_new_one_goes_on(tmp_path, monkeypatch):
    folder, store = tmp_path / "cache", plain_store().path
    code = textwrap.dedent(RUN_AND_DIE.format(tests=str(Path(__file__).parent), store=str(store), folder=str(folder)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parent.parent, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    whole = [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert len(whole) == 2 and len(list(folder.iterdir())) == 3

    reads = []

    def counting(self, observation, reduce=runs.Reduction.reduce):
        reads.append(observation.obs_id)
        return reduce(self, observation)

    expected = fit_acceptance(read(store), CONFIG).rate_model.counts
    monkeypatch.setattr(runs.Reduction, "reduce", counting)
    model = fit_acceptance(read(store), CONFIG, cache=folder)
    assert len(reads) == 2
    assert np.array_equal(model.rate_model.counts, expected)
