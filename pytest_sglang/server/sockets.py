"""Listening TCP sockets as /proc shows them: by port and address, and inside another network namespace."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

_LISTEN = "0A"
"""State of a listening socket in /proc/net/tcp (proc(5); TCP_LISTEN in the kernel's tcp_states.h)."""


class Listening(NamedTuple):
    """One listening socket; ``ip`` as text, ``inode`` as /proc/PID/fd names it."""

    ip: str
    port: int
    inode: int


def listening(port: int, pid: int | None = None) -> list[Listening]:
    """Sockets that listen on ``port`` in the network namespace of ``pid`` (None: our own); [] where it cannot be read."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with open(f"/proc/{pid or 'self'}/net/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == _LISTEN and int(number, 16) == port:
                found.append(Listening(_text(address, family), port, int(fields[9])))
    return found


def _text(address: str, family: int) -> str:
    """An address as the kernel writes it: 32-bit words in the machine's own byte order, in hexadecimal."""
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)).removeprefix("::ffff:")


def holders(sockets: Iterable[Listening], pids: Iterable[int]) -> list[int]:
    """Which of ``pids`` hold one of these sockets open; a process whose descriptors are hidden from us is left out."""
    wanted = {f"socket:[{each.inode}]" for each in sockets}
    found = []
    for pid in pids:
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                links = {_target(each.path) for each in entries}
        except OSError:
            continue
        if wanted & links:
            found.append(pid)
    return found


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def same_namespace(pid: int) -> bool:
    """Whether ``pid`` is in our own network namespace; True where that is hidden."""
    return _target(f"/proc/{pid}/ns/net") in ("", _target("/proc/self/ns/net"))


def addresses(host: str) -> frozenset[str]:
    """IP addresses of a host name, as connecting to it would try them."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(each[4][0]).partition("%")[0] for each in found)


def reached(bound: Iterable[str], wanted: frozenset[str]) -> frozenset[str]:
    """Of the addresses on which somebody listens, those that a connection to ``wanted`` would reach: the very one before a wildcard."""
    there = frozenset(each.removeprefix("::ffff:") for each in bound)
    if not wanted:
        return there
    return there & wanted or there & {"0.0.0.0", "::"}
