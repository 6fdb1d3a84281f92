"""What a run keeps of logs: redacted excerpts in ``logs/`` beside run.json, of the server's starts, the kernel log, and its own journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.record.run import utc, write_atomic
from pytest_sglang.session import journal, redaction

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.journal import Entry

FOLDER = "logs"
TOTAL_BYTES = 512 * 1024
"""Of all excerpts of a run, so that its page stays small; the newest starts have the first right to it."""
LEAST_BYTES = 4096
"""With less room than this an excerpt tells nothing."""
_STAMP_S = 2.0
"""A log's stamps are whole seconds: a start's first line may look older than its launch."""


def keep(deployment: Deployment) -> None:
    """Write the excerpts and list them in the record. Never fails a run: what cannot be read is listed with the reason."""
    try:
        deployment.recorder.logs(tuple(collect(deployment)))
    except Exception as error:
        deployment.recorder.logs(({"title": "Logs", "why": f"not kept: {type(error).__name__}: {error}"},))


def collect(deployment: Deployment) -> list[dict[str, Any]]:
    """Items of ``run.logs``: ``id, title, source, checks``, and ``file, lines, shown`` of the excerpt, or ``why`` there is none."""
    hide = _hider(deployment)
    found: list[dict[str, Any]] = []
    for part in (_server, _kernel, _changes):
        try:
            found += part(deployment, hide)
        except Exception as error:
            found.append({"title": part.__name__.strip("_").capitalize(), "why": f"{type(error).__name__}: {error}"})
    return found


Hide = Callable[[str], str]


def _hider(deployment: Deployment) -> Hide:
    """Takes out every secret that is known by its value: the API key, secret variables of the server and of this process."""
    secrets = redaction.known(dict(os.environ))
    promise = deployment.rig.server
    if promise is not None:
        key = os.environ.get(promise.api_key_env or "")
        secrets |= redaction.known(dict(promise.env), [str(each) for each in promise.command or ()])
        secrets |= {key} if key else set()
        try:
            secrets |= redaction.known(deployment.controller.environment())
        except Exception:
            pass
    return lambda text: redaction.without(text, secrets)


# --- the server ------------------------------------------------------------------------------------------------------------


def _server(deployment: Deployment, hide: Hide) -> list[dict[str, Any]]:
    """The log of each start that this run made, or that its server had: an excerpt each, oldest first."""
    from pytest_sglang.server import excerpt

    if deployment.rig.server is None:
        return []
    source = deployment.log
    text = source.read()
    where = hide(source.describe()) if deployment.simulation is None else "the simulated rig's, which is gone with it"
    if not text:
        return [{"id": "server", "title": "Server", "source": where, "checks": [], "why": hide(source.why or "it holds nothing")}]
    began = datetime.fromisoformat(deployment.recorder.run.started).timestamp()
    parts = excerpt.sections(text, began - _STAMP_S)
    del text
    made: list[dict[str, Any]] = []
    room = TOTAL_BYTES
    for number in range(len(parts), 0, -1):
        if room < LEAST_BYTES:
            why = "left out: there is no room for all"
            return [{"title": f"Server: {_starts(number)} before", "source": where, "checks": [], "why": why}, *made]
        short = excerpt.make(parts[number - 1], limit=min(excerpt.LIMIT_BYTES, room), hide=hide)
        room -= len(short.text.encode())
        what, checks = _occasion(deployment, short.first_s, began) if short.begins else ("end of a log that holds no start", [])
        made.insert(0, {"title": f"Server: {what}{_clock(short.first_s)}", "source": where, "checks": checks})
        made[0] |= {"id": f"start-{number}", "lines": short.lines, "shown": short.shown}
        made[0] |= _written(deployment.folder, f"start-{number}", short.text)
    return made


def _occasion(deployment: Deployment, first_s: float | None, began: float) -> tuple[str, list[str]]:
    """What a start was made for, for a person, and the checks that it is evidence for."""
    if first_s is None or first_s < began - _STAMP_S:
        return "the start that the run found", []
    before = [each for each in deployment.server.launches if each[0] <= first_s + _STAMP_S]
    if not before:
        return "a start that this run did not ask for", []
    _, label, check = before[-1]
    if not check or label == "caches put back":
        return f"{label}{f' after {check}' if check else ''}", []
    return f"start in {check}", [check]


def _clock(epoch_s: float | None) -> str:
    """As the log itself stamps it: in this machine's time."""
    return "" if epoch_s is None else time.strftime(", %H:%M:%S", time.localtime(epoch_s))


def _starts(count: int) -> str:
    return f"{count} start{'' if count == 1 else 's'}"


# --- the kernel's log and our own journal ----------------------------------------------------------------------------------


def _kernel(deployment: Deployment, hide: Hide) -> list[dict[str, Any]]:
    """The driver's messages that ``kernel-log`` judged, if there were any."""
    from pytest_sglang.server import excerpt

    messages = deployment.kernel_messages
    if not messages:
        return []
    lines = []
    for each in messages[-500:]:
        at = utc(each.at_s) if each.at_s != float("inf") else "(no time)"
        said = f"Xid {each.code}, {each.text}" if each.code else each.text
        lines.append(excerpt.harmless(hide(f"{at}  {each.pci or 'driver'}  {said}")[:1000]))
    text = "".join(f"{line}\n" for line in lines)
    return [
        {
            "id": "kernel",
            "title": "Kernel log: messages of the driver since the run began",
            "source": "kernel log",
            "checks": ["kernel-log", "gpu-health"],
            **_written(deployment.folder, "kernel", text),
            "lines": len(messages),
            "shown": len(lines),
        }
    ]


def _changes(deployment: Deployment, hide: Hide) -> list[dict[str, Any]]:
    """What this run changed on the rig, and how each change was put back, from its journal (which ends with the run)."""
    from pytest_sglang.server import excerpt

    try:
        kept = journal.read(deployment.journal.path)
    except OSError:
        return []
    # a simulated rig's own folder is made and removed by the run: nobody's property
    lines = [_change(each, kept.resolved.get(each.id)) for each in kept.entries if each.kind != "directory"]
    if not lines:
        return []
    text = "".join(f"{excerpt.harmless(hide(line))[:1000]}\n" for line in lines)
    return [
        {
            "id": "changes",
            "title": "Journal: what this run changed and put back",
            "source": "journal of the run",
            "checks": [],
            **_written(deployment.folder, "changes", text),
            "lines": len(lines),
            "shown": len(lines),
        }
    ]


def _change(entry: Entry, how: str | None) -> str:
    at = time.strftime("%H:%M:%S UTC", time.gmtime(entry.at))
    ended = f"put back: {how}" if how is not None else "NOT PUT BACK YET when this was written"
    return f"{at}  {entry.kind} {entry.target}: {_plain(entry.before)} -> {_plain(entry.after)}  ({ended})"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return {True: "yes", False: "no", None: "none"}.get(value, str(value)) if isinstance(value, (bool, type(None))) else str(value)


def _written(folder: Path, name: str, text: str) -> dict[str, Any]:
    path = folder / FOLDER / f"{name}.log"
    write_atomic(path, text)
    return {"file": f"{FOLDER}/{path.name}"}
