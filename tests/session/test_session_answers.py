"""When the fixed prompts are asked in a run, what is kept of it, and the answers of two runs side by side."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_sglang.answers.prompts import FIXED
from pytest_sglang.judge.verdict import combine
from pytest_sglang.record import run as records
from pytest_sglang.record.answers import Answers
from pytest_sglang.record.run import NotChecked, Run
from pytest_sglang.rig.model import AnswersPromise, Expectation
from pytest_sglang.server.http import Unreachable
from pytest_sglang.session.answering import Answering
from pytest_sglang.session.compared_answers import compared
from pytest_sglang.simulator import wire
from pytest_sglang.simulator.answers import STALE, SUMS, TIES, Answer


class Plane:
    """A server that answers at once, as the simulated model does; ``ills`` may change between starts."""

    def __init__(self, *ills: str) -> None:
        self.ills, self.asked, self.down = ills, 0, False
        self.info: dict[str, Any] = {"version": "0.5.11", "speculative_algorithm": None}
        self._noise = random.Random(4)

    def request(self, method: str, path: str, *, body: Any, timeout_s: float) -> SimpleNamespace:
        assert (method, path) == ("POST", "/generate")
        if self.down:
            raise Unreachable("http://127.0.0.1:1/generate: connection refused")
        self.asked += 1
        asked = wire.parse("generate", json.dumps(body).encode(), "model")
        request = asked.request
        answer = Answer(request.prompt, self.ills, self._noise)
        if request.scores_from == 0:
            request.prompt_scores = answer.of_prompt()
        request.scores = [answer.next() for _ in range(request.max_tokens)]
        request.output = [each.token for each in request.scores]
        request.finish = {"type": "length", "length": request.max_tokens}
        return SimpleNamespace(status=200, body=wire.dumps(wire.whole(asked)), seconds=0.1)


class Recorder:
    def __init__(self) -> None:
        self.answers_: list[Answers] = []

    def answers(self, answers: Answers) -> None:
        self.answers_.append(answers)


def answering(plane: Plane, promise: AnswersPromise | None = None, *, aside: bool = False) -> Answering:
    deployment: Any = SimpleNamespace(
        plane=plane,
        server=SimpleNamespace(info=plane.info),
        rig=SimpleNamespace(answers=promise or AnswersPromise()),
        clock=SimpleNamespace(time=lambda: 1_790_000_000.0),
        recorder=Recorder(),
        progress=lambda text: None,
        scope=SimpleNamespace(power_w=None),
        options=SimpleNamespace(power_levels_w=(250.0,)),
        kernels=SimpleNamespace(aside=[1] if aside else []),
    )
    made = Answering(deployment)
    made.wanted = True
    return made


def kept(made: Answering) -> list[str]:
    """After which starts a run keeps answers."""
    return [each.after for each in made._deployment.recorder.answers_]  # type: ignore[attr-defined]


def told(made: Answering) -> tuple[str, str]:
    found = combine(made.judge())
    return found.verdict, f"{found.message} | {found.cause or found.inconclusive_because}"


def test_a_server_that_is_not_restarted_is_asked_twice() -> None:
    made = answering(Plane())
    assert told(made)[0] == "pass"
    assert kept(made) == ["as found", "asked again"]
    assert made.series[0].power_w == 250.0


def test_a_run_with_restarts_asks_before_the_first_stop_and_after_each_start_but_not_once_more() -> None:
    plane = Plane()
    made = answering(plane)
    made.before_stop()
    made.started("restart")
    made.before_stop()
    made._deployment.kernels.aside.append(1)  # type: ignore[arg-type]
    made.started("restart")
    made._deployment.kernels.aside.clear()
    made.started("caches put back")
    assert told(made)[0] == "pass"
    assert kept(made) == ["as found", "warm restart", "cold start"]
    assert plane.asked == 3 * 2 * len(FIXED)


def test_a_run_without_the_check_asks_nothing() -> None:
    plane = Plane()
    made = answering(plane)
    made.wanted = False
    made.before_stop()
    made.started("restart")
    assert plane.asked == 0


def test_stale_kernels_of_a_warm_restart_are_told_from_what_differs_each_time() -> None:
    plane = Plane()
    made = answering(plane)
    made.before_stop()
    plane.ills = (STALE,)
    made.started("restart")
    verdict, text = told(made)
    assert verdict == "fail"
    assert "the start changed it" in text
    assert kept(made) == ["as found", "warm restart", "asked again"]

    other = answering(Plane(SUMS))
    verdict, text = told(other)
    assert verdict == "fail"
    assert "answers differently when it is asked twice" in text


def test_a_server_that_does_not_answer_is_inconclusive_and_its_stop_goes_on() -> None:
    plane = Plane()
    plane.down = True
    made = answering(plane)
    made.before_stop()
    plane.down = False
    made.started("restart")
    verdict, text = told(made)
    assert verdict == "inconclusive"
    assert "connection refused" in text


def test_what_the_rig_file_expects_is_asked_too() -> None:
    promise = AnswersPromise(expect=(Expectation(prompt="The capital of France is", contains="no such word"),))
    plane = Plane()
    made = answering(plane, promise)
    assert told(made)[0] == "fail"
    assert plane.asked == 2 * 2 * (len(FIXED) + 1)


# --- two runs -----------------------------------------------------------------------------------------------------------------------


def run(*askings: Answers) -> Run:
    plain = tuple(records.plain(each) for each in askings)
    made = Run(run_id="x", started="2026-11-27T20:00:00.000Z", simulated=False, answers=plain)
    return msgspec.json.decode(json.dumps(records.plain(made)).encode(), type=Run)


def asked(*ills: str) -> Run:
    made = answering(Plane(*ills))
    made.before_stop()
    return run(*made.series)


def test_equal_answers_of_two_runs() -> None:
    found = compared([asked()], [asked()], judged=True)
    assert found is not None
    assert (found.outcome, found.verdict, found.tokens, found.equal, found.clear) == ("equal", "pass", 192, 192, 0)
    assert (found.text, found.logprob_difference) == ("192 of 192 tokens the same", 0.0)


def test_near_ties_of_two_runs_pass() -> None:
    found = compared([asked()], [asked(TIES)], judged=True)
    assert found is not None
    assert (found.outcome, found.verdict, found.clear, found.worst) == ("near ties", "pass", 0, None)
    assert found.near_ties > 0


def test_changed_answers_fail_where_the_model_is_the_same_and_are_shown_where_it_is_under_test() -> None:
    found = compared([asked()], [asked(), asked(STALE)], judged=True)
    assert found is not None
    assert (found.outcome, found.verdict) == ("changed", "fail")
    assert found.clear > 1
    assert "chosen with a margin of" in (found.worst or "")
    shown = compared([asked()], [asked(STALE)], judged=False)
    assert shown is not None
    assert (shown.outcome, shown.verdict) == ("changed", None)


def test_runs_without_answers_are_not_judged_and_those_that_had_none_are_inconclusive() -> None:
    assert compared([run()], [run()], judged=True) is None
    unasked = compared([run()], [asked()], judged=True)
    assert unasked is not None
    assert (unasked.outcome, unasked.verdict) == ("not recorded", None)
    assert unasked.text == "no answers before: they were not asked"
    failed = compared([asked()], [run(Answers(after="as found", at="", why="HTTP 404"))], judged=True)
    assert failed is not None
    assert (failed.outcome, failed.verdict) == ("not recorded", "inconclusive")
    assert "HTTP 404" in failed.text


def test_only_prompts_that_both_were_asked_are_compared() -> None:
    more = answering(Plane(), AnswersPromise(expect=(Expectation(prompt="mine", contains="x"),)))
    more.before_stop()
    found = compared([asked()], [run(*more.series)], judged=True)
    assert found is not None
    assert (found.outcome, found.tokens) == ("equal", 192)
    other = msgspec.structs.replace(more.series[0], answers=more.series[0].answers[-1:])
    none = compared([asked()], [run(other)], judged=True)
    assert none is not None
    assert (none.outcome, none.verdict) == ("not recorded", None)


@pytest.mark.parametrize("odd", [{"after": "as found"}, {"after": 1, "at": "", "answers": 3}])
def test_a_record_of_another_form_is_none(odd: dict[str, Any]) -> None:
    strange = msgspec.structs.replace(run(), answers=(odd,))
    found = compared([asked()], [strange], judged=True)
    assert found is not None
    assert (found.outcome, found.verdict) == ("not recorded", "inconclusive")
    assert found.text == "no answers after: they are of a form that this version does not know"


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "left out": ({"not_checked": (NotChecked("answers", "deselected"),)}, "the check was deselected"),
    "no file of it": ({"not_checked": (NotChecked("answers", "not collected"),)}, "the check was not collected"),
    "not allowed": (
        {"not_checked": (NotChecked("answers", "level 1 puts no load on the rig"),)},
        "not asked: level 1 puts no load",
    ),
    "not promised": ({"not_promised": ("answers",)}, "the rig file did not ask for them ([answers])"),
    "nothing told": ({}, "they were not asked"),
}


@pytest.mark.parametrize("why", REASONS)
def test_answers_that_are_gone_are_no_pass_and_say_why(why: str) -> None:
    fields, told = REASONS[why]
    found = compared([asked()], [msgspec.structs.replace(run(), **fields)], judged=True)
    assert found is not None
    assert (found.outcome, found.verdict) == ("not recorded", "inconclusive")
    assert found.text.startswith(f"no answers after: {told}")


@pytest.mark.parametrize(("info", "why"), [({"speculative_algorithm": "EAGLE3"}, "speculatively (EAGLE3)"), ({}, "cannot be read")])
def test_a_server_that_might_crash_is_not_asked(info: dict[str, Any], why: str) -> None:
    plane = Plane()
    plane.info = info
    verdict, text = told(answering(plane))
    assert (verdict, plane.asked) == ("inconclusive", 0)
    assert why in text
