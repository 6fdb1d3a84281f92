"""What a person sees: one moving line while something long goes on, the table of promises, the last two lines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from pytest_sglang.hooks.active import Active
from pytest_sglang.session.live import MovingLine


def _reports(config: pytest.Config) -> bool:
    return config.pluginmanager.hasplugin("terminalreporter")


def writer_of(config: pytest.Config) -> Any:
    """pytest's terminal writer; one of our own under ``-p no:terminal``, where pytest has none and the last lines are said all the same."""
    if _reports(config):
        return config.get_terminal_writer()
    from _pytest._io import TerminalWriter

    return TerminalWriter()


class TerminalProgress(MovingLine):
    """A moving line below the one that pytest is writing, through pytest's own capture."""

    def __init__(self, config: pytest.Config) -> None:
        self._writer: Any = writer_of(config)
        self._config = config
        with self._uncaptured():
            super().__init__(self._writer._file, quiet=not _reports(config) or config.get_verbosity() < 0)
        self.moves = self.moves and bool(getattr(self._writer, "hasmarkup", False))

    def opened(self) -> str:
        # on a line of its own, so that pytest's "test_x.py" before it stays
        return "\n"

    def cleared(self) -> str:
        # erase our line and go back to where pytest stands in the line above
        column = self._writer.width_of_current_line
        return "\r\x1b[2K\x1b[1A" + (f"\x1b[{column}C" if column else "")

    def paragraph(self) -> str:
        return "\n  " if self._writer.width_of_current_line else "  "

    def write(self, begin: str, line: str = "", end: str = "") -> None:
        with self._uncaptured():
            super().write(begin, line, end)
        if end:
            self._writer._current_line = ""  # pytest pads its percentage from where it believes to stand

    def _uncaptured(self) -> AbstractContextManager[None]:
        """While a test runs, the terminal's own descriptor is behind pytest's capture: what it is can be asked only here."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            return nullcontext()
        found: AbstractContextManager[None] = capture.global_and_fixture_disabled()
        return found


def narrow(active: Active) -> None:
    """pytest-benchmark's table in 80 columns, where it is about our rounds alone and nobody asked for other columns."""
    from pytest_sglang.report import benchmark

    benchmark.narrow(getattr(active.config, "_benchmarksession", None))


def promises(active: Active, terminalreporter: Any) -> None:
    """The table of promises: what was not checked first, then failing first. ``--no-summary`` leaves it out, the report's name stays."""
    from pytest_sglang.report import terminal

    if active.recorder is None:
        return
    run, writer = active.recorder.run, terminalreporter._tw
    if not active.config.option.no_summary:
        for line, markup in terminal.promise_table(run, writer.fullwidth, writer.hasmarkup, active.config.get_verbosity()):
            writer.line(line, **markup)
    report = active.recorder.folder / "report.html"
    if report.exists():
        try:
            shown = report.relative_to(active.config.invocation_params.dir)
        except ValueError:
            shown = report
        writer.line(f"report: {shown}")


def last_lines(active: Active, config: pytest.Config) -> None:
    """The verdict and how the rig was left, read back: the last thing printed, also after Ctrl-C."""
    from pytest_sglang.report import terminal

    if active.recorder is None:
        return
    writer = writer_of(config)
    run = active.recorder.run
    from pytest_sglang.hooks import github

    if active.baseline_line:
        writer.line(active.baseline_line)
    github.tell(active, writer)
    writer.line(terminal.last_line(run), **_colour(run.verdict))
    writer.line(terminal.as_left_line(run))


def _colour(verdict: str) -> dict[str, bool]:
    return {"pass": {"green": True, "bold": True}, "fail": {"red": True, "bold": True}}.get(verdict, {"yellow": True, "bold": True})
