"""Real data are used where they are, and only there."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest
from astropy.utils import iers

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
