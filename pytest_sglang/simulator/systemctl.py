"""A stand-in for ``systemctl`` that knows the one unit of a simulated rig: ``... --rig DIR VERB UNIT``.

Output forms, property names and exit codes are those of systemctl(1) of systemd 252.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import UNIT, Config
from pytest_sglang.simulator.unit import Unit, UnitState

_NOT_LOADED, _NOT_ACTIVE = 5, 3


def main(argv: Sequence[str]) -> int:
    """Run one verb; gives systemctl's exit code."""
    try:
        directory, verb, units, properties, bare = _parse(list(argv))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    unit = Unit(Config.load(directory))
    worst = 0
    for name in units:
        known = name in (UNIT, UNIT.removesuffix(".service"))
        if verb == "show":
            _show(unit if known else None, name, properties, bare)
        else:
            worst = max(worst, _act(unit, verb, name, known))
    return worst


def _parse(words: list[str]) -> tuple[Path, str, list[str], list[str], bool]:
    """Directory, verb, units, wanted properties, and whether values stand without their names."""
    directory: Path | None = None
    plain: list[str] = []
    properties: list[str] = []
    bare = False
    while words:
        word = words.pop(0)
        if word == "--rig" and words:
            directory = Path(words.pop(0))
        elif word in ("-p", "--property", "-P") and words:
            bare = bare or word == "-P"
            properties += words.pop(0).split(",")
        elif word.startswith("--property="):
            properties += word.partition("=")[2].split(",")
        elif word.startswith("-p") and len(word) > 2 and not word.startswith("--"):
            properties += word[2:].split(",")
        elif word == "--value":
            bare = True
        elif not word.startswith("-"):
            plain.append(word)
    if directory is None or not plain:
        raise ValueError("usage: systemctl --rig DIR VERB UNIT (start, stop, restart, show, is-active, cat)")
    return directory, plain[0], plain[1:] or [UNIT], properties, bare


def _act(unit: Unit, verb: str, name: str, known: bool) -> int:
    if verb == "is-active":
        state = unit.state().active if known else "inactive"
        print(state)
        return 0 if state == "active" else _NOT_ACTIVE
    if not known:
        if verb == "cat":
            print(f"No files found for {name}.", file=sys.stderr)
            return 1
        print(f"Failed to {verb} {name}: Unit {name} not found.", file=sys.stderr)
        return _NOT_LOADED
    if verb == "cat":
        print(f"# {unit.file}\n{unit.file.read_text(encoding='utf-8')}", end="")
        return 0
    if verb not in ("start", "stop", "restart", "reset-failed"):
        print(f"Unknown command verb '{verb}'.", file=sys.stderr)
        return 1
    if verb == "reset-failed":
        unit.reset_failed()
    if verb in ("stop", "restart"):
        unit.stop()
    if verb in ("start", "restart"):
        try:
            unit.start()
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _show(unit: Unit | None, name: str, wanted: Sequence[str], bare: bool) -> None:
    found = _properties(unit) if unit is not None else _unknown(name)
    for key in wanted or found:
        if key in found:
            print(found[key] if bare else f"{key}={found[key]}")


def _unknown(name: str) -> dict[str, str]:
    return {
        "Type": "simple",
        "Restart": "no",
        "MainPID": "0",
        "NRestarts": "0",
        "Result": "success",
        "Id": name,
        "Names": name,
        "LoadState": "not-found",
        "ActiveState": "inactive",
        "SubState": "dead",
        "FragmentPath": "",
    }


def _properties(unit: Unit) -> dict[str, str]:
    config, state, clock = unit.config, unit.state(), RigClock(unit.config.directory)
    return {
        "Type": "simple",
        "Restart": unit.restart,
        "PIDFile": "",
        "TimeoutStartUSec": "30min",
        "TimeoutStopUSec": _span(config.stop_timeout_s),
        "RuntimeMaxUSec": "infinity",
        "MainPID": str(state.main_pid),
        "Result": state.result,
        "NRestarts": str(state.restarts),
        "ExecMainStartTimestamp": _stamp(clock, state.started_us),
        "ExecMainStartTimestampMonotonic": str(state.started_us),
        "ExecMainExitTimestamp": _stamp(clock, state.exited_us),
        "ExecMainExitTimestampMonotonic": str(state.exited_us),
        "ExecMainPID": str(state.main_pid),
        "ExecMainCode": str(state.exit_code),
        "ExecMainStatus": str(state.exit_status),
        "ExecStart": _exec_start(unit, state, clock),
        "Environment": " ".join(_quoted(f"{key}={value}") for key, value in unit.environment().items()),
        "WorkingDirectory": str(config.home),
        "User": "nobody" if "cache-other-owner" in config.faults else "root",
        "StandardOutput": f"append:{config.log}",
        "StandardError": f"append:{config.log}",
        "PrivateTmp": "yes" if "cache-private-tmp" in config.faults else "no",
        "KillMode": "control-group",
        "KillSignal": "15",
        "Id": UNIT,
        "Names": UNIT,
        "Description": "SGLang (simulated)",
        "LoadState": "loaded",
        "ActiveState": state.active,
        "SubState": state.sub,
        "FragmentPath": str(unit.file),
        "UnitFileState": "enabled",
        "StartLimitIntervalUSec": "10s",
        "StartLimitBurst": "5",
    }


def _span(seconds: float) -> str:
    """As systemd writes it: ``1min 30s``, ``5s``."""
    minutes, rest = divmod(round(seconds), 60)
    return " ".join(each for each in (f"{minutes}min" if minutes else "", f"{rest}s" if rest else "") if each)


def _exec_start(unit: Unit, state: UnitState, clock: RigClock) -> str:
    argv = unit.argv()
    started, stopped = (_stamp(clock, us) or "n/a" for us in (state.started_us, 0 if state.main_pid else state.exited_us))
    code = {1: "exited", 2: "killed", 3: "dumped"}.get(state.exit_code, "(null)")
    status = (
        f"{state.exit_status}/{_SIGNALS.get(state.exit_status, '')}".rstrip("/")
        if state.exit_code == 2
        else f"{state.exit_status}/0"
    )
    words = " ".join(argv)
    return (
        f"{{ path={argv[0]} ; argv[]={words} ; ignore_errors=no ; start_time=[{started}] ; stop_time=[{stopped}] ; "
        f"pid={state.main_pid} ; code={code} ; status={status} }}"
    )


_SIGNALS = {6: "ABRT", 9: "KILL", 11: "SEGV", 15: "TERM"}


def _stamp(clock: RigClock, monotonic_us: int) -> str:
    if not monotonic_us:
        return ""
    return time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(clock.from_monotonic(monotonic_us / 1e6)))


def _quoted(word: str) -> str:
    return f'"{word}"' if any(each in word for each in ' \t"') else word


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
