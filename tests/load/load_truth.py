"""A small streaming server whose send times are known: a thread a connection, nothing shared with the client's parsers.

It shares the interpreter with the client under test, so a send is known by the times right before and right after it: on loopback
the kernel stamps the arrival in between.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Script:
    """How the server answers."""

    ttft_s: float = 0.02
    itl_s: float = 0.005
    tokens_an_event: int = 1
    burst: int = 1
    """Events that leave together."""
    one_send: bool = True
    """In one send; else each in its own, one right after the other."""
    fewer: int = 0
    finish: str = "length"
    matched: object = None
    usage: str = "continuous"
    done: bool = True
    cut_after: int | None = None
    error_after: int | None = None
    hang_after: int | None = None
    reset_after: int | None = None
    """Reset the connection after so many tokens; 0: before the body was read."""
    status: int = 200
    body: str = ""
    headers: str = ""
    keep_alive: bool = True
    content_type: str = "text/event-stream; charset=utf-8"
    models: tuple[str, ...] = ("m",)
    key: str | None = None
    sglang: bool = True
    """Has /tokenize (a word a token), /v1/loads and /metrics, as SGLang has; else 404."""
    counted: float = 1.0
    """How many tokens the server's counter gains for each that an answer tells of."""


@dataclass
class Served:
    """One request as the server saw it: ``sends`` are (tokens so far, epoch ns right before the send, and right after)."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    received_ns: int
    sends: list[tuple[int, int, int]] = field(default_factory=list)
    connection: int = 0
    closed_ns: int = 0

    def decode_tok_s(self, came_first: int | None = None, *, with_closing: bool = False) -> tuple[float, float]:
        """Between which two rates the decoding really was, from the send of so many tokens (the first) to the last.

        ``with_closing``: the last tokens were read with what closed the answer, and have its time.
        """
        position = next(index for index, (tokens, _, _) in enumerate(self.sends) if came_first in (None, tokens))
        (first, begin, begun), (last, end, ended) = self.sends[position], self.sends[-1]
        ended = self.closed_ns or time.time_ns() if with_closing else ended
        return (last - first) * 1e9 / (ended - begin), (last - first) * 1e9 / (end - begun)


@dataclass
class Truth:
    """The running server."""

    url: str
    script: Script
    served: list[Served] = field(default_factory=list)
    connections: int = 0
    sockets: list[socket.socket] = field(default_factory=list)
    generated: float = 0.0
    asked: list[str] = field(default_factory=list)
    """Every path that was asked for, in order."""

    def drop_connections(self) -> None:
        """Close what is open, as a server does with connections that were idle for long."""
        for each in self.sockets:
            each.shutdown(socket.SHUT_RDWR)
        time.sleep(0.05)


def tls_context(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody else trusts; the test is skipped where openssl is missing."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@contextmanager
def truth_server(script: Script | None = None, context: ssl.SSLContext | None = None) -> Iterator[Truth]:
    """Serve until the block ends; every socket is closed then."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    scheme = "http" if context is None else "https"
    truth = Truth(url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", script=script or Script())
    open_sockets = truth.sockets
    over = threading.Event()

    def accept() -> None:
        while not over.is_set():
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            truth.connections += 1
            open_sockets.append(plain)
            threading.Thread(target=connection, args=(plain, truth.connections), daemon=True).start()

    def connection(plain: socket.socket, number: int) -> None:
        sock: socket.socket = plain
        reader = None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                sock = context.wrap_socket(plain, server_side=True)
                open_sockets.append(sock)
            reader = sock.makefile("rb")
            while not over.is_set() and _one(truth, sock, reader, number, over):
                pass
        except (OSError, ValueError):
            pass
        finally:
            if reader is not None:
                reader.close()
            sock.close()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield truth
    finally:
        over.set()
        for each in open_sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(2)


def _one(truth: Truth, sock: socket.socket, reader: Any, number: int, over: threading.Event) -> bool:
    line = reader.readline()
    if not line:
        return False
    path = line.split()[1].decode()
    headers: dict[str, str] = {}
    while (line := reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    if truth.script.reset_after == 0:
        _reset(sock)
    body = json.loads(reader.read(int(headers.get("content-length", "0"))) or b"{}")
    truth.asked.append(path)
    if path not in ("/v1/completions", "/v1/chat/completions", "/generate"):
        sock.sendall(_control(truth, path, headers, body))
        return True
    served = Served(path, headers, body, time.time_ns(), connection=number)
    truth.served.append(served)
    script = truth.script
    if script.status != 200 or script.body:
        text = script.body.encode()
        kind = "application/json" if script.status != 200 else script.content_type
        sock.sendall(
            f"HTTP/1.1 {script.status} X\r\n{script.headers}content-type: {kind}\r\ncontent-length: {len(text)}\r\n\r\n".encode()
            + text
        )
        return script.keep_alive
    _stream(truth, served, sock, over)
    return script.keep_alive


def _control(truth: Truth, path: str, headers: dict[str, str], body: dict[str, Any]) -> bytes:
    script = truth.script
    answers: dict[str, Any] = {"/v1/models": {"data": [{"id": each} for each in script.models]} if script.models else None}
    if script.sglang:
        words = str(body.get("prompt", "")).split()
        answers |= {
            "/tokenize": {"tokens": [len(each) for each in words], "count": len(words)},
            "/v1/loads": {"loads": [{"num_running_reqs": 0, "num_waiting_reqs": 0}]},
            "/metrics": f'sglang:generation_tokens_total{{model_name="m"}} {truth.generated}\n',
        }
    found = answers.get(path)
    status, text = ("404 Not Found", "{}") if found is None else ("200 OK", found if isinstance(found, str) else json.dumps(found))
    if script.key is not None and headers.get("authorization") != f"Bearer {script.key}":
        status, text = "401 Unauthorized", '{"error":"Unauthorized"}'
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


def _stream(truth: Truth, served: Served, sock: socket.socket, over: threading.Event) -> None:
    script = truth.script
    asked = served.body.get("max_tokens") or served.body["sampling_params"]["max_new_tokens"]
    tokens = asked - script.fewer
    events = _events(served.path, script)
    close = "" if script.keep_alive else "connection: close\r\n"
    head = f"HTTP/1.1 200 OK\r\n{script.headers}{close}content-type: {script.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    sock.sendall(head.encode() + b"".join(_chunk(each) for each in events("role", 0)))
    begin = served.received_ns + round(script.ttft_s * 1e9)
    sent = 0
    step = script.tokens_an_event * script.burst
    while sent < tokens:
        _until(begin + round((sent // script.tokens_an_event) * script.itl_s * 1e9))
        pieces = []
        for _ in range(script.burst):
            if sent < tokens:
                sent = min(tokens, sent + script.tokens_an_event)
                pieces += events("token", sent)
        data = b"".join(_chunk(each) for each in pieces)
        before = time.time_ns()
        for part in [data] if script.one_send else [_chunk(each) for each in pieces]:
            sock.sendall(part)
        served.sends.append((sent, before, time.time_ns()))
        if script.cut_after is not None and sent >= script.cut_after:
            sock.shutdown(socket.SHUT_RDWR)
            raise OSError("cut")
        if script.reset_after is not None and sent >= script.reset_after:
            _reset(sock)
        if script.error_after is not None and sent >= script.error_after:
            message = {"error": {"object": "error", "message": "out of room", "type": "Internal", "param": None, "code": 500}}
            sock.sendall(_chunk(_data(message)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            return
        if script.hang_after is not None and sent >= script.hang_after:
            over.wait(30)
            raise OSError("hung")
    assert step > 0
    time.sleep(0.002)
    truth.generated += sent * script.counted
    closing = events("end", sent) + ([b"data: [DONE]\n\n"] if script.done else [])
    sock.sendall(b"".join(_chunk(each) for each in closing) + b"0\r\n\r\n")
    served.closed_ns = time.time_ns()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.02)
    raise OSError("reset")


def _until(at_ns: int) -> None:
    left = (at_ns - time.time_ns()) / 1e9
    if left > 0:
        time.sleep(left)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _data(value: object) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _events(path: str, script: Script) -> Callable[[str, int], list[bytes]]:
    def usage(tokens: int) -> dict[str, object]:
        return {
            "prompt_tokens": 5,
            "total_tokens": 5 + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 2},
        }

    def generate(kind: str, tokens: int) -> list[bytes]:
        finish = {"type": script.finish, "length": tokens, "matched": script.matched} if kind == "end" else None
        meta = {"id": "x", "finish_reason": finish, "prompt_tokens": 5, "completion_tokens": tokens, "cached_tokens": 2}
        return [] if kind == "role" else [_data({"text": "ö" * tokens, "output_ids": [1] * tokens, "meta_info": meta})]

    def chat(kind: str, tokens: int) -> list[bytes]:
        def event(delta: dict[str, object], finish: str | None = None) -> dict[str, object]:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "matched_stop": script.matched}
            return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}

        if kind == "role":
            return [_data(event({"role": "assistant", "content": ""}))]
        if kind == "token":
            return [_data(event({"content": "ö"}) | ({"usage": usage(tokens)} if script.usage == "continuous" else {}))]
        closing = [_data({"id": "x", "choices": [], "usage": usage(tokens)})] if script.usage != "none" else []
        return [_data(event({}, script.finish)), *closing]

    def completions(kind: str, tokens: int) -> list[bytes]:
        def event(text: str, finish: str | None = None) -> dict[str, object]:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, "matched_stop": script.matched}
            return {"id": "x", "object": "text_completion", "choices": [choice]}

        if kind == "role":
            return []
        if kind == "token":
            return [_data(event("ö") | {"usage": usage(tokens) if script.usage == "continuous" else None})]
        closing = [_data({"id": "x", "choices": [], "usage": usage(tokens)})] if script.usage != "none" else []
        return [_data(event("", script.finish) | {"usage": usage(tokens) if script.usage == "continuous" else None}), *closing]

    return {"/generate": generate, "/v1/chat/completions": chat}.get(path, completions)
