"""The explorer embeds what the records say, and in a browser it draws, filters and sorts it."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import expect, sync_playwright

from hacore.errors import HacoreError
from hacore.plots import explorer
from hacore.plots.exploration import METRICS
from hacore.plots.looks import METHOD_LOOKS
from hacore.results import interval

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
FIVE = ("original", "retrain", "coun", "contrastive-coun", "salun")


def runs(
    scenario="single-class", forget=5, spaces=(("euclidean", "clipped"),), methods=FIVE, seeds=3, **more
):
    rng = np.random.default_rng(0)
    return [
        {
            "scenario": scenario, "data": "cifar10", "profile": "standard", "recipe": "generalising", "forget": forget,
            "space": space, "lift": lift, "curv": 1.0, "method": method, "seed": seed,
            "forget_test_accuracy": 10.0 * i + rng.normal(), "retain_test_accuracy": 90.0 - 7 * i + rng.normal(),
            "attack_logits_auc": np.nan if method == "salun" and seed == 0 else 50 + rng.normal(),
            "seconds": float(10**i),
            "record": f"book/results/{scenario}-{space}-{lift}-{method}-seed{seed}-{i}{seed}a.json",
        } | more
        for space, lift in spaces
        for i, method in enumerate(methods)
        for seed in range(seeds)
    ]  # fmt: skip


def frame():
    lifts = (("poincare", "clipped"), ("poincare", "free"))
    rows = runs() + runs(spaces=lifts, methods=FIVE[:3]) + runs("random-samples", 500, recipe="memorising")
    return pd.DataFrame(rows)


def embedded(made):
    soup = BeautifulSoup(made._repr_html_(), "html.parser")
    return json.loads(soup.find("script", type="application/json").string)


def test_it_embeds_means_half_widths_counts_and_records():
    table = frame()
    page = embedded(explorer(table, "All"))
    assert page["request"] == ["single-class, forget 5", "random-samples, forget 500"]
    assert page["data"] == ["cifar10 standard"]
    assert page["geometry"] == ["euclidean", "poincare clipped", "poincare free"]
    assert [name for name, _, _ in page["methods"]] == list(FIVE)
    assert [log for _, log in page["metrics"]] == [False, False, False, True]
    assert len(page["groups"]) == 5 + 2 * 3 + 5
    group = page["groups"][4]
    assert group[:5] == [0, 0, 0, 0, 4]
    one = table[(table["scenario"] == "single-class") & (table["method"] == "salun")]
    for i, metric in enumerate(("forget_test_accuracy", "retain_test_accuracy", "attack_logits_auc")):
        stat = interval(one[metric].tolist())
        assert group[5][i] == pytest.approx(stat["mean"], rel=1e-3)
        assert group[6][i] == pytest.approx(stat["high"] - stat["mean"], rel=1e-3)
    assert group[7] == [3, 3, 2, 3]  # the first seed lacks the attack
    assert group[8] == [
        "single-class-euclidean-clipped-salun-seed",
        [[0, "0-40a"], [1, "1-41a"], [2, "2-42a"]],
    ]


def test_it_says_in_short_what_it_is_and_does_not_change():
    made, again = (explorer(frame(), "All") for _ in range(2))
    assert repr(made) == "Explorer: 48 records in 16 groups"
    assert made == again
    assert " id=" not in made.html  # two on one page cannot clash
    assert not re.findall(r"(?:src|href)=|url\(|@import|fetch\(", made.html)


def test_a_thousand_records_stay_small():
    lifts = [
        (space, lift)
        for space in ("euclidean", "lorentz", "poincare")
        for lift in ("clipped", "free", "fixed")
    ]
    rows = [r for f in range(10) for r in runs(forget=f, spaces=lifts, methods=list(METHOD_LOOKS)[:4])][:1000]
    values = 50 + np.random.default_rng(0).normal(size=(1000, len(METRICS)))
    table = pd.DataFrame(rows).assign(**dict(zip(METRICS, values.T, strict=True)))
    made = explorer(table, "Many")
    assert len(embedded(made)["metrics"]) == len(METRICS)
    assert len(made.html.encode()) < 200_000


def test_text_of_records_cannot_end_the_script_or_the_title():
    odd = frame().assign(data="</script><b>", record="a</script>.json", seed=range(48))
    made = explorer(odd, "<i>x</i>")
    assert made.html.count("</script>") == 2
    assert "&lt;i&gt;" in made.html
    assert embedded(made)["data"] == ["</script><b> standard"]


def test_old_records_without_recipe_lift_or_files_are_shown():
    old = frame().query("space == 'euclidean'").drop(columns=["recipe", "lift", "curv", "profile", "record"])
    page = embedded(explorer(old, "Old"))
    assert (page["recipe"], page["data"], page["geometry"]) == (["–"], ["cifar10"], ["euclidean"])
    assert all(group[8] is None for group in page["groups"])


@pytest.mark.parametrize(
    ("bad", "y", "message"),
    [
        (frame().drop(columns="method"), "retain_test_accuracy", "needs runs with method"),
        (frame().head(0), "retain_test_accuracy", "any rows"),
        (frame(), "seed", "cannot start with 'seed'"),
        (frame().assign(retain_test_accuracy=np.nan), "retain_test_accuracy", "cannot start with"),
        (frame().assign(lift="clipped"), "retain_test_accuracy", "several records of one seed"),
    ],
)
def test_it_refuses_what_it_cannot_show(bad, y, message):
    with pytest.raises(HacoreError, match=message):
        explorer(bad, "All", y=y)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        message = (
            "the explorer was not tried: there is no Chromium or Chrome, install one: apt install chromium"
        )
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """show(html…, theme, width) -> a page of these; any error or request fails the test."""
    pages, wrong = [], []

    def show(*parts, theme="light", width=900):
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: wrong.append(request.url))
        style = (
            "html { --pst-color-text-base: #222; --pst-color-background: #fff; }"
            "html[data-theme=dark] { --pst-color-text-base: #ced6dd; --pst-color-background: #121212; }"
        )
        page.set_content(
            f"<!doctype html><html lang=en data-theme={theme}><style>{style}</style><body>{''.join(parts)}"
        )
        return page

    yield show
    for page in pages:
        page.close()
    assert not wrong


def points(page):
    """(method, geometry) -> where its point is drawn, in pixels of the plot."""
    return {
        (method, geometry): tuple(map(float, re.findall(r"[-\d.]+", place)))
        for method, geometry, place in page.locator(".point").evaluate_all(
            """all => all.map(p =>
                [p.dataset.method, p.dataset.geometry, p.querySelector('g').getAttribute('transform')])"""
        )
    }


def column(page, number):
    return page.locator(f"tbody td:nth-child({number})").all_inner_texts()


def test_points_are_drawn_to_scale_with_their_intervals(show):
    page = show(explorer(frame(), "All").html)
    drawn = points(page)
    assert list(drawn) == [(method, "euclidean") for method in FIVE]
    assert "JavaScript" not in page.inner_text("body")
    group = frame().query("scenario == 'single-class' and space == 'euclidean'").groupby("method", sort=False)
    for axis, metric in enumerate(("forget_test_accuracy", "retain_test_accuracy")):
        pixels = np.array([place[axis] for place in drawn.values()])
        slope, shift = np.polyfit(group[metric].mean(), pixels, 1)
        np.testing.assert_allclose(slope * group[metric].mean() + shift, pixels, atol=0.2)
        assert slope > 0 if axis == 0 else slope < 0
        half = interval(group.get_group("coun")[metric].tolist())
        line = page.locator(".point[data-method=coun] line").nth(axis)
        ends = [float(line.get_attribute(f"{'xy'[axis]}{k}")) for k in (1, 2)]
        assert abs(ends[1] - ends[0]) == pytest.approx(abs(slope) * (half["high"] - half["low"]), rel=0.01)
    title = page.locator(".point[data-method=coun] title").text_content()
    assert title.startswith("coun, euclidean\nforget-test accuracy (%): ")
    assert title.endswith("n = 3")


def test_another_geometry_shows_other_points_and_all_of_them_are_told_apart(show):
    page = show(explorer(frame(), "All").html)
    before = points(page)
    page.get_by_label("Geometry").select_option("poincare free")
    after = points(page)
    assert list(after) == [(method, "poincare free") for method in FIVE[:3]]
    assert set(after.values()) != set(before.values())
    assert column(page, 1) == list(FIVE[:3])
    page.get_by_label("Geometry").select_option("all geometries")
    assert len(points(page)) == 5 + 3 + 3
    assert page.locator("thead th").all_inner_texts()[1] == "Geometry"
    fills = page.locator(".point[data-method=coun] path").evaluate_all(
        "all => all.map(p => p.getAttribute('fill'))"
    )
    assert len(set(fills)) == 3


def test_choices_offer_what_earlier_choices_leave(show):
    page = show(explorer(frame(), "All").html)
    page.get_by_label("Geometry").select_option("poincare free")
    page.get_by_label("Request").select_option("random-samples, forget 500")
    assert page.get_by_label("Geometry").locator("option").all_inner_texts() == ["euclidean"]
    assert page.get_by_label("Training").input_value() == "memorising"
    assert len(points(page)) == 5


def test_another_measure_moves_points_and_names_axis_and_column(show):
    page = show(explorer(frame(), "All").html)
    before = points(page)
    page.get_by_label("Across").select_option("seconds")
    after = points(page)
    assert {place[1] for place in before.values()} == {place[1] for place in after.values()}
    # Seconds are powers of ten, on a logarithmic axis: equal steps.
    steps = np.diff([place[0] for place in after.values()])
    np.testing.assert_allclose(steps, steps[0])
    assert "seconds" in page.locator("svg.plot").inner_html()
    assert column(page, 2) == ["1.00 ± 0.00", "10.0 ± 0.0", "100.0 ± 0.0", "1000 ± 0", "10000 ± 0"]


def test_columns_sort_up_and_down_by_number(show):
    page = show(explorer(frame(), "All", x="seconds").html)
    button = page.get_by_role("button", name="seconds")
    button.click()
    up = column(page, 2)
    assert [float(cell.split()[0]) for cell in up] == [1, 10, 100, 1000, 10000]
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    button.press("Enter")  # it keeps the focus
    assert column(page, 2) == up[::-1]
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Method").click()
    assert column(page, 1) == sorted(FIVE)


def test_methods_can_be_left_out(show):
    page = show(explorer(frame(), "All").html)
    page.get_by_role("checkbox", name="original").uncheck()
    assert "original" not in column(page, 1)
    assert len(points(page)) == 4
    page.get_by_label("Geometry").select_option("poincare free")
    assert not page.get_by_role("checkbox", name="original").is_checked()
    page.get_by_role("button", name="all or none").click()
    expect(page.get_by_role("status")).to_have_text("No method shown has both measures.")
    assert not points(page)
    page.get_by_role("button", name="all or none").click()
    assert len(points(page)) == 3


def test_rows_link_to_their_records(show):
    page = show(explorer(frame(), "All", folder="records").html)
    links = page.locator("tbody tr").nth(2).locator("a")
    assert links.all_inner_texts() == ["0", "1", "2"]
    targets = [f"records/single-class-euclidean-clipped-coun-seed{s}-2{s}a.json" for s in range(3)]
    assert links.evaluate_all("all => all.map(a => a.getAttribute('href'))") == targets


def test_missing_values_are_not_drawn_and_one_run_has_no_interval(show):
    table = pd.DataFrame(runs(seeds=1))
    page = show(explorer(table, "All", y="attack_logits_auc").html)
    assert ("salun", "euclidean") not in points(page)
    assert page.locator(".point line").count() == 0
    assert column(page, 3)[4] == "–"
    assert "±" not in "".join(column(page, 3))
    page.get_by_role("button", name="attack on logits").click()
    assert column(page, 3)[4] == "–"
    page.get_by_role("button", name="attack on logits").click()
    assert column(page, 3)[4] == "–"  # last either way


@pytest.mark.parametrize(("theme", "width"), [("light", 900), ("dark", 390)])
def test_several_on_a_page_take_its_colours_and_fit_a_phone(show, theme, width):
    made = explorer(frame(), "All")
    page = show(made.html, made.html, explorer(frame(), "Other", x="seconds").html, theme=theme, width=width)
    assert page.locator(".hacore-explorer[data-ready]").count() == 3
    first, second = page.get_by_label("Geometry").nth(0), page.get_by_label("Geometry").nth(1)
    first.select_option("poincare free")
    assert second.input_value() == "euclidean"
    assert page.locator(".point").count() == 3 + 5 + 5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate(
        """() => ['color', 'backgroundColor'].map(property =>
            Number(getComputedStyle(document.querySelector('.hacore-explorer'))[property].match(/\\d+/)[0]))"""
    )
    assert (ink > paper) == (theme == "dark")
    text = page.locator(".plot text").first.evaluate("t => Number(getComputedStyle(t).fill.match(/\\d+/)[0])")
    assert text == ink


def test_without_javascript_it_says_so(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(explorer(frame(), "All").html)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    expect(page.get_by_text("need JavaScript")).to_be_visible()
    context.close()
