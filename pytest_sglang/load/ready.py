"""Which connections have bytes? epoll where there is one: the selectors module costs as much again as the system call."""

from __future__ import annotations

import select
import selectors
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_sglang.load.connection import Connection


_IN, _OUT = getattr(select, "EPOLLIN", 1), getattr(select, "EPOLLOUT", 4)


class Ready(Protocol):
    """The connections that are waited for, each for bytes to read or, with ``write``, for room to send as well."""

    def add(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """Wait for ``connection`` too."""

    def change(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """Wait for something else."""

    def remove(self, sock: socket.socket) -> None:
        """No longer; nothing happens where it was not waited for, or is closed already."""

    def wait(self, seconds: float) -> list[tuple[Connection, bool, bool]]:
        """Connections with something to read, or room to send, or both; none after ``seconds``."""

    def close(self) -> None:
        """Give the descriptor back."""


class Epoll:
    """Linux. An error or a hang-up counts as something to read: reading tells what it was."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._numbers: dict[socket.socket, int] = {}

    def add(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """See Ready."""
        number = sock.fileno()
        self._epoll.register(number, select.EPOLLIN | (select.EPOLLOUT if write else 0))
        self._connections[number] = connection
        self._numbers[sock] = number

    def change(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """See Ready."""
        self._epoll.modify(self._numbers[sock], select.EPOLLIN | (select.EPOLLOUT if write else 0))

    def remove(self, sock: socket.socket) -> None:
        """See Ready. A closed socket has left the epoll by itself."""
        number = self._numbers.pop(sock, None)
        if number is None:
            return
        self._connections.pop(number, None)
        if sock.fileno() == number:
            self._epoll.unregister(number)

    def wait(self, seconds: float) -> list[tuple[Connection, bool, bool]]:
        """See Ready."""
        connections = self._connections
        return [
            (connections[number], True, False) if mask == _IN else (connections[number], mask != _OUT, bool(mask & _OUT))
            for number, mask in self._epoll.poll(seconds)
        ]

    def close(self) -> None:
        """See Ready."""
        self._epoll.close()


class Selector:
    """Other systems."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """See Ready."""
        self._selector.register(sock, _events(write), connection)

    def change(self, sock: socket.socket, connection: Connection, *, write: bool) -> None:
        """See Ready."""
        self._selector.modify(sock, _events(write), connection)

    def remove(self, sock: socket.socket) -> None:
        """See Ready."""
        try:
            self._selector.unregister(sock)
        except (KeyError, ValueError):
            return

    def wait(self, seconds: float) -> list[tuple[Connection, bool, bool]]:
        """See Ready."""
        found = self._selector.select(seconds)
        return [(key.data, bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE)) for key, mask in found]

    def close(self) -> None:
        """See Ready."""
        self._selector.close()


def _events(write: bool) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)


def ready() -> Ready:
    """The best that this system has."""
    return Epoll() if hasattr(select, "epoll") else Selector()
