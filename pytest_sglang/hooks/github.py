"""GitHub Actions: job summary and annotations, switched on there by itself."""

from __future__ import annotations

import os
from typing import Any

from pytest_sglang.hooks.active import Active


def wanted(active: Active) -> bool:
    """``--sglang-format=github``, or none given inside GitHub Actions."""
    chosen = active.options.output_format
    return chosen == "github" or (chosen is None and os.environ.get("GITHUB_ACTIONS") == "true")


def tell(active: Active, writer: Any) -> None:
    """Append to the job summary and print the annotations; a summary that cannot be written costs a line, never the verdict."""
    from pytest_sglang.report import github

    if active.recorder is None or not wanted(active):
        return
    for line in github.workflow_commands(active.recorder.run):
        writer.line(line)
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    folder = active.recorder.folder.name
    try:
        with open(path, "a", encoding="utf-8") as file:
            # other steps and tools append to it as well
            file.write(github.summary(active.recorder.run, artefact=f"`{folder}/report.html` in this job's artefacts") + "\n\n")
    except OSError as error:
        writer.line(f"job summary not written: {error}")
