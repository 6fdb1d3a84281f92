from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.server import log
from pytest_sglang.server.sources import ContainerLog, JournalLog
from pytest_sglang.server.start import LogWatch


def test_ranks_milliseconds_and_local_time_are_read_from_the_stamp() -> None:
    line = log.split("[2026-01-02 03:04:05.250 DP0 TP3] Load weight begin. avail mem=1 GB")[0]
    assert line.ranks == "DP0 TP3"
    assert line.text == "Load weight begin. avail mem=1 GB"
    assert line.time == time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1)) + 0.25


def test_a_bar_before_a_stamp_is_a_line_of_its_own() -> None:
    bar, line = log.split(
        "Compiling: 0%| | 0/58 [00:00<?, ?it/s][2026-01-02 03:04:05] Compiling a graph for dynamic shape takes 0.81 s\n"
    )
    assert (bar.time, bar.text) == (None, "Compiling: 0%| | 0/58 [00:00<?, ?it/s]")
    assert line.text.startswith("Compiling a graph")


def test_carriage_returns_split_bars_and_empty_pieces_are_left_out() -> None:
    assert [line.text for line in log.split("a\r\rb\n\n  \nc")] == ["a", "b", "c"]


@pytest.mark.parametrize("stamp", ["2026-13-45 03:04:05", "9999-99-99 99:99:99"])
def test_a_stamp_that_is_no_date_breaks_nothing(stamp: str) -> None:
    assert [line.text for line in log.split(f"[{stamp}] hello")] == ["hello"]


def _start(minute: int, model: str, *, warnings: bool = True) -> str:
    before = "/x/launch_server.py:54: UserWarning: old way\n  warnings.warn(\n" if warnings else ""
    rlimit = f"[2026-01-02 03:{minute:02d}:00] Fail to set RLIMIT_NOFILE: current limit exceeds maximum limit\n"
    return (
        f"{before}{rlimit}[2026-01-02 03:{minute:02d}:00] server_args=ServerArgs(model_path='{model}')\n"
        f'[2026-01-02 03:{minute:02d}:09] INFO:     1.1.1.1:1 - "GET /health HTTP/1.1" 200 OK\n'
    )


def test_a_file_of_three_starts_is_cut_at_the_warnings_before_each_echo() -> None:
    text = "cut line of an older start\n" + _start(0, "a") + _start(1, "b") + _start(2, "c", warnings=False)
    found = log.starts(log.split(text))
    assert [next(line.text for line in start if "server_args" in line.text)[-4:-1] for start in found] == ["'a'", "'b'", "'c'"]
    assert found[1][0].text.startswith("/x/launch_server.py:54: UserWarning")
    assert found[2][0].text.startswith("Fail to set RLIMIT")
    assert [len(start) for start in found] == [5, 5, 3]


def test_a_log_without_an_echo_is_one_start_and_an_empty_one_is_none() -> None:
    assert len(log.starts(log.split("Traceback\nModuleNotFoundError: x"))) == 1
    assert log.starts([]) == []


def test_a_rotated_file_is_followed_into_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("one\n")
    source = log.FileLog(path)
    text, position = source.tail_from(None)
    assert text == "one\n"
    with path.open("a") as file:
        file.write("two\n")
    path.rename(tmp_path / "server.log.1")
    path.write_text("three\n")
    text, position = source.tail_from(position)
    assert text == "two\nthree\n"
    assert source.tail_from(position)[0] == ""


def test_a_truncated_file_is_read_from_its_new_beginning(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("a long first life\n")
    source = log.FileLog(path)
    position = source.end()
    path.write_text("new\n")
    assert source.tail_from(position)[0] == "new\n"


def test_a_file_that_is_not_there_yet_is_all_new_when_it_comes(tmp_path: Path) -> None:
    source = log.FileLog(tmp_path / "later.log")
    position = source.end()
    assert source.tail_from(position) == ("", position)
    assert source.why is not None
    assert "does not exist" in source.why
    (tmp_path / "later.log").write_text("hello\n")
    assert source.tail_from(position)[0] == "hello\n"
    assert source.why is None


def test_a_character_cut_in_the_middle_comes_whole_with_the_next_read(tmp_path: Path) -> None:
    path = tmp_path / "bar.log"
    data = "25%|█▌".encode()
    path.write_bytes(data[:-1])
    source = log.FileLog(path)
    first, position = source.tail_from(None)
    with path.open("ab") as file:
        file.write(data[-1:])
    assert first + source.tail_from(position)[0] == "25%|█▌"


def test_only_the_end_of_a_huge_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LIMIT_BYTES", 10)
    (tmp_path / "huge.log").write_text("x" * 100 + "0123456789")
    assert log.FileLog(tmp_path / "huge.log").read() == "0123456789"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "secret.log").write_text("x")
    (tmp_path / "secret.log").chmod(0)
    source = log.FileLog(tmp_path / "secret.log")
    assert source.read() == ""
    assert "Permission denied" in (source.why or "")


