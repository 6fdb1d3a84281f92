from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_sglang.server import log, rotated
from pytest_sglang.server.sources import JournalLog, StreamLog

ECHO = "[2026-01-02 03:04:05] server_args=ServerArgs(model_path='m')\n"


def _aged(path: Path, age_s: float) -> None:
    os.utime(path, (time.time() - age_s, time.time() - age_s))


def test_siblings_of_every_kind_are_found_newest_first(tmp_path: Path) -> None:
    names = ["server.log.1", "server.log.2.gz", "server.log-20261125", "server-20261124.log.gz", "server.1.log", "server.log.3.xz"]
    for number, name in enumerate(names):
        (tmp_path / name).write_text("")
        _aged(tmp_path / name, 100 * number)
    for other in ("server.log", "server.log.old", "server2.log", "server.log.1.swp", "other.log.1"):
        (tmp_path / other).write_text("")
    (tmp_path / "server.log.9").mkdir()
    assert [each.name for each in rotated.siblings(tmp_path / "server.log")] == names


def test_a_start_that_began_in_a_rotated_file_is_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("five\n")
    (tmp_path / "server.log.1").write_text("four\n")
    with gzip.open(tmp_path / "server.log.2.gz", "wt") as file:
        file.write(f"two\n{ECHO}three\n")
    (tmp_path / "server.log.3").write_text("one\n")
    for age, name in enumerate(("server.log.1", "server.log.2.gz", "server.log.3")):
        _aged(tmp_path / name, 100.0 * (age + 1))
    source = log.FileLog(path)
    assert source.read() == f"two\n{ECHO}three\nfour\nfive\n"
    # what comes afterwards is not read again
    _, position = source.tail_from(None)
    assert source.tail_from(position)[0] == ""
    path.write_text(ECHO)
    assert source.read() == ECHO


def test_a_broken_archive_ends_the_way_back(tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("here\n")
    (tmp_path / "server.log.1.gz").write_bytes(b"\x1f\x8b broken")
    assert log.FileLog(tmp_path / "server.log").read() == "here\n"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress), ("", bytes)])
def test_packed_files_are_read_at_most_their_end(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"server.log{suffix}"
    path.write_bytes(pack(b"0123456789"))
    assert rotated.read(path, 100) == "0123456789"
    assert rotated.read(path, 4) == "6789"


def test_a_file_truncated_and_grown_beyond_where_we_were_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("first life\n")
    source = log.FileLog(path)
    _, position = source.tail_from(None)
    path.write_text("second life, already longer than the first one\n")
    assert source.tail_from(position)[0] == "second life, already longer than the first one\n"


def test_the_hole_of_a_writer_that_does_not_append_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    with path.open("wb") as writer:
        writer.write(b"before\n" * 100)
        writer.flush()
        source = log.FileLog(path)
        _, position = source.tail_from(None)
        os.truncate(path, 0)  # logrotate's copytruncate
        writer.write(b"after\n")
        writer.flush()
        assert source.tail_from(position)[0] == "after\n"


def test_a_pipe_is_read_as_it_comes_and_to_its_end() -> None:
    reading, writing = os.pipe()
    source = StreamLog(reading, "standard input")
    text, position = "", None
    for data in ("one\n25%|█".encode()[:-1], "█".encode()[-1:] + b"\n", b"two\n"):
        os.write(writing, data)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            new, position = source.tail_from(position)
            text += new
            if new:
                break
            time.sleep(0.005)
    assert not source.ended.is_set()
    os.close(writing)
    assert source.read() == "one\n25%|█\ntwo\n"
    assert text == "one\n25%|█\ntwo\n"
    assert (source.ended.is_set(), source.end(), source.describe()) == (True, len(text), "standard input")
    os.close(reading)


def test_the_launches_of_a_unit_come_from_systemds_own_entries(tmp_path: Path) -> None:
    starting, started = "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf"
    entries = [
        {"_PID": "1", "MESSAGE_ID": started, "__REALTIME_TIMESTAMP": "1000000000"},  # Type=simple: "Started" is the launch
        {"_PID": "1", "MESSAGE_ID": starting, "__REALTIME_TIMESTAMP": "2000000000"},  # Type=notify: "Started" is readiness
        {"_PID": "1", "MESSAGE_ID": started, "__REALTIME_TIMESTAMP": "2090000000"},
        {"_PID": "1", "MESSAGE_ID": "other", "__REALTIME_TIMESTAMP": "2100000000"},
        {"_PID": "1", "MESSAGE_ID": started, "__REALTIME_TIMESTAMP": "3000000000"},
    ]
    script = tmp_path / "journalctl.py"
    script.write_text(f"import sys\nassert '_PID=1' in sys.argv\nprint({chr(10).join(json.dumps(each) for each in entries)!r})\n")
    assert JournalLog("sglang.service", [sys.executable, "-S", str(script)]).launches() == [1000.0, 2000.0, 3000.0]
    assert JournalLog("sglang.service", ["no-such-journalctl"]).launches() == []
