"""Opening a run: the plan that touches nothing, or the rig with its locks, journal, record and report."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from pytest_sglang.hooks.active import Active
from pytest_sglang.options import DEPLOYMENT


def show_plan(active: Active) -> None:
    """Print what a run would do: checks, requests, restarts, changes, minutes. Touches nothing."""
    from pytest_sglang.hooks import show
    from pytest_sglang.report import cells
    from pytest_sglang.session import plan

    writer = show.writer_of(active.config)
    checks = [plan.PlannedCheck(each.spec, each.power_w, each.item in active.items) for each in active.every]
    writer.line("")
    for line in plan.lines(active.rig, active.options, checks, dict(active.unchecked), active.not_promised):
        indent = " " * (len(line) - len(line.lstrip()))
        for piece in cells.wrapped(line.strip(), writer.fullwidth, indent, f"{indent}    "):
            writer.line(piece)


def open_run(active: Active, session: pytest.Session) -> None:
    """Open the rig and the record. Raises UsageError (exit code 4) before anything is changed."""
    from pytest_sglang.hooks.show import TerminalProgress
    from pytest_sglang.session import answering, opening
    from pytest_sglang.session.errors import SessionError

    if not active.items:
        return
    progress = TerminalProgress(active.config)
    try:
        active.deployment, active.recorder = opening.open_run(active.rig, active.options, progress=progress.update)
    except SessionError as error:
        raise pytest.UsageError(str(error)) from None
    active.config.stash[DEPLOYMENT] = active.deployment
    active.recorder.not_promised(active.not_promised)
    active.recorder.not_checked(active.unchecked)
    if any(each.spec.id == answering.CHECK and active.options.level >= each.spec.min_level for each in active.items.values()):
        active.deployment.server.answering.wanted = True
    _timeouts(active)
    _signals(active)
    from pytest_sglang.hooks import page

    page.attach(active, session)


def _timeouts(active: Active) -> None:
    """pytest-timeout as a backstop against a stuck plugin, beyond the budgets that our own waits enforce: budget x 1.5 + 60 s."""
    if not active.config.pluginmanager.hasplugin("timeout"):
        return
    from pytest_sglang.session import plan

    for item, planned in active.items.items():
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(plan.backstop_s(active.rig, planned.spec), func_only=False))


def _signals(active: Active) -> None:
    """SIGTERM and SIGHUP take the path of SIGINT: everything is undone, exit code 2."""

    def interrupt(number: int, frame: Any) -> None:
        active.interrupted = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt(f"{signal.Signals(number).name} received")

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
