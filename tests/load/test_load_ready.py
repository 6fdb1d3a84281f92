"""Who has bytes: the epoll of Linux and the selectors of other systems tell the same."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pytest_sglang.load.ready import Epoll, Ready, Selector

KINDS = [Selector, pytest.param(Epoll, marks=pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here"))]
ONE = cast(Any, "one connection")


@pytest.fixture(params=KINDS)
def ready(request: pytest.FixtureRequest) -> Iterator[Ready]:
    found = request.param()
    yield found
    found.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_bytes_room_and_the_end_are_told(ready: Ready, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ready.add(ours, ONE, write=False)
    assert list(ready.wait(0)) == []
    theirs.send(b"x")
    assert list(ready.wait(5)) == [(ONE, True, False)]
    ready.change(ours, ONE, write=True)
    assert list(ready.wait(5)) == [(ONE, True, True)]
    ours.recv(1)
    assert list(ready.wait(5)) == [(ONE, False, True)]
    ready.change(ours, ONE, write=False)
    theirs.close()
    assert [(read, write) for _, read, write in ready.wait(5)] == [(True, False)]


def test_who_was_removed_is_told_no_more(ready: Ready, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ready.add(ours, ONE, write=False)
    theirs.send(b"x")
    ready.remove(ours)
    ready.remove(ours)
    assert list(ready.wait(0)) == []
    ready.add(ours, ONE, write=False)
    assert list(ready.wait(5)) == [(ONE, True, False)]


def test_a_closed_socket_can_be_removed_and_its_number_used_again(ready: Ready) -> None:
    first, other = socket.socketpair()
    number = first.fileno()
    ready.add(first, ONE, write=False)
    if isinstance(ready, Epoll):
        first.close()
        ready.remove(first)
    else:
        ready.remove(first)
        first.close()
    other.close()
    again, theirs = socket.socketpair()
    with again, theirs:
        assert number in (again.fileno(), theirs.fileno())
        mine, peer = (again, theirs) if again.fileno() == number else (theirs, again)
        ready.add(mine, ONE, write=False)
        peer.send(b"x")
        assert list(ready.wait(5)) == [(ONE, True, False)]
