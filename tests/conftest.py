"""Real data are used where they are, and only there; all tests run in parallel, those of a few files in one process."""

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before numpy: each process of pytest-xdist is one of as many as there are cores

import matplotlib as mpl
import pytest
from astropy.utils import iers
from matplotlib.figure import Figure
from shared import use_folder

mpl.use("Agg")
# where there is no network, astropy 6 would try again for each frame: a test of 1 s takes half a minute
iers.conf.auto_download = False

DATA = Path(os.environ.get("GAMMAPY_DATA", ""))
DR1 = "hess-dl3-dr1"  # what the mark asks for where it names no folder below $GAMMAPY_DATA


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config):
    """None of its own for files and single tests, which would wait for it to start; as many as usual for folders."""
    files = [Path(argument.split("::")[0]).is_file() for argument in config.args]
    return 0 if all(files) else None


def pytest_collection_modifyitems(items):
    for item in items:
        mark = item.get_closest_marker("gammapy_data")
        for folder in () if mark is None else mark.args or (DR1,):
            if "GAMMAPY_DATA" in os.environ and (DATA / folder / "hdu-index.fits.gz").is_file():
                continue
            if os.environ.get("GAMMAPY_ACCMAKER_REQUIRE_DATA"):
                raise pytest.UsageError(
                    f"tests on real data must run here, but there is no {DATA / folder}/hdu-index.fits.gz"
                )
            reason = f"GAMMAPY_DATA names no folder with {folder}: `gammapy download datasets`"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory):
    """Where `shared.made_once` keeps things: one folder for all processes of pytest-xdist,
    each of which has its own below it."""
    folder = tmp_path_factory.getbasetemp()
    use_folder(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture
def empty_pictures(monkeypatch):
    """Pictures are drawn on, but not rendered, which is most of the time of a report; for tests of its words."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **options: None)


@pytest.fixture(scope="session")
def store():
    """The simulated store that has all: a source, and norms, shifts and zenith angles that differ from run to run."""
    from stores import full_store  # gammapy, which the process that hands out the tests does not need

    return full_store()
