"""What a run keeps of logs: the starts of this run, the kernel's messages, its own changes; no secret in any of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.gpu.host import Xid
from pytest_sglang.record.run import Run, utc
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server.log import FileLog, TextLog
from pytest_sglang.session import excerpts, redaction
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.state import Owner

LOGS = Path(__file__).parents[1] / "data" / "logs"
# the recorded logs are stamped in the time zone of the machine that reads them, so times are taken from the logs themselves
COLD, WARM = "sglang-0.5.11-h200-compile-cold", "sglang-0.5.11-h200-compile-warm"


def recorded(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")


def first_s(name: str) -> float:
    from pytest_sglang.server import log

    return next(line.time for line in log.split(recorded(name)) if line.time is not None)


class Kept:
    def __init__(self, began: float) -> None:
        self.run = Run(run_id="r", started=utc(began), simulated=False)
        self.found: tuple[dict[str, Any], ...] = ()

    def logs(self, found: tuple[dict[str, Any], ...]) -> None:
        self.found = found


def deployment(tmp_path: Path, log: Any, began: float, **more: Any) -> Any:
    server = ServerPromise(
        url="http://127.0.0.1:1", api_key_env="PYTEST_SGLANG_TEST_KEY", env={"PYTEST_SGLANG_TEST_PASSWORD": "opensesame"}
    )
    fields: dict[str, Any] = {
        "rig": SimpleNamespace(server=server),
        "folder": tmp_path / "run",
        "log": log,
        "server": SimpleNamespace(launches=more.pop("launches", [])),
        "controller": SimpleNamespace(environment=lambda: more.get("environment", {})),
        "recorder": Kept(began),
        "kernel_messages": None,
        "journal": Journal(tmp_path / "state", Owner.me("r")),
        "simulation": None,
    }
    return SimpleNamespace(**{**fields, **more})


def kept(made: Any) -> dict[str, dict[str, Any]]:
    """Items by id, with their text; and every byte that was written, for a search."""
    excerpts.keep(made)
    return {
        str(each.get("id")): {**each, "text": (made.folder / each["file"]).read_text() if "file" in each else ""}
        for each in made.recorder.found
    }


def test_each_start_of_the_run_and_the_one_that_it_found(tmp_path: Path) -> None:
    cold, warm = first_s(COLD), first_s(WARM)
    log = tmp_path / "sglang.log"
    log.write_text(recorded("sglang-0.5.11-h200-plain") + recorded(COLD) + recorded(WARM))
    launches = [(warm - 5.0, "restart", "warm-restart")]
    found = kept(deployment(tmp_path, FileLog(log), warm - 60.0, launches=launches))
    assert [each["title"].rpartition(",")[0] for each in found.values()] == [
        "Server: the start that the run found",
        "Server: start in warm-restart",
    ]
    first, second = found.values()
    assert (first["checks"], second["checks"]) == ([], ["warm-restart"])
    assert first["source"] == str(log)
    assert first["lines"] > first["shown"] > 20
    assert "Capture cuda graph begin" in second["text"]
    assert cold < warm


def test_a_start_that_only_puts_things_back_is_no_evidence_for_its_check(tmp_path: Path) -> None:
    warm = first_s(WARM)
    for launch, title, checks in (
        ((warm - 5.0, "caches put back", "cold-start"), "Server: caches put back after cold-start", []),
        ((warm - 5.0, "put back at the end", ""), "Server: put back at the end", []),
        ((warm + 60.0, "restart", "warm-restart"), "Server: a start that this run did not ask for", []),
    ):
        made = deployment(tmp_path, TextLog(recorded(WARM)), warm - 60.0, launches=[launch])
        ((item),) = kept(made).values()
        assert item["title"].rpartition(",")[0] == title
        assert item["checks"] == checks


def test_the_end_of_a_log_whose_start_was_rotated_away_is_called_so(tmp_path: Path) -> None:
    text = "[2026-11-23 22:30:00] Decode batch, #running-req: 1\n" * 50
    ((item),) = kept(deployment(tmp_path, TextLog(text), 0.0)).values()
    assert item["title"].startswith("Server: end of a log that holds no start, ")
    assert item["checks"] == []


def test_a_log_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    found = kept(deployment(tmp_path, TextLog("", name="no log", why="the rig file names no log (server.log)"), 0.0))
    assert found["server"]["why"] == "the rig file names no log (server.log)"
    assert not (tmp_path / "run").exists()


def test_nothing_that_goes_wrong_with_a_log_fails_a_run(tmp_path: Path) -> None:
    class Broken(TextLog):
        def read(self) -> str:
            raise ValueError("a disk with a hole")

    found = kept(deployment(tmp_path, Broken("x"), 0.0))
    assert [each["why"] for each in found.values()] == ["ValueError: a disk with a hole"]
    made = deployment(tmp_path, TextLog("x\n"), 0.0)
    made.folder = Path("/proc/nowhere")
    excerpts.keep(made)
    assert "why" in made.recorder.found[0]


def test_all_excerpts_together_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "TOTAL_BYTES", 40_000)
    found = kept(deployment(tmp_path, TextLog(recorded(COLD) * 6), first_s(COLD) - 60.0))
    texts = [each["text"] for each in found.values() if each["text"]]
    assert 0 < sum(len(text.encode()) for text in texts) <= 40_000
    assert len(texts) < 6
    (left_out,) = (each for each in found.values() if "why" in each)
    assert left_out["title"].startswith(f"Server: {6 - len(texts)} start")


SECRET = "s3cr3t-of-the-environment"
PLANTED = f"""[2026-11-27 20:00:00] server_args=ServerArgs(model_path='/models/x', api_key='key-of-the-server', port=1)
[2026-11-27 20:00:01] Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: cannot log in with {SECRET} at https://me:url-password@example.org
[2026-11-27 20:00:02] ERROR headers: {{'authorization': 'Bearer header-token-12345'}}
[2026-11-27 20:00:03] ERROR the run's own variable: run-variable-value
[2026-11-27 20:00:03] ERROR the rig file's: opensesame
[2026-11-27 20:00:03] ERROR the API key as it is: open-sesame-api-key
[2026-11-27 20:00:03] ERROR harmless: mem_fraction_static=0.85, TOKENIZERS_PARALLELISM=true, MAX_TOKENS=4096
"""
HIDDEN = (
    SECRET,
    "key-of-the-server",
    "url-password",
    "header-token-12345",
    "run-variable-value",
    "opensesame",
    "open-sesame-api-key",
)


def test_a_secret_planted_anywhere_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SGLANG_TEST_KEY", "open-sesame-api-key")
    monkeypatch.setenv("PYTEST_SGLANG_TEST_DEPLOY_TOKEN", "run-variable-value")
    journal = Journal(tmp_path / "state", Owner.me("r"))
    journal.record("server", f"unit with {SECRET}", {"active": True}, {"active": False})
    made = deployment(
        tmp_path,
        TextLog(PLANTED, name=f"/logs/{SECRET}.log"),
        0.0,
        environment={"SERVICE_PASSWORD": SECRET, "TOKENIZERS_PARALLELISM": "true", "PATH": "/usr/bin"},
        journal=journal,
        kernel_messages=(Xid(at_s=1e9, pci="0000:03:00", code=79, text=f"fallen off the bus {SECRET}"),),
    )
    found = kept(made)
    assert set(found) == {"start-1", "kernel", "changes"}
    written = "".join(path.read_text() for path in (made.folder / "logs").iterdir()) + repr(made.recorder.found)
    assert [each for each in HIDDEN if each in written] == []
    assert "ValueError: cannot log in with [redacted] at https://<redacted>@example.org" in written
    assert "mem_fraction_static=0.85, TOKENIZERS_PARALLELISM=true, MAX_TOKENS=4096" in written


def test_kernel_messages_that_were_judged(tmp_path: Path) -> None:
    messages = (
        Xid(at_s=1795472524.0, pci="0000:03:00", code=79, text="GPU has fallen off the bus."),
        Xid(at_s=float("inf"), pci="", code=0, text="RmInitAdapter failed! \x1b[31m"),
    )
    found = kept(deployment(tmp_path, TextLog("x\n"), 0.0, kernel_messages=messages))["kernel"]
    assert found["checks"] == ["kernel-log", "gpu-health"]
    assert found["text"].splitlines() == [
        "2026-11-23T22:22:04.000Z  0000:03:00  Xid 79, GPU has fallen off the bus.",
        "(no time)  driver  RmInitAdapter failed! \ufffd[31m",
    ]


def test_changes_with_how_each_was_put_back(tmp_path: Path) -> None:
    made = deployment(tmp_path, TextLog("x\n"), 0.0)
    first = made.journal.record("power_limit", "GPU-1", 350.0, 250.0)
    made.journal.record("directory", "/tmp/x", None, "/tmp/x")
    made.journal.record("server", "sglang.service", {"active": True, "pid": 7}, {"active": False})
    made.journal.resolve(first.id, "restored")
    lines = kept(made)["changes"]["text"].splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == [
        "power_limit GPU-1: 350.0 -> 250.0  (put back: restored)",
        "server sglang.service: active yes, pid 7 -> active no  (NOT PUT BACK YET when this was written)",
    ]


@pytest.mark.parametrize(
    ("variables", "argv", "found"),
    [
        ({"HF_TOKEN": "abcdefgh"}, (), {"abcdefgh"}),
        ({"TOKENIZERS_PARALLELISM": "false-ish"}, (), set()),
        ({"MAX_TOKENS": "128000", "KEY_COUNT": "1234567", "SSH_KEY": "/home/x/.ssh/id"}, (), set()),
        ({"API_KEY": "short"}, (), set()),
        ({}, ("--api-key", "abcdefgh", "--port", "12345678"), {"abcdefgh"}),
        ({}, ("--api-key=abcdefgh",), {"abcdefgh"}),
    ],
)
def test_which_values_are_secrets(variables: dict[str, str], argv: tuple[str, ...], found: set[str]) -> None:
    assert redaction.known(variables, argv) == found


def test_the_longer_secret_goes_first() -> None:
    assert redaction.without("abcdef abcdefgh", {"abcdef", "abcdefgh"}) == "[redacted] [redacted]"
