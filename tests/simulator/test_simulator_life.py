"""Starts and ends of the simulated server by real processes: warm, cold, faulty, killed; and the stand-in for systemctl."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated_rigs import FAST, ask, capture_s, last_start, shown, systemctl, up, wait

from pytest_sglang.simulator import procs
from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.startup import COLD_READY_S

Make = Callable[..., SimulatedRig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes rigs; ``filled=False`` without the thousand cache files, for tests that do not look at them."""
    rigs: list[SimulatedRig] = []

    def create(*faults: str, filled: bool = True, **options: Any) -> SimulatedRig:
        with pytest.MonkeyPatch.context() as patch:
            if not filled:
                patch.setattr(Caches, "fill", lambda _: None)
            return add(faults, options)

    def add(faults: tuple[str, ...], options: dict[str, Any]) -> SimulatedRig:
        rigs.append(SimulatedRig.create(tmp_path / f"rig{len(rigs)}", faults=faults, **({"speed": FAST} | options)))
        return rigs[-1]

    yield create
    for rig in rigs:
        rig.destroy()


def caches(rig: SimulatedRig) -> Caches:
    return Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)


def kernels(rig: SimulatedRig) -> list[tuple[str, str]]:
    """Name and key of every compiled kernel."""
    return [(each.name.removeprefix("__grp__"), each.parent.name) for each in rig.config.triton_dir.glob("*/__grp__*.json")]


# --- a life --------------------------------------------------------------------------------------------------------------------


def test_warm_then_killed(make: Make) -> None:
    rig = make()
    found = kernels(rig)
    begin = rig.clock.time()
    assert systemctl(rig, "start", "sglang.service").returncode == 0
    pid = rig.state()["main_pid"]
    assert procs.start_ticks(pid)
    up(rig)
    assert 76 < rig.clock.time() - begin < 84.5
    warm = last_start(rig)
    new = set(kernels(rig)) - set(found)
    assert "AUTOTUNE" not in warm
    assert 10 <= len(new) <= 30
    assert {name for name, _ in new} <= {name for name, _ in found}
    assert capture_s(warm) < COLD_READY_S / 3

    os.kill(pid, signal.SIGKILL)
    wait(lambda: rig.state()["active"] == "failed")
    state_now = rig.state()
    assert (state_now["result"], state_now["rate"], state_now["main_pid"]) == ("signal", 1.0, 0)
    assert all(card["load"] == card["memory_b"] == 0 for card in state_now["cards"])
    assert shown(rig, "ExecMainCode,ExecMainStatus") == {"ExecMainCode": "2", "ExecMainStatus": "9"}
    systemctl(rig, "stop", "sglang.service")
    assert rig.state()["active"] == "failed"
    systemctl(rig, "reset-failed", "sglang.service")
    assert rig.state()["active"] == "inactive"


