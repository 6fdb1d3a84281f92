"""One simulated rig: made in a directory, alive in it whoever made it, ended by ``destroy()``."""

from __future__ import annotations

import random
import shutil
import socket
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_sglang.simulator import ailments, clock, config, furnish, state
from pytest_sglang.simulator import faults as known_faults
from pytest_sglang.simulator import hardware as cards
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import Config
from pytest_sglang.simulator.nvml import SimulatedNvml
from pytest_sglang.simulator.state import HardwareState
from pytest_sglang.simulator.unit import Unit

MIN_SPEED = 60.0
_EARLIER_S = 2 * 86_400.0


class SimulatedRig:
    """Made by ``create`` or ``open``; holds nothing but the directory."""

    unit = config.UNIT

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        hardware: str = "six-3090",
        power_w: float | None = None,
        faults: Sequence[str] = (),
        speed: float = 100.0,
        port: int = 0,
        seed: int = 0,
        faults_at_once: bool = False,
        api_key: str | None = None,
        power_permission: bool = True,
    ) -> SimulatedRig:
        """A new rig in ``directory`` (made if absent): caches full of an earlier cold start, server not started.

        ``power_w`` the limit that its owner has set (watts; None = the hardware's own); ``speed`` rate of the fast stretches of a
        start, at least 60; ``port`` 0 = a free one; ``seed`` 0 = noise of its own. Faults of a start act from the second start on,
        unless ``faults_at_once``. Raises ValueError for unknown hardware, faults, or values out of range, FileExistsError where a
        rig is already.
        """
        hardware = str(Path(hardware).absolute()) if hardware.endswith(".toml") else hardware
        found = cards.load(hardware)
        names = known_faults.check(faults)
        ailments.check(names, found)
        limit_w = found.gpu.present_w if power_w is None else power_w
        if not found.gpu.min_w <= limit_w <= found.gpu.max_w:
            raise ValueError(f"power_w={limit_w:g}: the simulated cards take {found.gpu.min_w:g} to {found.gpu.max_w:g} W")
        if speed < MIN_SPEED:
            raise ValueError(f"speed={speed:g}: give at least {MIN_SPEED:g}")
        directory = Path(directory).absolute()
        if (directory / config.NAME).exists():
            raise FileExistsError(f"{directory} holds a simulated rig already")
        directory.mkdir(parents=True, exist_ok=True)
        made = Config(
            directory=directory,
            hardware_name=hardware,
            uuids=config.new_uuids(found.gpu.count),
            faults=names,
            faults_at_once=faults_at_once,
            speed=speed,
            port=port or free_port(),
            seed=seed,
            api_key=api_key,
            power_permission=power_permission,
            boot_id=config.boot_id(),
        )
        made.save()
        HardwareState.create(directory, found, limit_w, made.lost_limit, made.traits)
        ailments.write_kernel_log(directory, found)
        _furnish(made)
        # last: who finds the clock finds a whole rig
        RigClock.create(directory, speed)
        return cls(directory)

    @classmethod
    def open(cls, directory: Path) -> SimulatedRig:
        """The rig in ``directory``, as far as it was made. Raises FileNotFoundError where there is no such directory."""
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"no simulated rig at {directory}: the directory does not exist")
        return cls(Path(directory).absolute())

    # --- what it is --------------------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Config:
        """What it was made as. Raises ValueError for one of an earlier boot, whose clocks mean nothing now."""
        found = Config.load(self.directory)
        if found.boot_id != config.boot_id():
            raise ValueError(f"the simulated rig in {self.directory} was made before the last reboot: remove it")
        return found

    @property
    def port(self) -> int:
        """Port of the server."""
        return self.config.port

    @property
    def url(self) -> str:
        """Address of the server."""
        return self.config.url

    @property
    def log(self) -> Path:
        """The server's log file, with every start in it."""
        return self.config.log

    @cached_property
    def clock(self) -> RigClock:
        """Rig time."""
        return RigClock(self.directory)

    @property
    def systemctl(self) -> list[str]:
        """Command in place of ``systemctl``."""
        return [sys.executable, "-m", "pytest_sglang.simulator.systemctl", "--rig", str(self.directory)]

    def nvml(self) -> SimulatedNvml:
        """An object in place of the module ``pynvml``."""
        made = self.config
        return SimulatedNvml(
            self.directory,
            made.hardware,
            made.uuids,
            lost_limit=made.lost_limit,
            not_persistent=made.not_persistent,
            unreadable=made.unreadable,
            permission=made.power_permission,
            ailments=made.ailments,
        )

    def kernel_log(self, command: list[str]) -> tuple[int, str]:
        """Exit code and output of ``journalctl -k`` or ``dmesg`` on this rig."""
        return ailments.kernel_log(self.directory, command, self.config.faults)

    def pretend(self, pid: int) -> None:
        """Let process ``pid`` hold the serving cards as if it had been decoding on them for a while."""
        HardwareState(self.directory, self.config.hardware).pretend(pid)

    # --- its life ----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What it is doing: the unit and every card."""
        unit = Unit(self.config).state()
        now = HardwareState(self.directory, self.config.hardware).now()
        return {
            "active": unit.active,
            "sub": unit.sub,
            "result": unit.result,
            "main_pid": unit.main_pid,
            "starts": unit.starts,
            "rate": self.clock.rate,
            "cards": [card._asdict() for card in now],
        }

    def start(self) -> None:
        """Start the server and return at once."""
        Unit(self.config).start()

    def stop(self) -> None:
        """Stop the server and wait until it is gone."""
        Unit(self.config).stop()

    def serving(self) -> bool:
        """Whether the server calls itself ready: its health is looked at, which costs a second once it is."""
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def destroy(self) -> None:
        """End every process of the rig and remove its directory; whatever of it was never made is no error."""
        if not self.directory.is_dir():
            return
        try:
            Unit(Config.load(self.directory)).end()
        except (OSError, ValueError, TypeError):
            pass  # half made: no process was started yet
        names = {config.NAME, clock.NAME, state.NAME}
        if names & {each.name for each in self.directory.iterdir()} or not any(self.directory.iterdir()):
            shutil.rmtree(self.directory, ignore_errors=True)


def free_port() -> int:
    """A free port outside the range from which the kernel takes ports for outgoing connections.

    Inside that range somebody who polls the port of a stopped server can be connected to himself.
    """
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        first, last = 32_768, 60_999
    candidates = [port for port in range(20_000, 32_000) if not first <= port <= last]
    random.shuffle(candidates)
    for port in [*candidates[:100], 0]:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def _furnish(made: Config) -> None:
    """Files of the rig that are there before its first start: unit, caches and log of an earlier cold start."""
    import time

    from pytest_sglang.simulator.server import server_args
    from pytest_sglang.simulator.startup import write_earlier_start

    unit = Unit(made)
    made.home.mkdir(parents=True, exist_ok=True)
    unit.write_file()
    furnish.machine(made)
    furnish.installed(made, 1)
    furnish.caches(made)
    write_earlier_start(made.log, made, server_args(unit.argv()[5:], made.port), time.time() - _EARLIER_S)
