"""How long a report of 2,000 checks takes to open in Chromium, beside an empty page; and to be rendered, beside a report of 15.

    .venv/bin/python benchmarks/report/run.py [--checks 2000] [--every 40] [--loads 7]

Three pages: our own (``-p no:html``, ``pytest-sglang report``), pytest-html's with our blocks in it, and an empty one. Times are the
browser's own (navigation start to the end of the load event, and to first contentful paint), medians over fresh contexts, in turn;
beside them the CPU time of the page's process until then, which a busy machine does not stretch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "report")]
OUT = ROOT / "benchmarks" / "results" / "report.json"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TIMES = """() => new Promise(done => {
  const wait = () => {
    const at = performance.getEntriesByType('navigation')[0], paint = performance.getEntriesByName('first-contentful-paint')[0];
    if (at.loadEventEnd && (paint || !document.body.innerText)) done([at.loadEventEnd, paint ? paint.startTime : null]);
    else setTimeout(wait, 20);
  };
  wait();
})"""
CONFTEST = """
import msgspec, sys
from pathlib import Path
from pytest_sglang.record.run import Run
from pytest_sglang.report import summary

RUN = msgspec.json.decode(Path(__file__).with_name("run.json").read_bytes(), type=Run)

def pytest_html_results_table_header(cells):
    cells[3:3] = summary.header_cells()

def pytest_html_results_table_row(report, cells):
    ours = summary.cells_below(RUN.checks[int(report.nodeid.split("[")[1].rstrip("]"))], len(RUN.checks))
    cells[:] = [] if ours is None else [*cells[:3], *ours, *cells[3:]]

def pytest_html_results_summary(prefix):
    prefix.extend([*summary.summary_html(RUN, folder=Path(__file__).parent), summary.below_heading(RUN, len(RUN.checks))])
"""
TESTS = """
import pytest

@pytest.mark.parametrize("number", range({checks}))
def test_check(number):
    if number % {every} == 0:
        raise AssertionError("the limit of GPU 3 fell back")
"""


def sample(checks: int, every: int, folder: Path) -> Any:
    """A run of so many checks, one of ``every`` not passing, with every chart, six excerpts of logs at their largest, and thirty differences since the last pass."""
    import report_samples as samples

    from pytest_sglang.record.run import plain

    whole = samples.mixed_run()
    good = samples.good_checks()
    bad = [each for each in whole.checks if each.verdict != "pass"]
    many = tuple(
        msgspec.structs.replace(bad[number % len(bad)] if number % every == 0 else good[number % len(good)], id=f"check-{number}")
        for number in range(checks)
    )
    (folder / "logs").mkdir(exist_ok=True)
    logs = []
    for number in range(6):
        (folder / "logs" / f"start-{number}.log").write_text("[2026-11-23 22:30:00 TP0] Capture cuda graph begin.\n" * 1300)
        logs.append(
            {"title": f"Server: start {number}", "file": f"logs/start-{number}.log", "lines": 9000, "shown": 1300, "checks": []}
        )
    differences = [{"name": f"package p{number}", "before": "1", "after": "2"} for number in range(30)]
    since = {"run_id": "x", "started": "2026-11-23T01:53:00.000Z", "power_levels_w": [250.0], "differences": differences}
    run = msgspec.structs.replace(whole, checks=many, logs=tuple(logs), since_pass=since)
    (folder / "run.json").write_text(json.dumps(plain(run)))
    return run


def pages(checks: int, every: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> path, bytes, seconds to render it."""
    from pytest_sglang.report import standalone

    run = sample(checks, every, folder)
    made: dict[str, dict[str, Any]] = {}
    standalone.render(run, folder)  # imports and fonts
    began = time.perf_counter()
    (folder / "own.html").write_text(standalone.render(run, folder))
    made["own page"] = {"path": folder / "own.html", "render_s": time.perf_counter() - began}
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_checks.py").write_text(TESTS.format(checks=checks, every=every))
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
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(
        [*command, "--html=html.html", "--self-contained-html", "--tb=line"],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        timeout=600,
    )
    made["pytest-html's page"] = {"path": folder / "html.html", "render_s": None}
    (folder / "empty.html").write_text("<!DOCTYPE html><title>empty</title><p>empty")
    made["empty page"] = {"path": folder / "empty.html", "render_s": None}
    for each in made.values():
        each["bytes"] = each["path"].stat().st_size
    return made


def opened(made: dict[str, dict[str, Any]], loads: int) -> None:
    """Adds ``load_ms`` and ``paint_ms``, medians over ``loads``, to each page."""
    from playwright.sync_api import sync_playwright

    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in made}
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for turn in range(loads + 1):
            for name, each in made.items():
                context = browser.new_context(viewport={"width": 1100, "height": 800})
                page = context.new_page()
                inside = context.new_cdp_session(page)
                inside.send("Performance.enable")
                page.goto(each["path"].as_uri(), timeout=120_000)
                times = page.evaluate(TIMES)
                cpu_s = {each["name"]: each["value"] for each in inside.send("Performance.getMetrics")["metrics"]}["ProcessTime"]
                if turn:
                    found[name].append((*times, cpu_s * 1000))
                context.close()
        version = browser.version
        browser.close()
    for name, each in made.items():
        each["load_ms"], each["paint_ms"], each["cpu_ms"] = (statistics.median(values) for values in zip(*found[name], strict=True))
        each["browser"] = version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checks", type=int, default=2000)
    parser.add_argument("--every", type=int, default=40, help="one check of so many does not pass")
    parser.add_argument("--loads", type=int, default=7)
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        made = pages(arguments.checks, arguments.every, Path(folder))
        opened(made, arguments.loads)
    version = {each.pop("browser") for each in made.values()}.pop()
    for name, each in made.items():
        each.pop("path")
        print(
            f"{name:20} {each['bytes'] / 1e6:6.2f} MB  load {each['load_ms']:7.0f} ms  first paint {each['paint_ms']:7.0f} ms  CPU {each['cpu_ms']:7.0f} ms"
        )
    found = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "checks": arguments.checks,
        "not_passing": len(range(0, arguments.checks, arguments.every)),
        "loads": arguments.loads,
        "browser": version,
        "load_average": round(busy, 1),
        "machine": {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()},
        "pages": made,
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {OUT.relative_to(ROOT)} (load average before: {busy:.1f} on {os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
