"""``pytest-sglang report``: render the HTML page of a run anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("report", help="render the HTML page of a run anew from its run.json")
    parser.add_argument("run", metavar="DIR", type=Path, help="a run folder or its run.json")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=None, help="where to write (default: report.html beside run.json)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.record import run as records
    from pytest_sglang.report import standalone

    run = records.read(arguments.run)
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
    target = arguments.output or folder / "report.html"
    records.write_atomic(target, standalone.render(run, folder))
    print(f"written: {target}")
    return shared.EXIT_OK
