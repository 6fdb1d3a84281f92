"""``pytest-sglang timeline``: read any SGLang log and print its start as a table of phases."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable

from pytest_sglang.tools import shared

_EPILOG = """\
exit code: 0 the start became ready; 1 it died, or a finding of severity "fail"; 6 the log does not tell (it ends before);
4 no such log, or not SGLang's; 2 interrupted.

examples:
  pytest-sglang timeline server.log
  journalctl -u sglang -o cat | pytest-sglang timeline -
  pytest-sglang timeline --unit sglang.service --follow
  pytest-sglang timeline server.log --start -2 --started '22:21:34'
"""


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser(
        "timeline",
        help="read any SGLang log and print its start as a table of phases; needs no rig and no server",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log", metavar="LOG", nargs="?", help="log file (rotated and packed ones too), or - for standard input")
    parser.add_argument("--unit", metavar="NAME", help="the journal of a systemd unit instead (user:NAME for a user's own)")
    parser.add_argument("--list", action="store_true", dest="listing", help="list the starts in the log")
    parser.add_argument("--start", metavar="N", type=int, help="which start: 1 is the first, -1 the last (default)")
    parser.add_argument("--follow", action="store_true", help="show a start in progress until it is ready or has died")
    parser.add_argument(
        "--started",
        metavar="WHEN",
        help="when the server was launched ('2026-11-23 22:21:34', '22:21:34', epoch seconds); without it the log's first line is 0",
    )
    parser.add_argument("--sglang-version", metavar="X.Y.Z", help="the server's version, where the log cannot tell it")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.session import following, live, timeline
    from pytest_sglang.session.errors import Refused

    if (arguments.log is None) == (arguments.unit is None):
        raise Refused("give one log: a file, - for standard input, or --unit NAME (example: pytest-sglang timeline server.log)")
    if arguments.follow and (arguments.start is not None or arguments.listing):
        raise Refused("--follow shows the start in progress: leave out --start and --list")
    asked = timeline.Asked(
        log=arguments.log,
        unit=arguments.unit,
        start=arguments.start,
        started=arguments.started,
        version=arguments.sglang_version,
    )
    origin = timeline.source(asked)
    if arguments.follow:
        line = live.MovingLine(sys.stderr, quiet=arguments.json)
        try:
            found, reading = following.Follower(origin, asked, line.update).run()
        except BaseException:
            line.update(None)
            raise
    else:
        reading = timeline.read(origin)
        if arguments.listing:
            return _list(reading, arguments.json)
        if not reading.starts:
            print(json.dumps(timeline.nothing(reading.name)) if arguments.json else f"{reading.name} is empty: no start to tell of")
            return shared.EXIT_INCONCLUSIVE
        found = timeline.choose(reading, asked)
    if arguments.json:
        print(json.dumps(timeline.plain(found, reading), ensure_ascii=False, indent=1))
    else:
        from pytest_sglang.report import timetable

        _print(timetable.table(found, reading, _width()))
    return found.exit_code


def _list(reading: object, as_json: bool) -> int:
    from pytest_sglang.report import timetable
    from pytest_sglang.session import timeline

    assert isinstance(reading, timeline.Reading)
    if as_json:
        found = [timeline.summary(timeline.judge(reading, number)) for number in range(1, len(reading.starts) + 1)]
        print(json.dumps({"log": reading.name, "starts": found}, ensure_ascii=False, indent=1))
    else:
        _print(timetable.listing(reading, _width()))
    return shared.EXIT_OK if reading.starts else shared.EXIT_INCONCLUSIVE


def _width() -> int:
    from pytest_sglang.session import live

    return max(40, min(live.width_of(sys.stdout), 120))


def _print(lines: Iterable[tuple[str, str]]) -> None:
    from pytest_sglang.report import timetable

    codes = timetable.COLOURS if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else {}
    for text, colour in lines:
        print(f"\x1b[{codes[colour]}m{text}\x1b[0m" if colour in codes else text)
