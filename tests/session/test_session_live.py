from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sglang.record import run as records
from pytest_sglang.record.values import Startup
from pytest_sglang.server.start import Progress
from pytest_sglang.session import live, promise
from pytest_sglang.session.options import SIMULATED, RunOptions

CSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def widest(shown: str) -> int:
    """Cells of the widest line that a terminal would have drawn."""
    pieces = re.split(r"[\r\n]", CSI.sub("", shown))
    return max(sum(live._cells(each) for each in piece) for piece in pieces)


def test_a_progress_in_one_line() -> None:
    told = Progress("capture_decode", "2/4 (bs=4), 7 shapes tuned", 72.0, 189.0, "AUTOTUNE mm(4x4096, 4096x6144)")
    assert live.text(told) == (
        "capture_decode 2/4 (bs=4), 7 shapes tuned · 72.0 s of about 3 min 09 s · AUTOTUNE mm(4x4096, 4096x6144)"
    )
    assert live.text(told, 1320.0).split(" · ")[1] == "72.0 s of about 22 min 00 s"
    assert live.text(Progress(None, "", 3.4, None, "")) == "starting · 3 s"


@pytest.mark.parametrize(
    ("line", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "a…"),
        ("a\x1b[2Jb\tc\r\nd", 20, "a [2Jb c  d"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日…"),
        ("e\u0301a", 2, "e\u0301a"),
        ("abc", 0, ""),
        ("", 5, ""),
    ],
)
def test_a_line_is_cut_by_cells(line: str, width: int, shown: str) -> None:
    assert live.fit(line, width) == shown


@given(line=st.text(), width=st.integers(1, 40))
def test_no_line_is_wider_than_its_terminal(line: str, width: int) -> None:
    shown = live.fit(line, width)
    assert sum(live._cells(each) for each in shown) <= width
    assert shown.isprintable()


def test_in_a_ci_log_a_plain_line_comes_every_30_s_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    line = live.MovingLine(stream, prefix="SIMULATED ")
    for second in range(95):
        now[0] = 1000.0 + second
        line.update(f"weights · {second} s")
    assert stream.getvalue() == "".join(f"SIMULATED weights · {second} s\n" for second in (30, 60, 90))
    line.update(None)
    now[0] += 29
    line.update("short")
    assert "short" not in stream.getvalue()


def test_quiet_is_nothing_at_all() -> None:
    stream = io.StringIO()
    line = live.MovingLine(stream, quiet=True)
    line.update("x")
    line.update(None)
    assert stream.getvalue() == ""


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "dumb")
    assert not live.MovingLine(Terminal()).moves
    monkeypatch.setenv("TERM", "xterm")
    assert live.MovingLine(Terminal()).moves
    assert not live.MovingLine(io.StringIO()).moves


# --- on a terminal ---------------------------------------------------------------------------------------------------------


def on_a_terminal(argv: list[str], columns: int, cwd: Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run ``argv`` on a pseudo-terminal of so many columns; exit code and everything that it wrote there."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    surroundings = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "CI", "PYTEST_ADDOPTS", "NO_COLOR")}
    process = subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env={**surroundings, "TERM": "xterm", **(env or {})}
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            data = os.read(ours, 65536)
        except OSError:
            break  # the other side is closed
        if not data:
            break
        shown += data
    os.close(ours)
    return process.wait(30), shown.decode("utf-8", errors="replace")


UNDER_PYTEST = """
import time
from pytest_sglang.hooks.show import TerminalProgress
from pytest_sglang.server.start import Progress
from pytest_sglang.session import live

def test_waits(request):
    progress = TerminalProgress(request.config)
    for second in range(4):
        told = Progress("capture_decode", f"{second}/4", 60.0 + second, 120.0, "日本語 " * 40 + "\\x1b[2J")
        progress.update(live.text(told))
        time.sleep(0.15)
    progress.update(None)
"""


def test_under_pytest_the_line_moves_within_the_terminal_and_goes_again(tmp_path: Path) -> None:
    columns = 60
    (tmp_path / "test_it.py").write_text(UNDER_PYTEST)
    argv = [sys.executable, "-m", "pytest", "test_it.py", "-p", "no:cacheprovider", "-p", "no:randomly"]
    code, shown = on_a_terminal(argv, columns, tmp_path)
    assert code == 0, shown
    drawn = re.findall(r"(?:\n|\r\x1b\[2K)(capture_decode [^\r\n\x1b]*)", shown)
    assert [each.split(" · ")[0] for each in drawn] == [f"capture_decode {n}/4" for n in range(4)]
    assert drawn[0].startswith("capture_decode 0/4 · 60.0 s of about 2 min 00 s · 日本")
    assert widest("\n".join(drawn)) < columns
    assert "\x1b[2J" not in shown
    # erased, and back behind the name of the file, where pytest goes on
    after = shown[shown.rindex("capture_decode") :]
    assert re.search(r"\r\x1b\[2K\x1b\[1A\x1b\[\d+C", after)


def test_under_pytest_quiet_shows_nothing(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_sglang.hooks.show import TerminalProgress

    monkeypatch.setattr(pytestconfig, "get_verbosity", lambda *_: -1)
    progress = TerminalProgress(pytestconfig)
    monkeypatch.setattr(progress, "write", lambda *_: pytest.fail("something was written"))
    progress.update("x")
    progress.update(None)


def test_under_pytest_a_ci_log_gets_plain_lines(tmp_path: Path) -> None:
    text = UNDER_PYTEST.replace("progress = Term", "live.EVERY_S = 0.25\n    progress = Term")
    (tmp_path / "test_it.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "test_it.py", "-p", "no:cacheprovider", "-p", "no:randomly"]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout
    lines = [line for line in ran.stdout.splitlines() if "capture_decode" in line]
    assert [line.split(" · ")[0] for line in lines] == ["  capture_decode 2/4"], ran.stdout
    assert "\x1b" not in ran.stdout


def an_earlier_run(folder: Path, ready_s: float) -> None:
    """The record of a run on the simulated rig that made one warm start."""
    rig = promise.resolve(RunOptions(rootdir=folder, rig=SIMULATED))
    plain = {"name": rig.name, "server": records.plain(rig.server)}
    startup = records.plain(Startup(kind="warm", launched_at=1.0, ready_s=ready_s))
    folder.mkdir(parents=True)
    startups = ({"label": "warm restart", "startup": startup, "budget_s": 90.0},)
    records.write(records.Run(run_id="earlier", started="x", simulated=True, rig=plain, startups=startups), folder)


def test_wait_moves_on_a_terminal_and_then_prints_the_time_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest_sglang", "wait", "--rig=simulated"]
    an_earlier_run(tmp_path / "reports" / "earlier", ready_s=77.7)
    code, shown = on_a_terminal(argv, 70, tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)})
    assert code == 0, shown
    drawn = [each for each in re.findall(r"\r\x1b\[2K([^\r\n\x1b]*)", shown) if each.strip()]
    assert len(drawn) > 5
    assert all(each.startswith("SIMULATED ") for each in drawn)
    assert any("warmup" in each for each in drawn)
    assert all(" of about 77.7 s" in each for each in drawn if "warmup" in each and each.startswith("SIMULATED warmup"))
    assert widest("\n".join(drawn)) < 70
    assert "ready after" in shown
