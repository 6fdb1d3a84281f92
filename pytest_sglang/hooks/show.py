"""What a person sees: one moving line while something long goes on, the table of promises, the last two lines."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_sglang.hooks.active import Active


class TerminalProgress:
    """One line that moves on a terminal; in a CI log a plain line for every 30 s that something lasts; nothing under -q."""

    EVERY_S = 30.0

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._writer: Any = config.get_terminal_writer()
        self._quiet = config.get_verbosity() < 0
        self._tty = bool(getattr(self._writer, "hasmarkup", False)) and self._writer._file.isatty()
        self._last = time.monotonic()
        self._drawn = False

    def update(self, text: str | None) -> None:
        """Show ``text`` as what is going on now; None clears the line."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._tty:
            if text is None:
                if self._drawn:
                    self._write(self._cleared())
                self._drawn = False
                return
            if now - self._last < 0.1:
                return
            # on a line of its own, so that pytest's "test_x.py" before it stays
            begin = "\r\x1b[2K" if self._drawn else "\n"
            self._last, self._drawn = now, True
            self._write(begin + _fit(text, self._writer.fullwidth - 1))
        elif text is None:
            self._last = now
        elif now - self._last >= self.EVERY_S:
            self._last = now
            self._write(f"\n  {text}\n")

    def _cleared(self) -> str:
        """Erase our line and go back to where pytest stands in the line above."""
        column = self._writer.width_of_current_line
        return "\r\x1b[2K\x1b[1A" + (f"\x1b[{column}C" if column else "")

    def _write(self, text: str) -> None:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            self._writer._file.write(text)
            self._writer._file.flush()
            return
        with capture.global_and_fixture_disabled():
            self._writer._file.write(text)
            self._writer._file.flush()


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def promises(active: Active, terminalreporter: Any) -> None:
    """The table of promises: what was not checked first, then failing first."""
    from pytest_sglang.report import terminal

    if active.recorder is None:
        return
    run = active.recorder.run
    for line, markup in terminal.promise_table(run, terminalreporter._tw.fullwidth, terminalreporter._tw.hasmarkup):
        terminalreporter._tw.line(line, **markup)
    report = active.recorder.folder / "report.html"
    if report.exists():
        try:
            shown = report.relative_to(active.config.invocation_params.dir)
        except ValueError:
            shown = report
        terminalreporter._tw.line(f"report: {shown}")


def last_lines(active: Active, config: pytest.Config) -> None:
    """The verdict and how the rig was left, read back: the last thing printed, also after Ctrl-C."""
    from pytest_sglang.report import terminal

    if active.recorder is None:
        return
    writer = config.get_terminal_writer()
    run = active.recorder.run
    from pytest_sglang.hooks import github

    if active.baseline_line:
        writer.line(active.baseline_line)
    github.tell(active, writer)
    writer.line(terminal.last_line(run), **_colour(run.verdict))
    writer.line(terminal.as_left_line(run))


def _colour(verdict: str) -> dict[str, bool]:
    return {"pass": {"green": True, "bold": True}, "fail": {"red": True, "bold": True}}.get(verdict, {"yellow": True, "bold": True})
