"""One HTTP/1.1 connection that carries one streamed answer after the other, without blocking."""

from __future__ import annotations

import json
import select
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httptools

from pytest_sglang.load import stamps
from pytest_sglang.load.answer import AnswerReader, Api
from pytest_sglang.load.stream import EventParser, StreamError
from pytest_sglang.record.values import Value

PATHS: dict[str, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "native": "/generate"}
READ_BYTES = 16 * 1024
"""Much more than a read finds: Python allocates it whole for each read, and large blocks cost a system call each."""

MAX_READ_BYTES = 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024


class Target(Value, frozen=True, kw_only=True):
    """Whom to ask, and how. ``url`` is the server's (``http://127.0.0.1:8001``; a trailing ``/v1`` is dropped)."""

    url: str
    api: Api = "completions"
    model: str | None = None
    api_key: str | None = None
    verify_tls: bool = True

    def __repr__(self) -> str:
        """Without the key: a value ends up in messages sooner or later."""
        return f"Target(url={self.url!r}, api={self.api!r}, model={self.model!r}, api_key={'***' if self.api_key else None})"

    @property
    def address(self) -> tuple[str, int, bool]:
        """Host, port, TLS. Raises ValueError for a url that names no http server."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.url!r} is not the url of a server (write e.g. 'http://127.0.0.1:8001')")
        tls = parts.scheme == "https"
        return parts.hostname, parts.port or (443 if tls else 80), tls

    def base(self) -> str:
        """The url without a trailing ``/v1`` and slash. Raises ValueError for one that names no http server."""
        _ = self.address
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    def head(self) -> bytes:
        """Request line and headers up to the content length. Compressed answers are refused: they come in blocks, not in tokens."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/v1") + PATHS[self.api]
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        if any(character in (self.api_key or "") + path for character in "\r\n\0"):
            raise ValueError("the API key or the url holds a line break")
        host = parts.netloc.rpartition("@")[2]
        return (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"Accept-Encoding: identity\r\n{key}Content-Length: "
        ).encode("latin-1")

    def request(self, text: str, output_tokens: int, ids: Sequence[int] = ()) -> bytes:
        """The whole request for exactly ``output_tokens`` tokens of a greedy answer to ``text``, or to the token ids where given.

        Raises ValueError for token ids on the chat route: it has no place for them.
        """
        body = json.dumps(self._body(text, output_tokens, ids), ensure_ascii=False).encode()
        return self.head() + str(len(body)).encode() + b"\r\n\r\n" + body

    def _body(self, text: str, tokens: int, ids: Sequence[int]) -> dict[str, Any]:
        if self.api == "native":
            sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
            asked_of = {"input_ids": list(ids)} if ids else {"text": text}
            return {**asked_of, "sampling_params": sampling, "stream": True}
        asked: dict[str, Any] = {"model": self.model or "default"}
        if self.api == "chat":
            if ids:
                raise ValueError("the chat route takes no token ids: use completions or native")
            asked |= {"messages": [{"role": "user", "content": text}], "max_completion_tokens": tokens}
        else:
            asked |= {"prompt": list(ids) or text}
        usage = {"include_usage": True, "continuous_usage_stats": True}
        return asked | {"max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True, "stream_options": usage}


class ConnectError(OSError):
    """The server took no connection; the message says where and why."""


class Connection:
    """A socket with its parser. One answer at a time: ``begin``, then ``readable`` whenever bytes lie ready, until ``finished``."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        host, port, tls = target.address
        try:
            plain = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise ConnectError(f"cannot connect to {host}:{port}: {error.strerror or error}") from None
        self.sock: socket.socket = plain
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                self.sock = _tls(plain, host, target.verify_tls)
        except OSError as error:
            plain.close()
            raise ConnectError(f"no TLS connection to {host}:{port}: {error}") from None
        self.kernel_stamps = not tls and stamps.ask_kernel(plain)
        self.sock.setblocking(False)
        self.target = target
        self.open = True
        self.unsent = b""
        self.deadline_s = 0.0
        self.sent_ns = 0
        self.send_ns = 0
        self.late_ns: list[int] = []
        self.wakes_before = 0
        self.finished = True

    @property
    def stale(self) -> bool:
        """Not usable for a next request: closed, or the server has said something unasked (as a rule: that it closed)."""
        if not self.open:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    # --- one request -------------------------------------------------------------------------------------------------------

    def begin(self, request: bytes, output_tokens: int, timeout_s: float) -> None:
        """Send ``request``; its clock starts now."""
        self.reader = AnswerReader(self.target.api, output_tokens)
        self._events = EventParser()
        self._parser = httptools.HttpResponseParser(self)
        self._payloads: list[bytes] = []
        self._error_body = b""
        self._headers: dict[str, str] = {}
        self._whole, self._keep_alive = False, False
        self._plain_answer = False
        self.finished = False
        self.late_ns = []
        self.deadline_s = time.monotonic() + timeout_s
        self.unsent = request
        self.sent_ns = stamps.now_ns()
        self.writable()
        self.send_ns = stamps.now_ns() - self.sent_ns

    def writable(self) -> None:
        """Send what could not be sent yet."""
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError as error:
                self._end(f"connection lost while sending: {error.strerror or error}", close=True)
                return
            self.unsent = self.unsent[sent:]

    def readable(self, waited_since_ns: int) -> None:
        """Take all bytes that lie ready. ``waited_since_ns``: since when they may lie there, where the kernel does not tell."""
        try:
            if self.kernel_stamps:
                self._read_stamped(waited_since_ns)
            else:
                self._read_unstamped(waited_since_ns)
        except OSError as error:
            self._end(f"connection lost: {error.strerror or error}", close=True)

    def _read_stamped(self, waited_since_ns: int) -> None:
        while not self.finished:
            try:
                data, at_ns = stamps.receive(self.sock, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._closed()
                return
            now = stamps.now_ns()
            self.late_ns.append(now - (waited_since_ns if at_ns is None else at_ns))
            # the stamp of a full read may be that of bytes which the next one will bring
            drained = len(data) < READ_BYTES
            self._take(data, now if at_ns is None else at_ns, drained)
            if drained:
                return

    def _read_unstamped(self, waited_since_ns: int) -> None:
        """All that lies ready is one read, however many TLS records it is: it has one time, that of now."""
        data, drained, closed = b"", False, False
        while not drained and not self.finished:
            try:
                piece = self.sock.recv(READ_BYTES)
                closed = not piece
                # a TLS socket gives a record at a time, and what it holds back no selector sees
                drained = closed or (len(piece) < READ_BYTES and not isinstance(self.sock, ssl.SSLSocket))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                piece, drained = b"", True
            data += piece
            if data and (drained or len(data) >= MAX_READ_BYTES):
                now = stamps.now_ns()
                self.late_ns.append(now - waited_since_ns)
                self._take(data, now, drained)
                data = b""
        if closed and not self.finished:
            self._closed()

    def give_up(self, why: str) -> None:
        """End the present request without its answer; the server aborts what it still computes 2 s after the connection closed."""
        self._end(why, close=True)

    def close(self) -> None:
        """Close the socket."""
        self.open = False
        self.sock.close()

    # --- what arrived ------------------------------------------------------------------------------------------------------

    def _take(self, data: bytes, at_ns: int, drained: bool) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, StreamError) as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            if cause is not None and not isinstance(cause, Exception):
                # Ctrl-C inside a callback of the parser is no fault of the stream
                raise cause from None
            self._end(f"not an HTTP event stream: {cause}", close=True)
            return
        if self._payloads:
            payloads, self._payloads = self._payloads, []
            self.reader.read(payloads, at_ns, exact=drained and not self._events.unfinished)
        if self._whole:
            self._answered()
        elif self.reader.failed:
            # what may still come cannot mend it, and a broken stream may never end
            self._end("", close=True)

    def _closed(self) -> None:
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        if self._headers and not framed:
            self._answered()
            self.close()
        else:
            self._end("the server closed the connection before the end of the stream", close=True)

    def _answered(self) -> None:
        """The HTTP message is whole; what it holds is judged by the reader."""
        status = self._parser.get_status_code()
        if status != 200:
            self.reader.fail(f"HTTP {status}: {_error_text(self._error_body)}")
        elif self._plain_answer:
            self.reader.fail(f"no event stream: content type {self._headers.get('content-type') or 'missing'}")
        elif self._events.unfinished:
            self.reader.fail("the stream ended inside an event")
        self._end("", close=not self._keep_alive)

    def _end(self, why: str, *, close: bool) -> None:
        if why:
            self.reader.fail(why)
        self.finished = True
        if close:
            self.close()

    # --- httptools' callbacks ----------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").lower()

    def on_headers_complete(self) -> None:
        """The headers tell whether this is a stream at all."""
        if self._parser.get_status_code() != 200:
            return
        self._plain_answer = "text/event-stream" not in self._headers.get("content-type", "")
        encoding = self._headers.get("content-encoding", "identity")
        if encoding not in ("identity", ""):
            self.reader.fail(f"the answer is compressed ({encoding}) though it was asked not to be")

    def on_body(self, body: bytes) -> None:
        """A piece of the stream."""
        if self._parser.get_status_code() != 200 or self._plain_answer:
            if len(self._error_body) < MAX_ERROR_BYTES:
                self._error_body += body
            return
        self._payloads.extend(self._events.feed(body))

    def on_message_complete(self) -> None:
        """The answer is whole, as far as HTTP knows; only now the parser still knows whether the connection stays."""
        self._whole, self._keep_alive = True, self._parser.should_keep_alive()


def _tls(plain: socket.socket, host: str, verify: bool) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain, server_hostname=host)


def _error_text(body: bytes) -> str:
    """What an error answer says, in one line: SGLang has three forms of it."""
    try:
        found = json.loads(body)
    except ValueError:
        found = body.decode("utf-8", "replace")
    while isinstance(found, Mapping):
        found = found.get("error") or found.get("message") or found.get("detail") or "no message"
    return " ".join(str(found).split())[:200] or "no message"
