"""A streaming server whose true send times are known. Stands alone: the standard library only, nothing of the plugin.

``python server.py --grid --itl-ms 20`` prints its port and serves until SIGTERM; then it prints what really happened as one line of
JSON (epoch ns): for each request when its last byte arrived (the kernel's stamp) and when each token was sent.

One thread, one epoll. Token i of a request is due at arrival + ttft + i * itl; with ``--grid`` the first one waits for the next
multiple of itl, so that all streams emit together, as a batched decoder does. One send(2) a token (``--events-a-send`` more at full
speed), stamped when the call returns: on loopback the data has then arrived. ``--itl-ms 0``: as fast as the sockets take it.
"""

from __future__ import annotations

import argparse
import array
import heapq
import json
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

SO_TIMESTAMPNS = 35
STAMP = struct.Struct("@qq")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS = {"/v1/chat/completions": "chat", "/v1/completions": "text", "/generate": "native"}
WORDS = [
    b" " + (consonant + vowel + ending + "ox").encode() for consonant in "bdfgklmnprst" for vowel in "aeiou" for ending in "lmnr"
]
"""240 words, a token each in the tokenizer that ``tokenizer.py`` writes."""

now_ns = time.time_ns


def chunk(payload: bytes) -> bytes:
    """One event in an HTTP chunk of its own."""
    return b"%x\r\ndata: %b\n\n\r\n" % (len(payload) + 8, payload)


class Stream:
    """One request's answer: its bytes, event by event, in SGLang's form."""

    __slots__ = (
        "_after",
        "_before",
        "at_ns",
        "base_ns",
        "connection",
        "native",
        "prompt",
        "record",
        "sent",
        "tokens",
        "usage",
        "words",
    )

    def __init__(self, connection: Connection, kind: str, body: dict[str, Any], record: dict[str, Any]) -> None:
        self.connection, self.record = connection, record
        self.tokens: int = record["tokens"]
        self.sent = 0
        self.at_ns = array.array("q")
        self.native = kind == "native"
        self.words = b""
        asked = body.get("stream_options") or {}
        self.usage = "each" if asked.get("continuous_usage_stats") else "last" if asked.get("include_usage") else "none"
        self.prompt = 32
        head = b'{"id":"%032x","object":"%b","created":%d,"model":"truth","choices":' % (
            id(self),
            b"chat.completion.chunk" if kind == "chat" else b"text_completion",
            int(time.time()),
        )
        text = b'{"reasoning_content":null,"content":"' if kind == "chat" else b'"'
        self._before = head + b'[{"index":0,"%b":%b' % (b"delta" if kind == "chat" else b"text", text)
        closed = b'"}' if kind == "chat" else b'"'
        self._after = closed + b',"logprobs":null,"finish_reason":null,"matched_stop":null}]'

    def head(self) -> bytes:
        """What comes with the first token: the headers, and the chat API's event that names the role."""
        role = self._before.replace(b'"content"', b'"role":"assistant","content"') + self._after + b"}"
        return HEAD + (chunk(role) if b'"delta"' in self._before else b"")

    def event(self) -> bytes:
        """The next token."""
        word = WORDS[self.sent % len(WORDS)]
        self.sent += 1
        if self.native:
            self.words += word
            ended = b'{"type":"length","length":%d}' % self.tokens if self.sent == self.tokens else b"null"
            return chunk(
                b'{"text":"%b","meta_info":{"id":"%032x","finish_reason":%b,"prompt_tokens":%d,"completion_tokens":%d,"cached_tokens":0}}'
                % (self.words, id(self), ended, self.prompt, self.sent)
            )
        if self.usage == "each":
            return chunk(self._before + word + self._after + self._usage(self.sent) + b"}")
        return chunk(self._before + word + self._after + b"}")

    def tail(self) -> bytes:
        """Finish reason, usage, [DONE], end of the message."""
        closing = b""
        if not self.native:
            closing = chunk(self._before + self._after.replace(b'reason":null', b'reason":"length"') + b"}")
            if self.usage != "none":
                closing += chunk(self._before[: self._before.index(b"[")] + b"[]" + self._usage(self.tokens) + b"}")
        return closing + chunk(b"[DONE]") + b"0\r\n\r\n"

    def _usage(self, tokens: int) -> bytes:
        return (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null,"reasoning_tokens":0}'
            % (
                self.prompt,
                self.prompt + tokens,
                tokens,
            )
        )


