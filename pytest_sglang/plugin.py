"""pytest hooks only: each reads, calls one function, returns. Everything is imported when it is needed, so an idle plugin costs nothing."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sglang.fixtures import *  # noqa: F403  (fixtures are found by name in the plugin's module)

if TYPE_CHECKING:
    from pytest_sglang.hooks.active import Active

ACTIVE: pytest.StashKey[Active] = pytest.StashKey()
"""The run of this session; absent as long as no collected test is one of ours."""
MISUSE: pytest.StashKey[pytest.UsageError] = pytest.StashKey()
"""The first misuse found while tests were made; pytest would tell it as an error inside their file, so it waits for their end."""

PARALLEL = "sglang_check"
"""Under this name an xdist worker tells the run that it has collected a check."""


def pytest_addoption(parser: pytest.Parser) -> None:
    from pytest_sglang import options

    options.declare(parser)


def pytest_configure(config: pytest.Config) -> None:
    from pytest_sglang import markers

    markers.register(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return ["sglang: SIMULATED rig, nothing here is real hardware"] if config.getoption("sglang_rig") == "simulated" else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if _ours(metafunc):
        from pytest_sglang.hooks import collect

        try:
            collect.parametrize(metafunc)
        except pytest.UsageError as error:
            metafunc.config.stash.setdefault(MISUSE, error)


def _ours(metafunc: pytest.Metafunc) -> bool:
    from pytest_sglang import markers

    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    return bool(marks & markers.MARKERS.keys() or markers.FIXTURES & set(metafunc.fixturenames))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    from pytest_sglang import markers

    # another plugin may have shuffled them already (pytest-randomly does, when it is registered later)
    before = sorted((item for item in items if markers.is_check(item)), key=markers.written_at)
    if before and hasattr(config, "workeroutput"):
        # xdist shows a usage error of its worker as a crash of itself: the worker offers nothing, and the run says why
        config.workeroutput[PARALLEL] = before[0].nodeid
        items.clear()
        before = []
    elif MISUSE in config.stash:
        raise config.stash[MISUSE]
    yield
    if before:
        from pytest_sglang.hooks import collect

        active = collect.activate(config, before, items)
        if active is not None:
            config.stash[ACTIVE] = active


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    check = (getattr(node, "workeroutput", None) or {}).get(PARALLEL)
    if check is not None:
        example = "pytest acceptance/ -p no:xdist"
        raise pytest.UsageError(f"{check}: checks of a rig do not run in parallel: leave -n away (e.g. {example})")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
    active = session.config.stash.get(ACTIVE, None)
    if active is not None and not session.config.option.collectonly:
        from pytest_sglang.hooks import finish, start

        if active.options.plan:
            start.show_plan(active)
            session.items.clear()
        elif not (session.testsfailed and not session.config.option.continue_on_collection_errors):
            start.open_run(active, session)
        try:
            return (yield)
        finally:
            finish.loop_ended(active)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    active = item.config.stash.get(ACTIVE, None)
    if active is not None and item in active.items:
        from pytest_sglang.hooks import call

        call.gate(active, item)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    active = item.config.stash.get(ACTIVE, None)
    if active is None or item not in active.items:
        return (yield)
    from pytest_sglang.hooks import call

    with call.judged(active, item):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    active = item.config.stash.get(ACTIVE, None)
    if active is not None:
        from pytest_sglang.hooks import outcome

        outcome.adjust(active, item, call, report)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(
    report: pytest.CollectReport | pytest.TestReport,
) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    if getattr(report, "sglang_inconclusive", False):
        return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
    if getattr(report, "sglang_marginal", False) and report.outcome == "passed":
        return "marginal", "m", ("PASSED (marginal)", {"yellow": True})
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    inconclusive = getattr(report, "sglang_inconclusive", None)
    if inconclusive:
        from pytest_sglang.hooks import outcome

        outcome.as_junit_error(inconclusive, report)


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_summary(prefix: list[Any], session: pytest.Session) -> None:
    active = session.config.stash.get(ACTIVE, None)
    if active is not None and active.recorder is not None:
        from pytest_sglang.hooks import page

        page.summarise(active, prefix)


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_table_row(report: pytest.TestReport, cells: list[str]) -> None:
    ours = getattr(report, "sglang_cells", [])
    if ours is None:  # told in the table of promises only
        cells.clear()
    else:
        cells[3:3] = ours


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, Any, Any]:
    active = session.config.stash.get(ACTIVE, None)
    if active is None or active.recorder is None:
        return (yield)
    from pytest_sglang.hooks import finish

    # before every other plugin's: one of them may raise, and the rig must be put back all the same
    finish.close(active, session)
    return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Generator[None, Any, Any]:
    active = config.stash.get(ACTIVE, None)
    if active is None or active.recorder is None:
        return (yield)
    from pytest_sglang.hooks import show

    # the promises come last, below the tables of other plugins, also where one of them raises
    show.narrow(active)
    try:
        return (yield)
    finally:
        show.promises(active, terminalreporter)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    active = config.stash.get(ACTIVE, None)
    if active is not None and active.recorder is not None:
        from pytest_sglang.hooks import show

        show.last_lines(active, config)
