"""What SGLang's log says of custom all-reduce, by version."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sglang.server import allreduce, log

DATA = Path(__file__).parents[1] / "data" / "logs"
PCIE = "CustomAllreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence this warning, specify x."
CAPTURED = "Capture cuda graph end. Time elapsed: 24.63 s. mem usage=0.31 GB. avail mem=4.51 GB."


def lines(*texts: str) -> list[log.LogLine]:
    return log.split("".join(f"[2026-11-24 01:53:00 TP0] {text}\n" for text in texts))


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        (PCIE, "0.5.10", ("off", "more than two cards without NVLink between every two")),
        (
            PCIE.replace("CustomAllreduce", "CustomAllReduceV2"),
            "0.5.23",
            ("off", "more than two cards without NVLink between every two"),
        ),
        (
            "Custom allreduce is disabled because your platform lacks GPU P2P capability or P2P test failed. To silence ...",
            "0.5.11",
            ("off", "no peer access between the cards, or its test failed"),
        ),
        (
            "Custom allreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4, 6, 8].",
            "0.5.11",
            ("off", "no implementation for 3 cards"),
        ),
        (
            "Setup Custom allreduce failed with invalid literal for int() with base 10: 'GPU-2e7d'. To silence this warning, specify ...",
            "0.5.11",
            ("off", "its set-up failed: invalid literal for int() with base 10: 'GPU-2e7d'"),
        ),
        (
            "Custom allreduce is disabled because this process group spans across nodes.",
            "0.5.11",
            ("off", "the group spans several machines"),
        ),
        ("Registering 2340 cuda graph addresses", "0.5.11", ("on", "2340 addresses registered in graph capture")),
        ("Registering 2340 cuda graph addresses", None, ("on", "2340 addresses registered in graph capture")),
        ("Custom allreduce v2 initialized successfully", "0.5.11", ("on", "version 2 initialized")),
        ("Custom allreduce v2 initialized successfully", "0.5.23", (None, "")),
        ("The server is fired up and ready to roll!", "0.5.11", (None, "")),
        (PCIE, "0.9.0", ("off", "more than two cards without NVLink between every two")),
    ],
)
def test_a_line_says_on_or_off_and_why(text: str, version: str | None, expected: tuple[str | None, str]) -> None:
    assert allreduce.read(lines(text), version) == expected


def test_the_newest_line_counts() -> None:
    found = lines(
        "Custom allreduce v2 initialized successfully", "Setup Custom allreduce failed with x. To silence this warning, y"
    )
    assert allreduce.read(found, "0.5.11") == ("off", "its set-up failed: x")


@pytest.mark.parametrize(
    ("version", "text", "expected"),
    [("0.5.11", CAPTURED, True), ("0.5.11", "no graphs here", False), ("0.5.23", CAPTURED, False), (None, CAPTURED, False)],
)
def test_which_version_would_tell_of_it(version: str | None, text: str, expected: bool) -> None:
    assert allreduce.would_tell(version, lines(text)) is expected


@pytest.mark.parametrize("name", ["sglang-0.5.11-h200-plain", "sglang-0.5.23-cpu-plain"])
def test_recorded_starts_on_one_card_say_nothing_of_it(name: str) -> None:
    newest = log.starts(log.split((DATA / f"{name}.log").read_text()))[-1]
    assert allreduce.read(newest, name.split("-")[1]) == (None, "")
