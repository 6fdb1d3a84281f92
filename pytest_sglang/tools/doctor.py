"""``pytest-sglang doctor``: the whole hardware side as a table, and what looks wrong."""

from __future__ import annotations

import argparse

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser(
        "doctor", help="cards, limits, clocks, PCIe, NVLink, processes, and what looks wrong; changes nothing, takes a second"
    )
    parser.add_argument(
        "--hardware", metavar="NAME", help="hardware of the simulated rig: a packaged name or the path of a .toml file like theirs"
    )
    shared.rig_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.session import doctor

    return doctor.run(shared.run_options(arguments), as_json=arguments.json, hardware=arguments.hardware)
