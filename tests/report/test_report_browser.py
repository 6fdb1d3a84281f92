"""The page in a real browser: no console error, no request, charts not blank, light and dark, wide and narrow."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys

import pytest
import report_samples as samples

from pytest_sglang.report import standalone

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

CONFTEST = """
import report_samples as samples
from pytest_sglang.report import summary

RUN = samples.mixed_run()

def pytest_html_report_title(report):
    report.title = summary.title(RUN)

def pytest_html_results_table_header(cells):
    cells[3:3] = summary.header_cells()

def pytest_html_results_table_row(report, cells):
    number = int(report.nodeid.split("[")[1].rstrip("]")) if "[" in report.nodeid else None
    cells[3:3] = summary.row_cells(RUN.checks[number] if number is not None else None)

def pytest_html_results_summary(prefix):
    prefix.extend(summary.summary_html(RUN))
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(10))
def test_check(number):
    assert number != 1, "the limit of GPU 3 fell back"

def test_of_the_users_own():
    pass
"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Our page of each kind of run, and pytest-html's page with our blocks in it."""
    folder = tmp_path_factory.mktemp("pages")
    for name, run in (("good", samples.run()), ("mixed", samples.mixed_run())):
        (folder / f"{name}.html").write_text(standalone.render(run), encoding="utf-8")
    (folder / "since.html").write_text(standalone.render(samples.with_more(folder), folder), encoding="utf-8")
    others = {
        "compare": samples.comparison_page,
        "refused": samples.refused_page,
        "index": samples.index_page,
        "fleet": samples.fleet_page,
    }
    for name, made in others.items():
        (folder / f"{name}.html").write_text(made(folder / f"{name}-runs"), encoding="utf-8")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_checks.py").write_text(TESTS)
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)]),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_metadata.plugin",
        "-p",
        "pytest_html.plugin",
    ]
    subprocess.run(
        [*command, "--html=pytest-html.html", "--self-contained-html"],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        timeout=60,
    )
    return folder


@pytest.fixture
def visit(browser, pages):
    """Opens a page; at the end nothing may have been complained about and nothing asked from elsewhere."""
    contexts, noise = [], []

    def opened(name, **settings):
        context = (
            browser.new_context(viewport={"width": 1100, "height": 800}, **settings)
            if "viewport" not in settings
            else browser.new_context(**settings)
        )
        contexts.append(context)
        page = context.new_page()
        address = (pages / name).as_uri()
        page.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("request", lambda request: noise.append(request.url) if request.url != address else None)
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


def shades(element):
    """Of an element's picture: how many colours, its corner's brightness, the share of pixels that differ from the corner."""
    import matplotlib.image
    import numpy

    pixels = matplotlib.image.imread(io.BytesIO(element.screenshot()), format="png")[:, :, :3]
    corner = pixels[0, 0]
    differing = (numpy.abs(pixels - corner).max(axis=2) > 0.1).mean()
    return len(numpy.unique((pixels * 15).astype(int).reshape(-1, 3), axis=0)), float(corner.mean()), float(differing)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("good.html", "light"), ("mixed.html", "dark"), ("pytest-html.html", "light"), ("pytest-html.html", "dark")],
)
def test_charts_are_drawn_in_the_colours_of_the_page(visit, name, scheme):
    page = visit(name, color_scheme=scheme)
    charts = page.locator("svg.sg-svg")
    assert charts.count() >= 9
    for number in (0, 2, charts.count() - 1):
        colours, background, inked = shades(charts.nth(number))
        assert colours > 5
        assert inked > 0.01
        assert (background > 0.9) if scheme == "light" else (background < 0.2)


