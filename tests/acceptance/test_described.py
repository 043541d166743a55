"""What objects say of themselves in print and in notebooks: short, and true."""

import logging
import re
from dataclasses import replace
from html.parser import HTMLParser

import astropy.units as u
import numpy as np
import pytest
import stores
from analyses import FAST, nested
from gammapy.data import DataStore

from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceModel,
    plan_groups,
)
from gammapy_accmaker.utils.describe import as_html, as_text, in_percent

SPLINE = {"energy": {"min": "0.05 TeV", "max": "100 TeV"}}
RADIAL = {"model": {"type": "radial"}}


@pytest.fixture(scope="module")
def runs():
    return stores.observations(stores.full_store())


@pytest.fixture(scope="module")
def maker(runs):
    return AcceptanceBackgroundMaker(SPLINE, exclusion=[stores.source_region(stores.full_store())]).fit(runs[:4])


class Balanced(HTMLParser):
    """Tags that are open; each is closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def text_of(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser.text


def made_by(call):
    names = {"AcceptanceConfig": AcceptanceConfig, "AcceptanceAnalysisConfig": AcceptanceAnalysisConfig}
    exec(f"made = {call}", names)
    return names["made"]


def facts(text):
    return dict(re.findall(r"^  (\w[\w ]*?) +: (.*)$", text, flags=re.MULTILINE))


def test_model_tells_trained_ranges_and_not_configured_ones(maker, runs):
    model = maker.model
    low, high = model.energy_range.to_value("TeV")
    energies, offsets = [], []
    for run in runs[:4]:
        offset = run.events.radec.separation(run.get_pointing_icrs(run.tmid)).deg
        inside = offset < 2.4
        energies += run.events.energy.to_value("TeV")[inside].tolist()
        offsets += offset[inside].tolist()
    # to a bin of a tenth of a decade
    assert low <= min(energies) < low * 10**0.11 and 0.05 < low
    assert high * 10**-0.31 < max(energies) <= high < 100
    told = facts(str(model))
    assert told["energy"] == f"{low:.3g} to {high:.3g} TeV with events, of 0.05 to 100 TeV"
    assert told["offset max"].startswith("2.5 deg, and the rate goes on to 2.71")
    zenith = np.degrees(np.arccos(model.rate_model.zenith_range[::-1]))
    assert f"{zenith[0]:.1f} to {zenith[1]:.1f} deg" in told["zenith"]
    assert told["events"].startswith(f"{model.n_events:,}".replace(",", " "))
    assert model.n_events == model.run_table["COUNTS"].sum()
    assert told["exclusion"] == "1 sky region" and told["runs"] == "4 used, 0 left out"
    assert re.fullmatch(r"converged after \d+ rounds", told["fit"])
    assert told["covariates"] == "MUONEFF"


def test_offsets_that_hold_no_events_are_told(runs):
    far = AcceptanceBackgroundMaker({"offset_max": "4.5 deg", **RADIAL}).fit(runs[4:6]).model
    reach = max(np.max(r.events.radec.separation(r.get_pointing_icrs(r.tmid)).deg) for r in runs[4:6])
    told = float(re.search(r"4.5 deg, with events to ([\d.]+) deg", str(far))[1])
    assert told == pytest.approx(reach, abs=4.5 / 12)


def test_excluded_share_is_that_of_solid_angle_and_time(maker, runs):
    region = stores.source_region(stores.full_store())
    # a small circle wholly within the field of view of each ON run
    on = [k for k, run in enumerate(runs[:4]) if run.get_pointing_icrs(run.tmid).separation(region.center).deg < 2]
    share = (region.radius.to_value("deg") / 2.5) ** 2
    seen = sum(runs[k].gti.time_sum.to_value("s") for k in on) / sum(r.gti.time_sum.to_value("s") for r in runs[:4])
    assert maker.model.excluded_share == pytest.approx(share * seen, rel=0.03)
    without = AcceptanceBackgroundMaker(RADIAL).fit(runs[4:6]).model
    assert without.excluded_share == pytest.approx(0, abs=1e-6) and ", 0 % of the field of view" in str(without)


@pytest.mark.parametrize(
    ("share", "text"), [(1.1e-16, "0 %"), (-1e-16, "0 %"), (0.0123, "1.2 %"), (0.205, "20 %"), (1.0, "100 %")]
)
def test_shares_have_two_digits_and_no_exponent(share, text):
    assert in_percent(share) == text


def test_repr_is_one_short_line(maker, runs):
    for thing in (maker, maker.model, maker.config, plan_groups(runs[:3], RADIAL), AcceptanceBackgroundMaker()):
        assert "\n" not in repr(thing) and len(repr(thing)) < 250, repr(thing)
        assert type(thing).__name__ in repr(thing)
    assert repr(maker.model.n_events // 1000) in repr(maker.model) and "converged" in repr(maker)
    assert "4 runs" in repr(maker.model) and "1 sky region excluded" in repr(maker.model)
    assert "call fit" in repr(AcceptanceBackgroundMaker())


def test_bins_that_end_before_the_largest_offset_are_what_is_told(runs):
    rings = {"type": "radial", "offset_bins": ["0 deg", "0.5 deg", "1.2 deg", "1.9 deg"]}
    model = AcceptanceBackgroundMaker({"model": rings}).fit(runs[4:6]).model
    assert "offset to 1.9 deg" in repr(model) and model.view.offset_max == pytest.approx(1.9)


def test_fit_that_did_not_converge_says_so_in_brief(maker):
    rate_model = replace(maker.model.rate_model, spline=replace(maker.model.rate_model.spline, converged=False))
    model = replace(maker.model, rate_model=rate_model)
    assert repr(model).endswith("not converged>") and "did not converge" in facts(str(model))["fit"]


def test_str_of_a_maker_is_well_formed(maker):
    for text in (str(maker), str(AcceptanceBackgroundMaker())):
        title, line, empty, *rest = text.splitlines()
        assert title == "AcceptanceBackgroundMaker" and line == "-" * len(title) and empty == ""
        assert all(re.match(r"  \S", r) is None or re.match(r"  \w+ +: ?", r) for r in rest), text
        assert "    offset_max: 2.5 deg" in rest
    lines = str(maker).splitlines()
    start = lines.index("  model       :")
    assert [line.strip() for line in lines[start + 1 :]] == [line.strip() for line in str(maker.model).splitlines()[3:]]
    assert AcceptanceConfig.from_yaml("\n".join(lines[lines.index("  config      :") + 1 : start - 1])) == maker.config


def test_notebooks_show_the_same(maker, runs):
    plan = plan_groups(runs[:3], RADIAL)
    for thing in (maker, maker.model, maker.config, plan, AcceptanceBackgroundMaker(), AcceptanceAnalysisConfig()):
        text = text_of(thing._repr_html_())
        assert (repr(plan) if thing is plan else type(thing).__name__) in text
    assert "1 sky region" in text_of(maker._repr_html_()) and "converged" in text_of(maker._repr_html_())


def test_text_of_others_is_no_html():
    text = as_html("<b>", [("<i>", "<script>"), ("lines", "<u>\nb")])
    assert not re.search("<(b|i|script|u)>", text)
    assert as_text("T", [("a", "1\n\n2")]) == "T\n-\n\n  a           :\n    1\n\n    2\n"


CONFIGS = [
    {},
    RADIAL,
    {"model": {"type": "grid", "offset_bins": ["0 deg", "1 deg", "2 deg"]}, "zenith": {"type": "binned"}},
    RADIAL | {"fit_energy": {"type": "adaptive", "min_counts": 100}},
    RADIAL | {"fit_energy": ["0.1 TeV", "1 TeV", "10 TeV"]},
    {"run_effects": {"type": "tilt", "norm_energy": ["1 TeV", "10 TeV"]}, "time_step": None},
    {"model": {"type": "parametric", "function": "power_law * gaussian"}, "exclusion": {"wobble_half": True}},
    {
        "matching": {"limits": {"zenith": "2 deg"}},
        "observatory_location": {"lon": "16 deg", "lat": "-23 deg", "height": "9 m"},
    },
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_repr_of_a_configuration_makes_it_again_from_what_is_no_default(options):
    config = AcceptanceConfig.coerce(options)
    assert made_by(repr(config)).to_yaml() == config.to_yaml()
    changed = {name for name in AcceptanceConfig.model_fields if re.search(rf"[( ]{name}=", repr(config))}
    assert changed == {
        name
        for name in AcceptanceConfig.model_fields
        if config.model_dump(mode="json")[name] != AcceptanceConfig().model_dump(mode="json")[name]
    }


def test_analysis_says_how_far_it_is():
    options = nested(stores.full_store())
    analysis = AcceptanceAnalysis(options)
    assert "none selected yet" in repr(analysis) and "acceptance" in repr(analysis)
    analysis.get_observations()
    assert facts(str(analysis))["runs"] == "2 selected" and facts(str(analysis))["model"] == "none yet"
    analysis.get_datasets()
    told = facts(str(analysis))
    assert told["model"].startswith("radial") and "2 runs" in told["model"]
    assert told["datasets"] == "stacked (MapDataset)" and told["fit"] == "none yet"
    text_of(analysis._repr_html_())
    config = analysis.config
    assert made_by(repr(config)) == config and FAST["model"]["type"] in repr(config)
    plain = AcceptanceAnalysis({})
    assert "model" not in facts(str(plain)) and facts(str(plain))["background"] == "none"


def test_model_that_was_not_fitted_here_says_so(maker, runs):
    model = AcceptanceModel.from_irf(maker.make_irf(runs[0]))
    assert "not fitted here" in repr(model) and "events" not in facts(str(model))
    assert np.isnan(model.excluded_share)
    np.testing.assert_allclose(model.energy_range, model.rate_model.energy_edges[[0, -1]] * u.TeV)
    text_of(model._repr_html_())


@pytest.mark.parametrize("options", [SPLINE, RADIAL], ids=["spline", "radial"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_fit_tells_what_it_does_and_nothing_twice(options, n_jobs, runs, caplog):
    region = stores.source_region(stores.full_store())
    with caplog.at_level(logging.INFO):
        maker = AcceptanceBackgroundMaker(options, exclusion=[region])
        maker.fit([*runs[:3], stores.altered(runs[4], keep=[], obs_id=99)], n_jobs=n_jobs)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(set(told)) == len(told)
    begin, end = (line for line in told if line.startswith("fit: "))
    model = maker.model
    assert f"{model.config.model.type} model of 3 runs (1 left out)" in begin
    assert f"{model.n_events:,} events".replace(",", " ") in begin
    assert f"{100 * model.excluded_share:.2g} % of the field of view excluded" in begin
    assert model.rate_model.convergence in end and model.rate_model.describe_zenith() in end
    assert ("covariates MUONEFF" in end) == (options is SPLINE)
    assert 0 < float(re.search(r"; ([\d.]+) s$", end)[1]) < 600


def test_matched_fits_tell_what_they_do(runs, caplog):
    with caplog.at_level(logging.INFO):
        AcceptanceBackgroundMaker({"matching": {"n_runs": 2}, **RADIAL}).fit(runs[:2], runs[4:7])
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("fit: ")]
    assert len(told) == 2 and "radial model of" in told[0] and "models, each for the runs" in told[1]


def test_selection_of_runs_says_nothing_twice(caplog):
    with caplog.at_level(logging.INFO):
        analysis = AcceptanceAnalysis(nested(stores.full_store()))
        analysis.get_observations()
    told = [record.getMessage() for record in caplog.records]
    assert len(set(told)) == len(told) > 2


def test_rounds_of_a_fit_are_in_its_file(maker, tmp_path):
    maker.model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert str(again) == str(maker.model) and repr(again) == repr(maker.model)


def test_run_table_says_where_the_runs_point_and_what_its_columns_hold(maker, runs):
    table = maker.run_table
    for row, run in zip(table, runs, strict=False):
        pointing = run.get_pointing_icrs(run.gti.time_start[0])
        assert row["RA"] == pytest.approx(pointing.ra.deg, abs=0.01) and 0 <= row["RA"] < 360
        assert row["DEC"] == pytest.approx(pointing.dec.deg, abs=0.01)
    assert all(column.info.description for column in table.columns.values())
    # no number in print is longer than what matters
    assert all(len(cell) <= 12 for line in table.pformat(max_width=-1)[3:] for cell in line.split())


@pytest.mark.gammapy_data
def test_right_ascension_of_a_real_run_is_that_of_its_header():
    run = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations([20136], required_irf=[])[0]
    (row,) = AcceptanceBackgroundMaker(RADIAL).fit([run]).run_table
    assert row["RA"] == pytest.approx(run.events.table.meta["RA_PNT"], abs=0.01)
