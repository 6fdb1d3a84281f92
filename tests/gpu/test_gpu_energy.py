"""The energy window and its sampler: a real process, a stand-in card, and every way in which it can end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from nvml_fakes import FakeNvml, card_3090

from pytest_sglang.gpu import energy, sampler
from pytest_sglang.gpu.energy import EnergyWindow
from pytest_sglang.gpu.nvml import Missing, Nvml
from pytest_sglang.gpu.samples import SampleFile
from pytest_sglang.record.values import Energy


def cards():
    return Nvml.open(FakeNvml([card_3090(0), card_3090(1)])).cards()


def clockwork(words: str = "") -> dict[str, str]:
    return {"nvml": "nvml_fakes:open_clockwork", "argument": words}


ONE, TWO = (card.uuid for card in cards())


def test_window_tells_joules_watts_temperature_reasons_and_series(tmp_path):
    path = tmp_path / "deep" / "watts.jsonl"
    with EnergyWindow(cards(), clockwork(), path=path) as window:
        pid = window.pid
        with window.window() as part:
            time.sleep(1.3)
    assert not psutil.pid_exists(pid)
    assert set(window.energies) == {ONE, TWO}
    for each in (*window.energies.values(), *part.energies.values()):
        assert each.invalid_because is None
        assert each.source == "energy counter"
        assert each.mean_w == pytest.approx(300, rel=0.12)
        assert abs(each.mean_w - 300) * 1.3 <= each.error_j * 1.2
    assert part.joules == pytest.approx(2 * 300 * (part.end_s - part.begin_s), rel=0.12)
    assert part.mean_w == pytest.approx(600, rel=0.12)
    assert part.invalid_because is None
    assert window.between(part.begin_s, part.end_s)[ONE] == part.energies[ONE]
    assert window.reason_shares(part.begin_s, part.end_s)[TWO]["sw_power_cap"] == 1.0
    assert window.temperature_at(part.begin_s) == 41
    assert window.temperature_at(part.begin_s, [ONE]) == 40
    assert window.temperature_at(part.begin_s + 1000) is None
    assert window.average_w(part.begin_s, part.end_s)[ONE] == pytest.approx(300)
    assert {each.sm_mhz for each in window.slow(part.begin_s, part.end_s)[ONE]} == {210}
    shown = window.series({ONE: {"label": "GPU 0", "limit_w": 250.0}}, [(part.begin_s, part.end_s, "round 0")])
    assert 0 <= shown["t"][0] < 0.3
    assert shown["gpus"][ONE]["label"] == "GPU 0"
    assert {each for each in shown["gpus"][TWO]["w"] if each is not None} == {300.0}
    assert shown["windows"][0][2] == "round 0"
    assert window.series(zero_s=window.begin_s - 100)["t"][0] > 99
    assert window.lost == {}
    assert path.exists()
    assert not path.with_suffix(".err").exists()
    rate = len([line for line in path.read_text().splitlines() if line.startswith('["f"')]) / (window.end_s - window.begin_s)
    assert 5 < rate < 30


def test_temporary_samples_are_gone_afterwards_and_results_stay():
    with EnergyWindow(cards(), clockwork("plain"), fast_hz=40) as window:
        folder = window._folder
        assert folder.exists()
        time.sleep(1.1)
    assert not folder.exists()
    assert window.energies[ONE].source == "instant power"
    assert window.energies[ONE].mean_w == pytest.approx(300)
    assert window.missing[ONE] == {"energy_j": "Not Supported"}


def test_card_lost_in_the_middle_makes_its_energy_invalid_and_is_told():
    with EnergyWindow(cards(), clockwork("lost")) as window:
        time.sleep(2.0)
    assert window.energies[TWO].invalid_because.startswith("GPU count changed")
    assert window.energies[ONE].invalid_because is None
    assert window.joules is None
    assert window.mean_w is None
    assert window.invalid_because.startswith(f"{TWO}: GPU count changed")
    assert "GPU 1" in window.lost[TWO]


@pytest.mark.parametrize(
    ("context", "why"),
    [
        (clockwork("nodriver"), "kernel driver is not loaded"),
        ({"nvml": "no_such_module:open", "argument": ""}, "No module named 'no_such_module'"),
    ],
)
def test_sampler_that_cannot_begin_makes_every_energy_invalid_with_the_reason(context, why):
    with EnergyWindow(cards(), context) as window:
        pass
    assert set(window.energies) == {ONE, TWO}
    assert window.energies[ONE].joules is None
    assert why in window.energies[ONE].invalid_because
    assert window.temperature_at(time.time()) is None
    assert window.series()["gpus"] == {}


def test_sampler_without_the_asked_cards_says_so():
    strangers = Nvml.open(FakeNvml([card_3090(5)])).cards()
    with EnergyWindow(strangers, clockwork()) as window:
        pass
    assert "none of the asked GPUs is here" in window.energies[strangers[0].uuid].invalid_because


def test_sampler_that_ends_early_leaves_a_gap_and_the_run_alive(tmp_path):
    with EnergyWindow(cards(), clockwork("dies"), path=tmp_path / "w.jsonl") as window:
        time.sleep(1.1)
    assert window.energies[ONE].invalid_because.startswith("sampling gap")
    assert window.failure == "the power sampler ended: exit code 7"


def test_a_card_that_the_sampler_does_not_see_has_a_reason():
    more = [*cards(), *Nvml.open(FakeNvml([card_3090(7)])).cards()]
    with EnergyWindow(more, clockwork()) as window:
        pass
    assert window.energies[more[2].uuid].invalid_because == "sampling gap: the sampler does not see this card"


def test_sampler_survives_ctrl_c_and_ends_with_its_run(tmp_path):
    asked = {"path": str(tmp_path / "w.jsonl"), "opener": "nvml_fakes:open_clockwork", "argument": "", "uuids": None}
    asked |= {"fast_hz": 20, "slow_hz": 2}
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'pytest_sglang.gpu.sampler', sys.argv[1]], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(asked)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    try:
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 30
        while not (tmp_path / "w.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.2)
        assert child.is_running()
        parent.kill()
        parent.wait()
        child.wait(20)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert not child.is_running()


def test_a_stuck_sampler_is_killed(monkeypatch):
    with EnergyWindow(cards(), clockwork()) as window:
        process = window._process
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(energy, "WAIT_S", 0.1)
        real, waits = process.wait, []

        def wait(timeout=None):
            waits.append(timeout)
            if timeout is not None:
                raise subprocess.TimeoutExpired("sampler", timeout)
            return real()

        monkeypatch.setattr(process, "wait", wait)
    assert process.returncode == -signal.SIGKILL
    assert waits == [5.0, None]


def test_leaving_by_an_error_waits_for_nothing(monkeypatch):
    def leave() -> None:
        with EnergyWindow(cards(), clockwork()) as window:
            windows.append(window)
            raise KeyboardInterrupt

    windows: list[EnergyWindow] = []
    with pytest.raises(KeyboardInterrupt):
        leave()
    assert windows[0].pid is None
    assert windows[0].energies[ONE].invalid_because.startswith("window too short")


def test_an_interrupted_start_leaves_no_process(monkeypatch):
    started = []

    def interrupted(self):
        started.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(SampleFile, "update", interrupted)
    window = EnergyWindow(cards(), clockwork())
    here = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        window.__enter__()
    assert started
    assert set(psutil.Process().children()) == here


def test_sum_of_windows_is_none_without_cards():
    window = energy.Window(0.0)
    assert window.joules is None
    window.energies = {"a": Energy(gpu="a", joules=5.0, mean_w=1.0, peak_w=None)}
    assert (window.joules, window.mean_w, window.invalid_because) == (5.0, 1.0, None)


# --- the sampler's own parts, in this process -------------------------------------------------------------------------------------


def test_lines_of_the_sampler_are_read_back_as_they_were_read(tmp_path):
    module = FakeNvml([card_3090(0), card_3090(1, fields={}, ClockInfo=Missing)])
    module.cards[1]["TotalEnergyConsumption"] = 77_000
    out = io.StringIO()
    writing = sampler.Sampler(Nvml.open(module).cards(), out)
    writing.head(20, 2)
    writing.fast()
    writing.slow(0)
    module.cards[1]["lost"] = 15
    writing.fast()
    writing.fast()
    writing.slow(0)
    writing.slow(1)
    path = tmp_path / "samples.jsonl"
    reading = SampleFile(path)
    reading.update()
    assert reading.uuids == ()
    text = out.getvalue()
    path.write_text(text[: len(text) // 2])
    reading.update()
    path.write_text(text + "no json\n[]\n")
    reading.update()
    assert [len(reading.fast[uuid]) for uuid in (ONE, TWO)] == [3, 1]
    assert reading.fast[ONE][0][1:] == (25.0, 26.0, 1000.0)
    assert reading.fast[TWO][0][1:] == (25.0, None, 77.0)
    assert reading.slow[ONE][0][1:] == (40, 210, 405, 1, 1, 16)
    assert reading.missing[TWO] == {"power_instant_w": "Not Supported"}
    assert "GPU 1" in reading.lost[TWO][1]


def test_a_card_lost_at_a_slow_reading_is_told(tmp_path):
    module = FakeNvml([card_3090(0)])
    out = io.StringIO()
    writing = sampler.Sampler(Nvml.open(module).cards(), out)
    module.cards[0]["lost"] = 15
    writing.slow(0)
    assert json.loads(out.getvalue())[:2] == ["x", 0]


def test_sampler_opens_what_it_is_told_to():
    assert sampler.open_module(None, None) is None
    assert isinstance(sampler.open_module("nvml_fakes:open_clockwork", ""), FakeNvml)
    assert isinstance(sampler.open_module("nvml_fakes:six_3090", None), FakeNvml)


def test_loop_ends_when_its_input_closes_or_its_parent_changes():
    class Counting(sampler.Sampler):
        ticks = 0

        def fast(self) -> None:
            self.ticks += 1
            if self.ticks == 3:
                os.close(write)

    read, write = os.pipe()
    counting = Counting(cards(), io.StringIO())
    sampler.loop(counting, 2, 200, 20, read, os.getppid())
    assert counting.ticks == 3
    os.close(read)
    read, write = os.pipe()
    os.write(write, b"ignored")
    orphan = Counting(cards(), io.StringIO())
    orphan.ticks = 10
    sampler.loop(orphan, 2, 200, 20, read, os.getppid() + 1)
    assert orphan.ticks == 11
    os.close(read)
    os.close(write)


def run_main(tmp_path, words, uuids=None):
    asked = {"path": str(tmp_path / "m.jsonl"), "opener": "nvml_fakes:open_clockwork", "argument": words, "uuids": uuids}
    return sampler.main([json.dumps({**asked, "fast_hz": 100, "slow_hz": 10})])


def test_main_gives_3_and_the_reason_where_nothing_can_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert run_main(tmp_path, "nodriver") == 3
    assert run_main(tmp_path, "", ["GPU-other"]) == 3
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line[0] for line in lines] == ["e", "e"]


def test_main_samples_until_its_input_closes(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert run_main(tmp_path, "") == 0
    kinds = [json.loads(line)[0] for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert kinds[:3] == ["h", "f", "s"]
