"""A container lives in a zone of its own, mostly UTC; SGLang's stamps have none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pytest_sglang.server import log, phases
from pytest_sglang.server.sources import in_our_time

LINE = "[2026-11-27 18:00:05 TP0] Load weight begin. avail mem=22.9 GB"


@pytest.fixture(params=["America/New_York", "Asia/Kolkata", "UTC", "Asia/Kathmandu"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_stamps_of_a_container_in_utc_are_read_as_what_they_are(zone: str) -> None:
    moved = in_our_time("2026-11-27T18:00:07.123456789Z", LINE)
    stamp = moved[1:20]
    assert time.mktime(time.strptime(stamp, "%Y-%m-%d %H:%M:%S")) == 1795802405
    assert moved.endswith("TP0] Load weight begin. avail mem=22.9 GB")


def test_a_container_in_our_own_zone_is_left_alone(zone: str) -> None:
    own = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(1795802405))
    line = LINE.replace("2026-11-27 18:00:05", own)
    assert in_our_time("2026-11-27T18:00:07Z", line) == line


def test_podman_gives_an_offset_and_what_has_no_stamp_stays() -> None:
    assert in_our_time("2026-11-27T18:00:07.5+01:00", "no stamp here") == "no stamp here"
    assert in_our_time("", LINE) == LINE
    assert in_our_time("2026-11-27T18:00:07Z", "[2026-02-31 18:00:05] torn") == "[2026-02-31 18:00:05] torn"


def test_the_phases_of_such_a_log_begin_after_the_launch(zone: str) -> None:
    lines = [
        "server_args=ServerArgs(model_path='m')",
        "Load weight begin. avail mem=22.9 GB",
        "The server is fired up and ready to roll!",
    ]
    stamped = [
        in_our_time(f"2026-11-27T18:00:{second:02}Z", f"[2026-11-27 18:00:{second:02}] {text}")
        for second, text in zip((10, 20, 50), lines, strict=True)
    ]
    found = phases.timeline(log.split("\n".join(stamped)), launched_at=1795802400.0)
    assert found.ready_at == pytest.approx(1795802450.0, abs=1.0)
