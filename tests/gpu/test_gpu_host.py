"""Processes on the cards, and the driver's messages in the kernel log."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvml_fakes import Err, FakeNvml, card_3090, six_3090

from pytest_sglang.gpu import host, processes
from pytest_sglang.gpu.nvml import Missing, Nvml


def process(pid, used=2**30):
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def rig(**by_card):
    module = six_3090()
    for name, answers in by_card.items():
        module.cards[int(name[1:])].update(answers)
    return Nvml.open(module).cards()


def test_server_processes_name_their_cards():
    cards = rig(c0={"ComputeRunningProcesses": [process(10)]}, c3={"ComputeRunningProcesses": [process(11), process(99)]})
    assert [card.index for card in processes.gpus_of(cards, {10, 11, 12})] == [0, 3]


def test_hidden_processes_are_missing_and_not_no_gpus():
    assert processes.gpus_of(rig(), {10}) == Missing(processes.HIDDEN)
    cards = Nvml.open(FakeNvml([card_3090(0, ComputeRunningProcesses=Err(4))])).cards()
    assert processes.gpus_of(cards, {10}).permission


def test_foreign_processes_are_named_and_a_display_server_is_information():
    me = os.getpid()
    cards = rig(
        c1={"ComputeRunningProcesses": [process(10), process(me)]},
        c2={"GraphicsRunningProcesses": [process(2**22 + 5, None)]},
        c4={"ComputeRunningProcesses": Err(3)},
    )
    strangers = processes.foreign(cards, {10})
    assert [(each.index, each.pid, each.kind) for each in strangers] == [(1, me, "compute"), (2, 2**22 + 5, "graphics")]
    assert strangers[0].name == Path("/proc/self/comm").read_text().strip()
    assert strangers[1].name == "unknown"


def test_a_process_of_another_namespace_is_named_by_the_driver():
    class Naming(FakeNvml):
        def nvmlSystemGetProcessName(self, pid):  # noqa: N802
            return b"/usr/local/bin/ollama"

    card = Nvml.open(Naming([card_3090(0)])).cards()[0]
    assert card.process_name(2**22 + 5) == "ollama"


# --- Xid ------------------------------------------------------------------------------------------------------------------------

JOURNAL = """\
1795470000.100000 rig kernel: Linux version 6.1.0
1795470918.281828 rig kernel: NVRM: Xid (PCI:0000:41:00): 79, pid=1234, name=python3, GPU has fallen off the bus.
1795470918.300000 rig kernel: NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.
1795470919.000001 rig kernel: NVRM: Xid (PCI:0000:01:00): 31, pid=77, name=python3, MMU Fault
1795470920.000001 rig kernel: NVRM: Xid (PCI:0000:01:00): 999, hello
1795470920.500000 rig kernel: usb 1-1: new device
"""


class Log:
    """Answers journalctl and dmesg."""

    def __init__(self, journal=(0, JOURNAL), dmesg=(1, "dmesg: read kernel buffer failed: Operation not permitted"), first=None):
        self.journal, self.dmesg, self.first, self.seen = journal, dmesg, first, []

    def __call__(self, command):
        self.seen.append(command)
        if command[0] == "dmesg":
            return self.dmesg
        if "-n" in command and self.first is not None:
            return self.first
        return self.journal


def test_xids_of_the_journal_since_the_run_began():
    log = Log()
    found = host.xids_since(1795470918.0, log)
    assert [(each.code, each.pci) for each in found] == [
        (79, "0000:41:00.0"),
        (79, "0000:41:00.0"),
        (31, "0000:01:00.0"),
        (999, "0000:01:00.0"),
    ]
    assert found[0].at_s == pytest.approx(1795470918.28, abs=0.01)
    assert "@1795470918" in log.seen[1]
    assert [each.code for each in host.xids_since(1795470919.5, log)] == [999]


def test_findings_of_xids_are_grouped_with_their_meaning():
    told = host.findings(host.xids_since(1795470918.0, Log()), {"0000:41:00.0": "GPU 2"})
    assert [(each.subject, each.severity) for each in told] == [
        ("GPU 2", "fail"),
        ("0000:01:00.0", "warn"),
        ("0000:01:00.0", "warn"),
    ]
    # the driver writes the loss of a card twice, as an Xid and in words
    assert told[0].detail.startswith("Xid 79: ")
    assert "power supply" in told[0].remedy


def test_other_messages_of_the_driver_are_told_with_their_weight():
    said = """\
1795470918.1 rig kernel: NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.159.04
1795470918.2 rig kernel: NVRM: GPU 0000:41:00.0: RmInitAdapter failed! (0x26:0x65:1477)
1795470918.3 rig kernel: NVRM: API mismatch: the client has the version 580.159.04, but this kernel module has 575.57.08
1795470918.4 rig kernel: NVRM: something that nobody knows
"""
    found = host.messages_since(0, Log(journal=(0, said)))
    assert host.xids_since(0, Log(journal=(0, said))) == ()
    told = host.findings(found, {"0000:41:00.0": "GPU 2"})
    assert [(each.subject, each.severity) for each in told] == [
        ("driver", "info"),
        ("GPU 2", "fail"),
        ("driver", "fail"),
        ("driver", "warn"),
    ]
    assert "reboot, or reload the module" in told[2].remedy


def test_what_the_kernel_says_of_a_card_that_is_not_promised_is_a_warning():
    found = host.messages_since(0, Log())
    severities = {each.subject: each.severity for each in host.findings(found, {"0000:01:00.0": "GPU 0"}, only=True)}
    assert severities["0000:41:00.0"] == "warn"
    assert {each.subject: each.severity for each in host.findings(found, {})}["0000:41:00.0"] == "fail"


def test_an_empty_journal_for_want_of_a_right_is_not_a_clean_log():
    found = host.xids_since(0, Log(journal=(0, "")))
    assert found == Missing(f"dmesg: read kernel buffer failed: Operation not permitted; {host.GRANT}", permission=True)


def test_dmesg_stands_in_for_the_journal():
    iso = "2026-11-24T01:54:42,123456+00:00 NVRM: Xid (PCI:0000:41:00): 48, DBE\nbroken NVRM: Xid (PCI:0000:41:00): 62, halt"
    found = host.xids_since(1795000000.0, Log(journal=(127, "journalctl: not found"), dmesg=(0, iso)))
    assert [each.code for each in found] == [48, 62]
    assert found[0].at_s == pytest.approx(1795485282.12, abs=0.01)


def test_neither_journal_nor_dmesg_keeps_the_reason():
    found = host.xids_since(0, Log(journal=(127, "journalctl: not found"), dmesg=(127, "dmesg: not found")))
    assert found == Missing("journalctl: not found")
    assert host.xids_since(0, Log(journal=(1, ""), dmesg=(127, ""))) == Missing("journalctl: exit code 1")
    second = host.xids_since(0, Log(first=(0, JOURNAL), journal=(2, ""), dmesg=(127, "")))
    assert second == Missing("journalctl: exit code 2")


def test_kernel_release_is_that_of_uname():
    assert host.kernel_release() == os.uname().release
