"""The report and its pictures."""

import re
from dataclasses import replace
from types import SimpleNamespace

import astropy.units as u
import browser
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import stores
from astropy.table import Table
from gammapy.maps import Map

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.errors import InputError, NotFittedError
from gammapy_accmaker.products import plots
from gammapy_accmaker.validation import pictures
from gammapy_accmaker.validation import report as report_sections
from gammapy_accmaker.validation.cross_validation import CrossValidation
from gammapy_accmaker.validation.report import escape, half_decades, run_effects, table, write_report
from gammapy_accmaker.validation.residuals import stack_residuals
from gammapy_accmaker.validation.significance import Significance, together
from gammapy_accmaker.validation.stacks import expected_in_camera, score_image

BANDS = [0.5, 1.5, 15] * u.TeV
EVIL = "<script>alert('run')</script> & \"more\""


@pytest.fixture(scope="module")
def maker():
    store = stores.full_store()
    maker = AcceptanceBackgroundMaker(
        {"energy": {"min": "0.3 TeV", "max": "30 TeV"}}, exclusion=[stores.source_region(store)]
    )
    return maker.fit(stores.observations(store))


@pytest.fixture(scope="module")
def report(maker, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    runs = maker.run_table.copy()
    runs["FLAG"] = runs["FLAG"].astype("U100")
    runs.add_row(
        {"OBS_ID": 7, "ROLE": "fit", "USED": False, "FLAG": EVIL} | dict.fromkeys(("ONTIME", "ZENITH"), np.nan)
    )
    model = AcceptanceModel(maker.model.rate_model, maker.model.config, runs)
    observations = stores.observations(stores.full_store())[2:6]
    write_report(model, observations, path, exclusion=maker.exclusion, band_edges=BANDS, title=f"Fit {EVIL}")
    return path


def test_stacks_hold_the_events_and_what_the_adapted_model_expects(maker):
    observation = stores.observations(stores.full_store())[4]  # an OFF run: nothing is excluded
    found = stack_residuals(maker, [observation], BANDS)
    track = observation_track(observation, "altaz")
    expected = expected_in_camera(maker.adapt(observation), track, BANDS.value, found.fov)
    inside = np.hypot(found.fov.fov_lon, found.fov.fov_lat) < 2.5
    np.testing.assert_allclose(found.expected.sum(1), expected[:, inside].sum(1), rtol=5e-3)
    energy = observation.events.energy.to_value("TeV")
    offset = observation.events.radec.separation(observation.get_pointing_icrs(observation.tmid)).deg
    in_bands = [
        np.sum((energy >= a) & (energy < b) & (offset < 2.45))
        for a, b in zip(BANDS.value, BANDS.value[1:], strict=False)
    ]
    # pixels at the rim are kept or cut whole
    assert np.all(np.abs(found.counts.sum(1) - in_bands) < 0.05 * np.array(in_bands) + 10)
    (field,) = found.fields
    np.testing.assert_allclose(field.expected.data.sum((1, 2)), found.expected.sum(1), rtol=0.02)
    assert found.runs[0].unexcluded == pytest.approx(1)
    assert found.runs[0].covariates["MUONEFF"] > 0


def test_excluded_sky_is_in_no_stack(maker):
    store = stores.full_store()
    observation = stores.observations(store)[0]
    found = stack_residuals(maker, [observation], BANDS)
    (field,) = found.fields
    position = store.source.spatial_model.position
    inside = field.counts.geom.to_image().separation(position) < 0.3 * u.deg
    assert inside.any() and not field.counts.data[:, inside].any() and not field.expected.data[:, inside].any()
    scores = score_image(field)
    assert np.isnan(scores.data[inside]).all() and np.isfinite(scores.data).any()
    assert 0.9 < found.runs[0].unexcluded < 1


def test_residuals_are_the_same_with_workers_and_are_normal(maker):
    observations = stores.observations(stores.full_store())[3:6]
    one, two = (stack_residuals(maker, observations, BANDS, n_jobs=n) for n in (1, 2))
    np.testing.assert_allclose(one.expected, two.expected, rtol=1e-10)
    np.testing.assert_array_equal(one.counts, two.counts)
    for scores in (*one.camera_scores(), *one.sky_scores()):
        values = scores[np.isfinite(scores)]
        assert abs(values.mean()) < 0.3 and 0.8 < values.std() < 1.2


def test_run_that_cannot_be_used_is_listed(maker):
    good, other = stores.observations(stores.full_store())[4:6]
    empty = stores.altered(other, keep=[], obs_id=99)
    found = stack_residuals(maker, [good, empty], BANDS)
    assert [failure.obs_id for failure in found.failures.values()] == [99]
    assert [run.key.obs_id for run in found.runs] == [int(good.obs_id)]
    with pytest.raises(InputError, match="99"):
        stack_residuals(maker, [empty], BANDS)
    with pytest.raises(InputError, match="observations"):
        stack_residuals(maker, [], BANDS)


def test_page_says_what_was_fitted(report, maker):
    text = report.read_text()
    for obs_id in maker.run_table["OBS_ID"]:
        assert str(obs_id) in text
    assert "run_effects:" in text and "gammapy" in text and "CircleSkyRegion" in text
    for word in ("8 of 9", "Camera", "Sky", "Left out of the fit", "muon efficiency", "Versions"):
        assert word in text
    assert str(stores.full_store().path) in text
    hours = np.sum(maker.run_table["ONTIME"]) / 3600
    assert f"{hours:.1f} h" in text


def test_page_needs_nothing_else_and_runs_nothing(report):
    text = report.read_text()
    assert "<script" not in text and "javascript:" not in text
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "url(" not in text and "@import" not in text
    images = re.findall(r"<img [^>]*>", text)
    assert len(images) >= 15
    assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)


