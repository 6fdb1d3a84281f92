"""Answers of a real SGLang on the CPU: steady when asked twice and after a restart, told as changed with other weights."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from engine_servers import HERE, Engine, Server

from pytest_sglang.answers import ask
from pytest_sglang.answers.prompts import FIXED
from pytest_sglang.judge import answers as judge
from pytest_sglang.record.answers import Answers


def asked(server: Server, reference: Answers | None = None) -> Answers:
    def send(body: dict[str, Any]) -> tuple[int, str]:
        status, answer = server.call("POST", "/generate", body)
        return status, answer if isinstance(answer, str) else json.dumps(answer)

    answers, why = ask.ask(send, FIXED, reference)
    assert why == ""
    return Answers(after="x", at="", answers=answers)


def test_a_real_server_answers_the_same_twice_and_after_a_restart_and_otherwise_with_other_weights(
    plain_server: Server, servers: Engine, tmp_path: Path
) -> None:
    reference = asked(plain_server)
    again = judge.compare(reference, asked(plain_server, reference))
    assert (again.changed, again.doubt) == (False, None), str(again)
    assert again.equal == again.tokens == 6 * 32
    # random weights: no choice is sure, the tiny model repeats itself, and that is no fault
    assert judge.no_text(reference)
    assert judge.broken(reference) == []
    other = tmp_path / "other"
    made = [str(servers.folder / "venv" / "bin" / "python"), str(HERE / "engine" / "make_model.py"), str(other), "1"]
    subprocess.run(made, check=True, capture_output=True)
    with servers.serving(tmp_path / "home") as restarted:
        after = judge.compare(reference, asked(restarted, reference))
        assert (after.changed, after.doubt) == (False, None), str(after)
        assert after.mean_nats is not None
        assert after.mean_nats < 0.1
        # weights as a start on another checkpoint loads them, without the start
        status, answer = restarted.call("POST", "/update_weights_from_disk", {"model_path": str(other)})
        assert (status, answer["success"]) == (200, True), answer
        found = judge.compare(reference, asked(restarted, reference))
    assert found.changed, str(found)
    assert found.mean_nats is not None
    assert found.mean_nats > judge.MEAN_NATS
