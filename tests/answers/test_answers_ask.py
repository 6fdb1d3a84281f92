"""Asking, beside a real server's recorded answer and beside the simulated model in its sound and its wrong forms."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.answers import ask
from pytest_sglang.answers.prompts import FIXED, TOKENS
from pytest_sglang.judge import answers as judge
from pytest_sglang.record.answers import Answers
from pytest_sglang.simulator import wire
from pytest_sglang.simulator.answers import STALE, SUMS, TIES, Answer

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "answers" / "generate-logprob-0.5.23.json").read_text(encoding="utf-8"))
GERMAN: dict[str, Any] = RECORDED["german"]
SCORED: dict[str, Any] = RECORDED["german scored"]


# --- a real server's answer -------------------------------------------------------------------------------------------------------


def test_a_real_answer_is_read_whole() -> None:
    found = ask.read(json.dumps(GERMAN["body"]), TOKENS)
    assert len(found.chosen.ids) == len(found.chosen.logprobs) == len(found.chosen.runner_up) == TOKENS
    assert list(found.chosen.ids) == GERMAN["body"]["output_ids"]
    # a control token has a text of its own and leaves none in the answer
    assert "".join(word or "" for word in found.chosen.words).replace("<|system|>", "") == found.text
    # a model with random weights: no choice is sure, and each is the best one or tied with it
    margins = [one - other for one, other in zip(found.chosen.logprobs, found.chosen.runner_up, strict=True) if one and other]
    assert len(margins) == TOKENS
    assert all(0 <= each < 1 for each in margins)


def test_a_real_prompt_is_scored_without_the_prefix_cache() -> None:
    found = ask.read(json.dumps(SCORED["body"]), 1, scored=True)
    assert len(found.prompt_ids) == SCORED["body"]["meta_info"]["prompt_tokens"] == len(found.prompt_logprobs) + 1
    assert all(each is not None and -15 < each < -3 for each in found.prompt_logprobs)
    assert SCORED["request"]["logprob_start_len"] == SCORED["body"]["meta_info"]["cached_tokens"] == 0
    assert "logprob_start_len" not in GERMAN["request"]


def test_the_requests_are_the_recorded_ones() -> None:
    sent: list[dict[str, Any]] = []

    def send(body: dict[str, Any]) -> tuple[int, str]:
        sent.append(body)
        return 200, json.dumps((GERMAN if len(sent) == 1 else SCORED)["body"])

    answers, why = ask.ask(send, FIXED[-1:])
    assert (sent, why) == ([GERMAN["request"], SCORED["request"]], "")
    assert answers[0].text == GERMAN["body"]["text"]
    assert list(answers[0].prompt_ids) == [each[1] for each in SCORED["body"]["meta_info"]["input_token_logprobs"]]
    assert list(RECORDED["continued"]["request"]["input_ids"]) == [*answers[0].prompt_ids, *answers[0].token_ids[:3]]


def changed(**meta: Any) -> str:
    return json.dumps({**GERMAN["body"], "meta_info": {**GERMAN["body"]["meta_info"], **meta}})


@pytest.mark.parametrize(
    ("status", "text", "why"),
    [
        (400, json.dumps(RECORDED["refused"]["body"]), "HTTP 400: {"),
        (404, '{"detail": "Not Found"}', "HTTP 404"),
        (200, "", "not an answer of /generate"),
        (200, "[]", "not an answer of /generate"),
        (200, '{"text": "x", "meta_info": {"finish_reason": null}}', "holds no log-probabilities"),
        (200, changed(output_top_logprobs=None), "holds no log-probabilities"),
        (
            200,
            changed(output_token_logprobs=GERMAN["body"]["meta_info"]["output_token_logprobs"][:30]),
            "log-probabilities of 30 of 32 tokens only",
        ),
        (200, changed(finish_reason={"type": "abort", "message": "x"}), "with finish reason abort"),
        (200, changed(finish_reason={"type": "stop", "matched": 1}), "with finish reason stop"),
    ],
)
def test_what_is_no_answer_is_told_and_ends_the_asking(status: int, text: str, why: str) -> None:
    asked: list[object] = []

    def send(body: dict[str, Any]) -> tuple[int, str]:
        asked.append(body)
        return status, text

    answers, told = ask.ask(send, FIXED)
    assert (answers, len(asked)) == ((), 1)
    assert told.startswith("prompt capitals: ")
    assert why in told


def test_a_prompt_that_is_not_scored_is_told() -> None:
    with pytest.raises(ask.NoAnswer, match="no log-probabilities"):
        ask.read(json.dumps(GERMAN["body"]), TOKENS, scored=True)


def test_a_number_that_is_none_and_an_end_by_nan_are_kept_for_the_judge() -> None:
    scored = [[float("nan"), 0, "!"], *GERMAN["body"]["meta_info"]["output_token_logprobs"][1:]]
    assert ask.read(changed(output_token_logprobs=scored), TOKENS).chosen.logprobs[0] is None
    ended = ask.read(changed(finish_reason={"type": "stop", "matched": "NaN happened"}, output_token_logprobs=scored[:1]), TOKENS)
    assert ended.matched == "NaN happened"


# --- the simulated model ------------------------------------------------------------------------------------------------------------


class Model:
    """The simulated server's answers without its time."""

    def __init__(self, *ills: str, seed: int = 0) -> None:
        self._ills, self._noise = ills, random.Random(seed)
        self.asked = 0

    def __call__(self, body: dict[str, Any]) -> tuple[int, str]:
        self.asked += 1
        asked = wire.parse("generate", json.dumps(body).encode(), "model")
        request = asked.request
        answer = Answer(request.prompt, self._ills, self._noise)
        if request.scores_from == 0:
            request.prompt_scores = answer.of_prompt()
        request.scores = [answer.next() for _ in range(request.max_tokens)]
        request.output = [each.token for each in request.scores]
        request.finish = {"type": "length", "length": request.max_tokens}
        return 200, wire.dumps(wire.whole(asked))


