"""Real data are used where they are, and only there."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest
from astropy.utils import iers
from shared import use_folder

mpl.use("Agg")
# where there is no network, astropy 6 would try again for each frame: a test of 1 s takes half a minute
iers.conf.auto_download = False

DR1 = Path(os.environ.get("GAMMAPY_DATA", "")) / "hess-dl3-dr1"


def pytest_collection_modifyitems(items):
    if "GAMMAPY_DATA" in os.environ and (DR1 / "hdu-index.fits.gz").is_file():
        return
    if os.environ.get("GAMMAPY_ACCMAKER_REQUIRE_DATA"):
        raise pytest.UsageError(f"tests on real data must run here, but there is no {DR1}/hdu-index.fits.gz")
    skip = pytest.mark.skip(reason="GAMMAPY_DATA names no folder with hess-dl3-dr1: `gammapy download datasets`")
    for item in items:
        if item.get_closest_marker("gammapy_data"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory):
    """Where `shared.made_once` keeps things: one folder for all processes of pytest-xdist, each of which has its own below it."""
    folder = tmp_path_factory.getbasetemp()
    use_folder(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
