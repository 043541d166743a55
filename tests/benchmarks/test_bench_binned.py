"""Benchmarks of the binned models on H.E.S.S. DL3 DR1. Plain pytest leaves this folder out; to run it::

    python -m pip install '.[test,bench]'
    export GAMMAPY_DATA=...
    OMP_NUM_THREADS=1 python -m pytest tests/benchmarks/test_bench_binned.py --benchmark-only

With ``ACCMAKER_BACCMOD_PYTHON`` set to the python of an environment with BAccMod (see ``baccmod_reference.py``) the
ratios to it are tested too, unless ``--benchmark-only`` is given. Its grids take most of an hour: choose with ``-k
radial``. On a machine that has other work to do, add ``--benchmark-timer=time.process_time``.
"""

import pytest
from measures import fit, fitted_maker, gammapy_background, new_run_and_geom, read_events
from report import AGREEMENT_ASKED, BACKGROUND_ASKED, FITS, baccmod_python, compare_background, compare_fit, run_ours

pytestmark = [
    pytest.mark.gammapy_data,
    # the figures are of time: a warning of a library does not stop them
    pytest.mark.filterwarnings("default"),
]

MEMORY_ASKED = 1024  # MB


@pytest.fixture(scope="module")
def maker():
    return fitted_maker()


@pytest.mark.parametrize("case", FITS)
def test_fit(benchmark, case):
    model, offset_bins, _ = FITS[case]
    fitted = benchmark.pedantic(fit, args=(model, offset_bins), rounds=3)
    assert fitted.run_table["USED"].sum() == 105


def test_read_events(benchmark):
    assert len(benchmark.pedantic(read_events, rounds=3)) == 105


def test_make_background(benchmark, maker):
    def setup():
        observation, geom = new_run_and_geom()
        return (geom, observation), {}

    background = benchmark.pedantic(maker.make_background, setup=setup, rounds=5)
    assert background.data.sum() > 0


def test_gammapy_background(benchmark, maker):
    irf = maker.make_irf(new_run_and_geom()[0])
    background = benchmark.pedantic(gammapy_background, setup=lambda: ((irf, *new_run_and_geom()), {}), rounds=3)
    assert background.data.sum() > 0


@pytest.mark.parametrize("case", FITS)
def test_peak_memory_of_fit(case):
    model, offset_bins, _ = FITS[case]
    assert run_ours(model, offset_bins)["peak_mb"] < MEMORY_ASKED


@pytest.mark.skipif(baccmod_python() is None, reason="ACCMAKER_BACCMOD_PYTHON names no python with BAccMod")
@pytest.mark.parametrize("case", FITS)
def test_ratio_to_baccmod(case):
    result = compare_fit(case)
    assert result["ours"]["runs"] == result["other"]["runs"] == 105
    assert result["ours"]["peak_mb"] <= result["other"]["peak_mb"]
    assert max(result["ratio"], result["ratio_all_cores"]) >= result["asked"]


@pytest.fixture(scope="module")
def backgrounds():
    return compare_background()


def test_ratio_to_gammapy_background(backgrounds):
    assert backgrounds["gammapy"]["next"] / backgrounds["ours"]["next"] >= BACKGROUND_ASKED


@pytest.mark.parametrize("key", ["energy_bin_ratio", "energy_bin_ratio_oversampled"])
def test_agreement_with_gammapy_background(backgrounds, key):
    assert backgrounds[key] == pytest.approx([1] * 10, abs=AGREEMENT_ASKED)