def test_text_of_others_is_shown_as_text(report):
    text = report.read_text()
    assert "<script>alert" not in text
    assert text.count(escape(EVIL)) >= 3  # title twice, reason once
    assert "&lt;b&gt;" in table(["<b>"], [["<b>"]], "<b>") and "<b>" not in table(["<b>"], [["<b>"]], "<b>")


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1200, 390])
def test_page_is_whole_and_fits_in_a_browser(report, width, tmp_path):
    found = browser.measure(report, width, tmp_path)
    assert found["width"] == width
    assert found["scroll"] <= width, "the page scrolls sideways"
    assert found["images"] >= 15 and found["broken"] == 0
    assert found["hidden"] == 0 and found["small"] == 0 and found["holes"] == 0
    assert found["headings"][:2] == ["Verdict", "Counts against the model"] and "Run effects" in found["headings"]
    assert found["folded"] < 5000, "the page is long before anything is opened"


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed")
def test_browser_has_no_complaints(report):
    assert browser.console_lines(report) == []


def test_verdict_comes_first_and_says_of_which_runs(report, maker):
    text = report.read_text()
    first = text[text.index("<section") :]
    assert first.startswith('<section id="verdict"><h2>Verdict</h2><p class="good">Runs of the fit: ')
    assert "Trained: 4 of these 4 runs" in first and "Held-out" not in first
    assert "number of standard deviations" in first
    numbers = re.findall(r"mean ([+-][\d.]+) ± ([\d.]+), width ([\d.]+) ± (\d\.\d+)", first.split("</p>")[0])
    assert len(numbers) == 2  # camera and sky
    residuals = stack_residuals(maker, stores.observations(stores.full_store())[2:6], BANDS)
    frames = [
        (residuals.camera_scores(), residuals.expected_in_disc()),
        (residuals.sky_scores(), residuals.expected_in_sky_disc()),
    ]
    for (scores, in_disc), (mean, mean_error, width, width_error) in zip(frames, numbers, strict=True):
        values = [s[np.isfinite(s)] for s, expected in zip(scores, in_disc, strict=True) if expected >= 5]
        weight = np.array([len(v) for v in values])
        expected = np.average([v.mean() for v in values], weights=weight)
        spread = np.sqrt(np.average([np.mean(v**2) for v in values], weights=weight) - expected**2)
        assert float(mean) == pytest.approx(expected, abs=0.006) and float(width) == pytest.approx(spread, abs=0.006)
        independent = weight.sum() / (4 * np.pi)  # discs of 0.2 deg, around pixels of 0.1 deg
        assert float(mean_error) == pytest.approx(spread / np.sqrt(independent), abs=0.006)
        assert float(width_error) == pytest.approx(spread / np.sqrt(2 * independent), abs=0.006)


