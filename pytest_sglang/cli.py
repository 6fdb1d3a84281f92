"""``pytest-sglang``: the command line, one module of pytest_sglang.tools a sub-command."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module

from pytest_sglang.tools import shared

TOOLS = ("init", "doctor", "wait", "measure", "undo", "simulate", "cache", "timeline", "report", "compare", "history", "merge")
"""Sub-commands in the order of ``--help``; each is a module of its name in pytest_sglang.tools."""


def parser() -> argparse.ArgumentParser:
    """The command line, one sub-command a tool."""
    from pytest_sglang import __version__

    top = argparse.ArgumentParser(prog="pytest-sglang", description="Tools around the acceptance suite of an SGLang rig.")
    top.add_argument("--version", action="version", version=f"pytest-sglang {__version__}")
    tools = top.add_subparsers(dest="tool", metavar="TOOL", required=True)
    for name in TOOLS:
        import_module(f"pytest_sglang.tools.{name}").add(tools)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one tool; its exit code. Errors are one clear message on standard error and exit code 4."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to fail
    if not (sys.argv[1:] if argv is None else argv):
        parser().print_help()
        return shared.EXIT_USAGE
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as ended:
        # argparse says 2, which is our "interrupted"
        raise SystemExit(shared.EXIT_USAGE if ended.code == 2 else ended.code) from None
    from pytest_sglang.record.run import RecordError
    from pytest_sglang.record.units import UnitError
    from pytest_sglang.rig.load import RigError
    from pytest_sglang.session.errors import SessionError

    try:
        code: int = import_module(f"pytest_sglang.tools.{arguments.tool}").run(arguments)
        return code
    except (SessionError, RigError, RecordError, UnitError) as error:
        print(f"pytest-sglang {arguments.tool}: {error}", file=sys.stderr)
        return shared.EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return shared.EXIT_INTERRUPTED
    except BrokenPipeError:
        return shared.EXIT_OK
    except OSError as error:
        # a place that cannot be read or written is the user's to choose
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(f"pytest-sglang {arguments.tool}: {told}", file=sys.stderr)
        return shared.EXIT_USAGE
