"""``pytest-sglang compare``: before and after, any number of run folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("compare", help="what changed between runs, and what it did")
    parser.add_argument(
        "runs",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="run folders: the first is before; those with the same key are further boots of it, every other kind is an after",
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, default=None, help="write the HTML page here")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 0 pass, 1 something is worse, 6 not comparable or undecided."""
    from pytest_sglang.record import run as records
    from pytest_sglang.report import comparison as shown
    from pytest_sglang.session import comparison

    found = comparison.of_paths(arguments.runs)
    if arguments.json:
        print(json.dumps([{**records.plain(each), "verdict": each.verdict} for each in found], indent=1))
    else:
        shared.write_lines(
            [
                line
                for each in found
                for line in (*shown.terminal(each, shared.columns()), ("", {}), *shown.last(each, shared.columns()), ("", {}))
            ]
        )
    if arguments.output is not None:
        records.write_atomic(arguments.output, shown.page(found))
        if not arguments.json:
            print(f"written: {arguments.output}")
    verdicts = {each.verdict for each in found}
    return records.EXIT_CODES["fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"]
