"""The line that moves below the test that runs: what a person sees of it in a real (pseudo) terminal, and what a log keeps."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SLOW = """
import time
import pytest
from pytest_sglang.hooks.show import TerminalProgress
from pytest_sglang.session import live

def test_before(): ...

def test_slow(request):
    if {every}:
        live.EVERY_S = {every}
    progress = TerminalProgress(request.config)
    for number in range(4):
        progress.update(f"lap {{number}}: 43.{{number}} tok/s {tail}")
        time.sleep(0.15)
    progress.update(None)

def test_after(): ...
"""
PYTEST = (sys.executable, "-m", "pytest", "-p", "pytest_sglang.plugin", "-p", "no:cacheprovider")
ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
CSI = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


class Screen:
    """As much of a terminal as is needed: characters, returns, lines, up, right, erase a line; every picture that a person saw."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines, self.row, self.column = [""], 0, 0
        self.seen: list[str] = []

    def feed(self, text: str) -> None:
        place = 0
        while place < len(text):
            found = CSI.match(text, place)
            if found:
                self._control(int(found[1].split(";")[0] or 1), found[2])
                place = found.end()
                continue
            self._character(text[place])
            place += 1

    def _control(self, count: int, letter: str) -> None:
        if letter == "K":
            self.seen.append(self.lines[self.row])
            self.lines[self.row] = ""
        elif letter == "A":
            self.row = max(0, self.row - count)
        elif letter == "C":
            self.column += count
        else:
            assert letter == "m", letter

    def _character(self, each: str) -> None:
        if each == "\r":
            self.column = 0
        elif each == "\n":
            self.row, self.lines = self.row + 1, [*self.lines, *[""] * (self.row + 2 - len(self.lines))]
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + each + line[self.column + 1 :]
            self.column += 1
            assert self.column <= self.columns, f"wraps: {self.lines[self.row]!r}"


def in_terminal(folder: Path, *arguments: str, columns: int = 80, tail: str = "", **environment: str) -> tuple[Screen, str]:
    """pytest on the slow test in a pseudo terminal; the screen at its end, and all that was written."""
    (folder / "test_it.py").write_text(SLOW.format(every=0, tail=tail), encoding="utf-8")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI")
    }
    process = subprocess.Popen(
        [*PYTEST, "test_it.py", *arguments],
        cwd=folder,
        env={**kept, **ALONE, "TERM": "xterm-256color", **environment},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    written = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        written += piece
    os.close(master)
    process.wait(timeout=60)
    assert process.returncode == 0, written
    text = written.decode("utf-8", errors="replace")
    screen = Screen(columns)
    # the header of pytest and its plugins is not folded to the terminal, so only what follows it is looked at
    begin = re.search(r"test_it\.py( |::)", text)
    screen.feed(text[begin.start() if begin else len(text) :])
    return screen, text


@pytest.mark.parametrize("arguments", [(), ("-s",)])
def test_it_moves_below_the_test_and_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    screen, _ = in_terminal(tmp_path, *arguments)
    assert [each.split(":")[0] for each in screen.seen if each] == [f"lap {number}" for number in range(4)]
    percentage = "" if arguments == ("-s",) else r" +\[100%\]"  # pytest's own way
    assert re.fullmatch(rf"test_it\.py \.\.\.{percentage}", screen.lines[0]), screen.lines
    assert not any("lap" in each for each in screen.lines)


def test_verbose_puts_the_verdict_behind_the_test(tmp_path: Path) -> None:
    screen, _ = in_terminal(tmp_path, "-v")
    assert any(re.fullmatch(r"test_it\.py::test_slow PASSED +\[ 66%\]", each) for each in screen.lines), screen.lines
    assert not any("lap" in each for each in screen.lines)


@pytest.mark.parametrize("columns", [40, 200])
def test_it_never_wraps(tmp_path: Path, columns: int) -> None:
    screen, _ = in_terminal(tmp_path, columns=columns, tail="屋根裏の計算機 " * 30)
    assert all(len(each) < columns for each in screen.seen)
    assert len([each for each in screen.seen if each.startswith("lap")]) == 4


def test_a_terminal_without_these_characters_loses_only_them(tmp_path: Path) -> None:
    screen, _ = in_terminal(tmp_path, tail="· 屋根裏…", PYTHONIOENCODING="ascii")
    assert screen.seen[0] == "lap 0: 43.0 tok/s ? ????"


@pytest.mark.parametrize("how", ["--color=no", "NO_COLOR"])
def test_without_colours_there_is_no_escape_code(tmp_path: Path, how: str) -> None:
    _, text = in_terminal(tmp_path, "--color=no") if how == "--color=no" else in_terminal(tmp_path, NO_COLOR="1")
    assert "\x1b" not in text
    assert "lap" not in text


def test_quiet_has_no_moving_line(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SLOW.format(every=0, tail=""))
    _, text = in_terminal(tmp_path, "-q")
    assert "lap" not in text


def test_a_log_keeps_a_line_now_and_then_and_pytests_own_columns(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SLOW.format(every=0.1, tail=""))
    done = subprocess.run(
        [*PYTEST, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, **ALONE, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    told = done.stdout.splitlines()
    first = told.index("test_it.py .")
    assert [each.split(":")[0] for each in told[first + 1 : first + 4]] == ["  lap 1", "  lap 2", "  lap 3"]
    assert re.fullmatch(r"\.\. {71}\[100%\]", told[first + 4]), told
    assert "\x1b" not in done.stdout