def test_a_start_resumes_what_a_killed_one_had_compiled(make: Make) -> None:
    rig = make(filled=False)
    whole = caches(rig).missing()
    for kernel in whole[: len(whole) // 2]:
        caches(rig).compile(kernel)
    caches(rig).tuned(caches(rig).untuned()[:5])
    rig.start()
    wait(lambda: "Capture cuda graph end" in last_start(rig))
    assert 0.4 * 1240 < capture_s(last_start(rig)) < 0.65 * 1320
    assert last_start(rig).count("SingleProcess AUTOTUNE") == 20


# --- faults --------------------------------------------------------------------------------------------------------------------


def test_never_ready_hangs_silently_in_capture_while_rig_time_runs(make: Make) -> None:
    rig = make("never-ready", faults_at_once=True, speed=100.0, filled=False)
    rig.start()
    wait(lambda: "Capture cuda graph bs" in last_start(rig) and last_start(rig).endswith("?it/s]"))
    time.sleep(0.1)
    pid, size, begin, wall = rig.state()["main_pid"], rig.log.stat().st_size, rig.clock.time(), time.monotonic()
    files = sum(1 for _ in rig.config.home.rglob("*"))
    busy = os.times(), Path(f"/proc/{pid}/stat").read_text().split()[13:15]
    time.sleep(0.5)
    assert Path(f"/proc/{pid}/stat").read_text().split()[13:15] == busy[1]
    assert (rig.log.stat().st_size, sum(1 for _ in rig.config.home.rglob("*"))) == (size, files)
    assert rig.clock.time() - begin == pytest.approx(100 * (time.monotonic() - wall), rel=0.1)
    assert not rig.serving()
    rig.stop()
    assert (rig.clock.rate, rig.state()["active"]) == (1.0, "inactive")


def test_dies_loading_leaves_its_cause_and_a_failed_unit(make: Make) -> None:
    rig = make("dies-loading", faults_at_once=True, filled=False)
    rig.start()
    wait(lambda: rig.state()["active"] == "failed")
    log = last_start(rig)
    assert "TP1] Scheduler hit an exception: Traceback (most recent call last):\n" in log
    assert "\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate" in log
    assert log.index("OutOfMemoryError") < log.index("Received sigquit from a child process.")
    assert "Load weight end" not in log
    assert shown(rig, "Result,ExecMainCode,ExecMainStatus") == {"Result": "signal", "ExecMainCode": "2", "ExecMainStatus": "9"}
    assert rig.clock.rate == 1.0


def test_cache_cold_empties_both_trees_at_every_stop(make: Make) -> None:
    rig = make("cache-cold")
    assert caches(rig).missing() == []
    rig.start()
    wait(lambda: rig.state()["main_pid"])
    os.kill(rig.state()["main_pid"], signal.SIGTERM)
    wait(lambda: rig.state()["active"] == "inactive")
    assert (kernels(rig), len(caches(rig).untuned())) == ([], 10)


def test_cache_cold_at_once_starts_with_empty_trees(make: Make) -> None:
    assert len(caches(make("cache-cold", faults_at_once=True)).missing()) > 100


def test_wrong_model_early_stop_slow_decode_a_dead_bridge_and_a_drain(make: Make) -> None:
    rig = make("wrong-model", "early-stop", "slow-decode", "nvlink-dead", api_key="secret")
    rig.start()
    up(rig)
    assert ask(rig, "/v1/models")[0] == ask(rig, "/v1/models", key="wrong")[0] == 401
    assert json.loads(ask(rig, "/v1/models")[2]) == {"error": "Unauthorized"}
    assert json.loads(ask(rig, "/v1/models", key="secret")[2])["data"][0]["id"] == "/models/home-32b-gptq"
    body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 23, "ignore_eos": True}}
    made = json.loads(ask(rig, "/generate", body, key="secret")[2])["meta_info"]
    assert (made["completion_tokens"], made["finish_reason"]) == (20, {"type": "stop", "matched": 2})
    assert made["decode_throughput"] == pytest.approx(39.0 * 0.8, rel=0.035)
    assert "api_key='secret'" in last_start(rig)
    a_stop_lets_running_requests_finish(rig, body)


def a_stop_lets_running_requests_finish(rig: SimulatedRig, body: dict[str, Any]) -> None:
    """While one is running: health says 503, the request gets all its tokens, then the unit is inactive."""
    body["sampling_params"]["max_new_tokens"] = 33
    code = "import http.client, json, sys; c = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]));"
    code += "c.request('POST', '/generate', sys.argv[2], {'Authorization': 'Bearer secret'});"
    code += "print(json.load(c.getresponse())['meta_info']['completion_tokens'])"
    client = subprocess.Popen([sys.executable, "-c", code, str(rig.port), json.dumps(body)], stdout=subprocess.PIPE, text=True)
    wait(lambda: json.loads(ask(rig, "/v1/loads", key="secret")[2])["aggregate"]["total_running_reqs"] == 1)
    stopping = subprocess.Popen([*rig.systemctl, "stop", "sglang.service"])
    wait(lambda: rig.state()["active"] == "deactivating")
    wait(lambda: "SIGTERM received" in last_start(rig))
    assert ask(rig, "/health")[0] == 503
    assert client.communicate(timeout=20)[0] == "30\n"
    assert stopping.wait(20) == 0
    assert "Remaining number of requests 1" in rig.log.read_text()
    stopped = {"ActiveState": "inactive", "SubState": "dead", "MainPID": "0", "Result": "success"}
    assert shown(rig, ",".join(stopped)) == stopped
    assert shown(rig, "ExecMainCode,ExecMainStatus") == {"ExecMainCode": "1", "ExecMainStatus": "0"}
    assert systemctl(rig, "restart", "sglang.service").returncode == 0
    assert (rig.state()["starts"], rig.state()["active"]) == (2, "active")


