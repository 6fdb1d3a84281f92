"""Custom all-reduce as SGLang's log tells of it: one table keyed by version. The server goes on either way, and says it nowhere else.

Sources: sglang/srt/distributed/device_communicators/custom_all_reduce.py (0.5.10, 0.5.11), custom_all_reduce_utils.py and
custom_all_reduce_v2.py (0.5.23), distributed/parallel_state.py (all).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pytest_sglang.record.values import Value
from pytest_sglang.server.log import LogLine
from pytest_sglang.server.versions import NEWEST, OLDEST, Version, parse


class Saying(Value, frozen=True):
    """A line from ``since`` to ``until`` (both included) and what it means; group 1 of the pattern, where there is one, goes into ``why``."""

    since: Version
    until: Version
    state: Literal["on", "off"]
    pattern: str
    why: str


_ANY = r"Custom ?[Aa]ll ?[Rr]educe(?:V2)?"
SAYINGS: tuple[Saying, ...] = (
    Saying(
        OLDEST,
        NEWEST,
        "off",
        rf"{_ANY} is disabled because it's not supported on more than two PCIe-only GPUs",
        "more than two cards without NVLink between every two",
    ),
    Saying(
        OLDEST,
        NEWEST,
        "off",
        rf"{_ANY} is disabled because your platform lacks GPU P2P capability or P2P test failed",
        "no peer access between the cards, or its test failed",
    ),
    Saying(
        OLDEST, NEWEST, "off", rf"{_ANY} is disabled due to an unsupported world size: (\d+)", "no implementation for {0} cards"
    ),
    Saying(
        OLDEST,
        NEWEST,
        "off",
        rf"{_ANY} is disabled because this process group spans across nodes",
        "the group spans several machines",
    ),
    Saying(OLDEST, NEWEST, "off", r"Setup Custom allreduce failed with (.*?)\.? To silence this warning", "its set-up failed: {0}"),
    Saying(OLDEST, NEWEST, "on", r"Registering (\d+) cuda graph addresses", "{0} addresses registered in graph capture"),
    Saying(OLDEST, (0, 5, 11), "on", r"Custom allreduce v2 initialized successfully", "version 2 initialized"),
)
SILENT_SINCE: Version = (0, 5, 12)
"""From here on version 2 may be the default, which tells of itself at DEBUG only: no line means nothing. Seen in 0.5.23, not in 0.5.11."""


def read(lines: Iterable[LogLine], version: str | None) -> tuple[Literal["on", "off"] | None, str]:
    """What the newest line of one start says, and why. (None, "") where no line says anything."""
    number = parse(version)
    known = [each for each in SAYINGS if number is None or each.since <= min(number, NEWEST) <= each.until]
    found: tuple[Literal["on", "off"] | None, str] = (None, "")
    for line in lines:
        for each in known:
            match = re.search(each.pattern, line.text)
            if match is not None:
                found = (each.state, each.why.format(*match.groups()))
    return found


def would_tell(version: str | None, lines: Iterable[LogLine]) -> bool:
    """A server of this version that captured graphs would have written a line if custom all-reduce were on."""
    number = parse(version)
    if number is None or number >= SILENT_SINCE:
        return False
    return any("Capture cuda graph end" in line.text for line in lines)
