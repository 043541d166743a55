"""Published spectra of H.E.S.S. DL3 DR1 (Mohrmann et al. 2019, A&A 632, A72), without a free norm of the background.

The fits are those of the tutorial, which leaves their results in a table.
"""

import pytest
from astropy.table import Table
from shared import session_folder
from tutorials_run import TUTORIALS, executed


@pytest.fixture(scope="module")
def difference():
    """Flux and index less the published ones, in published errors, by source and background."""
    executed(TUTORIALS / "published_spectra.ipynb")
    table = Table.read(session_folder() / "tutorials-together" / "published-spectra" / "results.ecsv")
    return {(row["source"], row["background"]): (row["flux: difference"], row["index: difference"]) for row in table}


@pytest.mark.slow
@pytest.mark.gammapy_data
@pytest.mark.parametrize("source", ["Crab", "MSH 15-52", "RX J1713.7-3946"])
def test_flux_and_index_are_the_published_ones(difference, source):
    flux, index = difference[source, "fitted"]
    assert abs(flux) < 1.5 and abs(index) < 2.5


@pytest.mark.slow
@pytest.mark.gammapy_data
def test_large_source_needs_the_fitted_background(difference):
    flux, shipped = (difference["RX J1713.7-3946", background][0] for background in ("fitted", "shipped"))
    assert abs(flux) < abs(shipped) - 1


@pytest.mark.slow
@pytest.mark.gammapy_data
def test_faint_point_source_is_the_same_with_either_background(difference):
    """PKS 2155-304 comes out fainter than published, with the shipped background too."""
    flux, shipped = (difference["PKS 2155-304", background][0] for background in ("fitted", "shipped"))
    assert abs(flux - shipped) < 0.5
