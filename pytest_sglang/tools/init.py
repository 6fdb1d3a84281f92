"""``pytest-sglang init``: write a rig file from the machine as it stands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("init", help="write a rig file from the machine as it stands")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("rig.toml"),
        help="where to write (default: rig.toml); never overwrites",
    )
    parser.add_argument("--unit", metavar="NAME", help="the server's systemd unit (default: the unit that its process belongs to)")
    shared.rig_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.session import init

    text = init.write(shared.run_options(arguments), arguments.output, unit=arguments.unit)
    if arguments.json:
        print(json.dumps({"written": str(arguments.output)}))
    else:
        print(
            f"written: {arguments.output} ({text.count(chr(10))} lines). Now edit the promises: what must this rig be able to do?"
        )
    return shared.EXIT_OK
