"""``pytest-sglang measure`` as a user runs it, against a server whose answers are known."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from load_truth import Script, Truth, tls_context, truth_server

from pytest_sglang import cli
from pytest_sglang.load import stamps

FAST = {"ttft_s": 0.01, "itl_s": 0.003}
COMMAND = [sys.executable, "-m", "pytest_sglang", "measure"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = cli.main(["measure", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, *arguments, "--json")
    return code, json.loads(out)


@pytest.mark.parametrize("api", ["completions", "chat", "native"])
def test_json_has_every_figure_with_the_number_of_its_samples(capsys: pytest.CaptureFixture[str], api: str) -> None:
    with truth_server(Script(**FAST)) as truth:
        code, found = as_json(
            capsys, truth.url, "--streams=2", "--tokens=20", "--requests=8", f"--api={api}", "--prompt-tokens=12", "--seed=7"
        )
        served = truth.served[1:]
    assert code == 0
    assert len(served) == 8
    assert len({each.connection for each in served}) == 2
    assert (found["requests"], found["failed_requests"], found["failures"]) == (8, 0, {})
    assert found["output_tokens"] == found["server_tokens"] == 160
    assert found["decode_tok_s"]["n"] == found["ttft_ms"]["n"] == 8
    assert found["decode_tok_s"]["p50"] == pytest.approx(found["decode_tok_s"]["median"])
    assert found["decode_tok_s"]["p99"] is None
    assert "459 needed" in found["decode_tok_s"]["not_earned"]["p99"]
    assert 0 < found["itl_ms"]["n"] <= 8 * 19
    # exactly: test_load_client.py; here a busy machine may read the first and last tokens with others
    low, high = zip(*[each.decode_tok_s() for each in served], strict=True)
    assert min(low) / 2 < found["decode_tok_s"]["median"] < max(high) * 2
    assert found["aggregate_tok_s"] > found["decode_tok_s"]["median"]
    assert found["client_lag_ms"] >= 0
    assert 0 <= found["merged_share"] <= 1
    assert found["model"] == "m"
    assert (found["simulated"], found["inconclusive"], found["unknown"]) == (False, [], [])
    assert found["workload"]["seed"] == 7
    assert "api_key" not in json.dumps(found)


def test_one_line_a_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with truth_server(Script(**FAST)) as truth:
        code, out, err = run(capsys, truth.url, "--tokens=10", "--prompt-tokens=12")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"m at {truth.url}, completions: 1 stream, 12 + 10 tokens a request"
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "decode",
        "aggregate",
        "TTFT",
        "ITL",
        "TPOT",
        "end to end",
        "requests",
        "tokens",
        "client lag 0.0" if lines[-1].startswith("client lag 0.0") and "  " in lines[-1] else lines[-1],
    ]
    assert re.search(r"decode +[\d,.]+ tok/s +p90 - \(n < 44\) +p99 - \(n < 459\) +n 8", out)
    assert "8 whole, 0 failed" in out
    assert "80 by the answers, 80 by the server's counter" in out
    assert max(map(len, lines[1:])) <= 90


def test_a_failed_request_is_no_sample_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with truth_server(Script(**FAST, fewer=3, finish="stop")) as truth:
        code, found = as_json(capsys, truth.url, "--tokens=20", "--requests=3")
        text_code, out, _ = run(capsys, truth.url, "--tokens=20", "--requests=3")
    assert code == text_code == 1
    reason = "finish reason stop after 17 of 20 tokens"
    # the warm-up is a shorter one
    assert found["failures"] == {"finish reason stop after 13 of 16 tokens": 1, reason: 3}
    assert found["failed_requests"] == found["requests"] == 4
    assert found["decode_tok_s"]["n"] == found["itl_ms"]["n"] == 0
    assert found["decode_tok_s"]["median"] is None
    assert found["aggregate_tok_s"] is None
    assert f"3 x {reason}" in out
    assert "decode" not in out


def test_a_server_that_dies_in_between_fails_what_was_left(capsys: pytest.CaptureFixture[str]) -> None:
    with truth_server(Script(**FAST, reset_after=5)) as truth:
        code, found = as_json(capsys, truth.url, "--tokens=20", "--requests=2")
    assert code == 1
    assert found["failures"] == {"connection lost: Connection reset by peer": 3}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:{free}"], "no server answers: http://127.0.0.1:{free}/v1/models: "),
        (["127.0.0.1:30000"], "'127.0.0.1:30000' is not the url of a server (write e.g. 'http://127.0.0.1:8001')"),
        (["{url}", "--model=other"], "--model other: {url} serves m"),
        (["{url}", "--api-key-env=NOT_SET_HERE"], "--api-key-env NOT_SET_HERE: that variable is not set"),
        (["{url}", "--rig=simulated"], "either a URL or --rig"),
        (["{url}", "--timeout=soon"], "not a duration: 'soon'"),
        (["{url}", "--prompts=random-ids", "--api=chat"], "the chat route takes no token ids: use completions or native"),
    ],
)
def test_wrong_usage_is_one_clear_error_and_exit_code_4(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    with truth_server(Script(**FAST)) as truth:
        code, out, err = run(capsys, *[each.format(url=truth.url, free=free) for each in arguments])
    assert (code, out) == (4, "")
    assert says.format(url=truth.url, free=free) in err
    assert err.startswith("pytest-sglang measure: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["--streams=0", "--tokens=many", "--api=rest"])
def test_wrong_numbers_are_named(capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    code, _, err = run(capsys, "http://127.0.0.1:1", wrong)
    assert code == 4
    assert wrong.split("=")[0] in err


def test_the_key_is_sent_and_its_lack_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIG_KEY", "geheim")
    with truth_server(Script(**FAST, key="geheim")) as truth:
        code, out, err = run(capsys, truth.url, "--tokens=5", "--api-key-env=RIG_KEY")
        assert code == 0
        assert truth.served[0].headers["authorization"] == "Bearer geheim"
        assert "geheim" not in out + err
        code, _, err = run(capsys, truth.url)
        assert (code, "HTTP 401: it wants an API key" in err) == (4, True)
        monkeypatch.setenv("RIG_KEY", "wrong")
        code, _, err = run(capsys, truth.url, "--api-key-env=RIG_KEY")
        assert (code, "the API key is not the server's" in err) == (4, True)


def test_counters_that_contradict_the_answers_make_it_inconclusive(capsys: pytest.CaptureFixture[str]) -> None:
    with truth_server(Script(**FAST, counted=0.9)) as truth:
        code, out, _ = run(capsys, truth.url, "--tokens=20", "--requests=5")
    assert code == 6
    assert "INCONCLUSIVE: answers and server counters disagree by 10 % (100 and 90 tokens): the usage tells of tokens" in out


@pytest.mark.parametrize(("running", "code"), [(3, 0), (5, 6)])
def test_others_beside_fewer_requests_than_streams_are_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, running: int, code: int
) -> None:
    """Three requests are never more than three at a time, whatever --streams says: the fourth is somebody else's."""
    monkeypatch.setattr("pytest_sglang.server.http.ControlPlane.running_requests", lambda plane: running)
    monkeypatch.setattr("pytest_sglang.session.measure.FOREIGN_POLL_S", 0.05)
    with truth_server(Script(ttft_s=0.3, itl_s=0.02)) as truth:
        ended, found = as_json(capsys, truth.url, "--tokens=20", "--requests=3", "--streams=64")
    assert ended == code
    assert bool(found["inconclusive"]) is (code == 6)


