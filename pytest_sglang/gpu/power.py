"""Power limits: read, may they be set, set one and read it back. What is undone, and when, is the session's business."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence

from pytest_sglang.gpu.card import Card
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.gpu.readings import Missing, PowerError, PowerLimits
from pytest_sglang.judge.hardware import TOLERANCE_W, power_range

__all__ = ["PowerControl", "PowerError", "Run", "run_command"]

Run = Callable[[Sequence[str]], tuple[int, str]]
"""Runs a command, gives its exit code and its output (stdout and stderr together)."""

SETTLE_S = 2.0
"""How long a set limit may take to be the enforced one before it counts as not taken."""
_POLL_S = 0.05


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """Run ``command`` for at most 30 s without a terminal; 127 where it does not exist, 124 where it does not end."""
    try:
        done = subprocess.run(list(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return 127, f"{command[0]}: not found"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not end within 30 s"
    return done.returncode, (done.stdout + done.stderr).strip()


class PowerControl:
    """Limits of these cards. ``run``: for ``sudo -n nvidia-smi``; None = only through NVML, as on a stand-in."""

    def __init__(self, nvml: Nvml, cards: Sequence[Card], run: Run | None = run_command, *, direct: bool | None = None) -> None:
        self._nvml = nvml
        self._cards = {card.uuid: card for card in cards}
        self._run = run
        self._direct = direct if direct is not None else run is None or os.geteuid() == 0

    def limits(self) -> dict[str, PowerLimits]:
        """Present limits by UUID, in watts."""
        return {uuid: card.limits() for uuid, card in self._cards.items()}

    def may_set(self) -> str | None:
        """None = the right to set limits is proved; else what is missing, with the line that grants it. Changes nothing."""
        if self._direct:
            return None
        if self._run is None:
            return "setting a power limit needs root"
        code, listing = self._run(["sudo", "-n", "-l"])
        if code == 0 and _passwordless(listing):
            return None
        user = os.environ.get("USER") or f"#{os.geteuid()}"
        why = "sudo is not installed" if code == 127 else "sudo does not let this user run nvidia-smi without a password"
        grant = f"echo '{user} ALL=(root) NOPASSWD: /usr/bin/nvidia-smi' | sudo tee /etc/sudoers.d/pytest-sglang"
        return f"setting a power limit needs root, and {why}; to grant it: {grant}"

    def check_range(self, watts: float) -> list[str]:
        """Why ``watts`` cannot be set, one line a card that names its range; empty = every card takes it."""
        return power_range(watts, [card.found() for card in self._cards.values()])

    def set(self, uuid: str, watts: float) -> None:
        """Set one card's limit in watts and read it back (1 W). Raises PowerError."""
        card = self._cards.get(uuid)
        if card is None:
            raise PowerError(f"no card {uuid} here (there are {', '.join(self._cards) or 'none'})")
        problems = power_range(watts, [card.found()])
        if problems:
            raise PowerError(problems[0])
        if self._direct:
            card.set_limit_w(watts)
        else:
            self._by_sudo(card, watts)
        self._read_back(card, watts)

    def _by_sudo(self, card: Card, watts: float) -> None:
        run = self._run
        if run is None:
            raise PowerError(f"{card.label}: setting a power limit needs root", permission=True)
        code, output = run(["sudo", "-n", "nvidia-smi", "-i", card.uuid, "-pl", f"{watts:g}"])
        if code != 0:
            last = output.splitlines()[-1] if output else f"exit code {code}"
            raise PowerError(f"{card.label}: sudo nvidia-smi -pl {watts:g}: {last}", permission="password" in output)

    def _read_back(self, card: Card, watts: float) -> None:
        deadline = time.monotonic() + SETTLE_S
        while True:
            limits = card.limits()
            for what, value in (("requested", limits.requested_w), ("enforced", limits.enforced_w)):
                if isinstance(value, Missing):
                    raise PowerError(f"{card.label}: the {what} power limit cannot be read back ({value.reason})")
            both = (limits.requested_w, limits.enforced_w)
            taken = all(not isinstance(value, Missing) and abs(value - watts) <= TOLERANCE_W for value in both)
            if taken:
                return
            if time.monotonic() >= deadline:
                read = f"requested {limits.requested_w} W and enforced {limits.enforced_w} W"
                raise PowerError(f"{card.label}: asked {watts:g} W, read back {read}")
            time.sleep(_POLL_S)


def _passwordless(listing: str) -> bool:
    """A line of ``sudo -l`` lets nvidia-smi be run without a password: a guard process cannot type one."""
    for line in listing.splitlines():
        _, found, commands = line.partition("NOPASSWD:")
        commands = re.split(r"\bPASSWD:", commands)[0]
        if found and any(
            each.strip() == "ALL" or re.match(r"\S*nvidia-smi(\s|$|\*)", each.strip()) for each in commands.split(",")
        ):
            return True
    return False
