"""The page: blocks for pytest-html, the standalone page, columns."""

from __future__ import annotations

import functools
import html as html_module
import html.parser
import re
from types import SimpleNamespace

import pytest
import report_samples as samples

from pytest_sglang.hooks import page
from pytest_sglang.record.run import Check, Measurement, NotChecked, Run
from pytest_sglang.record.values import Finding
from pytest_sglang.report import environment, standalone, summary, view

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(html.parser.HTMLParser):
    """Open tags, headings and visible text of a page; complains about wrong nesting."""

    def __init__(self, page):
        super().__init__()
        self.open, self.headings, self.text, self.tags = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open[-5:], self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title", "desc"):
            self.text.append(data)


@functools.cache
def page_of(kind):
    return standalone.render({"good": samples.run, "partial": samples.partial_run, "mixed": samples.mixed_run}[kind]())


def words(page):
    return " ".join(" ".join(Outline(page).text).split())


@pytest.mark.parametrize(
    "run", [samples.run(), samples.partial_run(), samples.mixed_run(), Run(run_id="bare", started="", simulated=False)]
)
def test_the_page_is_well_formed_self_contained_and_has_no_script(run):
    page = standalone.render(run)
    outline = Outline(page)
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert not any(tag in ("script", "link", "img", "iframe", "object") for tag, _ in outline.tags)
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "@import" not in page
    assert "url(http" not in page


def test_blocks_for_pytest_html_are_the_same_one_heading_deeper():
    blocks = summary.summary_html(samples.mixed_run())
    assert blocks[0].startswith("<style>")
    outline = Outline("".join(blocks))
    assert set(outline.headings) == {3, 4}
    assert words("".join(blocks[1:])) == words(re.sub(r"(?s)<head>.*</head>", "", page_of("mixed")))


def test_the_first_line_says_verdict_power_rig_and_simulation():
    assert words(page_of("good")).startswith(
        "PASS 9 of 9 · 250 W · six-3090 SIMULATED 24 November 2026, 01:53 UTC · took 27 min 10 s of rig time"
    )
    assert words(page_of("partial")).startswith(
        "PASS 7 of 9, 2 not checked · 250 W · six-3090 24 November 2026, 01:53 UTC · took 27 min 10 s · run"
    )


def test_simulated_is_in_the_pages_title_and_a_real_run_never_says_it():
    assert "<title>six-3090 at 250 W · SIMULATED</title>" in page_of("good")
    real = samples.partial_run()
    assert "SIMULATED" not in standalone.render(real)
    assert "simulated rig" not in words(standalone.render(real))


def test_injected_faults_are_named():
    told = words(standalone.render(samples.run(environment={"faults": ["slow-decode"]})))
    assert "with injected faults: slow-decode" in told


def test_what_was_not_checked_stands_before_the_promises():
    told = words(page_of("partial"))
    assert told.index("restarts the server: not without --sglang-allow-restart") < told.index("gpu-identity")
    assert "Not promised by the rig file, so not checked: energy-per-token, gain." in told


def test_failing_promises_come_first_with_their_cause_and_margin():
    told = words(page_of("mixed"))
    assert (
        told.index("the limit of GPU 3 fell back")
        < told.index("recompiled: 41 autotuning runs")
        < told.index("bridge GPU 2-3")
        < told.index("gpu-identity")
    )
    assert "5 min 12 s ≤ 90 s −247 % FAIL" in told
    assert "41.9 tok/s 41.6 to 42.2 ≥ 42 tok/s −0.2 % pass (marginal)" in told


def test_findings_with_remedy_and_the_rig_as_left():
    told = words(page_of("mixed"))
    assert "warning sglang.service: restarted by itself 2 times since boot journalctl -u sglang.service shows why" in told
    assert (
        "as left limits 250 W x 5, 350 W (GPU 3), sglang.service active (pid 4711), caches in place promises six-3090.toml" in told
    )
    assert "caches in place (as it was found)" in words(page_of("good"))


def test_everything_of_the_record_is_escaped():
    evil = "<script>alert(1)</script>\"'&"
    check = Check(
        id=evil, promise=evil, verdict="fail", cause=evil, measured={evil: Measurement(evil, evil), "b": Measurement(evil, "")}
    )
    run = samples.run(
        (check,),
        run_id=evil,
        rig={"name": evil, "path": evil},
        environment={evil: evil, "gpus": [{evil: evil}], "server": {"argv": [evil]}},
        not_checked=(NotChecked(evil, evil),),
        not_promised=(evil,),
        findings=(Finding(evil, "warn", evil, evil, evil),),
        as_left={"server": {"subject": evil}},
        started=evil,
    )
    page = standalone.render(run)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    Outline(page)
    assert "<script" not in "".join(summary.row_cells(check))


def test_a_run_that_has_not_ended_never_looks_like_a_pass():
    told = words(standalone.render(samples.run(finished=None, verdict="inconclusive", duration_s=None)))
    assert told.startswith("INCONCLUSIVE not finished: 9 passed so far")
    assert "has not ended" in told


