"""The doctor: its page and its JSON on the simulated rigs, with each fault of the hardware."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from pytest_sglang import cli
from pytest_sglang.session import doctor
from pytest_sglang.simulator.hardware import names
from pytest_sglang.simulator.rig import SimulatedRig

FAULTS = {
    "power-limit-lost": "GPU 2: enforces 350 W, asked 250 W",
    "nvlink-dead": "GPU 2-3: no NVLink link is up",
    "nvlink-partial": "GPU 2-3: only 3 of 4 NVLink links are up",
    "nvlink-crossed": "GPU 0 is linked to GPU 2",
    "nvlink-errors": "GPU 0 link 1:",
    "server-misplaced": "server: runs on GPUs 0, 1, 2, 4, promised 0, 1, 2, 3",
    "pcie-x4": "GPU 1: PCIe x4, promised x16",
    "pcie-gen1": "GPU 1: PCIe gen 1 under load, promised gen 4",
    "pcie-replays": "GPU 1:",
    "row-remap-pending": "GPU 1: a memory row waits for its remap",
    "xid-79": "GPU 2: promised, not found",
    "foreign-process": "(ollama, 1312 MiB) is not the server's",
}


GROW = ("nvlink-errors", "pcie-replays")
"""Faults that show themselves between two looks only."""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No pause between the two looks where nothing grows."""
    params = getattr(request.node, "callspec", None)
    if params is None or params.params.get("fault") not in GROW:
        monkeypatch.setattr(doctor, "BETWEEN_S", 0.0)


def page(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["doctor", "--rig=simulated", *arguments])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("name", names())
def test_the_page_of_every_rig_fits_80_columns_and_finds_nothing(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, text = page(capsys, f"--hardware={name}")
    assert code == 0, text
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].startswith("SIMULATED rig")
    assert text.splitlines()[-1] == "nothing looks wrong"


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_shown_and_fails(capsys: pytest.CaptureFixture[str], fault: str) -> None:
    code, text = page(capsys, f"--fault={fault}")
    found = " ".join(text.split())
    assert code == 1, text
    assert f"FAULT {FAULTS[fault]}" in found or FAULTS[fault] in found
    assert max(map(len, text.splitlines())) <= 80


def test_the_page_shows_what_holds_the_clocks_and_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = page(capsys)
    lines = text.splitlines()
    assert any("gen 4 x16" in line and "power limit" in line for line in lines)
    assert any("gen 1 x16" in line and "idle" in line for line in lines)
    assert "GPU0  X     NV4   NODE  NODE  NODE  NODE" in lines
    assert any("the server" in line for line in lines)


def test_memory_errors_of_the_past_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = page(capsys, "--fault=ecc-errors")
    assert code == 0
    assert "since the driver was loaded" in " ".join(text.split())


def test_what_is_not_supported_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = page(capsys, "--fault=not-supported")
    row = next(line for line in text.splitlines() if "n/s n/s" in line)
    assert row.split()[0] == "0"
    assert "n/s: this card, driver or container does not support it" in text


def test_the_json_has_every_reading_and_the_reason_of_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = page(capsys, "--json", "--fault=nvlink-partial")
    seen = json.loads(text)
    assert (code, seen["simulated"], seen["driver"], seen["rig"]) == (1, True, "580.159.04", "six-3090")
    first = seen["gpus"][0]
    assert (first["index"], first["name"], first["enforced_power_limit_w"]) == (0, "NVIDIA GeForce RTX 3090", 250.0)
    assert first["uuid"].startswith("GPU-")
    assert (first["ecc"], first["unreadable"]["ecc"]) == (None, "Not Supported")
    assert "ecc" in first["unsupported"]
    assert [(pair["gpus"], pair["links"]) for pair in seen["nvlink"]["pairs"]] == [([0, 1], 4), ([2, 3], 3), ([4, 5], 4)]
    assert seen["nvlink"]["matrix"][2][3] == "NV3"
    assert seen["nvlink"]["p2p"][0][1] == "OK"
    (finding,) = [each for each in seen["findings"] if each["severity"] == "fail"]
    assert (finding["kind"], finding["subject"]) == ("nvlink-partial", "GPU 2-3")
    assert {each["gpu"] for each in seen["processes"] if each["server"]} == {0, 1, 2, 3}


