"""A container engine on one container: its command line in files, its container a real fake server that outlives the caller."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FAKE = Path(__file__).parents[1] / "server" / "fake_sglang.py"
CLI = """
import json, os, signal, subprocess, sys, time
FOLDER, ARGV = {folder!r}, {argv!r}
path = FOLDER + "/container.json"
state = json.load(open(path))
def pid_alive(pid):
    try:
        return pid and open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
def save():
    with open(path + ".new", "w") as file: json.dump(state, file)
    os.replace(path + ".new", path)
verb = sys.argv[1]
with open(FOLDER + "/calls", "a") as file: file.write(verb + "\\n")
if os.path.exists(FOLDER + "/refuses-" + verb): sys.exit("permission denied")
alive = pid_alive(state["pid"])
if verb == "inspect":
    inner = dict(Running=bool(alive), Status="running" if alive else "exited", Pid=state["pid"] if alive else 0,
                 ExitCode=0, OOMKilled=False, Restarting=False, StartedAt=state["started"])
    print(json.dumps([dict(State=inner, RestartCount=0, Path=ARGV[0], Args=ARGV[1:], Config=dict(Env=[]), NetworkSettings=dict(Ports=dict()))]))
elif verb == "start" and not alive:
    with open(FOLDER + "/log", "a") as log:
        child = subprocess.Popen(ARGV, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    state["pid"], state["started"] = child.pid, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".999999Z"
    save()
elif verb == "stop" and alive:
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.time() + 20
    while pid_alive(state["pid"]) and time.time() < deadline: time.sleep(0.02)
elif verb == "logs":
    print(open(FOLDER + "/log").read() if os.path.exists(FOLDER + "/log") else "")
"""


def make_engine(folder: Path, port: int, *options: str) -> list[str]:
    """The engine's command line; its one container is stopped."""
    folder.mkdir()
    (folder / "container.json").write_text(json.dumps({"pid": 0, "started": "0001-01-01T00:00:00Z"}))
    argv = [sys.executable, "-S", str(FAKE), "--port", str(port), "--load-file", str(folder / "load"), *options]
    script = folder / "engine.py"
    script.write_text(CLI.format(folder=str(folder), argv=argv))
    return [sys.executable, "-S", str(script)]


def container_pid(folder: Path) -> int:
    return int(json.loads((folder / "container.json").read_text())["pid"])


def engine_calls(folder: Path) -> list[str]:
    """What was asked of it, but for looking."""
    return [each for each in (folder / "calls").read_text().split() if each not in ("inspect", "logs")]
