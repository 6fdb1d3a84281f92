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

    expected = _expected(arguments.nodes) if arguments.nodes is not None else []
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
            print(f"written: {arguments.output / 'fleet.html'}")
    return records.EXIT_CODES[fleet.verdict]


def _expected(path: Path) -> list[str]:
    from pytest_sglang.session.errors import Refused

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise Refused(f"{path}: {why} (give a file with one node name a line)") from None
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise Refused(f"{path}: no node in it (write one node name a line, as the runs' host names are)")
    return names
