"""The lower bound: what the arrival times alone cost. No HTTP, no JSON, no checks, no figure of its own but counts and stamps.

Events are counted by their ``data: `` and stamped by the kernel; an answer ends with its last chunk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import select
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

from client import _figures

ROOM = socket.CMSG_SPACE(16)


def main() -> None:
    """Closed loop over ``--streams`` connections."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    for name in ("--streams", "--requests", "--tokens"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    address = urlsplit(options.url)
    asked = {"messages": [{"role": "user", "content": "hello " * 32}], "max_tokens": options.tokens, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    poll, streams, left = select.epoll(), {}, options.requests
    for _ in range(min(options.streams, options.requests)):
        sock = socket.create_connection((address.hostname, address.port))
        sock.setsockopt(socket.SOL_SOCKET, 35, 1)
        streams[sock.fileno()] = [sock, 0, []]
        poll.register(sock, select.EPOLLIN)
    began_s, done = time.perf_counter(), []
    for stream in streams.values():
        left -= 1
        stream[1] = time.time_ns()
        stream[0].send(request)
    while len(done) < options.requests:
        for number, _ in poll.poll():
            stream = streams[number]
            data, ancillary, _, _ = stream[0].recvmsg(65536, ROOM)
            # bytes that the kernel has taken over from another read have no stamp of their own
            seconds, nanoseconds = (
                struct.unpack_from("@qq", ancillary[0][2]) if ancillary else divmod(time.time_ns(), 1_000_000_000)
            )
            stream[2] += [seconds * 1_000_000_000 + nanoseconds] * data.count(b"data: ")
            if data.endswith(b"0\r\n\r\n"):
                done.append((stream[1], stream[2][1 : options.tokens + 1]))
                stream[2] = []
                if left > 0:
                    left -= 1
                    stream[1] = time.time_ns()
                    stream[0].send(request)
    took_s = time.perf_counter() - began_s
    gaps = [(after - before) / 1e6 for _, at in done for before, after in itertools.pairwise(at)]
    tokens = sum(len(at) for _, at in done)
    first = [(at[0] - sent) / 1e6 for sent, at in done]
    found = {
        "requests": len(done),
        "tokens": tokens,
        "tok_s": tokens / took_s,
        "ttft_ms": _figures(first),
        "itl_ms": _figures(gaps),
    }
    options.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