@pytest.mark.parametrize(("scheme", "media"), [("light", "screen"), ("dark", "screen"), ("dark", "print")])
def test_starts_caches_and_the_machine_are_drawn_on_screen_and_paper(visit, scheme, media):
    page = visit("mixed.html", color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    for chart, least in (("start", 2), ("cache", 1), ("topology", 2)):
        pictures = page.locator(f"#sg-chart-{chart} svg.sg-svg")
        assert pictures.count() >= least
        for number in range(least):
            colours, background, inked = shades(pictures.nth(number))
            assert colours > 5
            assert inked > 0.01
            assert (background > 0.9) if scheme == "light" or media == "print" else (background < 0.2), "paper is white"


def test_texts_of_the_machine_do_not_lie_on_one_another(visit):
    page = visit("mixed.html")
    touching = page.locator("#sg-chart-topology svg.sg-svg, #sg-chart-cache svg.sg-svg").evaluate_all(
        """pictures => pictures.flatMap(picture => {
            const boxes = [...picture.querySelectorAll("text")].map(each => [each.textContent, each.getBoundingClientRect()]);
            return boxes.flatMap(([one, a], at) => boxes.slice(at + 1).filter(([, b]) =>
                Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
            ).map(([other]) => one + " | " + other));
        })"""
    )
    assert touching == []


OURS = ["good.html", "mixed.html", "since.html", "compare.html", "refused.html", "index.html", "fleet.html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*OURS, "pytest-html.html"])
def test_axe_finds_nothing_serious(visit, name, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page = visit(name, color_scheme=scheme)
    found = Axe().run(page).response["violations"]
    # pytest-html's own controls are not ours to mend
    ours = [
        (each["id"], node["target"])
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
        if name in OURS or ".sg" in " ".join(map(str, node["target"]))
    ]
    assert ours == []


@pytest.mark.parametrize("name", ["compare.html", "index.html"])
def test_charts_of_the_other_pages_are_not_blank(visit, name):
    charts = visit(name).locator("svg.sg-svg")
    assert charts.count() >= 1
    colours, background, inked = shades(charts.first)
    assert colours > 5
    assert inked > 0.005
    assert background > 0.9


@pytest.mark.parametrize("name", [*OURS, "pytest-html.html"])
def test_nothing_is_wider_than_the_window(visit, name):
    page = visit(name)
    for width in (360, 640, 800, 1600):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_in_charts_can_be_read_on_a_phone(visit):
    page = visit("mixed.html", viewport={"width": 360, "height": 740})
    heights = page.locator("svg.sg-svg text").evaluate_all(
        "elements => elements.map(element => element.getBoundingClientRect().height)"
    )
    assert min(heights) > 9


def test_text_of_a_chart_stays_inside_it(visit):
    page = visit("mixed.html")
    outside = page.locator("svg.sg-svg text").evaluate_all(
        """elements => elements.filter(element => {
            const box = element.getBoundingClientRect(), room = element.ownerSVGElement.getBoundingClientRect();
            return box.left < room.left - 1 || box.right > room.right + 1 || box.top < room.top - 1 || box.bottom > room.bottom + 1;
        }).map(element => element.textContent)"""
    )
    assert outside == []


def test_verdict_is_the_first_thing_on_the_page_and_what_was_not_checked_the_next(visit):
    for name in ("mixed.html", "pytest-html.html"):
        page = visit(name)
        top = page.locator(".sg-headline").bounding_box()
        unchecked = page.locator(".sg-unchecked").bounding_box()
        table = page.locator(".sg-promises").bounding_box()
        assert 0 < top["y"] < 200
        assert top["y"] < unchecked["y"] < table["y"]
        assert page.locator(".sg-headline").inner_text().startswith("FAIL 2 of 11")


def test_columns_of_pytest_html_carry_the_numbers_under_their_heads(visit):
    page = visit("pytest-html.html")
    assert page.title() == "six-3090 at 250 and 390 W · SIMULATED"
    heads = page.locator("#results-table-head th").all_inner_texts()
    assert heads == ["Result", "Test", "Duration", "Measured", "Limit", "Margin", "Verdict", "Links"]
    cells = page.locator("tbody", has_text="test_check[7]").locator("tr.collapsible td").all_inner_texts()
    assert cells[3:7] == ["41.9 tok/s (41.6 to 42.2)", "≥ 42 tok/s", "−0.2 %", "pass (marginal)"]
    own = page.locator("tbody", has_text="test_of_the_users_own").locator("tr.collapsible td")
    assert own.count() == len(heads)


def test_a_cause_opens_the_log_that_it_comes_from(visit, pages):
    page = visit("since.html")
    excerpt = page.locator("#sg-log-1")
    assert not excerpt.is_visible()
    link = page.locator("a", has_text="See the log")
    link.focus()
    page.keyboard.press("Enter")
    excerpt.wait_for(state="visible", timeout=10_000)
    assert "</details><script>" in excerpt.inner_text()
    assert page.locator("script").count() == 0


def test_what_has_changed_stands_above_the_promises_and_fits_a_phone(visit):
    page = visit("since.html", viewport={"width": 360, "height": 740})
    since, table = page.locator(".sg-since").bounding_box(), page.locator(".sg-promises").bounding_box()
    assert since["y"] < table["y"]
    assert page.locator(".sg-changed tr", has_text="GPU 3 PCIe width").first.inner_text().split() == [
        "GPU",
        "3",
        "PCIe",
        "width",
        "16",
        "8",
    ]
    page.locator(".sg-logs summary").first.click()
    page.locator(".sg-environment summary").last.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("name", ["since.html", "pytest-html.html"])
def test_nothing_is_cut_off_on_paper(visit, name):
    page = visit(name, viewport={"width": 680, "height": 960})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    cut = page.locator("td:visible, th:visible, dd:visible, p:visible").evaluate_all(
        "elements => elements.filter(each => each.getBoundingClientRect().right > 681).map(each => each.textContent.slice(0, 40))"
    )
    assert cut == []
    # a name that is broken into a column of letters is no name
    widths = page.locator("#results-table td.col-testId").evaluate_all("elements => elements.map(each => each.clientWidth)")
    assert all(width > 150 for width in widths)
    assert not page.locator(".sg-log").first.is_visible()


def test_all_numbers_open_by_keyboard(visit):
    page = visit("good.html")
    numbers = page.locator("details", has_text="time to first token").first
    assert not numbers.locator("dl").is_visible()
    numbers.locator("summary").focus()
    page.keyboard.press("Enter")
    assert numbers.locator("dl").is_visible()


def test_text_has_enough_contrast(visit):
    """WCAG 2 AA: 4.5 to 1 for every colour that text is written in, on both backgrounds of the page."""
    for scheme in ("light", "dark"):
        page = visit("mixed.html", color_scheme=scheme)
        names = ["ink", "muted", "strong", "pass", "fail", "warn", "bg", "soft"]
        colours = page.evaluate(
            "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue('--sg-' + name).trim())", names
        )
        found = dict(zip(names, map(luminance, colours), strict=True))
        for ground in ("bg", "soft"):
            for name in names[:-2]:
                light, dark = max(found[name], found[ground]), min(found[name], found[ground])
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, name, ground)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_prints(visit):
    assert visit("mixed.html").pdf(format="A4")[:5] == b"%PDF-"