def test_significance_tells_a_true_model_from_a_wrong_one_where_counts_are_enough():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=40_000)
    good = Significance.of(scores, 1e6, 100.0)
    assert good.tells and good.is_good and good.in_words()[1].startswith("1.0")
    for wrong in (scores + 0.3, 1.3 * scores, 0.7 * scores):
        assert not Significance.of(wrong, 1e6, 100.0).is_good
    few = Significance.of(scores, 1e3, 0.3)
    assert not few.tells and few.in_words() == ("too few counts", "")
    assert not Significance.of(scores[:50], 1e6, 100.0).tells  # of four discs
    assert not Significance.of(np.array([np.nan]), 0, 0).tells
    whole = together([good, Significance.of(scores + 1, 1e6, 100.0), few])
    assert whole.mean == pytest.approx(0.5, abs=0.02) and whole.width == pytest.approx(np.sqrt(1.25), abs=0.02)
    assert together([few]) is None


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_verdict_names_the_bands_that_deviate(factor, maker):
    residuals = stack_residuals(maker, stores.observations(stores.full_store())[3:6], BANDS)
    counts = residuals.counts.copy()
    # in one band, half of the field has more events: the sum of all bands may agree
    counts[0, residuals.fov.fov_lon > 0] *= factor
    counts[0, residuals.fov.fov_lon < 0] *= 2 - factor
    text = report_sections._verdict(replace(residuals, counts=np.round(counts)), maker.run_table, None)[0]
    assert ("deviate from the model at 0.5 to 1.5 TeV (camera)" in text) == (factor != 1)
    assert ('class="good"' in text) == (factor == 1)


@pytest.mark.slow
def test_bands_with_too_few_counts_have_no_width_and_no_picture(maker, tmp_path):
    observations = stores.observations(stores.full_store())[4:6]
    write_report(maker, observations, tmp_path / "a.html", band_edges=[0.5, 1.5, 29, 30] * u.TeV)
    text = (tmp_path / "a.html").read_text()
    row = re.search(r"<tr><td[^>]*>29 to 30 TeV</td>.*?</tr>", text)[0]
    assert row.count("too few counts") == 2 and "±" not in row
    assert "0.5 to 1.5 TeV:" in text and "frame, 29 to 30 TeV" not in text
    write_report(maker, observations[:1], tmp_path / "b.html", band_edges=[10, 15, 30] * u.TeV)
    text = (tmp_path / "b.html").read_text()
    assert "No verdict" in text and "±" not in text.split("Counts against the model")[0].split("</table>")[0]


def test_held_out_runs_are_what_the_verdict_is_about(maker, tmp_path):
    observations = stores.observations(stores.full_store())[4:8]
    radial = AcceptanceBackgroundMaker({"model": {"type": "radial"}, "energy": {"min": "0.3 TeV", "max": "30 TeV"}})
    radial.fit(observations)
    write_report(radial, observations, tmp_path / "a.html", band_edges=BANDS, with_cross_validation=True)
    text = (tmp_path / "a.html").read_text()
    verdict = text[text.index("<section") : text.index("</section>")]
    assert "Held-out runs: significance in the camera" in verdict and "Held-out: runs were left out" in verdict
    assert "Trained:" not in verdict
    rows = re.findall(r"(camera|sky), ([\d.]+) to [\d.]+ TeV</td><td[^>]*>([+-][\d.]+) / ([\d.]+)</td>", text)
    assert len(rows) == 4
    for frame, low, mean, width in rows:
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", re.search(rf"<tr><td[^>]*>{low} to .*?</tr>", verdict)[0])
        found = cells[3:5] if frame == "camera" else cells[5:7]
        assert found == ["too few counts", ""] or [x.split(" ± ")[0] for x in found] == [mean, width]


