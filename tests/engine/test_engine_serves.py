"""The engine is a real SGLang: what the other tests stand on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engine_servers import Server

from pytest_sglang.cache import locate


def children_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and locate.parent_of(int(name)) == pid]


def test_it_is_sglang_0_5_23(plain_server: Server) -> None:
    status, info = plain_server.call("GET", "/server_info")
    assert status == 200
    assert info["version"] == "0.5.23"


@pytest.mark.parametrize("tokens", [1, 16, 64])
def test_an_answer_has_exactly_the_asked_length(plain_server: Server, tokens: int) -> None:
    asked = {"model": "any", "prompt": "import os\n", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    status, answer = plain_server.call("POST", "/v1/completions", asked)
    assert status == 200
    assert answer["usage"]["completion_tokens"] == tokens


def test_every_process_of_the_server_tells_its_environment(plain_server: Server) -> None:
    main = plain_server.process.pid
    told = locate.environment_of(main)
    assert told is not None
    assert told["HOME"] == str(plain_server.home)
    children = children_of(main)
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].strip() for pid in children]
    # setproctitle has overwritten theirs
    assert {b"sglang::scheduler", b"sglang::detokenizer"} <= set(titles)
    for pid in children:
        told = locate.environment_of(pid)
        assert told is not None
        assert told["HOME"] == str(plain_server.home)
        # set by the server's own Python: the main process does not show it, its children do
        assert told["TORCHINDUCTOR_CACHE_DIR"] == str(plain_server.home / ".cache" / "sglang" / "inductor")
