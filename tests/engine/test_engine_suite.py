"""The acceptance suite and the fixtures against a real SGLang on the CPU: one server that the run starts, measures, restarts and ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
from engine_servers import Server

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / ".engine"
HERE = Path(__file__).resolve().parent
COMPILED = ("--enable-torch-compile", "--torch-compile-max-bs", "4")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rig_file(
    folder: Path,
    *,
    minimum: str = "1 tok/s",
    model: str | None = None,
    flags: tuple[str, ...] = (),
    env: str = "",
    standing: Server | None = None,
) -> Path:
    """A rig file without hardware: the suite can be green on the CPU engine. ``standing``: a server that runs, watched only."""
    port = free_port() if standing is None else standing.port
    command = json.dumps(["bash", str(HERE / "engine" / "serve.sh"), str(ENGINE), str(port), *flags])
    home = json.dumps(str(folder / "home"))
    way = f"command = {command}\nenv = {{ HOME = {home}{env} }}" if standing is None else f"log = {json.dumps(str(standing.log))}"
    path = folder / "rig.toml"
    path.write_text(
        f"""
schema = 1
[rig]
name = "cpu engine"
[server]
url = "http://127.0.0.1:{port}"
model = {json.dumps(model or str(ENGINE / "model"))}
tp = 1
{way}
[start]
cold = "5 min"
warm = "3 min"
silence = "2 min"
max_new_kernels = 0
max_autotune_runs = 0
first_request_ratio = 40
[start.phases]
weights = "1 min"
capture_decode = "4 min"
warmup = "1 min"
[[throughput]]
streams = 1
quantity = "decode"
min = "{minimum}"
[answers]
[workload]
prompt_tokens = 32
output_tokens = 128
rounds = 4
max_rounds = 12
warmups = 1
"""
    )
    (folder / "home").mkdir()
    return path


def run_suite(
    folder: Path, rig: Path, *arguments: str, suite: Path = ROOT / "acceptance"
) -> tuple[subprocess.CompletedProcess[str], dict]:
    environment = {**os.environ, "PYTEST_SGLANG_STATE_DIR": str(folder / "state"), "COLUMNS": "100"}
    command = [sys.executable, "-m", "pytest", str(suite), f"--rig={rig}", f"--sglang-report-dir={folder / 'reports'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    runs = list((folder / "reports").glob("*/run.json"))
    return done, json.loads(runs[0].read_text()) if runs else {}


def left_over(port_text: str) -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if port_text in (each.info["cmdline"] or []) and each.status() != psutil.STATUS_ZOMBIE
    ]


def test_the_suite_is_green_on_a_real_sglang_with_torch_compile(engine: Path, tmp_path: Path) -> None:
    """Cold first start, measurement, warm restart: about 3 minutes."""
    rig = rig_file(tmp_path, flags=COMPILED, env=', SGLANG_CPU_COMPILE_FIX = "1"')
    done, run = run_suite(tmp_path, rig, "--sglang-allow-restart")
    text = (done.stdout + done.stderr)[-6000:]
    verdicts = {check["id"]: check["verdict"] for check in run.get("checks", [])}
    ids = ("server-identity", "ready", "findings", "decode-throughput", "warm-restart", "cold-start", "answers")
    assert verdicts == dict.fromkeys(ids, "pass"), text
    assert done.returncode == 0
    assert "PASS 7 of 7" in done.stdout
    assert run["simulated"] is False
    checks = {check["id"]: check["measured"] for check in run["checks"]}
    assert checks["decode-throughput"]["failed_requests"]["value"] == 0
    assert 1 < checks["decode-throughput"]["decode_tok_s"]["value"] < 2000
    assert checks["cold-start"]["start_kind"]["value"] == "cold"
    assert checks["cold-start"]["new_kernels"]["value"] > 10
    assert checks["warm-restart"]["start_kind"]["value"] == "warm"
    assert checks["warm-restart"]["new_kernels"]["value"] == 0
    # kernels compiled anew and kernels from the caches give the same answers
    assert [(each["after"], each["why"]) for each in run["answers"]] == [("first start", ""), ("warm restart", "")]
    assert checks["answers"]["clear_divergences"]["value"] == 0
    assert len(run["startups"]) == 2
    for start in (each["startup"] for each in run["startups"]):
        found = [phase["id"] for phase in start["phases"]]
        assert found[0] == "launch"
        assert {"arguments", "distributed", "weights", "kv_cache", "capture_decode", "port_open", "warmup", "ready"} <= set(found)
        assert 5 < start["ready_s"] < 180
        assert start["capture_s"] > 5
        # the start's own first request beside later ones of the same size
        assert start["request_tokens"] == 16
        assert start["first_request_ratio"] == start["first_request_s"] / start["steady_request_s"] > 0
    # the log's stamps are whole seconds: a short phase may have none
    assert all(checks["warm-restart"][name]["value"] >= 0 for name in ("phase_weights_s", "phase_warmup_s"))
    assert checks["warm-restart"]["phase_capture_decode_s"]["value"] > 0
    assert checks["warm-restart"]["first_request_ratio"]["value"] > 0
    assert run["environment"]["server"]["version"] == "0.5.23"
    assert run["environment"]["server"]["packages"]["torch"].startswith("2.13")
    port = run["environment"]["server"]["url"].rsplit(":", 1)[1]
    assert not left_over(port)
    rows = [json.loads(line) for line in next((tmp_path / "reports").glob("*/rounds.jsonl")).read_text().splitlines()]
    assert rows
    assert all(row["tokens"] == 128 and row["failure"] is None for row in rows)


def test_another_model_than_the_promised_one_is_told_and_nothing_is_measured(plain_server: Server, tmp_path: Path) -> None:
    rig = rig_file(tmp_path, model="/models/something-else", standing=plain_server)
    done, run = run_suite(tmp_path, rig)
    verdicts = {check["id"]: (check["verdict"], check["inconclusive_because"]) for check in run["checks"]}
    assert verdicts["server-identity"] == ("fail", None), done.stdout[-4000:]
    assert verdicts["decode-throughput"] == ("inconclusive", "server-identity")
    assert not list((tmp_path / "reports").glob("*/rounds.jsonl"))


def test_a_start_that_crashes_is_told_with_its_true_cause(engine: Path, tmp_path: Path) -> None:
    rig = rig_file(tmp_path, flags=COMPILED)
    done, run = run_suite(tmp_path, rig)
    check = next(check for check in run["checks"] if check["id"] == "server-identity")
    assert check["verdict"] == "fail", done.stdout[-4000:]
    cause = "AttributeError: 'TorchNativeAttnBackend' object has no attribute 'init_cpu_graph_state'"
    assert check["cause"] == cause
    # SGLang kills its own tree: -9 is no sign of want of memory
    assert check["message"].startswith("died in phase capture_decode after")
    assert "(exit code -9)" in check["message"]
    assert "first traceback:" in done.stdout
    assert "run_scheduler_process" in done.stdout
    assert done.returncode == 1


def test_a_users_own_suite_on_a_real_sglang(plain_server: Server, tmp_path: Path) -> None:
    suite = tmp_path / "mine"
    suite.mkdir()
    (suite / "test_mine.py").write_text(
        """
import pytest


@pytest.mark.min_throughput("1 tok/s")
def test_fast_enough(sglang_server):
    result = sglang_server.measure(streams=1, output_tokens=64)
    assert result.failed == 0

@pytest.mark.min_throughput("90000 tok/s")
def test_too_much_promised(sglang_server):
    sglang_server.measure(streams=1, output_tokens=64)

@pytest.mark.min_throughput("1 tok/s")
def test_measured_nothing(sglang_server):
    assert sglang_server.model

@pytest.mark.ready_within("3 min", start="warm")
@pytest.mark.needs_restart
def test_restart(sglang_server):
    sglang_server.restart()
"""
    )
    done, run = run_suite(tmp_path, rig_file(tmp_path, standing=plain_server), suite=suite)
    verdicts = {check["id"]: check["verdict"] for check in run["checks"]}
    assert verdicts == {"fast-enough": "pass", "too-much-promised": "fail", "measured-nothing": "inconclusive"}, done.stdout[-5000:]
    assert done.returncode == 1
    assert run["not_checked"][0]["id"] == "restart"
