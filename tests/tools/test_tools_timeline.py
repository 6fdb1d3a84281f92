from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang import cli
from pytest_sglang.server import log
from pytest_sglang.session import following, timeline

LOGS = Path(__file__).parent.parent / "data" / "logs"
COLD, WARM, PLAIN = (f"sglang-0.5.11-h200-{name}" for name in ("compile-cold", "compile-warm", "plain"))
CRASH, CPU = "sglang-0.5.23-cpu-compile-crash", "sglang-0.5.23-cpu-compile-cold"
APACHE = '127.0.0.1 - - [27/Nov/2026:16:53:05 +0000] "GET / HTTP/1.1" 200 512\n[Fri Nov 27 16:53:05.1 2026] [core:notice] AH00094\n'


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def text_of(*names: str) -> str:
    return "".join((LOGS / f"{name}.log").read_text(encoding="utf-8") for name in names)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the tool on a log of this text; gives exit code, standard output, standard error."""

    def made(text: str | None, *options: str, name: str = "server.log") -> tuple[int, str, str]:
        argv = ["timeline", *options]
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
            argv.insert(1, str(tmp_path / name))
        capsys.readouterr()
        code = cli.main(argv)
        out, err = capsys.readouterr()
        return code, out, err

    return made


Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("name", "total_s", "ids"),
    [
        (PLAIN, 75, ["capture_decode", "capture_prefill"]),
        (COLD, 213, ["capture_decode"]),
        (WARM, 79, ["capture_decode"]),
        ("sglang-0.5.23-cpu-plain", 11, []),
        (CPU, 77, ["capture_decode"]),
        ("sglang-0.5.23-cpu-compile-warm", 54, ["capture_decode"]),
    ],
)
def test_a_recorded_start_as_data(run: Run, name: str, total_s: float, ids: list[str]) -> None:
    code, out, err = run(text_of(name), "--json")
    found = json.loads(out)
    assert (code, err, found["ready"], found["state"], found["total_s"]) == (0, "", True, "ready", total_s)
    captures = [f"capture_{kind}" for kind in ("decode", "prefill")]
    assert [row["phase"] for row in found["phases"] if row["phase"] in captures] == ids
    assert [row["phase"] for row in found["phases"] if row["phase"] not in captures] == [
        *("arguments", "distributed", "weights", "kv_cache", "port_open", "warmup", "ready")
    ]
    assert sum(row["duration_s"] for row in found["phases"]) == pytest.approx(total_s)
    assert found["launched_at_is"] == "first line"
    assert all(row["end_s"] - row["begin_s"] == row["duration_s"] for row in found["phases"])
    assert not [each for each in found["findings"] if each["severity"] != "info"]


def test_the_table_fits_eighty_columns_and_tells_progress_and_total(run: Run) -> None:
    for name in (PLAIN, COLD, WARM, CRASH, CPU):
        _, out, _ = run(text_of(name))
        assert max(len(line) for line in out.splitlines()) <= 80
    _, out, _ = run(text_of(COLD))
    row = next(line for line in out.splitlines() if line.strip().startswith("capture_decode"))
    assert row.split()[:7] == ["capture_decode", "28", "s", "2", "min", "44", "s"]
    assert "4/4, 10 shapes tuned" in row
    assert "ready after 3 min 33 s, a cold start (10 autotuning runs in the log)" in out
    assert "counted from the first line of the log" in out
    assert "SGLang 0.5.10 to 0.5.13" in out


# the launch as the recording's own poller saw it, and the total until /health answered 200
@pytest.mark.parametrize("when", ["2026-11-23 22:25:53.1", "22:25:53.1"])
def test_with_the_launch_told_the_phases_add_up_to_the_measured_total(run: Run, when: str) -> None:
    _, out, _ = run(text_of(WARM), "--json", "--started", when)
    found = json.loads(out)
    assert (found["phases"][0]["phase"], found["launched_at_is"]) == ("launch", "launch")
    # port open after 99.97 s, /health 503 at 100.00 s, 200 (asked a second before) at 102.38 s
    assert sum(row["duration_s"] for row in found["phases"]) == pytest.approx(101.4, abs=2.0)
    assert found["total_s"] == pytest.approx(101.4, abs=2.0)


@pytest.mark.parametrize(
    ("when", "why"),
    [("noon", "is no moment"), ("22:40:00", "launched before that"), ("2026-11-22 10:00:00", "at most 2 h"), ("1", "at most 2 h")],
)
def test_a_launch_that_cannot_be_is_refused(run: Run, when: str, why: str) -> None:
    code, out, err = run(text_of(WARM), "--started", when)
    assert (code, out) == (4, "")
    assert why in err
    assert err.count("\n") == 1


def test_a_crash_is_told_with_its_first_traceback(run: Run) -> None:
    code, out, _ = run(text_of(CRASH))
    assert code == 1
    assert "DIED in capture_decode after 9 s" in out
    cause = "AttributeError: 'TorchNativeAttnBackend' object has no attribute"
    assert cause in out
    code, out, _ = run(text_of(CRASH), "--json")
    found = json.loads(out)
    assert (code, found["exit_code"], found["ready"], found["phase"]) == (1, 1, False, "capture_decode")
    assert found["failure"]["cause"].startswith(cause)
    assert found["failure"]["traceback"].startswith("Traceback (most recent call last)")
    assert [each["remedy"] for each in found["findings"] if each["kind"] == "died"] != [""]


def test_many_starts_are_listed_and_chosen(run: Run) -> None:
    three = text_of(COLD, CRASH, WARM)
    code, out, _ = run(three, "--list")
    assert code == 0
    assert "3 starts" in out
    assert [line.split()[0] for line in out.splitlines() if line[:4].strip().isdigit()] == ["1", "2", "3"]
    for number, total_s in ((1, 213), (-3, 213), (3, 79), (-1, 79)):
        code, out, _ = run(three, "--json", "--start", str(number))
        found = json.loads(out)
        assert (code, found["total_s"], found["start"]) == (0, total_s, number if number > 0 else number + 4)
        assert [each["state"] for each in found["starts"]] == ["ready", "died", "ready"]
    assert run(three, "--start", "2")[0] == 1
    assert json.loads(run(three, "--json")[1])["start"] == 3
    code, out, _ = run(three, "--list", "--json")
    assert [each["model"] for each in json.loads(out)["starts"]] == ["/models/llama-8b", "/models/tiny-llama", "/models/llama-8b"]


@pytest.mark.parametrize("number", ["0", "4", "-4"])
def test_a_start_that_is_not_there_is_refused(run: Run, number: str) -> None:
    code, _, err = run(text_of(COLD, CRASH, WARM), "--start", number)
    assert code == 4
    assert "holds 3 starts: --start 1 to 3, or -1 (the last) to -3" in err


def test_a_log_cut_anywhere_is_told_without_a_guess(run: Run) -> None:
    noise, text = random.Random(7), text_of(COLD)
    ready = text.index("The server is fired up")
    for _ in range(20):
        cut = noise.randrange(1, len(text))
        code, out, err = run(text[:cut], "--json")
        if code == 4:  # nothing of SGLang is in it yet
            assert "sglang" not in text[:cut]
            continue
        found = json.loads(out)
        assert err == ""
        assert found["ready"] is (cut > ready + 41) or (found["ready"] is False and cut < ready + 41)
        assert code == (0 if found["ready"] else 6)


def test_a_start_in_progress_cannot_be_told_yet(run: Run) -> None:
    text = text_of(COLD)
    code, out, _ = run(text[: text.index("75%")])
    assert code == 6
    # the last stamp is of second 28, the bar's own clock stands at 77 s
    assert "NOT READY in capture_decode after 105 s" in out
    assert "2/4 (bs=2)" in out
    assert "--follow" in out


def test_a_start_that_another_one_follows_never_became_ready(run: Run) -> None:
    text = text_of(COLD)
    code, out, _ = run(text[: text.index("75%")] + "\n" + text_of(WARM), "--start", "1", "--json")
    found = json.loads(out)
    assert (code, found["state"]) == (1, "died")
    assert [each["kind"] for each in found["findings"] if each["severity"] == "fail"] == ["never-ready"]


def test_a_version_that_nobody_knows_is_no_failure(run: Run) -> None:
    code, out, _ = run(text_of(WARM), "--sglang-version", "0.9.1", "--json")
    found = json.loads(out)
    assert (code, found["ready"], found["phases"]) == (0, True, [])
    assert "phases-unknown" in [each["kind"] for each in found["findings"]]
    # one whose stages have other names, not told by an option
    text = (
        text_of(WARM).replace("Load weight", "Fetch weight").replace("Capture cuda", "Record cuda").replace("Init torch", "Begin")
    )
    code, out, _ = run(text.replace("Uvicorn running on", "Granian serves"), "--json")
    found = json.loads(out)
    assert (code, found["ready"], found["phases"]) == (0, True, [])
    assert "phases-unknown" in [each["kind"] for each in found["findings"]]
    assert run(text_of(WARM), "--sglang-version", "main")[0] == 4


def test_an_empty_log_tells_nothing(run: Run) -> None:
    code, out, _ = run("")
    assert code == 6
    assert "is empty" in out
    code, out, _ = run("", "--json")
    assert (code, json.loads(out)["ready"], json.loads(out)["phases"]) == (6, False, [])
    assert run("", "--list")[0] == 6


def test_a_log_of_something_else_is_one_clear_error(run: Run) -> None:
    for text in (APACHE, "[2026-11-27 10:00:00] INFO:     Uvicorn running on http://0.0.0.0:8000\n", "hello\n"):
        code, out, err = run(text)
        assert (code, out) == (4, "")
        assert "is not a log of SGLang" in err
        assert err.count("\n") == 1


def test_a_servers_log_without_its_beginning_is_no_start(run: Run) -> None:
    text = text_of(WARM)
    code, out, _ = run(text[text.index("SIGTERM") - 3000 :])
    assert code == 6
    assert "no start begins in this log" in " ".join(out.split())


def test_files_that_cannot_be_read_are_one_clear_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.log").write_text("x")
    code, _, err = run(None, str(tmp_path / "sever.log"))
    assert code == 4
    assert "does not exist; did you mean" in err
    assert run(None, str(tmp_path))[0] == 4
    (tmp_path / "broken.gz").write_bytes(b"no archive")
    code, _, err = run(None, str(tmp_path / "broken.gz"))
    assert code == 4
    assert "cannot be unpacked" in err
    assert run(None)[0] == 4
    assert run(None, str(tmp_path / "server.log"), "--unit", "x")[0] == 4
    assert run(text_of(WARM), "--follow", "--start", "1")[0] == 4


def test_a_rotated_and_packed_beginning_counts(run: Run, tmp_path: Path) -> None:
    text = text_of(COLD)
    cut = text.index("75%")
    with gzip.open(tmp_path / "server.log.1.gz", "wt", encoding="utf-8") as file:
        file.write(text_of(WARM) + text[:cut])
    code, out, _ = run(text[cut:], "--json")
    found = json.loads(out)
    assert (code, found["total_s"], found["start"], len(found["starts"])) == (0, 213, 2, 2)
    code, out, _ = run(None, str(tmp_path / "server.log.1.gz"), "--start", "1", "--json")
    assert (code, json.loads(out)["total_s"]) == (0, 79)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(text_of(WARM), encoding="utf-8")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, _ = run(None, "-", "--json")
    assert (code, json.loads(out)["total_s"], json.loads(out)["log"]) == (0, 79, "standard input")


def test_the_journal_knows_the_launch(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    lines = [line for line in log.split(text_of(WARM)) if line.text.strip()]
    first = next(line.time for line in lines if line.time is not None)
    entries: list[dict[str, Any]] = [
        {"_PID": "1", "MESSAGE_ID": "39f53479d3a045ac8e11786248231fbf", "__REALTIME_TIMESTAMP": str(int((first - 21.9) * 1e6))}
    ]
    entries += [{"_PID": "7", "MESSAGE": line.raw, "__CURSOR": "c"} for line in lines]
    (tmp_path / "entries").write_text("\n".join(json.dumps(each) for each in entries))
    tool = tmp_path / "journalctl"
    tool.write_text(f"#!/bin/sh\ncase \"$*\" in *_PID=1*) head -1 '{tmp_path}/entries';; *) cat '{tmp_path}/entries';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code, out, _ = run(None, "--unit", "sglang.service", "--json")
    found = json.loads(out)
    assert (code, found["launched_at_is"], found["phases"][0]["phase"]) == (0, "launch", "launch")
    assert found["total_s"] == pytest.approx(100.9)


def test_secrets_are_never_printed(run: Run) -> None:
    text = text_of(CRASH).replace("'model_path'", "'api_key': 'sesame', 'model_path'", 1)
    for options in ([], ["--json"], ["--list"]):
        assert "sesame" not in run(text, *options)[1]


# --- following -------------------------------------------------------------------------------------------------------------


class Followed:
    """A follower in a thread of its own, with what it showed."""

    def __init__(self, path: Path) -> None:
        self.shown: list[str] = []
        self.done: tuple[timeline.Start, timeline.Reading] | None = None
        asked = timeline.Asked(log=str(path))
        self.follower = following.Follower(timeline.source(asked), asked, lambda text: self.shown.append(text) if text else None)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.done = self.follower.run()

    def wait_shown(self, text: str) -> None:
        until(lambda: any(text in each for each in self.shown[-3:]), lambda: str(self.shown[-3:]))

    def result(self) -> timeline.Start:
        self.thread.join(30)
        assert self.done is not None
        return self.done[0]


def until(true: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, told()
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.02)
    monkeypatch.setattr(following, "QUIET_S", 0.3)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize("how", ["renamed", "truncated"])
def test_a_start_is_followed_through_a_rotation(tmp_path: Path, how: str) -> None:
    path, text = tmp_path / "server.log", text_of(COLD)
    path.touch()
    followed = Followed(path)
    followed.wait_shown("no start in it yet")
    half = text.index("75%")
    append(path, text[:half])
    followed.wait_shown("capture_decode 2/4 (bs=2)")
    if how == "renamed":
        path.rename(tmp_path / "server.log.1")
        path.touch()
    else:
        (tmp_path / "server.log.1").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        os.truncate(path, 0)
    ready = text.index("The server is fired up")
    append(path, text[half : ready - 200])
    followed.wait_shown("warmup")
    append(path, text[ready - 200 : ready + 60])
    found = followed.result()
    assert (found.state, found.total_s, found.exit_code) == ("ready", 213, 0)


def test_a_start_that_dies_is_told_when_its_log_has_ended(tmp_path: Path) -> None:
    path, text = tmp_path / "server.log", text_of(CRASH)
    path.write_text(text[: text.index("Scheduler hit")], encoding="utf-8")
    followed = Followed(path)
    followed.wait_shown("capture_decode")
    append(path, text[text.index("Scheduler hit") :])
    found = followed.result()
    assert (found.state, found.exit_code) == ("died", 1)
    assert found.timeline.failure is not None
    assert found.timeline.failure.cause.startswith("AttributeError")


def test_after_a_start_that_is_over_the_next_one_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text(text_of(COLD), encoding="utf-8")  # ends with the server's own end
    followed = Followed(path)
    followed.wait_shown("waiting for the next start")
    append(path, text_of(WARM))
    found = followed.result()
    assert (found.number, found.of, found.total_s) == (2, 2, 79)


def test_a_server_that_is_ready_and_serves_is_told_at_once(tmp_path: Path) -> None:
    text = text_of(WARM)
    (tmp_path / "server.log").write_text(text[: text.index("fired up") + 100], encoding="utf-8")
    assert Followed(tmp_path / "server.log").result().state == "ready"


def test_a_start_that_another_one_overtakes_has_died(tmp_path: Path) -> None:
    path, text = tmp_path / "server.log", text_of(COLD)
    path.write_text(text[: text.index("75%")], encoding="utf-8")
    followed = Followed(path)
    followed.wait_shown("capture_decode")
    append(path, "\n" + text_of(WARM))
    found = followed.result()
    assert (found.number, found.state, found.exit_code) == (1, "died", 1)


def test_old_starts_of_a_long_log_are_forgotten_but_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "TRIM", 1000)
    path, text = tmp_path / "server.log", text_of(WARM)
    path.write_text(text_of(COLD, WARM, COLD), encoding="utf-8")
    followed = Followed(path)
    followed.wait_shown("waiting for the next start")
    assert "Decode batch" not in followed.follower._text
    assert followed.follower._text.count("] server_args=") == 2
    ready = text.index("fired up")
    append(path, text[: ready - 100])
    followed.wait_shown("warmup")
    append(path, text[ready - 100 : ready + 60])
    found = followed.result()
    assert (found.number, found.of, found.total_s) == (4, 4, 79)


def test_a_pipe_is_followed_to_its_end() -> None:
    command = [sys.executable, "-m", "pytest_sglang", "timeline", "-", "--follow", "--json"]
    for text, code in ((text_of(WARM), 0), (text_of(CRASH), 1), (text_of(COLD)[:30_000], 6), ("hello\n", 4)):
        ran = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr.count("Traceback")) == (code, 0), ran.stderr
        if code != 4:
            assert json.load(io.StringIO(ran.stdout))["exit_code"] == code


def test_interrupted_following_exits_2(tmp_path: Path) -> None:
    import signal

    (tmp_path / "server.log").write_text(text_of(COLD)[:30_000], encoding="utf-8")
    command = [sys.executable, "-m", "pytest_sglang", "timeline", str(tmp_path / "server.log"), "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (2, "", "interrupted\n")