def test_a_folder_in_place_of_a_log_says_so(tmp_path: Path) -> None:
    source = log.FileLog(tmp_path)
    assert source.read() == ""
    assert source.why


def _tool(tmp_path: Path, body: str) -> list[str]:
    script = tmp_path / "tool.py"
    script.write_text("import json, sys\nargv = sys.argv[1:]\n" + body)
    return [sys.executable, "-S", str(script)]


def test_the_journal_gives_binary_messages_whole_and_leaves_out_systemds_own_lines(tmp_path: Path) -> None:
    entries = [
        {"__CURSOR": "c1", "_PID": "1", "MESSAGE": "Started sglang.service."},
        {"__CURSOR": "c2", "_PID": "7", "MESSAGE": list("bar\r25%|█".encode())},
        {"__CURSOR": "c3", "_PID": "7", "MESSAGE": "line"},
        {"__CURSOR": "c4", "_PID": "7", "MESSAGE": None},
        {"__CURSOR": "c5", "_PID": "7", "MESSAGE": ["two", "texts"]},
    ]
    (tmp_path / "entries").write_text("".join(json.dumps(each) + "\n" for each in entries) + "not json\n")
    tool = _tool(
        tmp_path,
        f"""
lines = open({str(tmp_path / "entries")!r}).read().splitlines()
if "--after-cursor" in argv:
    after = argv[argv.index("--after-cursor") + 1]
    lines = [line for line in lines if line[:1] == "{{" and json.loads(line)["__CURSOR"] > after]
elif argv[argv.index("-n") + 1] == "1":
    lines = lines[-2:-1]
print("\\n".join(lines))
""",
    )
    source = JournalLog("sglang.service", tool)
    assert source.read() == "bar\r25%|█\nline\n\ntwo\ntexts\n"
    assert source.tail_from("c2") == ("line\n\ntwo\ntexts\n", "c5")
    assert source.end() == "c5"
    assert source.tail_from("c5") == ("", "c5")


def test_a_journal_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    source = JournalLog("x.service", _tool(tmp_path, "sys.stderr.write('no permission'); sys.exit(1)"))
    assert source.read() == ""
    assert "no permission" in (source.why or "")
    assert source.describe() == "journal of x.service"
    missing = JournalLog("x.service", ["no-such-journalctl"])
    assert missing.read() == ""
    assert "not installed" in (missing.why or "")


def test_a_containers_log_is_ordered_and_followed_by_its_stamps(tmp_path: Path) -> None:
    tool = _tool(
        tmp_path,
        """
out, err = [], []
since = argv[argv.index("--since") + 1] if "--since" in argv else ""
for second, where, text in [(1, out, "access"), (0, err, "first"), (2, err, "last")]:
    stamp = f"2026-01-01T00:00:0{second}Z"
    if stamp >= since:
        where.append(stamp + " " + text)
print("\\n".join(out))
sys.stderr.write("\\n".join(err))
""",
    )
    source = ContainerLog("sglang", tool)
    text, position = source.tail_from(None)
    assert text == "first\naccess\nlast\n"
    assert source.tail_from(position) == ("", position)
    assert source.tail_from("2026-01-01T00:00:01Z")[0] == "last\n"
    assert source.end() == "2026-01-01T00:00:02Z"


def test_a_text_is_followed_by_position() -> None:
    source = log.TextLog("abc", name="-")
    assert (source.read(), source.describe(), source.end()) == ("abc", "-", 3)
    assert source.tail_from(1) == ("bc", 3)


def test_the_echo_of_our_own_looking_is_no_sign_of_life(tmp_path: Path) -> None:
    """A real server that is stopped still answers /v1/loads from memory, and writes a line for it."""
    path = tmp_path / "server.log"
    path.write_text("")
    source = log.FileLog(path)
    watch = LogWatch(source, source.end(), 0.0)
    for asked in ("/health", "/ready", "/v1/models", "/v1/loads", "/server_info"):
        with path.open("a") as file:
            file.write(f'INFO:     127.0.0.1:1 - "GET {asked} HTTP/1.1" 200 OK\n')
        assert not watch.poll(), asked
    with path.open("a") as file:
        file.write("[2026-01-02 03:04:09] Load weight end.\n")
    assert watch.poll()