def series(model: Model, reference: Answers | None = None) -> Answers:
    answers, why = ask.ask(model, FIXED, reference)
    assert why == ""
    return Answers(after="x", at="", answers=answers)


def test_the_simulated_answer_has_the_recorded_form() -> None:
    for recorded in (GERMAN, SCORED):
        _same_form(json.loads(Model()(recorded["request"])[1])["meta_info"], recorded["body"]["meta_info"])


def _same_form(meta: dict[str, Any], real: dict[str, Any]) -> None:
    names = [name for name in real if "logprobs" in name]
    assert [name for name in meta if "logprobs" in name] == names
    for name in names:
        if name != "output_token_logprobs_length":
            assert _form(meta[name][:1]) == _form(real[name][:1])
            assert _form(meta[name][-1:]) == _form(real[name][-1:])
    assert len(meta["input_token_logprobs"]) == len(meta["input_top_logprobs"])
    assert len(meta["input_token_logprobs"]) in (0, meta["prompt_tokens"])
    assert meta["output_token_logprobs_length"] == real["output_token_logprobs_length"]


def _form(value: Any) -> Any:
    return [_form(each) for each in value] if isinstance(value, list) else type(value).__name__


def test_a_sound_model_answers_the_same_twice_with_two_requests_a_prompt() -> None:
    reference = series(Model())
    again = Model(seed=1)
    found = judge.compare(reference, series(again, reference))
    assert (found.equal, found.forks, found.mean_nats, again.asked) == (192, (), 0.0, 12)


def test_an_answer_goes_on_alike_behind_its_own_first_tokens() -> None:
    first = Answer([5, 6, 7])
    made = [first.next().token for _ in range(8)]
    behind = Answer([5, 6, 7, *made[:5]])
    assert [behind.next().token for _ in range(3)] == made[5:]


def test_near_ties_fail_no_run() -> None:
    for seed in range(30):
        model = Model(TIES, seed=seed)
        reference = series(model)
        now = series(model, reference)
        found = judge.compare(reference, now)
        assert not found.changed, (seed, str(found))
        assert found.doubt is None, (seed, found.doubt)
        assert judge.broken(now) == []


def test_near_ties_are_followed_behind_their_forks() -> None:
    model = Model(TIES, seed=3)
    reference = series(model)
    now = series(model, reference)
    found = judge.compare(reference, now)
    alone = judge.compare(reference, Answers(after="x", at="", answers=tuple(_alone(each) for each in now.answers)))
    assert len(found.forks) > len(alone.forks) > 0
    assert found.equal > alone.equal


def _alone(answer: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(answer, continued=())


@pytest.mark.parametrize("ill", [STALE, SUMS])
def test_wrong_tokens_are_noticed_in_every_run_and_not_asked_for_much_longer(ill: str) -> None:
    for seed in range(30):
        reference = series(Model(ill, seed=seed) if ill == SUMS else Model())
        now = Model(ill, seed=seed + 1000)
        found = judge.compare(reference, series(now, reference))
        assert found.changed, (seed, str(found))
        assert now.asked <= 18
