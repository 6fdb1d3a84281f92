"""``pytest-sglang``: the command line tools, thin over pytest_sglang.session."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXIT_OK, EXIT_FAIL, EXIT_INTERRUPTED, EXIT_USAGE, EXIT_INCONCLUSIVE = 0, 1, 2, 4, 6


def _rig_options(parser: argparse.ArgumentParser) -> None:
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


def parser() -> argparse.ArgumentParser:
    """The command line, one sub-command a tool."""
    from pytest_sglang import __version__

    top = argparse.ArgumentParser(prog="pytest-sglang", description="Tools around the acceptance suite of an SGLang rig.")
    top.add_argument("--version", action="version", version=f"pytest-sglang {__version__}")
    tools = top.add_subparsers(dest="tool", metavar="TOOL", required=True)

    init = tools.add_parser("init", help="write a rig file from the machine as it stands")
    init.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("rig.toml"),
        help="where to write (default: rig.toml); never overwrites",
    )
    init.add_argument("--unit", metavar="NAME", help="the server's systemd unit (default: the unit that its process belongs to)")
    _rig_options(init)

    wait = tools.add_parser("wait", help="follow the start in progress, whoever started it, until the server is ready")
    wait.add_argument(
        "--timeout", metavar="TIME", default=None, help="give up after this time, e.g. '40 min' (default: twice the cold budget)"
    )
    _rig_options(wait)

    undo = tools.add_parser("undo", help="put back what a dead run left changed")
    undo.add_argument("--dry-run", action="store_true", help="only say what would be done")
    undo.add_argument("--json", action="store_true", help="machine-readable output")

    simulate = tools.add_parser("simulate", help="run the simulated SGLang server alone, in the foreground")
    simulate.add_argument("--port", type=int, default=30000, metavar="P", help="port on 127.0.0.1 (default: 30000)")
    simulate.add_argument("--fault", metavar="NAME", action="append", default=[], help="fault, repeatable")
    simulate.add_argument("--list-faults", action="store_true", help="list the faults and end")
    simulate.add_argument("--json", action="store_true", help="machine-readable list of faults")

    report = tools.add_parser("report", help="render the HTML page of a run anew from its run.json")
    report.add_argument("run", metavar="DIR", type=Path, help="a run folder or its run.json")
    report.add_argument(
        "-o", "--output", metavar="FILE", type=Path, default=None, help="where to write (default: report.html beside run.json)"
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one tool; its exit code. Errors are one clear message on standard error and exit code 4."""
    arguments = parser().parse_args(argv)
    from pytest_sglang.record.run import RecordError
    from pytest_sglang.record.units import UnitError
    from pytest_sglang.rig.load import RigError
    from pytest_sglang.session.errors import SessionError

    try:
        return TOOLS[arguments.tool](arguments)
    except (SessionError, RigError, RecordError, UnitError) as error:
        print(f"pytest-sglang {arguments.tool}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK


def _options(arguments: argparse.Namespace) -> Any:
    from pytest_sglang.session.errors import Refused
    from pytest_sglang.session.options import RunOptions

    options = RunOptions(rootdir=Path.cwd(), rig=arguments.rig, url=arguments.url, faults=tuple(arguments.fault))
    if options.faults and not options.simulated:
        raise Refused("--fault is for the simulated rig only: add --rig=simulated")
    return options


def _init(arguments: argparse.Namespace) -> int:
    from pytest_sglang.session import init

    text = init.write(_options(arguments), arguments.output, unit=arguments.unit)
    if arguments.json:
        print(json.dumps({"written": str(arguments.output)}))
    else:
        print(
            f"written: {arguments.output} ({text.count(chr(10))} lines). Now edit the promises: what must this rig be able to do?"
        )
    return EXIT_OK


def _wait(arguments: argparse.Namespace) -> int:
    from pytest_sglang.record import units
    from pytest_sglang.session import wait

    limit = None if arguments.timeout is None else units.parse(arguments.timeout, "s")
    return wait.run(_options(arguments), limit_s=limit, as_json=arguments.json)


def _undo(arguments: argparse.Namespace) -> int:
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
        print(
            "\n".join(f"{each.action}: {each.entry.kind} {each.entry.target}: {each.detail}" for each in outcomes)
            or "nothing to undo"
        )
    if any(each.action == "owner alive" for each in outcomes):
        return EXIT_USAGE
    return EXIT_FAIL if any(each.action == "failed" for each in outcomes) else EXIT_OK


def _simulate(arguments: argparse.Namespace) -> int:
    from pytest_sglang.session import simulated

    if arguments.list_faults:
        faults = simulated.known_faults()
        print(
            json.dumps(faults, indent=1)
            if arguments.json
            else "\n".join(f"{name:20} {summary}" for name, summary in faults.items())
        )
        return EXIT_OK
    simulated.check_faults(tuple(arguments.fault))
    return simulated.serve_alone(arguments.port, tuple(arguments.fault))


def _report(arguments: argparse.Namespace) -> int:
    from pytest_sglang.record import run as records
    from pytest_sglang.report import standalone

    run = records.read(arguments.run)
    folder = arguments.run if arguments.run.is_dir() else arguments.run.parent
    target = arguments.output or folder / "report.html"
    records.write_atomic(target, standalone.render(run))
    print(f"written: {target}")
    return EXIT_OK


TOOLS: dict[str, Callable[[argparse.Namespace], int]] = {
    "init": _init,
    "wait": _wait,
    "undo": _undo,
    "simulate": _simulate,
    "report": _report,
}
