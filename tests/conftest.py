"""Real data are used where they are, and only there."""

import os
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

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