def test_counts_are_held_against_the_model_by_energy_and_by_run(maker):
    residuals = stack_residuals(maker, stores.observations(stores.full_store())[3:6], BANDS)
    counts, expected = residuals.spectra()
    starts = [int(np.argmin(np.abs(residuals.energy_edges - band))) for band in BANDS.value[:-1]]
    np.testing.assert_allclose(residuals.energy_edges[starts], BANDS.value[:-1])
    np.testing.assert_allclose(np.add.reduceat(counts, starts), residuals.counts.sum(1))
    np.testing.assert_allclose(np.add.reduceat(expected, starts), residuals.expected.sum(1))
    assert 0.08 < np.diff(np.log10(residuals.energy_edges)).max() < 0.12
    ax = pictures.plot_ratio_by_energy(residuals.energy_edges, counts, expected, plt.figure().add_subplot())
    drawn = ax.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, (100 * (counts / expected - 1))[expected >= 1])
    assert ax.get_ylim()[0] == -ax.get_ylim()[1]
    ax = pictures.plot_counts_by_energy(residuals.energy_edges, counts, expected, plt.figure().add_subplot())
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), counts[counts > 0])
    by_run = np.array([100.0, 100, 400, 0]), np.array([100.0, 90, 100, 0])
    ax = pictures.plot_ratio_by_run(["a", "b", "c", "d"], *by_run, plt.figure().add_subplot())
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [0, 100 / 9, 300, np.nan])
    assert [t.get_text() for t in ax.texts] == ["c"]
    plt.close("all")


def test_flagged_runs_and_excluded_share_come_with_the_verdict(maker, tmp_path):
    runs = maker.run_table.copy()
    runs["FLAG"] = np.where(np.arange(len(runs)) == 1, "poor fit", "").astype("U100")
    model = AcceptanceModel(maker.model.rate_model, maker.model.config, runs, exclusion=maker.exclusion)
    observations = stores.observations(stores.full_store())[:2]
    write_report(model, observations, tmp_path / "a.html", band_edges=BANDS)
    text = (tmp_path / "a.html").read_text()
    verdict = text[: text.index("</section>")]
    assert re.search(rf"<td[^>]*>{runs['OBS_ID'][1]}</td><td[^>]*>poor fit</td>", verdict)
    share = 100 * stack_residuals(maker, observations, BANDS).excluded_share
    assert 0.5 < share < 10 and f"{share:.1f} % of the exposure" in verdict
    assert f"/{stores.full_store().path.name}" in text.split("</h1>")[0]


def test_what_a_search_found_is_listed(maker):
    circle = {"RA": [83.63], "DEC": [22.01], "RADIUS": [0.35], "SIGNIFICANCE": [15.9], "ITERATION": [1]}
    found = Table(circle, units={"RA": "deg", "DEC": "deg", "RADIUS": "deg"}, meta={"STABLE": False})
    residuals = SimpleNamespace(runs=[SimpleNamespace(unexcluded=0.9, dropped={})], excluded_share=0.1)
    text = report_sections._exclusion(AcceptanceBackgroundMaker(model=replace(maker.model, found=found)), residuals)
    assert "circle around RA 83.630 deg, Dec +22.010 deg, radius 0.35 deg, 15.9 sigma" in text
    assert "did not come to an end" in text and "10.0 %" in text


def test_existing_report_is_kept(report, maker):
    before = report.read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        write_report(maker, [], report)
    with pytest.raises(InputError, match="no folder"):
        write_report(maker, [], report.parent / "nowhere" / "report.html")
    assert report.read_bytes() == before
    assert [p.name for p in report.parent.iterdir()] == ["report.html"]