class Connection:
    """One client connection: collects a request, and holds back what the client does not take."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = b""
        self.alive = True
        self._received = b""

    def receive(self) -> list[tuple[str, bytes, int]]:
        """Whole requests that lie here: path, body, arrival of the last byte. Sets ``alive`` to False at the end."""
        try:
            data, ancillary, _, _ = self.sock.recvmsg(256 * 1024, socket.CMSG_SPACE(STAMP.size))
        except BlockingIOError:
            return []
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.alive = False
            return []
        arrived_ns = now_ns()
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanoseconds = STAMP.unpack_from(content)
                arrived_ns = seconds * 1_000_000_000 + nanoseconds
        self._received += data
        return [(path, body, arrived_ns) for path, body in iter(self._request, None)]

    def _request(self) -> tuple[str, bytes] | None:
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return None
        lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        length = int(fields.get(b"content-length", 0))
        if len(rest) < length:
            if fields.get(b"expect"):
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._received = rest[length:]
        return lines[0].split(b" ")[1].decode().partition("?")[0], rest[:length]

    def send(self, data: bytes) -> None:
        """Send now what the socket takes; the rest waits in ``unsent``."""
        data = self.unsent + data if self.unsent else data
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.alive, self.unsent = False, b""
            return
        self.unsent = data[sent:] if sent < len(data) else b""

    def answer(self, found: object, status: str = "200 OK") -> None:
        """A plain JSON answer."""
        body = json.dumps(found).encode()
        self.send(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)
        )


class Server:
    """Accepts, schedules, stamps."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.ttft_ns, self.itl_ns = int(options.ttft_ms * 1e6), int(options.itl_ms * 1e6)
        self.grid, self.events_a_send = options.grid, options.events_a_send
        self.tokenizer = options.tokenizer
        self.records: list[dict[str, Any]] = []
        self._due: list[tuple[int, int, Stream]] = []
        self._fast: list[Stream] = []
        self._number = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}
        self.stopped = False

    def run(self) -> None:
        """Serve until ``stopped``."""
        while not self.stopped:
            self._wait()
            for descriptor, _ in self._epoll.poll(0):
                if descriptor == self._listener.fileno():
                    self._accept()
                else:
                    self._serve(self._connections[descriptor])
            self._send_due()
            self._send_fast()

    def _wait(self) -> None:
        """Until a socket is ready or a token is due: select(2) waits in microseconds where epoll_wait(2) knows milliseconds."""
        pause_s = 0.0 if self._fast else 0.2
        if self._due:
            pause_s = min(pause_s, max(0.0, (self._due[0][0] - now_ns()) / 1e9))
        if pause_s:
            select.select([self._epoll], [], [], pause_s)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._connections[sock.fileno()] = Connection(sock)
            self._epoll.register(sock, select.EPOLLIN)

    def _serve(self, connection: Connection) -> None:
        for path, body, arrived_ns in connection.receive():
            kind = KINDS.get(path.rstrip("/"))
            if kind is None:
                self._control(connection, path)
            else:
                self._begin(connection, kind, json.loads(body), arrived_ns)
        if not connection.alive:
            self._epoll.unregister(connection.sock)
            del self._connections[connection.sock.fileno()]
            connection.sock.close()

    def _begin(self, connection: Connection, kind: str, body: dict[str, Any], arrived_ns: int) -> None:
        sampling = body.get("sampling_params") or {}
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or sampling.get("max_new_tokens") or 16
        record: dict[str, Any] = {"arrived_ns": arrived_ns, "tokens": int(asked), "kind": kind, "sent_ns": []}
        self.records.append(record)
        if not body.get("stream"):
            connection.answer({"error": {"message": "this server streams"}}, "400 Bad Request")
            return
        stream = Stream(connection, kind, body, record)
        if self.itl_ns == 0:
            self._fast.append(stream)
            return
        first_ns = arrived_ns + self.ttft_ns
        stream.base_ns = -(-first_ns // self.itl_ns) * self.itl_ns if self.grid else first_ns
        self._schedule(stream)

    def _schedule(self, stream: Stream) -> None:
        self._number += 1
        heapq.heappush(self._due, (stream.base_ns + stream.sent * self.itl_ns, self._number, stream))

    def _send_due(self) -> None:
        due = self._due
        while due and due[0][0] <= now_ns():
            stream = heapq.heappop(due)[2]
            if self._step(stream, 1):
                self._schedule(stream)

    def _send_fast(self) -> None:
        if not self._fast:
            return
        going = []
        for stream in self._fast:
            if stream.connection.unsent:
                stream.connection.send(b"")
                going.append(stream)
            elif self._step(stream, self.events_a_send):
                going.append(stream)
        self._fast = going

    def _step(self, stream: Stream, events: int) -> bool:
        """Send so many tokens; True while more are to come."""
        connection = stream.connection
        if not connection.alive:
            return False
        before = stream.sent
        data = stream.head() if before == 0 else b""
        while stream.sent < stream.tokens and stream.sent - before < events:
            data += stream.event()
        connection.send(data)
        at_ns = now_ns()
        for _ in range(stream.sent - before):
            stream.at_ns.append(at_ns)
        if stream.sent < stream.tokens:
            return True
        connection.send(stream.tail())
        self._flush(connection)
        stream.record["sent_ns"] = stream.at_ns
        return False

    def _flush(self, connection: Connection) -> None:
        """The last bytes: nobody would come back for them."""
        while connection.unsent and connection.alive and not self.stopped:
            select.select([], [connection.sock], [], 0.05)
            connection.send(b"")

    def _control(self, connection: Connection, path: str) -> None:
        """What load generators ask before they begin."""
        model = {"id": "truth", "object": "model", "created": 1, "owned_by": "truth", "root": "truth", "max_model_len": 131072}
        info = {
            "model_path": "truth",
            "tokenizer_path": self.tokenizer,
            "is_generation": True,
            "version": "0.0",
            "internal_states": [],
        }
        known: dict[str, object] = {"/v1/models": {"object": "list", "data": [model]}, "/health": {}, "/flush_cache": {}}
        for name in ("/get_model_info", "/model_info", "/get_server_info", "/server_info"):
            known[name] = info
        found = known.get(path.rstrip("/"))
        if found is None:
            connection.answer({"error": {"message": f"not found: {path}"}}, "404 Not Found")
        else:
            connection.answer(found)


def main() -> None:
    """Serve, then tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=20.0)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--events-a-send", type=int, default=1)
    parser.add_argument("--tokenizer", default="truth")
    server = Server(parser.parse_args())

    def stop(*_: object) -> None:
        server.stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(server.port, flush=True)
    server.run()
    used = resource.getrusage(resource.RUSAGE_SELF)
    records = [{**each, "sent_ns": list(each["sent_ns"])} for each in server.records]
    json.dump({"requests": records, "cpu_s": used.ru_utime + used.ru_stime}, sys.stdout)


if __name__ == "__main__":
    main()
