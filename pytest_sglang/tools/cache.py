"""``pytest-sglang cache``: where the compiled kernels are, what is in them, whether they survive; and setting them aside by hand."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sglang.tools import shared

if TYPE_CHECKING:
    from pytest_sglang.session.byhand import Done
    from pytest_sglang.session.caches import CacheLine, Look
    from pytest_sglang.session.cachetool import Opened

ACTIONS = ("set-aside", "restore", "drop")
KERNELS_SHOWN = 15
_EPILOG = """\
examples:
  pytest-sglang cache                      the caches of the rig file's server
  pytest-sglang cache ~/.triton/cache      a directory
  pytest-sglang cache set-aside            with the server stopped: the next start compiles everything anew
  pytest-sglang cache restore              put back what is set aside; what has grown is kept beside it
  pytest-sglang cache drop                 remove what is set aside, for good
"""


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser(
        "cache",
        help="where compiled kernels are, what is in them, whether they survive",
        description="Looks at the compile caches of the rig file's server, or at the directories named.\nReads only, unless set-aside, restore or drop is asked for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", metavar="set-aside|restore|drop|DIR", nargs="*", help="what to do (default: look), and the directories meant"
    )
    parser.add_argument("--all", action="store_true", help=f"list every kernel, not the {KERNELS_SHOWN} with the most entries")
    shared.rig_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 1 where a cache is broken, or goes at every stop although a warm start is promised."""
    words = list(arguments.what)
    action = words.pop(0) if words and words[0] in ACTIONS else None
    with _opened(arguments, words) as opened:
        if action is not None:
            return _act(action, opened, arguments.json)
        look = opened.look()
        if arguments.json:
            print(json.dumps(_plain(opened, look)))
        else:
            print("\n".join(_lines(opened, look, None if arguments.all else KERNELS_SHOWN)))
        return shared.EXIT_FAIL if any(each.severity == "fail" for each in look.findings) else shared.EXIT_OK


def _opened(arguments: argparse.Namespace, words: list[str]) -> AbstractContextManager[Opened]:
    from pytest_sglang.session import cachetool

    options = shared.run_options(arguments)
    return cachetool.named([Path(word) for word in words]) if words else cachetool.of_server(options)


def _act(action: str, opened: Opened, as_json: bool) -> int:
    from pytest_sglang.session import byhand

    byhand.known(opened.unseen)
    if action != "drop":
        byhand.stopped(opened.running_as)
    if action == "set-aside":
        done = byhand.set_aside(opened.places, opened.machine, opened.locks)
    elif action == "restore":
        done = byhand.restore(opened.places, opened.locks)
    else:
        done = byhand.drop(opened.places, opened.locks)
    if as_json:
        print(json.dumps({"action": action, "caches": [each._asdict() for each in done], "simulated": opened.simulated}))
    else:
        print("\n".join(_told(action, done)))
    return shared.EXIT_OK


def _told(action: str, done: list[Done]) -> list[str]:
    out = []
    for each in done:
        if action == "set-aside":
            out.append(f"set aside: {each.original}\n       to: {each.aside}")
        elif action == "restore":
            out.append(f"put back: {each.original}" + (f"\n          {each.note}" if each.note else ""))
        else:
            out.append(f"removed: {each.aside}")
    if action == "set-aside":
        out.append(
            "The next start compiles everything anew. Back: pytest-sglang cache restore. Never again: pytest-sglang cache drop."
        )
    return out


def _plain(opened: Opened, look: Look) -> dict[str, object]:
    from pytest_sglang.record import run as records

    return {
        "simulated": opened.simulated,
        "server": opened.what,
        "caches": [records.plain(each) for each in look.caches],
        "kernels": [each._asdict() for each in look.kernels],
        "autotuned": [each._asdict() for each in look.systems],
        "findings": [
            {"kind": each.kind, "path": each.subject, "detail": each.detail, "severity": each.severity, "remedy": each.remedy}
            for each in look.findings
        ],
        "files": look.files,
        "bytes": look.bytes,
        "stale_bytes": look.stale_bytes,
        "running": {"triton": opened.running.triton, "torch": opened.running.torch, "archs": sorted(opened.running.archs)},
        "unreadable": list(look.unreadable),
        "aside": [str(each) for each in _aside(opened)],
    }


def _aside(opened: Opened) -> list[Path]:
    from pytest_sglang.cache import aside

    return [each.aside for each in aside.standing(opened.places)]