# --- systemctl and the ends ----------------------------------------------------------------------------------------------------


def test_a_rig_whose_watcher_was_killed_with_its_server_is_still_consistent(make: Make) -> None:
    rig = make(filled=False)
    rig.start()
    raw = json.loads((rig.directory / "unit.json").read_text())
    wait(lambda: rig.clock.rate != 1.0)
    os.kill(raw["watcher_pid"], signal.SIGKILL)
    os.kill(raw["main_pid"], signal.SIGKILL)
    wait(lambda: rig.state()["active"] == "failed")
    assert rig.state()["rate"] == 1.0
    assert all(card["load"] == 0 for card in rig.state()["cards"])
    rig.start()
    assert rig.state()["active"] == "active"


def test_a_stopped_watcher_does_not_keep_the_unit_deactivating(make: Make) -> None:
    rig = make(filled=False)
    rig.start()
    os.kill(json.loads((rig.directory / "unit.json").read_text())["watcher_pid"], signal.SIGKILL)
    assert rig.state()["active"] == "active"
    rig.stop()
    assert rig.state()["active"] != "active"
    assert not procs.start_ticks(json.loads((rig.directory / "unit.json").read_text())["main_pid"])


def test_destroy_ends_every_process_and_removes_everything(make: Make) -> None:
    rig = make(filled=False)
    rig.start()
    raw = json.loads((rig.directory / "unit.json").read_text())
    rig.destroy()
    assert not rig.directory.exists()
    assert not procs.alive(raw["main_pid"], raw["main_ticks"])
    assert not procs.alive(raw["watcher_pid"], raw["watcher_ticks"])


def test_the_server_alone_in_the_foreground_ends_by_a_signal_and_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "alone"
    code = "import sys; from pathlib import Path; from pytest_sglang.simulator.cli import simulate;"
    code += f"sys.exit(simulate(0, [], Path({str(directory)!r}), speed={FAST}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        head = running.stdout.readline()
        wait(lambda: (directory / "unit.json").exists())
        raw = json.loads((directory / "unit.json").read_text())
        assert any("server_args=ServerArgs(" in line for line in running.stdout)
        running.send_signal(signal.SIGTERM)
        running.stdout.read()
        assert running.wait(20) == 0
    assert head.startswith("SIMULATED SGLang on http://127.0.0.1:")
    assert not directory.exists()
    assert not procs.alive(raw["main_pid"], raw["main_ticks"])


def test_the_server_alone_says_when_it_ended_by_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_sglang.simulator.cli import simulate

    monkeypatch.setattr(Caches, "fill", lambda _: None)
    assert simulate(0, ["dies-loading"], tmp_path / "alone", speed=FAST) == 1
    assert "torch.OutOfMemoryError" in (shown_text := capfd.readouterr().out)
    assert shown_text.endswith("SIMULATED SGLang ended by itself\n")
    assert not (tmp_path / "alone").exists()


def test_the_server_cannot_be_started_without_a_rig() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest_sglang.simulator.server"], capture_output=True, text=True, timeout=30, check=False
    )
    assert ran.returncode == 1
    assert "usage: python -m pytest_sglang.simulator.server --rig DIR" in ran.stderr
