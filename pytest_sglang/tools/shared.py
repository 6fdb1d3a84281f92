"""What the command line tools have in common: exit codes, the options that choose a rig."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXIT_OK, EXIT_FAIL, EXIT_INTERRUPTED, EXIT_USAGE, EXIT_INCONCLUSIVE = 0, 1, 2, 4, 6

SubCommands = Any
"""What ``ArgumentParser.add_subparsers`` gives; argparse keeps its type private."""


def rig_options(parser: argparse.ArgumentParser) -> None:
    """``--rig``, ``--fault``, ``--url``, ``--json``: for every tool that looks at a rig."""
    parser.add_argument(
        "--rig",
        metavar="PATH",
        help="rig file, a packaged one (six-3090), or 'simulated' (default: rig.toml here or in acceptance/)",
    )
    parser.add_argument(
        "--fault", metavar="NAME", action="append", default=[], help="fault of the simulated rig, repeatable (with --rig=simulated)"
    )
    parser.add_argument("--url", metavar="URL", help="the server's URL instead of the rig file's")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run_options(arguments: argparse.Namespace) -> Any:
    """The RunOptions of ``rig_options``. Raises Refused where a fault is asked of a real rig."""
    from pytest_sglang.session.errors import Refused
    from pytest_sglang.session.options import RunOptions

    options = RunOptions(rootdir=Path.cwd(), rig=arguments.rig, url=arguments.url, faults=tuple(arguments.fault))
    if options.faults and not options.simulated:
        raise Refused("--fault is for the simulated rig only: add --rig=simulated")
    return options


def columns() -> int:
    """Width of the terminal; 80 where there is none."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


_ASCII = str.maketrans(dict(zip("▁▂▃▄▅▆▇█", "_.,-=+*#", strict=True)) | {"…": "...", "·": "-", "→": "->"})
"""For a terminal whose encoding has no such characters."""


def write_lines(lines: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Lines with pytest's markup names; colours on a terminal only, and never against NO_COLOR."""
    encoding = sys.stdout.encoding or "utf-8"
    codes = {"bold": 1, "red": 31, "green": 32, "yellow": 33}
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for text, markup in lines:
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII)
        on = ";".join(str(codes[name]) for name, wanted in markup.items() if wanted and name in codes)
        print(f"\x1b[{on}m{text}\x1b[0m" if coloured and on else text)
