"""``pytest-sglang wait``: follow the start in progress until the server is ready."""

from __future__ import annotations

import argparse

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("wait", help="follow the start in progress, whoever started it, until the server is ready")
    parser.add_argument(
        "--timeout", metavar="TIME", default=None, help="give up after this time, e.g. '40 min' (default: twice the cold budget)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors: the exit code tells")
    shared.rig_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.record import units
    from pytest_sglang.session import wait

    limit = None if arguments.timeout is None else units.parse(arguments.timeout, "s")
    return wait.run(shared.run_options(arguments), limit_s=limit, as_json=arguments.json, quiet=arguments.quiet)