# --- for people --------------------------------------------------------------------------------------------------------------


def _lines(opened: Opened, look: Look, kernels: int | None) -> list[str]:
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    running = [f"Triton {opened.running.triton}"] if opened.running.triton else []
    running += [f"torch {opened.running.torch}"] if opened.running.torch else []
    running += sorted(opened.running.archs)
    out = [f"{'SIMULATED ' if opened.simulated else ''}caches of {opened.what}"]
    out += [f"  with {', '.join(running)}"] if running else []
    out += _caches(look.caches)
    out += _kernels(look, kernels, width)
    for each in _aside(opened):
        out += ["", *_wrapped(f"set aside: {each}", width)]
    out += ["", *_findings(look, width)]
    stale = f", {size(look.stale_bytes)} of it stale" if look.stale_bytes else ""
    out += ["", f"{look.files:,} files, {size(look.bytes)}{stale}"]
    return out


def _caches(caches: tuple[CacheLine, ...]) -> list[str]:
    there = [each for each in caches if each.exists and each.files]
    out = ["", f"  {'cache':<17}{'files':>9}{'size':>9}{'entries':>9}  {'newest':<11}{'free':>8}  on"]
    for each in there:
        newest = "-" if each.newest is None else _ago(time.time() - each.newest)
        free = "?" if each.free_bytes is None else size(each.free_bytes)
        out.append(
            f"  {each.kind:<17}{each.files:>9,}{size(each.bytes):>9}{each.entries:>9,}  {newest:<11}{free:>8}  "
            f"{each.file_system or '?'}, {each.owner or '?'}"
        )
        out.append(f"    {each.path}  [{each.why}]")
    if not there:
        out[-1] = "  nothing is in them"
    for what, names in (
        ("empty", [each.kind for each in caches if each.exists and not each.files]),
        ("not there", [each.kind for each in caches if not each.exists]),
    ):
        out += textwrap.wrap(f"{what}: {', '.join(names)}", 78, initial_indent="  ", subsequent_indent="    ") if names else []
    return out


def _kernels(look: Look, most: int | None, width: int) -> list[str]:
    if not look.kernels:
        return ["", "  no kernels"]
    names = len({group.name for group in look.kernels})
    entries = sum(group.entries for group in look.kernels)
    room = width - 46
    out = [
        "",
        f"  {names} kernels in {entries:,} entries",
        f"  {'kernel':<{room}}{'entries':>8} {'arch':<7}{'Triton':<8}{'warps':<8}stages",
    ]
    shown = look.kernels[:most]
    for group in shown:
        # the end of a fused kernel's name tells more than its middle
        name = group.name if len(group.name) < room else f"{group.name[: room - 14]}...{group.name[-10:]}"
        out.append(
            f"  {name:<{room}}{group.entries:>8,} {group.arch or '-':<7}{group.triton or '-':<8}"
            f"{_span(group.warps):<8}{_span(group.stages):<8}".rstrip()
        )
    if len(look.kernels) > len(shown):
        out.append(f"  and {len(look.kernels) - len(shown)} more (--all lists them)")
    made = sorted({f"PTX {version}" for group in look.kernels for version in group.ptx})
    made += sorted({f"ptxas {version}" for group in look.kernels for version in group.ptxas})
    if made:
        out.append(f"  made with {', '.join(made)}")
    return out + [
        f"  autotuned: {system.choices} shapes for {system.gpu or 'an unknown GPU'}, CUDA {system.cuda or '?'}"
        for system in look.systems
    ]


def _findings(look: Look, width: int) -> list[str]:
    if not look.findings and not look.unreadable:
        return ["  nothing is wrong with them"]
    out: list[str] = []
    for each in look.findings:
        out += _wrapped(f"{each.severity.upper():<4}  {each.kind}: {each.subject}", width)
        out += _wrapped(each.detail, width, 8)
        out += [f"        -> {each.remedy}"] if each.remedy else []
    for text in look.unreadable:
        out += _wrapped(f"WARN  not readable: {text}", width)
    return out


def _wrapped(text: str, width: int, indent: int = 2) -> list[str]:
    """Lines of at most ``width``; a path is never broken, so that it can be copied."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * max(indent, 8),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _span(values: tuple[int, ...]) -> str:
    if not values:
        return "-"
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return "just now"


def size(number: float) -> str:
    """Bytes for a person, in powers of 1000."""
    unit = "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
