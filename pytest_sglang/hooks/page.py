"""The HTML report: pytest-html's self-contained page with our summary above it, or our own page where pytest-html is switched off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sglang.hooks.active import Active

if TYPE_CHECKING:
    from pytest_sglang.record.run import Run


def attach(active: Active, session: pytest.Session) -> None:
    """Give this run a pytest-html report in its folder, whatever --html says; the user's own gets the summary as well.

    Called after collection: only then is it known that the session is about a rig, and a foreign project gets no report from us.
    """
    from pytest_sglang.report import summary

    config = active.config
    if active.recorder is None or not config.pluginmanager.hasplugin("html"):
        return
    from pytest_html import plugin as pytest_html
    from pytest_html.basereport import BaseReport

    users = [each for each in config.pluginmanager.get_plugins() if isinstance(each, BaseReport)]
    path, contained = config.option.htmlpath, config.option.self_contained_html
    config.option.htmlpath, config.option.self_contained_html = str(active.recorder.folder / "report.html"), True
    try:
        pytest_html.pytest_configure(config)
    finally:
        config.option.htmlpath, config.option.self_contained_html = path, contained
    for report in config.pluginmanager.get_plugins():
        if not isinstance(report, BaseReport):
            continue
        if report not in users:
            report.pytest_sessionstart(session)
            report.pytest_collection_finish(session)
            report._report.title = summary.title(active.recorder.run)
        report._report.table_header[3:3] = summary.header_cells()


def blocks(active: Active) -> list[str]:
    """The summary above pytest-html's own table."""
    from pytest_sglang.report import summary

    if active.recorder is None:
        return []
    run = active.recorder.run
    try:
        return [*summary.summary_html(run, folder=active.recorder.folder), summary.below_heading(run, len(active.items))]
    except Exception as error:
        return [_not_drawn(run, error)]


def _not_drawn(run: Run, error: Exception) -> str:
    """The verdict stands in run.json and in the terminal: a page that cannot be drawn must not turn it into an internal error."""
    from html import escape

    from pytest_sglang.report import view

    why = escape(f"{type(error).__name__}: {error}")
    return f"<h3>{escape(view.headline(run))}</h3><p>The page could not be drawn ({why}). Everything is in run.json.</p>"


def summarise(active: Active, prefix: list[Any]) -> None:
    """Hand the summary to pytest-html, which writes its page after our run has been closed."""
    prefix.extend(blocks(active))


def standalone(active: Active) -> None:
    """Without pytest-html (``-p no:html``) the page is our own."""
    from pytest_sglang.record.run import write_atomic
    from pytest_sglang.report import standalone as own

    if active.recorder is not None and not active.config.pluginmanager.hasplugin("html"):
        try:
            page = own.render(active.recorder.run, active.recorder.folder)
        except Exception as error:
            page = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>report</title>{_not_drawn(active.recorder.run, error)}</html>'
        write_atomic(active.recorder.folder / "report.html", page)