def test_a_lost_card_is_in_the_json_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    seen = json.loads(page(capsys, "--json", "--fault=xid-79")[1])
    assert [each["index"] for each in seen["gpus"]] == list(range(6))
    assert seen["gpus"][2]["lost"] == "does not answer the driver any more"
    assert any(each["kind"] == "xid" for each in seen["findings"])


def test_a_hidden_kernel_log_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = page(capsys, "--fault=kernel-log-hidden", "--json")
    assert code == 0
    assert json.loads(text)["kernel_log"]["readable"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rig=simulated", "--fault=driver-mismatch"], "reboot, or reload the module"),
        (["--rig=simulated", "--hardware=nine-h100"], "no simulated hardware 'nine-h100'"),
        (["--rig=simulated", "--hardware=one-3090", "--fault=nvlink-dead"], "no bridge between GPU 2 and GPU 3"),
        (["--rig=simulated", "--fault=nvlink-ded"], "did you mean nvlink-dead?"),
        (["--hardware=one-3090"], "add --rig=simulated"),
        (["--fault=nvlink-dead"], "add --rig=simulated"),
        (["--rig=nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert cli.main(["doctor", *arguments]) == 4
    assert says in " ".join(capsys.readouterr().err.split())


def test_without_a_driver_it_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from pytest_sglang.gpu import nvml
    from pytest_sglang.gpu.readings import NoDriver

    def none() -> None:
        raise NoDriver("the NVIDIA driver (libnvidia-ml.so.1)", "the library is not installed (install the NVIDIA driver)")

    monkeypatch.setattr(nvml, "_pynvml", none)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 4
    said = capsys.readouterr().err
    assert "install the NVIDIA driver" in said
    assert "pytest-sglang doctor --rig=simulated" in said


# --- a machine with a driver, and a rig file or none ---------------------------------------------------------------------------------

RIG = """\
schema = 1
[[gpus]]
index = 0
name = "NVIDIA H200"
[server]
url = "http://127.0.0.1:9"
gpus = [0]
tp = 1
{control}
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with two bridged cards and the tools of a simulated rig; its folder."""
    from pytest_sglang.gpu import nvml

    rig = SimulatedRig.create(tmp_path / "rig", hardware="two-3090")
    rig.pretend(os.getpid())
    monkeypatch.setattr(nvml, "_pynvml", rig.nvml)
    monkeypatch.setattr(doctor, "run_command", lambda command: rig.kernel_log(list(command)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_rig_file_nothing_is_promised_and_nothing_says_simulated(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "SIMULATED" not in text
    assert text.startswith("no rig file: nothing is promised")


@pytest.mark.parametrize("control", ["", 'container = "no-such-container"', 'systemd = "no-such-unit.service"'])
def test_a_rig_file_beside_it_is_judged_against(machine: Path, control: str, capsys: pytest.CaptureFixture[str]) -> None:
    (machine / "rig.toml").write_text(RIG.format(control=control))
    assert cli.main(["doctor", "--json"]) == 1
    seen = json.loads(capsys.readouterr().out)
    assert (seen["simulated"], seen["rig"]) == (False, "rig")
    assert ("gpu-name", "GPU 0") in [(each["kind"], each["subject"]) for each in seen["findings"]]


def test_the_process_behind_a_url_is_the_server(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert cli.main(["doctor", "--json", f"--url=http://127.0.0.1:{listening.getsockname()[1]}"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert {each["gpu"]: each["server"] for each in seen["processes"] if each["kind"] == "compute"} == {0: True, 1: True}
    assert [each["name"] for each in seen["processes"] if each["kind"] == "graphics"] == ["Xorg"]
