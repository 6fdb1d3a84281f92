"""The end of a run: everything put back, read back, the verdict, the exit code, the record closed."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from pytest_sglang.hooks.active import Active
from pytest_sglang.record.values import Finding


def loop_ended(active: Active) -> None:
    """Checks that never came to run (-x, an interrupt) are not checked; called on every way out of the loop."""
    if active.recorder is None:
        return
    done = active.recorder.keys()
    for plan in active.every:
        if plan.key not in done and plan.key not in active.unchecked:
            active.unchecked[plan.key] = "not reached: the run ended before it"
    active.recorder.not_checked(active.unchecked)


def close(active: Active, session: pytest.Session) -> None:
    """Undo, read back, decide. A second interrupt in here does not stop the undoing: the guard would finish it."""
    if active.closed or active.recorder is None or active.deployment is None:
        return
    active.closed = True
    _hold_signals(active)
    try:
        _tear_down_fixtures(session)
    except BaseException as error:
        active.recorder.findings((Finding("teardown", "warn", "fixtures", f"{type(error).__name__}: {error}"),))
        session.testsfailed += 1
    try:
        active.deployment.close()
    finally:
        interrupted = active.interrupted or int(session.exitstatus) == pytest.ExitCode.INTERRUPTED
        active.recorder.as_left(active.deployment.as_left)
        verdict = active.recorder.verdict(require_all=active.options.require_all)
        unknown = sum(each.verdict == "inconclusive" for each in active.recorder.run.checks)
        session.exitstatus = _exit_code(session, verdict, interrupted, unknown)
        active.recorder.finish(int(session.exitstatus), interrupted=interrupted)
        active.recorder.write()
    from pytest_sglang.hooks import outcome, page, store

    outcome.describe_suite(active)
    page.standalone(active)
    store.keep(active)


def _hold_signals(active: Active) -> None:
    """While everything is put back an interrupt is noted and nothing more: SIGKILL is the guard's business."""

    def note(number: int, frame: Any) -> None:
        active.interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)


def _tear_down_fixtures(session: pytest.Session) -> None:
    """A user's session fixtures may still use the rig in their teardown, so they go first (after an interrupt they have not yet)."""
    session._setupstate.teardown_exact(None)


def _exit_code(session: pytest.Session, verdict: str, interrupted: bool, unknown: int) -> int:
    """``unknown``: inconclusive checks, where no terminal reporter has counted them (``-p no:terminal``)."""
    if interrupted:
        return int(pytest.ExitCode.INTERRUPTED)
    if int(session.exitstatus) not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(session.exitstatus)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    stats = getattr(reporter, "stats", {})
    inconclusive = unknown if reporter is None else len(stats.get("inconclusive", ()))
    if verdict == "fail" or stats.get("failed") or stats.get("error") or session.testsfailed > inconclusive:
        return 1
    return 0 if verdict == "pass" and not inconclusive else 6
