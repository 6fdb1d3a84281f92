"""Power limits: the right to set them, their range, setting with read back."""

from __future__ import annotations

import sys

import pytest
from nvml_fakes import Err, FakeNvml, card_3090, six_3090

from pytest_sglang.gpu import power
from pytest_sglang.gpu.nvml import Nvml, PowerError
from pytest_sglang.gpu.power import PowerControl, run_command

UUID = "GPU-00000000-3090"


class Commands:
    """Answers commands, keeps them."""

    def __init__(self, code=0, output="", act=None):
        self.code, self.output, self.act, self.seen = code, output, act, []

    def __call__(self, command):
        self.seen.append(list(command))
        if self.act is not None:
            self.act()
        return self.code, self.output


def control(module=None, run=None, direct=None):
    nvml = Nvml.open(module or six_3090())
    return PowerControl(nvml, nvml.cards(), run, direct=direct)


def test_limits_by_uuid():
    limits = control().limits()
    assert len(limits) == 6
    assert limits[UUID].enforced_w == 250


def test_stand_in_and_root_may_set_and_nothing_is_run():
    run = Commands()
    assert control(run=run, direct=True).may_set() is None
    assert control().may_set() is None
    assert run.seen == []


def test_root_is_told_by_the_effective_user(monkeypatch):
    monkeypatch.setattr(power.os, "geteuid", lambda: 0)
    assert control(run=Commands(1)).may_set() is None
    monkeypatch.setattr(power.os, "geteuid", lambda: 1000)
    assert control(run=Commands(1)).may_set() is not None
    assert control(run=None, direct=False).may_set() == "setting a power limit needs root"


@pytest.mark.parametrize(
    "line",
    [
        "    (ALL : ALL) NOPASSWD: ALL",
        "    (root) NOPASSWD: /usr/bin/systemctl, /usr/bin/nvidia-smi",
        "    (root) NOPASSWD: /usr/bin/nvidia-smi -i * -pl *",
    ],
)
def test_sudo_without_a_password_is_a_right_proved_by_asking_only(line):
    run = Commands(0, f"User ci may run the following commands on rig:\n{line}")
    assert control(run=run, direct=False).may_set() is None
    assert run.seen == [["sudo", "-n", "-l"]]


@pytest.mark.parametrize(
    ("code", "listing"),
    [
        (1, "sudo: a password is required"),
        (0, "    (ALL : ALL) ALL"),
        (0, "    (root) NOPASSWD: /usr/bin/systemctl"),
        (0, "    (root) NOPASSWD: /usr/bin/systemctl, PASSWD: /usr/bin/nvidia-smi"),
        (0, "    (root) NOPASSWD: /opt/not-nvidia-smi-at-all"),
        (0, "    (root) NOPASSWD: /usr/bin/nvidia-smi-wrapper"),
    ],
)
def test_anything_else_is_no_right_and_the_line_that_grants_it_is_named(code, listing, monkeypatch):
    monkeypatch.setenv("USER", "ci")
    why = control(run=Commands(code, listing), direct=False).may_set()
    assert "without a password" in why
    assert "ci ALL=(root) NOPASSWD: /usr/bin/nvidia-smi" in why


def test_no_sudo_is_said():
    assert "sudo is not installed" in control(run=Commands(127, "sudo: not found"), direct=False).may_set()


def test_range_names_every_card_with_its_own():
    module = six_3090()
    module.cards[5]["PowerManagementLimitConstraints"] = [100000, 350000]
    assert control(module).check_range(350) == []
    problems = control(module).check_range(390)
    assert problems == ["GPU 5 (NVIDIA GeForce RTX 3090) takes 100-350 W, not 390 W"]
    assert len(control(module).check_range(500)) == 6


def test_set_by_the_driver_and_read_back():
    module = six_3090()
    control(module).set(UUID, 300)
    assert control(module).limits()[UUID].enforced_w == 300


def test_set_by_sudo_names_the_card_by_uuid():
    module = six_3090()

    def act():
        module.cards[0].update(PowerManagementLimit=300000, EnforcedPowerLimit=300000)

    run = Commands(act=act)
    control(module, run, direct=False).set(UUID, 300)
    assert run.seen == [["sudo", "-n", "nvidia-smi", "-i", UUID, "-pl", "300"]]


def test_refusals_are_told_with_the_card(monkeypatch):
    monkeypatch.setattr(power, "SETTLE_S", 0.1)
    with pytest.raises(PowerError, match="takes 100-390 W, not 500 W"):
        control().set(UUID, 500)
    with pytest.raises(PowerError, match="no card GPU-x here"):
        control().set("GPU-x", 300)
    with pytest.raises(PowerError, match="a password is required") as refused:
        control(run=Commands(1, "sudo: a password is required"), direct=False).set(UUID, 300)
    assert refused.value.permission
    with pytest.raises(PowerError, match="exit code 9") as refused:
        control(run=Commands(9), direct=False).set(UUID, 300)
    assert not refused.value.permission
    with pytest.raises(PowerError, match="needs root") as refused:
        control(direct=False).set(UUID, 300)
    assert refused.value.permission


def test_clamped_or_lost_limit_is_found_by_reading_back(monkeypatch):
    monkeypatch.setattr(power, "SETTLE_S", 0.1)
    with pytest.raises(PowerError, match=r"asked 300 W, read back requested 300.0 W and enforced 280.0 W"):
        control(FakeNvml([card_3090(0, clamp=280000)])).set(UUID, 300)
    with pytest.raises(PowerError, match=r"read back requested 250.0 W"):
        control(run=Commands(), direct=False).set(UUID, 300)


def test_limit_that_is_enforced_a_little_later_is_waited_for():
    late = iter([250000, 250000, 300000])
    module = FakeNvml([card_3090(0)])
    real = module.nvmlDeviceSetPowerManagementLimit

    def set_late(handle, milliwatts):
        real(handle, milliwatts)
        module.cards[0]["EnforcedPowerLimit"] = lambda: next(late)

    module.nvmlDeviceSetPowerManagementLimit = set_late
    control(module).set(UUID, 300)
    assert next(late, None) is None


def test_limit_that_cannot_be_read_back_is_no_success():
    with pytest.raises(PowerError, match="the enforced power limit cannot be read back"):
        control(FakeNvml([card_3090(0, clamp=Err(3))])).set(UUID, 300)


def test_commands_end_with_code_and_output():
    assert run_command([sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"]) == (
        3,
        "out\nerr",
    )
    assert run_command(["/no/such/program"]) == (127, "/no/such/program: not found")


def test_command_that_does_not_end_is_given_up(monkeypatch):
    def never(command, **options):
        raise power.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(power.subprocess, "run", never)
    assert run_command(["sudo"]) == (124, "sudo did not end within 30 s")
