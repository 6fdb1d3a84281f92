"""A clean run of the whole suite on the simulated rig: pass, told as SIMULATED everywhere, with a report that opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from faults import CHECKS, TABLE, verdicts
from suite import run_suite

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Ran(NamedTuple):
    """What the run printed, its run.json and its folder."""

    text: str
    code: int
    run: dict
    folder: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("clean")
    done, run = run_suite(folder, "--power=250")
    return Ran(done.stdout, done.returncode, run, next((folder / "reports").glob("*/run.json")).parent)


def test_every_promise_is_kept(ran: Ran) -> None:
    assert verdicts(ran.run) == TABLE[""], ran.text[-5000:]
    assert ran.code == 0
    assert (ran.run["verdict"], ran.run["exit_code"], ran.run["not_checked"]) == ("pass", 0, [])
    assert ran.run["finished"] is not None


def test_the_last_two_lines_are_the_verdict_and_the_rig_as_left(ran: Ran) -> None:
    lines = [line for line in ran.text.splitlines() if line.strip()]
    assert lines[-2] == f"PASS {len(CHECKS)} of {len(CHECKS)} (SIMULATED)"
    assert lines[-1].startswith("rig as left: limits 250 W x 6, sglang.service active (pid ")
    assert lines[-1].endswith("caches in place (SIMULATED)")


def test_it_says_simulated_in_the_head_the_table_the_record_and_the_report(ran: Ran) -> None:
    assert "sglang: SIMULATED rig" in ran.text
    assert "promises: six-3090 at 250 W, SIMULATED" in ran.text
    assert ran.run["simulated"] is True
    assert ran.run["time_scale"] >= 60
    assert "SIMULATED" in (ran.folder / "report.html").read_text()


def test_starts_are_told_in_rig_time(ran: Ran) -> None:
    checks = {check["id"]: check["measured"] for check in ran.run["checks"]}
    assert 60 < checks["warm-restart"]["ready_s"]["value"] < 90
    assert checks["warm-restart"]["new_kernels"]["value"] == 0
    assert 18 * 60 < checks["cold-start"]["ready_s"]["value"] < 25 * 60
    assert checks["cold-start"]["new_kernels"]["value"] > 10
    assert checks["cold-start"]["autotune_runs"]["value"] > 0


def test_the_rate_has_its_interval_its_watts_and_its_raw_events(ran: Ran) -> None:
    measured = next(check for check in ran.run["checks"] if check["id"] == "decode-throughput")["measured"]
    assert 42 <= measured["ci_low_tok_s"]["value"] <= measured["decode_tok_s"]["value"] <= measured["ci_high_tok_s"]["value"] < 46
    assert measured["end_to_end_tok_s"]["value"] < measured["decode_tok_s"]["value"]
    assert 4 * 230 < measured["mean_w"]["value"] < 4 * 251
    assert 15 < measured["j_per_token"]["value"] < 35
    rows = [json.loads(line) for line in (ran.folder / "rounds.jsonl").read_text().splitlines()]
    assert all(row["tokens"] == 128 and row["failure"] is None for row in rows)


def test_the_record_holds_what_the_charts_draw(ran: Ran) -> None:
    seen = ran.run["topology"]
    assert seen["serving"]["groups"] == [[0, 1, 2, 3]]
    assert {tuple(each["gpus"]): each["links"] for each in seen["paths"] if each["links"]} == {(0, 1): 4, (2, 3): 4, (4, 5): 4}
    assert [each["load_pcie_gen"] for each in seen["cards"]] == [4, 4, 4, 4, None, None]
    assert "first_paths" not in seen, "no link changed"
    held = {start["startup"]["kind"]: start["startup"]["cache_diff"]["before"] for start in ran.run["startups"]}
    assert sum(each["bytes"] for each in held["warm"]) > 1e6
    assert sum(each["bytes"] for each in held["cold"]) == 0
    assert ran.run["earlier_starts"] == {}, "it is the first run in its folder"
    page = (ran.folder / "report.html").read_text()
    for told in ("NVLink GPU 0 to GPU 1: 4 links, as promised", "not used by the server: GPU 4", "30 new kernel names"):
        assert told in page


def test_the_caches_and_the_server_are_as_they_were(ran: Ran) -> None:
    assert ran.run["as_left"]["power_limits_w"] == ran.run["as_found"]["power_limits_w"]
    assert ran.run["as_left"]["caches_aside"] == []
    assert ran.run["as_left"]["server"]["active"] is True


def test_nothing_of_the_rig_is_left_behind(ran: Ran) -> None:
    places = {
        each["path"] for start in ran.run["startups"] for each in (start["startup"]["cache_diff"] or {"caches": []})["caches"]
    }
    assert places
    assert not any(Path(place).exists() for place in places)
    mine = [
        each
        for each in psutil.process_iter(["pid"])
        if each.pid in {ran.run["as_found"]["server"]["pid"], ran.run["as_left"]["server"]["pid"]}
    ]
    assert not [each for each in mine if "simulator" in " ".join(each.cmdline())]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_report_opens_without_an_error_and_shows_its_charts(ran: Ran) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((ran.folder / "report.html").as_uri())
        page.wait_for_timeout(500)
        charts = page.locator("svg[role=img]")
        assert charts.count() >= 2 + 1 + 6, "two starts, one measurement, six cards"
        for index in range(charts.count()):
            box = charts.nth(index).bounding_box()
            assert box is not None
            assert box["width"] > 100
            assert box["height"] > 50
        assert "SIMULATED" in page.title()
        assert page.get_by_text("PASS").first.is_visible()
        picture = ran.folder / "report.png"
        page.screenshot(path=str(picture), full_page=True)
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert picture.stat().st_size > 50_000
