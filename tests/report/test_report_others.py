"""Comparison, history, fleet and GitHub as text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import report_samples as samples

from pytest_sglang import cli
from pytest_sglang.report import comparison as shown
from pytest_sglang.report import github, history
from pytest_sglang.session import comparison

stored_runs = samples._stored()


def run_tool(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(each) for each in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_compare_prints_what_changed_and_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    paths = [*stored_runs.boots(tmp_path, "old", 6), *stored_runs.boots(tmp_path, "new", 3, tok_s=38.0, engine="0.5.12", month=11)]
    code, out, _ = run_tool(capsys, "compare", *paths, "-o", tmp_path / "change.html")
    assert code == 1
    assert "  engine: 0.5.11 -> 0.5.12" in out
    assert "FAIL: worse: decode at 250 W" in out
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("written"))
    page = (tmp_path / "change.html").read_text()
    assert "WORSE" in page
    assert "<script" not in page


@pytest.mark.parametrize(("tok_s", "code", "word"), [(40.0, 0, "PASS"), (39.2, 6, "INCONCLUSIVE: decode at 250 W")])
def test_exit_codes_of_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str], tok_s: float, code: int, word: str) -> None:
    paths = stored_runs.boots(tmp_path, "a", 5)
    if tok_s != 40.0:
        paths = [paths[0], stored_runs.stored(tmp_path, "b", tok_s=tok_s, noise=0.03, rounds=4, engine="0.5.12")]
    found, out, _ = run_tool(capsys, "compare", *paths)
    assert found == code
    assert word in out


def test_refused_and_misused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = stored_runs.stored(tmp_path, "a"), stored_runs.stored(tmp_path, "b", output_tokens=256)
    code, out, _ = run_tool(capsys, "compare", a, b)
    assert code == 6
    assert "must not be compared" in out
    assert "workload output_tokens: 128, now 256" in out
    code, _, err = run_tool(capsys, "compare", a)
    assert code == 4
    assert "pytest-sglang compare reports/BEFORE reports/AFTER" in err
    code, out, _ = run_tool(capsys, "compare", a, b, "--json")
    assert '"verdict": "inconclusive"' in out


def test_simulated_says_so(tmp_path: Path) -> None:
    import msgspec

    from pytest_sglang.record import run as records

    path = stored_runs.stored(tmp_path, "a")
    run = msgspec.structs.replace(records.read(path), simulated=True)
    found = comparison.compare([run], [run])
    assert shown.headline(found).endswith("(SIMULATED)")
    assert "SIMULATED" in shown.page([found])


def test_history_prints_trends_and_writes_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.index_page(tmp_path)
    code, out, _ = run_tool(capsys, "history", tmp_path)
    assert code == 0
    assert "six-3090, 13 runs" in out
    assert "% since 2026-09-01 (b-00)" in out
    assert "skipped:" in out
    code, out, _ = run_tool(capsys, "history", tmp_path, "--rig", "cellar", "--json")
    assert '"runs": 3' in out
    code, out, _ = run_tool(capsys, "history", tmp_path, "--keep", 2, "--dry-run")
    assert out.count("would remove") == 11
    code, out, err = run_tool(capsys, "history", tmp_path, "--keep", 0)
    assert code == 4
    assert "--keep 50" in err
    code, _, err = run_tool(capsys, "history", tmp_path / "nowhere")
    assert code == 4
    assert history.spark([1.0, 1.0]) == "▄▄"


def test_merge_prints_the_table_and_leaves_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples.fleet_page(tmp_path)
    nodes = tmp_path / "nodes.txt"
    nodes.write_text("gpu00\n# a comment\ngpu09\n")
    code, out, _ = run_tool(capsys, "merge", tmp_path, "-o", tmp_path / "out", "--nodes", nodes)
    assert code == 1
    assert "FAIL 1 of 6 nodes, 1 missing" in out
    assert "gpu09" in out
    assert (tmp_path / "out" / "fleet.html").is_file()
    code, _, err = run_tool(capsys, "merge", tmp_path, "--nodes", tmp_path / "none")
    assert code == 4
    assert "one node name a line" in err
    nodes.write_text("# nobody\n\n")
    code, _, err = run_tool(capsys, "merge", tmp_path, "--nodes", nodes)
    assert code == 4
    assert "no node in it" in err


def test_merge_tells_the_fleet_in_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    samples.fleet_page(tmp_path)
    nodes = tmp_path / "nodes.txt"
    nodes.write_text("".join(f"gpu{number:02}  # rack {number}\n" for number in range(5)))
    _, out, _ = run_tool(capsys, "merge", tmp_path, "--nodes", nodes)
    told = out.splitlines()
    assert max(map(len, told)) <= 80
    assert told[0] == "gpu01                    FAIL, 1 not checked"
    assert "PASS, 1 not checked: gpu00, gpu02, gpu04, gpu05" in told
    assert "not in the list of nodes: gpu05" in told
    (line,) = [each for each in told if each.startswith("decode-throughput at 250 W") and "/" in each]
    assert line.split()[4] == "5/6"
    assert line.endswith("tok/s gpu03")


def test_history_fits_eighty_columns_counts_passes_and_says_since_when(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stored_runs.boots(tmp_path, "a", 20, month=8)
    stored_runs.boots(tmp_path, "b", 4, tok_s=36.0, month=9, verdict="inconclusive")
    code, out, _ = run_tool(capsys, "history", tmp_path)
    assert code == 0
    told = out.splitlines()
    assert max(map(len, told)) <= 80
    assert told[0] == "six-3090, 24 runs"
    assert "  20/24  " in told[2]
    assert told[2].endswith("▁")
    assert told[3] == "      inconclusive since 2026-09-01, 4 runs (b-00)"
    assert told[4].startswith("      -10")
    assert told[4].endswith("% since 2026-09-01 (b-00)")
    code, _, err = run_tool(capsys, "history", tmp_path, "--rig", "attic")
    assert code == 4
    assert "there: six-3090" in err


def test_history_in_a_terminal_without_these_characters(tmp_path: Path) -> None:
    stored_runs.boots(tmp_path, "a", 5, rig="屋根裏")
    for encoding in ("ascii", "latin-1"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest_sglang", "history", str(tmp_path)],
            env={**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert b"???, 5 runs" in done.stdout
        assert re.search(rb"5/5  [_.,=+*#-]{5}\n", done.stdout)


def test_github_summary_has_the_essential_first_and_stays_below_its_limit() -> None:
    text = github.summary(samples.mixed_run(), artefact="`report.html`")
    assert text.startswith("## FAIL 2 of 11")
    assert text.index("Not checked") < text.index("| promise |")
    assert "`report.html`" in text
    many = samples.run()
    import msgspec

    checks = tuple(
        msgspec.structs.replace(many.checks[0], id=f"check-{number}", verdict="fail", cause="long " * 200) for number in range(3000)
    )
    cut = github.summary(msgspec.structs.replace(many, checks=checks, verdict="fail"))
    assert len(cut.encode()) <= github.SUMMARY_BYTES
    assert "Cut here" in cut


def test_annotations_are_escaped_and_few() -> None:
    lines = github.workflow_commands(samples.mixed_run())
    assert sum(line.startswith("::error title=") for line in lines) == 2
    assert all("\n" not in line and ": FAIL" not in line.split("::")[1] for line in lines)


def test_a_cause_full_of_marks_stays_text_in_the_summary_and_one_line_in_the_annotation() -> None:
    from markdown_it import MarkdownIt

    cause = "a | b `c` <script>x</script> **bold** [l](http://h) back\\|slash 5 % of\r\n# heading"
    run = samples.run((samples.check("odd|id", "fail", cause=cause), *samples.good_checks()))
    page = MarkdownIt("commonmark").enable("table").render(github.summary(run))
    row = page.split("<tbody>")[1].split("</tr>")[0]
    assert row.count("<td") == 6
    assert "<td>odd|id</td>" in row
    assert "<td>a | b `c` &lt;script&gt;x&lt;/script&gt; **bold** [l](http://h) back\\|slash 5 % of # heading</td>" in row
    (line,) = github.workflow_commands(run)
    assert line.startswith("::error title=odd|id%3A FAIL (SIMULATED)::")
    assert "\n" not in line
    assert "\r" not in line
    assert "5 %25 of" in line


def test_every_run_that_did_not_pass_has_an_annotation() -> None:
    from pytest_sglang.record.values import Finding

    loose = samples.run(findings=(Finding("gpu-lost", "fail", "GPU 3", "does not answer", "reboot"),), verdict="fail")
    assert github.workflow_commands(loose) == ["::error title=GPU 3%3A FAIL (SIMULATED)::does not answer reboot"]
    (line,) = github.workflow_commands(samples.run(finished=None))
    assert "not finished" in line
    assert github.workflow_commands(samples.run()) == []


def test_a_summary_that_is_cut_inside_a_fold_closes_it() -> None:
    from pytest_sglang.record.values import Finding

    many = tuple(Finding("k", "warn", f"GPU {number}", "long " * 100) for number in range(4000))
    text = github.summary(samples.run(findings=many))
    assert text.count("<details>") == text.count("</details>")
    assert len(text.encode()) <= github.SUMMARY_BYTES
