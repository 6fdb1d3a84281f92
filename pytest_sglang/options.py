"""Command line and ini -> frozen RunOptions. Command line beats ini beats default; a bad value is a UsageError naming a right one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.options import RunOptions

DEPLOYMENT: pytest.StashKey[Deployment] = pytest.StashKey()
"""The opened rig of this session; absent until the run of a session with tests of ours has begun."""


class _Option(NamedTuple):
    flag: str
    help: str
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def dest(self) -> str:
        return "sglang_" + self.flag.lstrip("-").removeprefix("sglang-").replace("-", "_")

    @property
    def is_flag(self) -> bool:
        return self.default is False


OPTIONS: tuple[_Option, ...] = (
    _Option("--power", "power level(s) in watts at which the rig is judged, e.g. 250 or 250,390", None, "W[,W]"),
    _Option("--rig", "rig file, or a packaged one (six-3090), or 'simulated'", None, "PATH"),
    _Option("--sglang-url", "the server's URL instead of the rig file's", None, "URL"),
    _Option("--sglang-set-power", "set the power level, and put it back afterwards; without it the level is only verified", False),
    _Option("--sglang-allow-restart", "allow the server to be restarted through its controller", False),
    _Option("--sglang-allow-cold", "allow a cold start: caches set aside, restarted, put back (implies restarts)", False),
    _Option("--sglang-max-slowdown", "slow-down in per cent that the suggested power cap of a sweep may cost", "5", "PERCENT"),
    _Option("--sglang-plan", "print what a run would do (requests, restarts, changes, minutes) and touch nothing", False),
    _Option("--sglang-level", "1: seconds, no load; 2: standard; 3: long, with heat soak", "2", "1|2|3", ("1", "2", "3")),
    _Option("--sglang-strict", "a marginal value is inconclusive (exit 6) instead of a pass with a warning", False),
    _Option("--sglang-require-all", "a pass over a part of the promised checks exits 6", False),
    _Option("--sglang-report-dir", "where run folders are written, relative to the root directory", "reports", "DIR"),
    _Option("--sglang-keep-cold-cache", "after a cold start keep the newly compiled caches instead of the ones set aside", False),
    _Option("--sglang-log", "the server's log file instead of the rig file's", None, "FILE"),
    _Option("--sglang-fault", "fault(s) of the simulated rig, comma separated (only with --rig=simulated)", None, "NAME[,NAME]"),
    _Option(
        "--sglang-baseline",
        "save: keep this run, if it passes, as the baseline; compare: judge it against that one; =NAME for one of several",
        None,
        "save|compare[=NAME]",
    ),
    _Option(
        "--sglang-format",
        "github: job summary and annotations (by itself inside GitHub Actions); plain: neither",
        None,
        "github|plain",
        ("github", "plain"),
    ),
    _Option("--sglang-simulated-dir", "keep the simulated rig in DIR, running, when the run has ended", None, "DIR"),
)


def declare(parser: pytest.Parser) -> None:
    """Register the options of group "sglang" and their ini twins."""
    group = parser.getgroup("sglang", "acceptance tests of an SGLang deployment")
    for option in OPTIONS:
        text = f"{option.help} (default: {'off' if option.is_flag else option.default or 'none'}; ini: {option.dest})"
        if option.is_flag:
            group.addoption(option.flag, action="store_true", default=None, dest=option.dest, help=text)
        else:
            group.addoption(option.flag, default=None, dest=option.dest, metavar=option.metavar, help=text)
        kind: Literal["bool", "string"] = "bool" if option.is_flag else "string"
        parser.addini(option.dest, option.help, type=kind, default=None)


def _value(config: pytest.Config, option: _Option) -> Any:
    given = config.getoption(option.dest)
    if given is None:
        given = config.getini(option.dest)
    if given in (None, ""):
        given = option.default
    if option.choices and given is not None and given not in option.choices:
        example = option.default or option.choices[0]
        raise pytest.UsageError(f"{option.flag}={given}: must be one of {', '.join(option.choices)} (e.g. {option.flag}={example})")
    return given


def power_levels(text: str | None) -> tuple[float, ...]:
    """``"250,390"`` -> (250.0, 390.0). Raises UsageError for anything that is not watts."""
    from pytest_sglang.record import units

    levels: list[float] = []
    for part in (text or "").split(","):
        if not part.strip():
            continue
        try:
            watts = units.parse(part.strip(), "W")
        except units.UnitError:
            raise pytest.UsageError(
                f"--power={text}: {part.strip()!r} is not a power in watts (write e.g. --power=250 or --power=250,390)"
            ) from None
        if watts <= 0:
            raise pytest.UsageError(f"--power={text}: a power level is above 0 W (write e.g. --power=250)")
        if watts not in levels:
            levels.append(watts)
    if text is not None and text.strip() and not levels:
        raise pytest.UsageError(f"--power={text}: no power level in it (write e.g. --power=250)")
    return tuple(levels)


def _percent(flag: str, text: str) -> float:
    """``"5"`` or ``"5 %"`` -> 5.0. Raises UsageError for anything that is not above 0 and below 100."""
    from pytest_sglang.record import units

    try:
        value = units.parse(text.strip() if text.strip().endswith("%") else f"{text.strip()} %", "%")
    except units.UnitError:
        value = 0.0
    if not 0 < value < 100:
        raise pytest.UsageError(f"{flag}={text}: not a percentage between 0 and 100 (write e.g. {flag}=5)")
    return value


def run_options(config: pytest.Config) -> RunOptions:
    """The settings of this run, checked. Raises UsageError."""
    from pytest_sglang.session.options import RunOptions

    got = {option.dest: _value(config, option) for option in OPTIONS}
    from pytest_sglang.session import baseline
    from pytest_sglang.session.errors import Refused

    try:
        wish = baseline.parse(got["sglang_baseline"])
    except Refused as error:
        raise pytest.UsageError(str(error)) from None
    faults = tuple(name.strip() for name in (got["sglang_fault"] or "").split(",") if name.strip())
    options = RunOptions(
        rootdir=config.rootpath,
        rig=got["sglang_rig"],
        power_levels_w=power_levels(got["sglang_power"]),
        url=got["sglang_url"],
        set_power=bool(got["sglang_set_power"]),
        allow_restart=bool(got["sglang_allow_restart"]),
        allow_cold=bool(got["sglang_allow_cold"]),
        plan=bool(got["sglang_plan"]),
        level=int(got["sglang_level"]),
        max_slowdown_pct=_percent("--sglang-max-slowdown", got["sglang_max_slowdown"]),
        strict=bool(got["sglang_strict"]),
        require_all=bool(got["sglang_require_all"]),
        keep_cold_cache=bool(got["sglang_keep_cold_cache"]),
        report_dir=config.rootpath / Path(got["sglang_report_dir"]),
        log=got["sglang_log"],
        baseline=wish,
        output_format=got["sglang_format"],
        faults=faults,
        simulated_dir=Path(got["sglang_simulated_dir"]).resolve() if got["sglang_simulated_dir"] else None,
    )
    for name in ("faults", "simulated_dir"):
        if getattr(options, name) and not options.simulated:
            flag = "--sglang-fault" if name == "faults" else "--sglang-simulated-dir"
            raise pytest.UsageError(f"{flag} is for the simulated rig only: add --rig=simulated")
    return options
