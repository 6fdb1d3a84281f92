"""A whole page from run.json alone: where pytest-html is missing or switched off, and to render an old run anew."""

from __future__ import annotations

from pathlib import Path

from pytest_sglang.record.run import Run
from pytest_sglang.report import summary


def render(run: Run, folder: Path | None = None) -> str:
    """The page as a complete HTML document, self-contained: it opens offline, has no script, loads nothing.

    ``folder``: the run's, where the excerpts of its logs lie.
    """
    from markupsafe import Markup

    template = summary._templates().get_template("page.html.jinja")
    blocks = [Markup(block) for block in summary.summary_html(run, heading_level=2, folder=folder)]
    return str(template.render(title=summary.title(run), style=blocks[0], blocks=blocks[1:]))
