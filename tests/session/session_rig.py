"""Stand-ins that two processes can share, their state in files: pynvml with one card, and systemctl with one unit."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

UUID = "GPU-11111111-2222-3333-4444-555555555555"


def make_card(path: Path, watts: float, **more: Any) -> dict[str, str]:
    """A card's state file; the context under which the journal names it."""
    path.write_text(json.dumps({"mw": round(watts * 1000), **more}))
    return {"nvml": "session_rig:open_nvml", "argument": str(path)}


def limit_w(path: Path) -> float:
    return float(json.loads(path.read_text())["mw"]) / 1000


class FakeError(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


def open_nvml(path: str) -> FakeNvml:
    return FakeNvml(Path(path))


class FakeNvml:
    """The calls of pynvml that a power limit needs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    def nvmlInit(self) -> None:  # noqa: N802
        if self._state().get("no_driver"):
            raise FakeError(9, "Driver Not Loaded")

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return "NVIDIA GeForce RTX 3090"

    def nvmlDeviceGetPciInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId="00000000:01:00.0")

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return UUID

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:  # noqa: N802
        if self._state().get("unreadable"):
            raise FakeError(3, "Not Supported")
        return int(self._state()["mw"])

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        return int(self._state()["mw"])

    def nvmlDeviceSetPowerManagementLimit(self, handle: int, milliwatts: int) -> None:  # noqa: N802
        if self._state().get("refuses"):
            raise FakeError(4, "Insufficient Permissions")
        self._path.write_text(json.dumps({**self._state(), "mw": milliwatts}))


SYSTEMCTL = """#!{python}
import os, sys, time
folder, *words = sys.argv[1:]
words = [each for each in words if not each.startswith("--")]
unit = folder + "/state"
def get(): return open(unit).read().strip()
def put(value):
    with open(unit + ".new", "w") as file: file.write(value)
    os.replace(unit + ".new", unit)
with open(folder + "/calls", "a") as file: file.write(words[0] + "\\n")
if words[0] == "show":
    if os.path.exists(folder + "/broken"): sys.exit("Failed to connect to bus")
    pid = open(folder + "/pid").read() if os.path.exists(folder + "/pid") else "0"
    print("LoadState=loaded", "ActiveState=" + get(), "SubState=running", "MainPID=" + pid, sep="\\n")
    print("Type=simple", "TimeoutStopUSec=10s", sep="\\n")
elif words[0] == "start":
    if os.path.exists(folder + "/refuses"): sys.exit("Access denied")
    while get() == "deactivating": time.sleep(0.05)
    if not os.path.exists(folder + "/dead"): put("active")
elif words[0] == "stop":
    put("deactivating")
    # the service manager goes on when the client that asked is dead
    if os.fork() == 0:
        os.setsid()
        time.sleep(float(open(folder + "/stop_s").read()))
        put("inactive")
        os._exit(0)
    while get() == "deactivating": time.sleep(0.05)
"""


def make_unit(folder: Path, state: str = "active", stop_s: float = 0.0) -> dict[str, Any]:
    """A unit with a systemctl of its own; a controller's description."""
    folder.mkdir()
    script = folder / "systemctl"
    script.write_text(SYSTEMCTL.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (folder / "state").write_text(state)
    (folder / "stop_s").write_text(str(stop_s))
    return {
        "kind": "systemd",
        "unit": "sglang.service",
        "url": "http://127.0.0.1:9",
        "log": str(folder / "log"),
        "systemctl": [str(script), str(folder)],
        "journalctl": None,
    }


def unit_state(folder: Path) -> str:
    return (folder / "state").read_text()


def unit_calls(folder: Path) -> list[str]:
    """What was asked of systemctl, but for looking."""
    return [each for each in (folder / "calls").read_text().split() if each != "show"]
