"""``pytest-sglang undo``: put back what a dead run left changed."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from pytest_sglang.tools import shared

if TYPE_CHECKING:
    from pytest_sglang.session.undo import Outcome


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("undo", help="put back what a dead run left changed")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.session.everybody import left_by_others
    from pytest_sglang.session.state import state_dir
    from pytest_sglang.session.undo import undo

    outcomes = undo(state_dir(), dry_run=arguments.dry_run)
    if arguments.json:
        print(
            json.dumps(
                [
                    {"kind": each.entry.kind, "target": each.entry.target, "action": each.action, "detail": each.detail}
                    for each in outcomes
                ]
            )
        )
    else:
        print("\n".join(map(_line, outcomes)) or "nothing to undo")
        for each in left_by_others():
            print(f"not yours to undo: {each}")
    if any(each.action == "owner alive" for each in outcomes):
        return shared.EXIT_USAGE
    return shared.EXIT_FAIL if any(each.action == "failed" for each in outcomes) else shared.EXIT_OK


def _line(outcome: Outcome) -> str:
    """What was done about what; most details name it themselves."""
    from pytest_sglang.session.changes import name_of

    name = name_of(outcome.entry)
    return f"{outcome.action}: {outcome.detail if name in outcome.detail else f'{name}: {outcome.detail}'}"