def test_columns_and_cells_are_of_one_number():
    assert len(summary.header_cells()) == len(summary.row_cells(None)) == len(summary.row_cells(samples.check("x"))) == 4
    cells = summary.row_cells(samples.rate_check("pass", 43.42, 42.0))
    assert [re.sub(r"<[^>]+>", "", cell) for cell in cells] == ["43.4 tok/s (43.1 to 43.7)", "≥ 42 tok/s", "+3.4 %", "pass"]
    assert "sg-is-pass" in cells[3]
    assert [re.sub(r"<[^>]+>", "", cell) for cell in summary.row_cells(None)] == ["", "", "", ""]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "took 27 min 10 s of rig time, 58.4 s on the wall"),
        ({"wall_s": None}, "took 27 min 10 s of rig time"),
        ({"simulated": False}, "took 27 min 10 s"),
        ({"duration_s": None}, ""),
        ({"duration_s": None, "finished": None}, "has not ended"),
    ],
)
def test_how_long_it_took(fields, text):
    assert summary.took(samples.run(**fields)) == text


def test_time_stamps_are_read_or_shown_as_they_are():
    assert summary.when("2026-11-24T01:53:00.000Z") == "24 November 2026, 01:53 UTC"
    assert summary.when("yesterday") == "yesterday"
    assert summary.when(None) == ""


def test_every_rule_of_the_style_is_tied_to_our_class():
    style = re.sub(r"/\*.*?\*/", "", summary.stylesheet(), flags=re.DOTALL)
    selectors = [each.strip() for each in re.findall(r"(?:^|[{};])\s*([^{};@]+?)\s*\{", style)]
    assert len(selectors) > 50
    assert [each for each in selectors if "sg" not in each] == []


def test_environment_groups():
    found = {group.title: group for group in environment.groups(samples.ENVIRONMENT)}
    assert list(found) == ["Machine", "GPUs (6)", "Server", "Server: command line", "Server: all arguments", "Server: packages"]
    assert ("injected faults", "none") in found["Machine"].pairs
    cards = found["GPUs (6)"]
    assert cards.pairs == (("name", "NVIDIA GeForce RTX 3090"), ("VBIOS", "94.02.42.00.A9"))
    assert cards.table is not None
    assert cards.table.columns == ("GPU", "UUID", "PCI address")
    assert found["Server: command line"].pairs[0][1].startswith("python3 -m sglang.launch_server --model-path")
    assert found["Server: command line"].folded
    assert found["Server: all arguments"].folded
    assert found["Server: all arguments"].pairs[0] == ("--argument-0", "0")
    assert environment.groups({}) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not read"),
        (True, "yes"),
        (False, "no"),
        (1.50, "1.5"),
        (7, "7"),
        ([], "none"),
        ({}, "none"),
        ({"a_b": 1}, "a b: 1"),
        ({"ecc": "no", "mig": "no", "x": 1}, "ECC, MIG: no; x: 1"),
        (["a", "b"], "a, b"),
    ],
)
def test_environment_values(value, text):
    assert environment.text(value) == text


def test_a_card_that_differs_from_the_others_shows_where():
    cards = [
        dict(card, pcie_width=8 if card["index"] == 3 else 16, memory_bytes=25769803776) for card in samples.ENVIRONMENT["gpus"]
    ]
    (group,) = (each for each in environment.groups({"gpus": cards}) if each.title.startswith("GPUs"))
    assert dict(group.pairs)["memory"] == "24 GiB"
    assert group.table is not None
    assert group.table.columns == ("GPU", "UUID", "PCI address", "PCIe width")
    assert [row[3] for row in group.table.rows] == ["16", "16", "16", "8", "16", "16"]
    (alone,) = environment.groups({"gpus": cards[:1]})
    assert alone.table is None
    assert ("PCIe width", "16") in alone.pairs


def test_2000_checks_stay_below_8_mb():
    import msgspec

    whole = samples.mixed_run()
    checks = tuple(
        msgspec.structs.replace(whole.checks[number % len(whole.checks)], id=f"check-{number}") for number in range(2000)
    )
    page = standalone.render(msgspec.structs.replace(whole, checks=checks))
    assert len(page.encode()) < 8_000_000
    assert page.count("<tbody") >= 2000
    # what passes beyond the first hundred is folded, what needs a person never is
    folded = page[page.index('<details class="sg-rest">') :]
    assert "sg-row-fail" not in folded
    assert folded.count("sg-row-pass") > 500
    assert page.count("sg-row-pass") - folded.count("sg-row-pass") == summary.SHOWN


def test_pytest_htmls_table_leaves_out_what_simply_passed_where_there_are_hundreds():
    good, bad = samples.good_checks()[0], samples.check("x", "fail", cause="y")
    assert summary.cells_below(good, summary.LISTED) == summary.row_cells(good)
    assert summary.cells_below(good, summary.LISTED + 1) is None
    assert summary.cells_below(bad, 5000) == summary.row_cells(bad)
    assert "9 checks that simply passed are listed in the table of promises only" in summary.below_heading(samples.run(), 5000)
    assert "simply passed" not in summary.below_heading(samples.run(), 9)


def test_a_page_that_cannot_be_drawn_costs_the_page_and_not_the_verdict(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise KeyError("<no such field>")

    run = samples.run()
    config = SimpleNamespace(pluginmanager=SimpleNamespace(hasplugin=lambda name: False))
    active = SimpleNamespace(recorder=SimpleNamespace(run=run, folder=tmp_path), items=[], config=config)
    monkeypatch.setattr(summary, "summary_html", broken)
    (told,) = page.blocks(active)
    assert view.headline(run) in html_module.unescape(told)
    assert "&lt;no such field&gt;" in told
    page.standalone(active)
    assert "could not be drawn" in (tmp_path / "report.html").read_text()
