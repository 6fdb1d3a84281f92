"""What a finished test becomes: recorded in run.json at once, inconclusive as a state of its own, numbers for JUnit and HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pytest_sglang.hooks.active import Active, Planned

if TYPE_CHECKING:
    from pytest_sglang.session.scope import CheckScope


def adjust(active: Active, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Called for every phase of one of our tests, after every other plugin has had its say about the report."""
    from pytest_sglang.report import summary
    from pytest_sglang.session.errors import Inconclusive, NotChecked

    report.sglang_cells = summary.row_cells(None)  # type: ignore[attr-defined]  # every row has our columns once the header has
    if item not in active.items:
        return
    error = call.excinfo.value if call.excinfo is not None else None
    if (
        call.when == "setup"
        and error is not None
        and report.outcome == "failed"
        and not isinstance(error, (pytest.fail.Exception, KeyboardInterrupt))
    ):
        scope = active.scopes.get(item)
        if scope is not None:
            told = Inconclusive(f"could not set up: {type(error).__name__}: {error}")
            scope.close_inconclusive(told)
            error = told
    if call.when == "teardown" and isinstance(error, NotChecked):
        error = Inconclusive(f"after the test: {error}")
    if isinstance(error, Inconclusive):
        # an expected failure is one that was measured: xfail must not absorb what could not be
        report.outcome = "failed"
        if hasattr(report, "wasxfail"):
            del report.wasxfail
        if call.when == "call" and error.__cause__ is None:
            report.longrepr = f"INCONCLUSIVE: {error}"
        report.sglang_inconclusive = str(error)  # type: ignore[attr-defined]
        report.sglang_xml = item.config  # type: ignore[attr-defined]
    if call.when == "call" or (call.when == "setup" and report.outcome != "passed"):
        _record(active, item, call, report)
    elif call.when == "teardown" and isinstance(error, Inconclusive):
        _unsettle(active, item, str(error))


def _record(active: Active, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    plan, scope = active.items[item], active.scopes.get(item)
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        active.unchecked[plan.key] = reason
        if active.recorder is not None:
            active.recorder.not_checked(active.unchecked)
        return
    if scope is None or active.recorder is None:
        return
    active.unchecked.update({(part, None): why for part, why in scope.left_out.items()})
    failed = report.failed and not getattr(report, "sglang_inconclusive", None)
    check = scope.to_check(
        promise=plan.promise,
        failed=failed or (hasattr(report, "wasxfail") and report.skipped),
        text=_first_line(report) if failed else None,
        duration_s=report.duration,
        expected_failure=hasattr(report, "wasxfail"),
        nodeid=item.nodeid,
    )
    active.recorder.add(check)
    from pytest_sglang.report import junit, summary

    item.user_properties.extend(junit.properties(check))
    report.user_properties = list(item.user_properties)
    report.sglang_marginal = check.marginal  # type: ignore[attr-defined]
    report.sglang_cells = summary.cells_below(check, len(active.items))  # type: ignore[attr-defined]
    active.recorder.write()
    _benchmark(item, plan, scope)


def _unsettle(active: Active, item: pytest.Item, why: str) -> None:
    """A check that passed, and behind which something could not be done that its own teardown asks for, is no pass."""
    plan, recorder = active.items[item], active.recorder
    if recorder is None:
        return
    for check in recorder.run.checks:
        if (check.id, check.power_w) == plan.key and check.verdict == "pass":
            told = f"its teardown: {why}"
            recorder.add(
                msgspec.structs.replace(check, verdict="inconclusive", message=told, inconclusive_because=told, marginal=False)
            )
            recorder.write()


def _benchmark(item: pytest.Item, plan: Planned, scope: CheckScope) -> None:
    """Rounds measured in this very check, for pytest-benchmark's table and JSON."""
    from pytest_sglang.report import benchmark

    level = "" if plan.power_w is None else f"{plan.power_w:g} W, "
    for number, throughput in enumerate(scope.measured, 1):
        streams = f"{throughput.streams} stream{'s' if throughput.streams > 1 else ''}"
        again = f" ({number})" if number > 1 else ""
        benchmark.feed(
            getattr(item.config, "_benchmarksession", None),
            name=f"{plan.spec.id} [{level}{streams}]{again}",
            fullname=f"{item.nodeid}{again}",
            group=benchmark.GROUP,
            rounds=throughput.rounds,
            extra_info=benchmark.extra_info(throughput),
        )


def _first_line(report: pytest.TestReport) -> str:
    text = getattr(getattr(report.longrepr, "reprcrash", None), "message", None) or report.longreprtext
    return next((line for line in str(text).splitlines() if line.strip()), "failed").strip()


def as_junit_error(message: str, report: Any) -> None:
    """JUnit: inconclusive is an <error>, not a <failure>: the test could not be carried out."""
    from _pytest.junitxml import xml_key

    config = getattr(report, "sglang_xml", None)
    del report.sglang_xml  # a report travels; a config does not
    xml = config.stash.get(xml_key, None) if config is not None else None
    if xml is None or report.when != "call":
        return
    from xml.etree import ElementTree

    reporter = xml.node_reporter(report)

    def append_error(_: Any) -> None:
        element = ElementTree.Element("error", message=f"inconclusive: {message}", type="inconclusive")
        element.text = message
        reporter.append(element)

    reporter.append_failure = append_error


def describe_suite(active: Active) -> None:
    """JUnit: the run as properties of its suite, once its verdict stands."""
    from _pytest.junitxml import xml_key

    from pytest_sglang.report import junit

    xml = active.config.stash.get(xml_key, None)
    if xml is not None and active.recorder is not None:
        for name, value in junit.suite_properties(active.recorder.run):
            xml.add_global_property(name, value)
