"""``pytest-sglang history``: trends per promise over the runs of a store, its index page, its retention."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pytest_sglang.tools import shared


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser("history", help="trends per promise over all runs, and index.html")
    parser.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", default=Path("reports"), help="folder of run folders (default: reports)"
    )
    parser.add_argument("--rig", metavar="NAME", help="only runs of this rig")
    parser.add_argument("--index", action="store_true", help="write DIR/index.html anew")
    parser.add_argument("--keep", metavar="N", type=int, default=None, help="remove the oldest runs beyond N a rig; baselines stay")
    parser.add_argument("--dry-run", action="store_true", help="with --keep: only say what would be removed")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.record import run as records
    from pytest_sglang.report import history as shown
    from pytest_sglang.session import history, store
    from pytest_sglang.session.errors import Refused

    if not arguments.folder.is_dir():
        raise Refused(f"{arguments.folder}: no such folder (give the one that holds the run folders, e.g. reports)")
    runs, skipped = store.runs(arguments.folder)
    chosen = [each for each in runs if arguments.rig in (None, each.rig_name)]
    if arguments.rig is not None and not chosen:
        known = sorted({each.rig_name for each in runs})
        raise Refused(
            f"--rig {arguments.rig}: no run of this rig in {arguments.folder} (there: {', '.join(known) or 'no run at all'})"
        )
    if arguments.keep is not None:
        return _keep(arguments)
    trends = history.trends(chosen)
    if arguments.json:
        print(json.dumps({"runs": len(chosen), "trends": records.plain(trends), "skipped": records.plain(skipped)}, indent=1))
    else:
        shared.write_lines(shown.terminal(trends, skipped, shared.columns()))
    if arguments.index:
        path = shown.write_index(arguments.folder)
        if not arguments.json:
            print(f"written: {path}")
    return shared.EXIT_OK


def _keep(arguments: argparse.Namespace) -> int:
    from pytest_sglang.session import store
    from pytest_sglang.session.errors import Refused

    try:
        gone = store.prune(arguments.folder, arguments.keep, rig=arguments.rig, dry_run=arguments.dry_run)
    except ValueError as error:
        raise Refused(str(error)) from None
    if arguments.json:
        print(json.dumps([str(path) for path in gone]))
        return shared.EXIT_OK
    word = "would remove" if arguments.dry_run else "removed"
    print("\n".join(f"{word} {path}" for path in gone) or "nothing to remove")
    return shared.EXIT_OK
