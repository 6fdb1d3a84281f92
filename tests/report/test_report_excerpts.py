"""Excerpts of logs on the page: folded, harmless, linked from the cause."""

from __future__ import annotations

import os

import msgspec
import report_samples as samples

from pytest_sglang.report import excerpts, standalone

QUOTE = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def with_logs(folder, text="[2026-11-23 22:30:00] hello\n", *, run=None, **item):
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / "start-1.log").write_text(text, encoding="utf-8", errors="surrogatepass")
    known = {
        "id": "start-1",
        "title": "Server: start in warm-restart, 22:30:00",
        "source": "/var/log/sglang.log",
        "checks": ["warm-restart"],
        "file": "logs/start-1.log",
        "lines": 900,
        "shown": 80,
    }
    return msgspec.structs.replace(run or samples.run(), logs=({**known, **item},))


def test_an_excerpt_is_folded_and_says_what_it_is_part_of(tmp_path):
    page = standalone.render(with_logs(tmp_path), tmp_path)
    assert (
        '<details><summary>Server: start in warm-restart, 22:30:00 <span class="sg-count">80 of 900 lines</span></summary>' in page
    )
    assert "[2026-11-23 22:30:00] hello" in page
    assert "Whole log: /var/log/sglang.log" in page


def test_what_a_log_holds_cannot_leave_its_place(tmp_path):
    nasty = "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)> & \x1b[31m \u202e \x00 {{ run }}\n"
    page = standalone.render(with_logs(tmp_path, nasty), tmp_path)
    assert "&lt;/pre&gt;&lt;/details&gt;&lt;script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    assert not {"\x1b", "\u202e", "\x00"} & set(page)
    assert "{{ run }}" in page


def test_a_file_that_grew_is_cut_and_the_page_stays_small(tmp_path):
    run = with_logs(tmp_path, "x" * 5_000_000)
    many = msgspec.structs.replace(run, logs=run.logs * 40)
    bare = len(standalone.render(samples.run(), tmp_path))
    assert len(standalone.render(many, tmp_path)) < bare + excerpts.TOTAL_BYTES + 200_000
    assert "cut here" in standalone.render(run, tmp_path)


def test_a_file_that_is_gone_strange_or_elsewhere_costs_a_line(tmp_path):
    (tmp_path / "secret.log").write_text("TOP SECRET")
    run = with_logs(tmp_path)
    os.symlink(tmp_path / "secret.log", tmp_path / "logs" / "link.log")
    for name, why in (
        ("logs/none.log", "is not in the run"),
        ("logs/link.log", "is not in the run"),
        ("../secret.log", "names no file of this run"),
        ("logs/../secret.log", "names no file of this run"),
        ("/etc/passwd", "names no file of this run"),
        (None, "names no file of this run"),
    ):
        page = standalone.render(msgspec.structs.replace(run, logs=({**run.logs[0], "file": name},)), tmp_path)
        assert why in page, name
        assert "TOP SECRET" not in page
    (tmp_path / "logs" / "start-1.log").write_bytes(b"\xff\xfe half \xc3\n")
    assert "half" in standalone.render(run, tmp_path)
    assert "in the run&#39;s folder: logs/start-1.log" in standalone.render(run)


def test_a_run_without_excerpts_has_no_section(tmp_path):
    assert ">Logs</h" not in standalone.render(samples.run(), tmp_path)


def test_a_cause_links_to_the_log_of_its_own_start(tmp_path):
    failed = samples.check("warm-restart", "fail", cause="ready after 312 s")
    page = standalone.render(with_logs(tmp_path, run=samples.run((failed, *samples.good_checks()[:2]))), tmp_path)
    assert 'ready after 312 s <a href="#sg-log-1">See the log</a>' in page
    assert 'id="sg-log-1"' in page


def test_a_cause_that_quotes_a_log_links_to_it_and_another_does_not(tmp_path):
    quoting = samples.check("ready", "fail", cause=f"died in phase weights after 12 s (exit code -9): {QUOTE}")
    other = samples.check("findings", "fail", cause="the unit's TimeoutStartSec of 90 s is shorter than a cold start")
    run = with_logs(tmp_path, f"[2026-11-23 22:30:00] {QUOTE} more\n", run=samples.run((quoting, other)))
    page = standalone.render(run, tmp_path)
    assert page.count("See the log") == 1
    assert page.index(QUOTE) < page.index("See the log") < page.index("TimeoutStartSec")