def test_a_clock_that_was_set_makes_it_inconclusive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(stamps, "clock_offset_ns", lambda: round((time.monotonic() - began) * 1e8))
    with truth_server(Script(**FAST)) as truth:
        code, found = as_json(capsys, truth.url, "--tokens=20", "--requests=3")
    assert code == 6
    assert found["inconclusive"][0].startswith("the machine's clock was set by +")


def test_what_a_foreign_server_does_not_tell_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with truth_server(Script(**FAST, sglang=False, models=(), usage="final")) as truth:
        code, out, _ = run(capsys, f"{truth.url}/v1/", "--tokens=10", "--api=chat", "--model=any")
        assert truth.served[0].body["model"] == "any"
    assert code == 0
    assert [line.split("  ")[-1].split("(")[0].strip() for line in out.splitlines() if line.startswith("not known")] == [
        "the served models",
        "prompt lengths before they are sent",
        "the server's own token counter",
        "whether others use the server meanwhile",
        "the token count at each event",
    ]
    assert "64 (estimated) + 10 tokens" in out


def test_prompts_are_unique_or_the_same_or_random_ids(capsys: pytest.CaptureFixture[str]) -> None:
    bodies: dict[str, list[Any]] = {}
    with truth_server(Script(**FAST)) as truth:
        for kind in ("unique", "cached", "random-ids"):
            before = len(truth.served) + 1
            assert run(capsys, truth.url, "--tokens=3", "--requests=4", "--prompt-tokens=12", f"--prompts={kind}")[0] == 0
            bodies[kind] = [each.body["prompt"] for each in truth.served[before:]]
    assert len({each[:8] for each in bodies["unique"]}) == 4
    assert len(set(bodies["cached"])) == 1
    assert {(len(each), type(each[0])) for each in bodies["random-ids"]} == {(12, int)}
    assert len({tuple(each) for each in bodies["random-ids"]}) == 4


