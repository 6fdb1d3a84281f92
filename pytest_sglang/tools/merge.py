"""``pytest-sglang merge``: one table node x promise over many run folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("merge", help="one table node x promise over many run folders")
    parser.add_argument(
        "folders",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="run folders, or folders that hold them; the newest run of a node counts",
    )
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, default=None, help="folder for fleet.json and fleet.html")
    parser.add_argument(
        "--nodes", metavar="FILE", type=Path, default=None, help="expected nodes, one a line: a missing one is inconclusive"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 0 pass, 1 a promise is broken on some node, 6 a node is missing or inconclusive."""
    from pytest_sglang.record import run as records
    from pytest_sglang.report import fleet as shown
    from pytest_sglang.session import merge
    from pytest_sglang.session.errors import Refused

    expected: list[str] = []
    if arguments.nodes is not None:
        try:
            expected = [
                line.strip() for line in arguments.nodes.read_text().splitlines() if line.strip() and not line.startswith("#")
            ]
        except OSError as error:
            raise Refused(f"{arguments.nodes}: {error.strerror} (give a file with one node name a line)") from None
    fleet = merge.merge(arguments.folders, expected)
    data = {**records.plain(fleet), "verdict": fleet.verdict}
    if arguments.output is not None:
        records.write_atomic(arguments.output / "fleet.json", json.dumps(data, indent=1) + "\n")
        records.write_atomic(arguments.output / "fleet.html", shown.page(fleet))
    if arguments.json:
        print(json.dumps(data, indent=1))
    else:
        shared.write_lines([*shown.terminal(fleet, shared.columns()), ("", {}), (shown.headline(fleet), {"bold": True})])
        if arguments.output is not None:
            print(f"written: {arguments.output}/fleet.html")
    return records.EXIT_CODES[fleet.verdict]
