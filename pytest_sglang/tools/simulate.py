"""``pytest-sglang simulate``: the simulated SGLang server alone."""

from __future__ import annotations

import argparse
import json

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("simulate", help="run the simulated SGLang server alone, in the foreground")
    parser.add_argument("--port", type=int, default=30000, metavar="P", help="port on 127.0.0.1 (default: 30000)")
    parser.add_argument("--fault", metavar="NAME", action="append", default=[], help="fault, repeatable")
    parser.add_argument("--list-faults", action="store_true", help="list the faults and end")
    parser.add_argument("--json", action="store_true", help="machine-readable list of faults")


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.session import simulated

    if arguments.list_faults:
        faults = simulated.known_faults()
        print(
            json.dumps(faults, indent=1)
            if arguments.json
            else "\n".join(f"{name:20} {summary}" for name, summary in faults.items())
        )
        return shared.EXIT_OK
    simulated.check_faults(tuple(arguments.fault))
    return simulated.serve_alone(arguments.port, tuple(arguments.fault))