def test_tls_is_checked_unless_told_not_to_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with truth_server(Script(**FAST), tls_context(tmp_path)) as truth:
        code, _, err = run(capsys, truth.url)
        assert (code, "certificate" in err.lower()) == (4, True)
        code, found = as_json(capsys, truth.url, "--tokens=20", "--insecure")
    assert code == 0
    assert found["stamps"] == "user"
    assert found["client_lag_ms"] > 0
    assert found["decode_tok_s"]["n"] == 8


def test_without_a_url_and_a_rig_file_it_asks_for_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys)
    assert (code, len(err.splitlines())) == (4, 1)
    assert "which server? write e.g. pytest-sglang measure http://127.0.0.1:30000" in err


def test_a_rig_files_server_is_measured_with_its_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIG_KEY", "geheim")
    with truth_server(Script(**FAST, key="geheim")) as truth:
        rig = f'schema = 1\n[rig]\nname = "r"\n[server]\nurl = "{truth.url}"\nmodel = "m"\napi_key_env = "RIG_KEY"\n'
        (tmp_path / "rig.toml").write_text(rig)
        code, found = as_json(capsys, "--tokens=5")
    assert code == 0
    assert found["workload"]["url"] == truth.url


def test_ctrl_c_prints_what_was_measured_and_exits_2() -> None:
    with truth_server(Script(ttft_s=0.01, itl_s=0.02)) as truth:
        process = started(truth, "--tokens=20", "--requests=50")
        wait_for(lambda: len(truth.served) >= 5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert re.search(r"interrupted after [34] of 50 requests", out), out + err
    assert re.search(r"decode +\d", out)
    assert "Traceback" not in err


def test_ctrl_c_before_anything_ended_says_so() -> None:
    with truth_server(Script(ttft_s=20.0)) as truth:
        process = started(truth, "--tokens=20")
        wait_for(lambda: len(truth.served) == 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "interrupted after 0 of 8 requests" in out
    assert "Traceback" not in err


def test_on_a_terminal_one_line_moves_and_makes_room() -> None:
    ours, theirs = pty.openpty()
    with truth_server(Script(ttft_s=0.3, itl_s=0.01)) as truth:
        process = started(truth, "--tokens=20", "--requests=3", stderr=theirs)
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:
                break
        out, _ = process.communicate(timeout=20)
    os.close(ours)
    moved = shown.decode().split("\r\x1b[2K")
    assert len(moved) > 3
    assert re.fullmatch(r"\d of 3 requests, \d+ tokens(, [\d.]+ tok/s)?", moved[1])
    assert moved[-1] == ""
    assert out.startswith("m at ")


def started(truth: Truth, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, truth.url, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True)


def wait_for(condition: Any, limit_s: float = 30.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
