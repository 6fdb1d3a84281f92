"""Markers -> limits, checked at collection: a bad one is a UsageError that names the test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sglang.session.checks import CheckSpec
    from pytest_sglang.session.wanted import Wanted

MARKERS: dict[str, str] = {
    "ready_within": 'ready_within("90 s", start="warm"|"cold"): a start made or judged in this test is ready in time (no time: the rig file\'s)',
    "min_throughput": 'min_throughput("38 tok/s", power=250, nvlink=False, streams=1, quantity="decode"): measured in this test (no rate: the rig file\'s row)',
    "at_power": "at_power(250, 390): the test is for these power levels only",
    "max_new_kernels": "max_new_kernels(0): a start in this test adds at most so many new kernel names (no number: the rig file's)",
    "needs_restart": "needs_restart: the test restarts the server; not checked without --sglang-allow-restart",
    "needs_cold_cache": "needs_cold_cache: the test sets the caches aside; not checked without --sglang-allow-cold",
    "needs_nvlink": "needs_nvlink: the test is for rigs that declare NVLink",
    "sglang_check": 'sglang_check("id", stage="measure", after=("ready",)): id, place in the order, and checks that must have passed first',
}
FIXTURES = frozenset(
    {"sglang_server", "gpu_power", "nvlink_topology", "triton_cache", "sglang_check", "power_level_w", "sglang_rig"}
)


def register(config: pytest.Config) -> None:
    """Register every marker with its one line of help."""
    for line in MARKERS.values():
        config.addinivalue_line("markers", line)


def is_check(item: pytest.Item) -> bool:
    """A test of this plugin: it has one of our markers or uses one of our fixtures."""
    names = getattr(item, "fixturenames", ())
    return any(True for mark in item.iter_markers() if mark.name in MARKERS) or not FIXTURES.isdisjoint(names)


def written_at(item: pytest.Item) -> tuple[str, int, tuple[int, ...]]:
    """File, line and place among its parameters: the order in which tests were written, which no shuffling plugin can take away."""
    path, line, _ = item.location
    callspec = getattr(item, "callspec", None)
    return path, line or 0, tuple(callspec.indices.values()) if callspec is not None else ()


class _Bad(Exception):
    """What is wrong with a marker, without the test's name."""


def _only(mark: pytest.Mark, positional: int, allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(mark.kwargs) - set(allowed))
    if unknown:
        raise _Bad(f"unknown argument {unknown[0]!r} (known: {', '.join(allowed) or 'none'})")
    if len(mark.args) > positional:
        raise _Bad(f"at most {positional} positional argument(s), got {len(mark.args)}")


def _ready_within(mark: pytest.Mark) -> Wanted:
    from pytest_sglang.record import units
    from pytest_sglang.session.wanted import ReadyWithin

    _only(mark, 1, ("start",))
    start = mark.kwargs.get("start", "warm")
    if start not in ("warm", "cold"):
        raise _Bad(f"start={start!r} must be 'warm' or 'cold'")
    return ReadyWithin(start, units.parse(mark.args[0], "s") if mark.args else None)


def _min_throughput(mark: pytest.Mark) -> Wanted:
    from pytest_sglang.record import units
    from pytest_sglang.session.wanted import MinThroughput

    _only(mark, 1, ("power", "nvlink", "streams", "quantity"))
    streams, quantity, nvlink = mark.kwargs.get("streams", 1), mark.kwargs.get("quantity"), mark.kwargs.get("nvlink")
    if not isinstance(streams, int) or isinstance(streams, bool) or streams < 1:
        raise _Bad(f"streams={streams!r} must be a whole number of at least 1")
    if quantity not in (None, "decode", "end_to_end"):
        raise _Bad(f"quantity={quantity!r} must be 'decode' or 'end_to_end'")
    if nvlink not in (None, True, False):
        raise _Bad(f"nvlink={nvlink!r} must be True or False")
    power = mark.kwargs.get("power")
    return MinThroughput(
        min_tok_s=units.parse(mark.args[0], "tok/s") if mark.args else None,
        power_w=None if power is None else units.parse(power, "W"),
        nvlink=nvlink,
        streams=streams,
        quantity=quantity,
    )


def _max_new_kernels(mark: pytest.Mark) -> Wanted:
    from pytest_sglang.session.wanted import MaxNewKernels

    _only(mark, 1, ())
    limit = mark.args[0] if mark.args else None
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise _Bad(f"{limit!r} must be a whole number of kernel names, e.g. max_new_kernels(0)")
    return MaxNewKernels(limit)


_LIMITS = {"ready_within": _ready_within, "min_throughput": _min_throughput, "max_new_kernels": _max_new_kernels}


def wanted(item: pytest.Item) -> tuple[Wanted, ...]:
    """The limits of this test's markers, nearest first. Raises UsageError naming the test and the marker."""
    from pytest_sglang.record.units import UnitError

    found: list[Wanted] = []
    for mark in item.iter_markers():
        try:
            if mark.name in _LIMITS:
                found.append(_LIMITS[mark.name](mark))
            elif mark.name in ("needs_restart", "needs_cold_cache", "needs_nvlink"):
                _only(mark, 0, ())
        except (UnitError, _Bad) as error:
            raise pytest.UsageError(f"{item.nodeid}: marker {mark.name}: {error}") from None
    return tuple(found)


def powers(node: Any) -> tuple[float, ...] | None:
    """The levels of ``at_power`` in watts, None without it. Raises UsageError."""
    from pytest_sglang.record import units

    mark = node.get_closest_marker("at_power")
    if mark is None:
        return None
    try:
        _only(mark, 99, ())
        if not mark.args:
            raise _Bad("no power level (write e.g. at_power(250, 390))")
        return tuple(units.parse(value, "W") for value in mark.args)
    except (units.UnitError, _Bad) as error:
        raise pytest.UsageError(f"{node.nodeid}: marker at_power: {error}") from None


def check_spec(item: pytest.Item) -> CheckSpec:
    """Id, stage and preconditions: from ``sglang_check``, the table of standard checks, or the test's own name."""
    from pytest_sglang.session.checks import STAGES, STANDARD, CheckSpec

    mark = item.get_closest_marker("sglang_check")
    stage = "measure"
    if item.get_closest_marker("needs_restart"):
        stage = "restart"
    if item.get_closest_marker("needs_cold_cache"):
        stage = "cold"
    uses_server = "sglang_server" in getattr(item, "fixturenames", ())
    if mark is None:
        name = getattr(item, "originalname", None) or item.name
        per_power = bool(item.get_closest_marker("at_power") or item.get_closest_marker("min_throughput"))
        return CheckSpec(name.removeprefix("test_").replace("_", "-"), stage, per_power=per_power, uses_server=uses_server)
    try:
        _only(mark, 1, ("stage", "after"))
        if len(mark.args) != 1 or not isinstance(mark.args[0], str):
            raise _Bad('needs an id (write e.g. sglang_check("my-check"))')
        stage, after = mark.kwargs.get("stage", stage), mark.kwargs.get("after", ())
        if stage not in STAGES:
            raise _Bad(f"stage={stage!r} must be one of {', '.join(STAGES)}")
        after = (after,) if isinstance(after, str) else tuple(after)
    except _Bad as error:
        raise pytest.UsageError(f"{item.nodeid}: marker sglang_check: {error}") from None
    if not mark.kwargs and mark.args[0] in STANDARD:
        return STANDARD[mark.args[0]]
    return CheckSpec(mark.args[0], stage, after=after, uses_server=uses_server)
