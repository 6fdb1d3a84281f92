"""The one unit of a simulated rig, as systemd would keep it: its file, its state, and the daemon that watches over its process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pytest_sglang.simulator import furnish, procs, schedulers
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import UNIT, Config, write_json
from pytest_sglang.simulator.state import HardwareState

NAME = "unit.json"
OLD = "old.json"
FLAPS, RESTART_S = 4, 0.2
"""Under the fault unit-flaps: starts until systemd gives up, and its RestartSec."""
_PACKAGE_PARENT = Path(__file__).parents[2]


@dataclass(frozen=True)
class UnitState:
    """``*_us`` are the rig's monotonic microseconds. ``exit_code``: CLD_* of waitid(2), 1 exited, 2 killed, 3 dumped core."""

    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    main_pid: int = 0
    main_ticks: int = 0
    watcher_pid: int = 0
    watcher_ticks: int = 0
    started_us: int = 0
    exited_us: int = 0
    exit_code: int = 0
    exit_status: int = 0
    restarts: int = 0
    starts: int = 0
    stopping: bool = False

    def lives(self) -> bool:
        """Whether the unit's main process lives."""
        return procs.alive(self.main_pid, self.main_ticks)


class Unit:
    """The unit of the rig in ``config.directory``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._path = config.directory / NAME
        self.file = config.directory / UNIT

    # --- reading -----------------------------------------------------------------------------------------------------------

    def state(self) -> UnitState:
        """The state as written; a main process that died together with its watcher counts as failed."""
        try:
            state = UnitState(**json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return UnitState()
        if state.main_pid and not state.lives() and not procs.alive(state.watcher_pid, state.watcher_ticks):
            return replace(
                state, active="failed", sub="failed", result="signal", main_pid=0, main_ticks=0, exit_code=2, exit_status=9
            )
        return state

    def argv(self, start: int | None = None) -> list[str]:
        """The command line at a start (default: the next one, or that of the running server), with SGLang's own flags."""
        config, hardware = self.config, self.config.hardware
        largest = "8" if config.acts("cache-flags-changed", self._number(start)) else "4"
        flags = ["--model-path", config.model, "--served-model-name", config.model, "--tp", str(len(hardware.serving))]
        flags += ["--host", "127.0.0.1", "--port", str(config.port), "--enable-torch-compile", "--torch-compile-max-bs", largest]
        flags += ["--cuda-graph-max-bs", "24", "--mem-fraction-static", "0.85", "--quantization", "awq_marlin"]
        flags += ["--disable-piecewise-cuda-graph", "--enable-metrics"]
        flags += ["--api-key", config.api_key] if config.api_key else []
        return [sys.executable, "-m", "pytest_sglang.simulator.server", "--rig", str(config.directory), *flags]

    def _number(self, start: int | None) -> int:
        if start is not None:
            return start
        state = self.state()
        return max(1, state.starts + (not state.lives()))

    def environment(self, start: int | None = None) -> dict[str, str]:
        """What ``Environment=`` of the unit gives the server at a start (default: as ``argv``)."""
        number = self._number(start)
        gpus = ",".join(str(index) for index in self.config.hardware.serving)
        triton, inductor = self.config.caches_of(number)
        return {
            **({} if self.config.inductor_is_default else {"TORCHINDUCTOR_CACHE_DIR": str(inductor)}),
            **({"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"} if self.config.acts("cache-unused", number) else {}),
            "TMPDIR": str(self.config.tmp),
            "TRITON_CACHE_DIR": str(triton),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": gpus,
            "HOME": str(self.config.home),
        }

    @property
    def restart(self) -> str:
        """``Restart=`` of the unit."""
        return "on-failure" if "unit-flaps" in self.config.faults else "no"

    def write_file(self) -> None:
        """The unit file, for people and for ``systemctl cat``."""
        environment = "\n".join(f'Environment="{name}={value}"' for name, value in self.environment().items())
        text = f"""[Unit]
Description=SGLang (simulated)
After=network-online.target

[Service]
Type=simple
User=root
WorkingDirectory={self.config.home}
{environment}
ExecStart={" ".join(self.argv())}
TimeoutStartSec=1800
TimeoutStopSec={self.config.stop_timeout_s:.0f}
Restart={self.restart}
StandardOutput=append:{self.config.log}
StandardError=append:{self.config.log}

[Install]
WantedBy=multi-user.target
"""
        self.file.write_text(text, encoding="utf-8")

    # --- changing ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.config.directory / f"{NAME}.lock", "a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _save(self, state: UnitState) -> None:
        write_json(self._path, asdict(state))

    def start(self) -> None:
        """Start the server and return as soon as its process exists; nothing happens when it runs already."""
        with self._locked():
            state = self.state()
            if state.lives():
                return
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                self._become_watcher(state, writing)
            os.close(writing)
            os.waitpid(child, 0)
            with open(reading, "rb") as pipe:
                told = pipe.read()
        if told != b"started":
            raise RuntimeError(f"Job for {UNIT} failed because the server's process could not be made: {told.decode()}")

    def _become_watcher(self, state: UnitState, writing: int) -> None:
        """Runs in the forked child and never returns: detach, start the server, tell the parent, watch until the server is gone."""
        status = 1
        try:
            os.setsid()
            if os.fork():
                os._exit(0)
            self._detach(keep=writing)
            pid, running = self._launch(state)
            os.write(writing, b"started")
            os.close(writing)
            _, wait_status = os.waitpid(pid, 0)
            self._ended(running, wait_status)
            while self._starts_again(running):
                pid, running = self._launch(self.state(), restarts=running.restarts + 1)
                _, wait_status = os.waitpid(pid, 0)
                self._ended(running, wait_status)
            status = 0
        except BaseException as error:
            try:
                os.write(writing, repr(error).encode())
            except OSError:
                pass
        finally:
            os._exit(status)

    def _detach(self, keep: int) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.closerange(3, keep)
        os.closerange(keep + 1, 4096)
        os.set_inheritable(keep, False)
        os.chdir("/")

    def _starts_again(self, running: UnitState) -> bool:
        """Whether Restart=on-failure starts it once more: it waits RestartSec, and StartLimitBurst ends it."""
        if not self.config.acts("unit-flaps", running.starts) or self.state().result == "success" or self.state().stopping:
            return False
        if running.restarts + 1 >= FLAPS:
            self._save(replace(self.state(), result="start-limit-hit", restarts=running.restarts))
            return False
        self._save(replace(self.state(), active="activating", sub="auto-restart", restarts=running.restarts))
        time.sleep(RESTART_S)
        return True

    def _old_server(self) -> None:
        """Under the fault impostor: a server from before that nobody ended, with the same flags."""
        argv = self.argv()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.execve(argv[0], [*argv, "--old"], self._environment())
        write_json(self.config.directory / OLD, {"pid": pid, "ticks": procs.start_ticks(pid)})

    def _environment(self, start: int | None = None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "SGLANG_LOG_MS") if name in os.environ}
        return kept | self.environment(start) | {"PYTHONPATH": str(_PACKAGE_PARENT), "PYTHONDONTWRITEBYTECODE": "1"}

    def _launch(self, state: UnitState, restarts: int = 0) -> tuple[int, UnitState]:
        config = self.config
        if config.acts("impostor", state.starts + 1):
            self._old_server()
        clock = RigClock(config.directory)
        config.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        furnish.installed(config, state.starts + 1)
        environment, argv = self._environment(state.starts + 1), self.argv(state.starts + 1)
        started_us = round(clock.to_monotonic(clock.time()) * 1e6)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.closerange(3, 4096)
            os.execve(argv[0], argv, environment)
        os.close(log)
        own = os.getpid()
        running = UnitState(
            active="active",
            sub="running",
            main_pid=pid,
            main_ticks=procs.start_ticks(pid),
            watcher_pid=own,
            watcher_ticks=procs.start_ticks(own),
            started_us=started_us,
            starts=state.starts + 1,
            restarts=restarts,
        )
        self._save(running)
        HardwareState(config.directory, config.hardware).set_owner(pid)
        return pid, running

    def _ended(self, running: UnitState, wait_status: int) -> None:
        """What PID 1 does when a main process has ended: keep how, and let everything of it end."""
        clock = RigClock(self.config.directory)
        clock.real()
        state = HardwareState(self.config.directory, self.config.hardware)
        if state.owner()[0] in (0, running.main_pid):
            state.set_owner(0)
        else:
            state.set_load(0.0)  # a scheduler has outlived it, and its memory with it
        furnish.at_stop(self.config, running.starts + 1)
        killed = os.WIFSIGNALED(wait_status)
        status = os.WTERMSIG(wait_status) if killed else os.WEXITSTATUS(wait_status)
        # SIGTERM and its kin are a clean end to systemd, SIGKILL is not unless systemd itself had to send it (then: timeout)
        clean = status in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE) if killed else status == 0
        result = "success" if clean else "signal" if killed else "exit-code"
        if killed and status == signal.SIGKILL and self.state().stopping:
            result = "timeout"
        self._save(
            replace(
                running,
                active="inactive" if clean else "failed",
                sub="dead" if clean else "failed",
                result=result,
                main_pid=0,
                main_ticks=0,
                exited_us=round(clock.to_monotonic(clock.time()) * 1e6),
                exit_code=2 if killed else 1,
                exit_status=status,
            )
        )

    def stop(self) -> None:
        """SIGTERM, wait, SIGKILL after the unit's time-out; returns when the process is gone and its end is written."""
        with self._locked():
            state = self.state()
            if state.sub == "auto-restart":
                procs.end(state.watcher_pid, state.watcher_ticks)
                state = self.state()
                if not state.lives():
                    self._save(replace(state, active="inactive", sub="dead", result="success", main_pid=0, main_ticks=0))
            if not state.lives():
                # a unit that failed stays failed, as systemd keeps it
                return
            self._save(replace(state, active="deactivating", sub="stop-sigterm", stopping=True))
            if not procs.end(state.main_pid, state.main_ticks, signal.SIGTERM, self.config.stop_timeout_s):
                procs.end(state.main_pid, state.main_ticks, signal.SIGKILL)
            deadline = time.monotonic() + 5.0
            while procs.alive(state.watcher_pid, state.watcher_ticks) and time.monotonic() < deadline:
                time.sleep(0.005)
            left = self.state()
            if left.active == "deactivating":  # the watcher was killed: nobody else writes the end
                self._save(replace(left, active="inactive", sub="dead", main_pid=0, main_ticks=0, stopping=False))

    def reset_failed(self) -> None:
        """Forget a failure."""
        with self._locked():
            state = self.state()
            if state.active == "failed":
                self._save(replace(state, active="inactive", sub="dead", result="success", restarts=0))

    def end(self) -> None:
        """End every process of the unit at once, without its leave."""
        try:
            raw = UnitState(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return
        # the watcher first: it would start the server again
        procs.end(raw.watcher_pid, raw.watcher_ticks)
        schedulers.end_all(self.config.directory)
        procs.end(raw.main_pid, raw.main_ticks)
        try:
            old = json.loads((self.config.directory / OLD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        procs.end(old["pid"], old["ticks"])
