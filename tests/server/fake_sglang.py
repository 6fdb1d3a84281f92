"""A small server with SGLang's routes and log lines, for tests of whoever waits for it: quick to start, with faults by option."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOOT = """server_args=ServerArgs(model_path='{model}', random_seed={seed}, enable_torch_compile=True, device='cuda', api_key='sesame')
Init torch distributed begin.
Init torch distributed ends. elapsed=0.01 s, mem usage=0.09 GB
Load weight begin. avail mem=139.13 GB
Load weight end. elapsed=0.01 s, type=LlamaForCausalLM, avail mem=125.61 GB, mem usage=13.52 GB.
Memory pool end. avail mem=83.35 GB
Capture cuda graph begin. This can take up to several minutes. avail mem=83.26 GB""".splitlines()
CAPTURED = """Capture cuda graph end. Time elapsed: 0.10 s. mem usage=0.04 GB. avail mem=83.22 GB.
max_total_num_tokens=344797, chunked_prefill_size=8192, max_prefill_tokens=16384, max_running_requests=4096""".splitlines()
TRACE = """Scheduler hit an exception: Traceback (most recent call last):
  File "scheduler.py", line 1, in run_scheduler_process
    scheduler = Scheduler(server_args, port_args)
RuntimeError: the weights are not there

"""


def say(text: str) -> None:
    sys.stderr.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")
    sys.stderr.flush()


def load(path: str) -> tuple[int, int]:
    """Running and waiting requests: "1 2" without a file, none where the named file is not there, else what stands in it."""
    if not path:
        return 1, 2
    try:
        with open(path) as file:
            running, waiting = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return running, waiting


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace
    ready = threading.Event()
    asked: list[tuple[float, str]] = []
    seed = int.from_bytes(os.urandom(4), "little")

    def log_message(self, *_: object) -> None:
        return

    def answer(self, status: int, body: object = None) -> None:
        data = b"" if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.asked.append((time.time(), self.path))
        options, up = self.options, self.ready.is_set()
        if self.path == "/ready" and options.ready_route:
            return self.answer(200 if up else 503)
        if self.path == "/health":
            if up:
                time.sleep(options.health_s)
            say(f'INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" {200 if up else 503} OK')
            return self.answer(200 if up else 503)
        if self.path == "/v1/models":
            return self.answer(200, {"object": "list", "data": [{"id": options.model}]})
        if self.path == "/model_info":
            return self.answer(200, {"model_path": options.model})
        if self.path == "/server_info":
            info = {
                "model_path": options.model,
                "random_seed": self.seed,
                "tp_size": 1,
                "enable_torch_compile": True,
                "disable_cuda_graph": False,
                "device": "cuda",
            }
            return self.answer(200, {**info, "api_key": "sesame", "version": "0.5.11", "internal_states": [info]})
        if self.path == "/v1/loads":
            running, waiting = load(options.load_file)
            return self.answer(200, {"loads": [{"num_running_reqs": running, "num_waiting_reqs": waiting}]})
        if self.path == "/asked":
            return self.answer(200, self.asked)
        return self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        if self.path == "/tokenize":
            return self.answer(200, {"count": len(body["prompt"].split())})
        if self.path == "/flush_cache":
            return self.answer(200, b"Cache flushed.\n")
        tokens = body["max_tokens"] - self.options.short
        finish = "stop" if self.options.short else "length"
        choice = {"text": "x" * tokens, "finish_reason": finish, "matched_stop": None}
        return self.answer(200, {"choices": [choice], "usage": {"completion_tokens": tokens}})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="/models/tiny")
    parser.add_argument("--open-after", type=float, default=0.2)
    parser.add_argument("--ready-after", type=float, default=0.3)
    parser.add_argument("--health-s", type=float, default=0.3)
    parser.add_argument("--ready-route", action="store_true")
    parser.add_argument("--short", type=int, default=0)
    parser.add_argument("--fault", choices=["", "dies", "hangs", "busy", "exits", "never-up", "moves"], default="")
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--orphan", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--exit-on-term", action="store_true")
    parser.add_argument("--stamp-ready", default="")
    parser.add_argument("--load-file", default="")
    options = parser.parse_args()
    Handler.options = options
    if options.exit_on_term:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child or options.orphan:
        code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=options.orphan)
    for line in BOOT:
        say(line.replace("{model}", options.model).replace("{seed}", str(Handler.seed)))
    if options.fault == "exits":
        sys.exit(3)
    if options.fault == "dies":
        say(TRACE)
        say("Received sigquit from a child process. It usually means the child failed.")
        os.kill(os.getpid(), signal.SIGKILL)
    while options.fault in ("hangs", "busy", "moves"):
        if options.fault == "moves":
            say("Compiling still")
        if options.fault == "busy":
            until = time.process_time() + 0.1
            while time.process_time() < until:
                pass
        time.sleep(0.2)
    time.sleep(options.open_after)
    for line in CAPTURED:
        say(line)
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(f"INFO:     Uvicorn running on http://127.0.0.1:{options.port} (Press CTRL+C to quit)")
    time.sleep(options.ready_after)
    if options.fault != "never-up":
        if options.stamp_ready:
            with open(options.stamp_ready, "w") as file:
                file.write(repr(time.time()))
        Handler.ready.set()
        say("The server is fired up and ready to roll!")
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
