"""The fake server as a unit starts it: with --notify it tells systemd when its port is open, with --fork it detaches at once."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import threading
import time
from pathlib import Path

FAKE = Path(__file__).resolve().parents[1] / "server" / "fake_sglang.py"


def notify_when_open(port: int) -> None:
    """sd_notify(3): READY=1 to the socket that systemd named."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])


def main() -> None:
    words = sys.argv[1:]
    port = int(words[words.index("--port") + 1])
    if "--fork" in words:
        words.remove("--fork")
        if os.fork():
            os._exit(0)
        os.setsid()
    if "--notify" in words:
        words.remove("--notify")
        threading.Thread(target=notify_when_open, args=(port,), daemon=True).start()
    sys.argv[1:] = words
    runpy.run_path(str(FAKE), run_name="__main__")


if __name__ == "__main__":
    main()