def test_wrong_arguments_are_named(tmp_path, maker):
    with pytest.raises(InputError, match="model_or_maker"):
        write_report({"model": 1}, [1], tmp_path / "a.html")
    with pytest.raises(NotFittedError, match="fit"):
        write_report(AcceptanceBackgroundMaker(), [1], tmp_path / "a.html")
    with pytest.raises(InputError, match="observations"):
        write_report(maker, [], tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_bands_are_half_decades_within_the_model():
    np.testing.assert_allclose(half_decades(np.array([0.2, 20])).to_value("TeV"), 10 ** np.array([-0.5, 0, 0.5, 1]))
    np.testing.assert_allclose(half_decades(np.array([0.1, 100]))[[0, -1]].to_value("TeV"), [0.1, 100])
    np.testing.assert_allclose(half_decades(np.array([1.1, 2.0])).to_value("TeV"), [1.1, 2.0])


def test_cross_validation_is_a_table_beside_a_radial_model():
    config = AcceptanceConfig(offset_max="2 deg", energy={"min": "0.5 TeV"})
    configs = report_sections._with_reference(config)
    assert list(configs.values())[-1] == config
    reference = configs["plain radial model"]
    assert reference.model.type == "radial" and reference.zenith.type == "interpolated"
    without = report_sections._with_reference(config.update({"zenith": {"type": "none"}}))
    assert without["plain radial model"].zenith.type == "none"
    assert reference.offset_max == config.offset_max and reference.energy == config.energy
    radial = AcceptanceConfig(model={"type": "radial"})
    assert report_sections._with_reference(radial) == {"this model": radial}
    searched = config.update({"exclusion": {"iterative": {}}})
    assert report_sections._with_reference(searched)["this model"].exclusion.iterative is None

    names = ["CONFIG", "SCORE", "GAIN", "GAIN_ERR", "LOG_NORM_BIAS", "LOG_NORM_STD", "FIT_TIME"]
    scores = Table(
        rows=[("plain", -1000.0, 0.0, 0.0, 0.01, 0.1, 0.5), (EVIL, -900.0, 100.0, 7.0, 0.0, 0.1, 2.0)], names=names
    )
    names = ["CONFIG", "FRAME", "E_MIN", "E_MAX", "MEAN", "WIDTH", "COUNTS"]
    rows = [("plain", "camera", 0.316, 1.0, 0.02, 1.14, 900), (EVIL, "camera", 0.316, 1.0, -0.01, 1.04, 900)]
    widths = Table(rows=rows, names=names)
    text = report_sections._cross_validation(CrossValidation(scores, Table(), widths))
    assert "+100 ± 7" in text and escape(EVIL) in text
    assert re.search(r"camera, 0.316 to 1 TeV.*\+0.02 / 1.14.*-0.01 / 1.04", text)
    assert report_sections._cross_validation(None) == ""


def test_matched_models_are_not_cross_validated(tmp_path, maker):
    matched = AcceptanceBackgroundMaker({"matching": {}}, model=maker.model)
    with pytest.raises(InputError, match="with_cross_validation"):
        write_report(matched, [1], tmp_path / "a.html", with_cross_validation=True)
    with pytest.raises(InputError, match="with_cross_validation: one run"):
        write_report(
            maker, stores.observations(stores.full_store())[:1], tmp_path / "a.html", with_cross_validation=True
        )


def effects_table(n=30):
    rng = np.random.default_rng(0)
    columns = {"OBS_ID": np.arange(n), "NORM": rng.normal(1, 0.05, n), "NORM_ERR": np.full(n, 0.01)}
    columns |= {"MJD": 55000.0 + np.arange(n), "USED": np.ones(n, bool), "FLAG": [""] * n, "SHIFT": np.zeros(n)}
    columns |= {"ZENITH": np.full(n, 20.0)}
    found = Table(columns)
    found["NORM"][7] = 1.9
    found["NORM"][9] = np.nan
    return found


def test_outliers_are_counted_in_standard_deviations_and_named():
    runs = effects_table()
    deviation = pictures.run_outliers(runs, "NORM")
    assert np.flatnonzero(np.abs(deviation) > 4).tolist() == [7]
    assert np.isnan(deviation[9])
    known = np.delete(np.arange(30), [7, 9])
    assert np.std(deviation[known]) == pytest.approx(1, abs=0.35)
    ax = pictures.plot_run_effect(runs, "NORM", "MJD", plt.figure().add_subplot())
    assert [t.get_text() for t in ax.texts] == ["7"]
    assert ax.get_xlabel() == "MJD [d]" and ax.get_ylabel() == "norm"
    text = run_effects(runs)
    assert "Runs to look at" in text and "1.900" in text
    assert "shift of log energy" not in text  # no run has one
    plt.close("all")


def test_runs_that_agree_have_no_outliers():
    runs = effects_table()
    runs["NORM"] = 1.0
    runs["NORM_ERR"] = 0.0
    assert not pictures.run_outliers(runs, "NORM").any()
    runs["NORM"] = np.nan
    assert np.isnan(pictures.run_outliers(runs, "NORM")).all()


def test_residual_colours_diverge_around_zero_and_rates_are_uniform(maker):
    fov = FovBins.grid(2.5, 50)
    figure, axes = plt.subplots(1, 2)
    ax = pictures.plot_camera_residuals(np.zeros(fov.shape), fov, axes[0])
    assert ax is axes[0]
    (mesh,) = ax.collections
    assert mesh.norm.vmin == -mesh.norm.vmax and mesh.get_cmap().name == "RdBu_r"
    white = mesh.get_cmap()(mesh.norm(0.0))
    assert min(white[:3]) > 0.95
    ax = plots.plot_rate_image(maker.model.rate_model, 1.0, axes[1], cos_zenith=0.9, relative=True)
    (mesh,) = ax.collections
    assert mesh.get_cmap().name == "viridis" and mesh.norm.vmin == 0
    assert "deg" in ax.get_xlabel() and "deg" in ax.get_ylabel()
    plt.close(figure)


def test_pictures_draw_on_the_current_axes_too(maker):
    model, scores = maker.model.rate_model, np.random.default_rng(0).normal(size=1000)
    with mpl.rc_context({"figure.max_open_warning": 0}):
        for draw in (
            lambda: pictures.plot_significance_histogram(scores),
            lambda: plots.plot_spectrum(model, cos_zeniths=[1.0, 0.9]),
            lambda: plots.plot_error(model),
        ):
            plt.figure()
            ax = draw()
            assert ax is plt.gca() and ax.get_xlabel() and ax.get_ylabel()
        plt.figure()
        image = Map.create(npix=20, binsz=0.1, frame="galactic")
        assert pictures.plot_sky_residuals(image).coords[0].get_axislabel() == "Galactic longitude"
        plt.close("all")


def test_histogram_says_mean_and_width():
    ax = plt.figure().add_subplot()
    scores = np.array([1.0, 3.0, np.nan])
    pictures.plot_significance_histogram(scores, ax)
    assert "mean +2.00, width 1.00" in [t.get_text() for t in ax.get_legend().get_texts()]
    plt.close("all")


@pytest.mark.slow
def test_known_sources_are_part_of_what_is_expected(tmp_path):
    store = stores.full_store()
    observations = stores.observations(store)  # with OFF runs, which tell the source from the camera
    options = {"model": {"type": "radial"}, "energy": {"min": "0.3 TeV", "max": "30 TeV"}}
    with_source = AcceptanceBackgroundMaker(options, sources=store.source).fit(observations)
    found = stack_residuals(with_source, observations, BANDS)
    bins = CountsBins(BANDS.value, found.fov, "altaz", 2.5)
    reduction = Reduction(with_source.config, bins, with_source.exclusion)
    background = sum(
        with_source.adapt(run).expected_counts(reduction.reduce(run).slices, BANDS.value, found.fov)
        for run in observations[:4]
    )
    only = stack_residuals(with_source, observations[:4], BANDS)
    table = with_source.model.source_table
    inside = (table["E_MIN"] >= BANDS.value[0] * 0.9) & (table["E_MAX"] <= BANDS.value[-1] * 2)
    signal = only.expected.sum() - background.sum()
    assert 0.5 * table["COUNTS"][inside].sum() < signal < 1.5 * table["COUNTS"].sum()
    assert abs(found.counts.sum() - found.expected.sum()) < 4 * np.sqrt(found.counts.sum())
    without = stack_residuals(AcceptanceBackgroundMaker(options).fit(observations), observations, BANDS)
    position = store.source.spatial_model.position.icrs
    for field, is_left_out in ((found.fields[0], True), (without.fields[0], False)):
        inside = field.counts.geom.to_image().separation(position) < 0.25 * u.deg
        assert (not field.counts.data[:, inside].any()) == is_left_out
    write_report(with_source, observations, tmp_path / "a.html", band_edges=BANDS)
    text = (tmp_path / "a.html").read_text()
    assert "Sources in the likelihood" in text and store.source.name in text
    assert "No part of the sky was excluded" not in text
