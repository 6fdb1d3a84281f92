"""Noise is no fault, a fault is no noise: answers beside their reference."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest

from pytest_sglang.judge import answering
from pytest_sglang.judge import answers as judge
from pytest_sglang.record.answers import EXPECTED, Answer, Answers, Continued
from pytest_sglang.rig.model import AnswersPromise, Expectation

PROMPTS = ("capitals", "counting", "code", "record", "water", "german")
LENGTH = 32


def answer(prompt: str = "capitals", **different: Any) -> Answer:
    """Thirty-two different tokens, each chosen by 3 nats."""
    ids = tuple(range(100, 100 + LENGTH))
    plain = {
        "prompt": prompt,
        "prompt_ids": (1, 2, 3),
        "prompt_logprobs": (-2.0, -3.0),
        "text": " ".join(map(str, ids)),
        "token_ids": ids,
        "words": tuple(f" {each}" for each in ids),
        "logprobs": (-0.1,) * LENGTH,
        "runner_up": (-3.1,) * LENGTH,
    }
    return Answer(**{**plain, **different})


def series(after: str = "warm restart", why: str = "", **different: Any) -> Answers:
    return Answers(
        after=after, at="2026-11-27T20:00:00.000Z", answers=tuple(answer(each, **different) for each in PROMPTS), why=why
    )


def parted(at: int, margin_before: float, margin_now: float, prompt: str = "capitals") -> tuple[Answer, Answer]:
    """A reference, and an answer that parts from it at a token and never comes back."""
    runner_up = [-3.1] * LENGTH
    runner_up[at] = -0.1 - margin_before
    mine = answer(prompt, runner_up=tuple(runner_up))
    ids = (*mine.token_ids[:at], *range(500, 500 + LENGTH - at))
    runner_up[at] = -0.1 - margin_now
    now = answer(prompt, token_ids=ids, words=tuple(f" {each}" for each in ids), runner_up=tuple(runner_up))
    return mine, now


def both(*pairs: tuple[Answer, Answer]) -> judge.Compared:
    """Six prompts, of which the given ones part."""
    names = [mine.prompt for mine, _ in pairs]
    rest = [answer(each) for each in PROMPTS if each not in names]
    sides = [[pair[side] for pair in pairs] + rest for side in (0, 1)]
    return judge.compare(
        *(Answers(after=after, at="", answers=tuple(side)) for after, side in zip(("as found", "x"), sides, strict=True))
    )


# --- comparing -----------------------------------------------------------------------------------------------------------------


def test_equal_answers_are_the_same() -> None:
    found = judge.compare(series("as found"), series())
    assert (found.tokens, found.equal, found.forks, found.scored) == (192, 192, (), 192 + 12)
    assert (found.mean_nats, found.changed, found.doubt) == (0.0, False, None)
    assert str(found) == "192 of 192 tokens the same"


def test_a_fork_at_a_near_tie_is_noise() -> None:
    found = both(parted(11, 0.2, 0.1))
    assert not found.changed
    assert found.doubt is None
    assert found.equal == 192 - 21
    (fork,) = found.near
    assert (fork.token, fork.before, fork.now) == (12, " 111", " 500")
    assert math.isclose(fork.moved, 0.3)
    assert "1 fork at near ties (by at most 0.30 nats); 20 tokens behind it not compared" in str(found)


def test_a_fork_at_a_clear_margin_is_a_fault_and_told_with_its_words() -> None:
    found = both(parted(11, 8.1, 2.0))
    assert found.changed
    assert str(found.clear[0]) == "prompt capitals, token 12: ' 111' chosen with a margin of 8.1 nats before, ' 500' now (by 2.0)"


def test_a_choice_that_was_a_tie_and_is_sure_now_has_moved_too() -> None:
    assert both(parted(3, 0.01, 10.5)).changed


def test_one_choice_that_moved_a_little_too_far_proves_nothing_and_is_no_pass_two_are_a_fault() -> None:
    lone = both(parted(11, 1.5, 1.0))
    assert not lone.changed
    assert lone.doubt is not None
    assert "by less than is certain: prompt capitals, token 12" in lone.doubt
    assert both(parted(11, 1.5, 1.0), parted(4, 1.4, 1.2, "code")).changed


def test_answers_continued_behind_a_near_tie_are_compared_to_their_end() -> None:
    mine, now = parted(11, 0.2, 0.1)
    rest = Continued(
        behind=mine.token_ids[:12],
        token_ids=mine.token_ids[12:],
        words=mine.words[12:],
        logprobs=mine.logprobs[12:],
        runner_up=mine.runner_up[12:],
    )
    found = both((mine, msgspec.structs.replace(now, continued=(rest,))))
    assert found.equal == 191
    wrong = msgspec.structs.replace(rest, token_ids=(999, *rest.token_ids[1:]), words=(" wrong", *rest.words[1:]))
    (clear,) = both((mine, msgspec.structs.replace(now, continued=(wrong,)))).clear
    assert (clear.token, clear.now, clear.moved > 5.0) == (13, " wrong", True)


def test_what_was_continued_behind_another_reference_is_left_out() -> None:
    mine, now = parted(11, 0.2, 0.1)
    foreign = Continued(behind=(7,) * 12, token_ids=(8,) * 20, words=(None,) * 20, logprobs=(-0.1,) * 20, runner_up=(-9.0,) * 20)
    assert both((mine, msgspec.structs.replace(now, continued=(foreign,)))) == both((mine, now))


def test_a_model_that_ties_everywhere_and_parts_at_once_can_be_neither_the_same_nor_changed() -> None:
    found = both(*(parted(0, 0.001, 0.001, each) for each in PROMPTS))
    assert not found.changed
    assert found.doubt is not None
    assert "only 0 of 192 tokens could be compared" in found.doubt


def test_other_likelihoods_of_the_same_texts_are_another_model_although_no_choice_is_sure() -> None:
    flat = {"runner_up": (-0.11,) * LENGTH}
    found = judge.compare(series("as found", **flat), series(**flat, prompt_logprobs=(-6.0, -9.0), logprobs=(-0.7,) * LENGTH))
    assert found.mean_nats is not None
    assert found.mean_nats > judge.MEAN_NATS
    assert found.changed


def test_a_model_that_is_sure_of_nothing_shows_no_fault_and_is_no_pass() -> None:
    """As one with random weights: every log-probability the same, whatever the kernels do."""
    flat = {"runner_up": (-0.1,) * LENGTH}
    found = judge.compare(series("as found", **flat), series(**flat))
    assert (found.equal, found.sure) == (192, 0)
    assert found.doubt is not None
    assert "sure of only 0 of 192 tokens" in found.doubt
    assert verdict(series("as found", **flat), series(**flat))[0] == "inconclusive"


def test_a_prompt_that_cannot_be_scored_and_a_broken_continuation_are_garbled() -> None:
    for different in ({"prompt_logprobs": (-2.0, None)}, {"matched": "NaN happened"}):
        found = verdict(series("as found"), series(**different))
        assert found[0] == "fail"
        assert "garbled" in found[1]
    part = Continued(behind=(100,), token_ids=(101,), words=(None,), logprobs=(None,), runner_up=(None,))
    assert "of its continuation is not a number" in judge.broken(series(continued=(part,)))[0]


def test_what_was_never_answered_before_is_not_newly_garbled() -> None:
    same = {"token_ids": (7,) * LENGTH}
    nothing = Answers(after="as found", at="", why="timeout")
    assert verdict(nothing, series(**same), series("cold start", **same))[0] != "fail"
    assert verdict(nothing)[0] == "inconclusive"


def test_with_the_first_asking_lost_two_starts_are_compared() -> None:
    lost = Answers(after="as found", at="", why="timeout")
    assert verdict(lost, series(), series("cold start"))[0] == "pass"


def test_another_tokenizer_is_told() -> None:
    found = judge.compare(series("as found"), series(prompt_ids=(1, 2, 9)))
    assert found.changed
    assert "another tokenizer" in str(found)


def test_a_missing_answer_is_no_pass() -> None:
    short = msgspec.structs.replace(series(), answers=series().answers[:4])
    assert judge.compare(series("as found"), short).doubt == "no answer to compare for water, german"


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.3])
def test_noise_of_bf16_fails_no_run_and_leaves_hardly_one_in_doubt(noise: float) -> None:
    """Choices as a language model makes them, in 150 runs: each token's log-probability moves by a normal number of ``noise`` nats."""
    drawn = random.Random(1)
    verdicts = []
    for _ in range(150):
        pairs = [_noisy(drawn, noise, each) for each in PROMPTS]
        found = both(*pairs)
        verdicts.append((found.changed, found.doubt is not None))
    assert sum(changed for changed, _ in verdicts) == 0
    assert sum(doubt for _, doubt in verdicts) <= 5


def _noisy(drawn: random.Random, noise: float, prompt: str) -> tuple[Answer, Answer]:
    """The same logits twice, each time with its own noise; behind a fork the answer goes its own way."""
    ids: list[list[int]] = [[], []]
    chosen: list[list[float]] = [[], []]
    others: list[list[float]] = [[], []]
    for at in range(LENGTH):
        margin = drawn.uniform(0.0, 0.4) if drawn.random() < 0.12 else drawn.expovariate(1 / 3.5)
        for side in (0, 1):
            one, other = -0.2 + drawn.gauss(0, noise / math.sqrt(2)), -0.2 - margin + drawn.gauss(0, noise / math.sqrt(2))
            ids[side].append(100 + at if one >= other else 600 + at)
            chosen[side].append(max(one, other))
            others[side].append(min(one, other))
    fork = next((at for at in range(LENGTH) if ids[0][at] != ids[1][at]), LENGTH)
    ids[1][fork + 1 :] = [each + 1000 for each in ids[1][fork + 1 :]]
    mine, now = (
        answer(prompt, token_ids=tuple(ids[side]), logprobs=tuple(chosen[side]), runner_up=tuple(others[side])) for side in (0, 1)
    )
    return mine, now


# --- answers that are none --------------------------------------------------------------------------------------------------------


def test_a_number_that_is_none_and_a_choice_that_is_not_greedy_are_broken_whatever_the_model() -> None:
    assert judge.broken(series()) == []
    nan = series(logprobs=(None,) * LENGTH, runner_up=(None,) * LENGTH)
    assert "prompt capitals, token 1: its log-probability is not a number" in judge.broken(nan)
    assert "better by 4.0 nats" in judge.broken(series(runner_up=(3.9,) * LENGTH))[0]
    assert judge.broken(series(runner_up=(-0.1,) * LENGTH)) == []  # an exact tie
    assert "ended with 'NaN happened' after 32 tokens" in judge.broken(series(matched="NaN happened"))[0]


def test_repetition_is_recognised_and_lists_that_count_are_none() -> None:
    assert judge.repeats(answer(token_ids=(5,) * LENGTH))
    assert judge.repeats(answer(token_ids=(1, 2, 3, 4, *(7, 8, 9) * 10)[:LENGTH]))
    assert not judge.repeats(answer())
    assert not judge.repeats(answer(token_ids=tuple(each for n in range(16) for each in (n, 9))))


# --- verdicts ---------------------------------------------------------------------------------------------------------------------


def verdict(*askings: Answers, **promise: Any) -> tuple[str, str]:
    from pytest_sglang.judge.verdict import combine

    found = combine(answering.judged(askings, AnswersPromise(**promise)))
    return found.verdict, f"{found.message} | {found.cause or found.inconclusive_because}"


WRONG = {"token_ids": tuple(range(300, 300 + LENGTH)), "runner_up": (-6.0,) * LENGTH}


def test_the_same_answers_pass() -> None:
    assert verdict(series("as found"), series(), series("cold start"))[0] == "pass"
    found = answering.same([series("as found"), series()])
    assert found.message == "6 prompts, asked 2 times: all 192 tokens the same each time"


def test_a_small_model_that_repeats_itself_is_not_failed_unless_text_is_promised() -> None:
    loop = {"token_ids": (5,) * LENGTH, "text": "(" * LENGTH}
    assert verdict(series("as found", **loop), series(**loop))[0] == "pass"
    assert verdict(series("as found", **loop), series(**loop), text=True)[0] == "fail"


def test_answers_that_become_repetition_fail_by_their_reference() -> None:
    loop = {"token_ids": (100, *(5,) * (LENGTH - 1)), "runner_up": (-0.11,) * LENGTH}
    reference = series("as found", runner_up=(-0.11,) * LENGTH)
    found = verdict(reference, series(**loop))
    assert found[0] == "fail"
    assert "6 of 6 answers, text before, are a few tokens over and over" in found[1]


@pytest.mark.parametrize(
    ("askings", "cause"),
    [
        (
            [("warm restart", WRONG), ("cold start", {}), ("caches put back", WRONG)],
            "what a restart takes from the compile caches is stale",
        ),
        ([("warm restart", {}), ("cold start", WRONG)], "one of them is wrong, probably the stored ones"),
        ([("warm restart", WRONG)], "the start changed it"),
        ([("asked again", WRONG)], "answers differently when it is asked twice"),
        ([("warm restart", {}), ("cold start", WRONG), ("asked again", {})], "answers differently when it is asked twice"),
    ],
)
def test_changed_answers_fail_and_say_where_to_look(askings: list[tuple[str, dict[str, Any]]], cause: str) -> None:
    found = verdict(series("as found"), *(series(after, **different) for after, different in askings))
    assert found[0] == "fail"
    assert cause in found[1]


@pytest.mark.parametrize(
    ("askings", "because"),
    [
        ([Answers(after="as found", at="", why="HTTP 404: Not Found"), series()], "HTTP 404"),
        ([Answers(after="as found", at="", why="timeout"), series(), series("asked again")], "before the start are not known"),
        ([series("as found")], "asked once only"),
        ([series("as found"), Answers(after="warm restart", at="", why="prompt capitals: no answer within 60 s")], "within 60 s"),
        ([], "nothing was asked"),
    ],
)
def test_what_could_not_be_had_is_inconclusive(askings: list[Answers], because: str) -> None:
    found = verdict(*askings)
    assert found[0] == "inconclusive"
    assert because in found[1]


def test_expected_words_are_looked_for_in_every_asking() -> None:
    expect = (Expectation(prompt="capitals", contains="PARIS"),)

    def told(after: str, text: str) -> Answers:
        plain = series(after)
        named = answer(f"{EXPECTED}capitals", text=text)
        return msgspec.structs.replace(plain, answers=(*plain.answers, named))

    # the fixed prompt of that name is another one
    assert verdict(series("as found", text=" Paris."), series(text=" Paris."), expect=expect)[0] == "inconclusive"
    assert verdict(told("as found", " Paris."), told("warm restart", " Paris."), expect=expect)[0] == "pass"
    found = verdict(told("as found", " Paris."), told("warm restart", " Rome."), expect=expect)
    assert found[0] == "fail"
    assert "after the warm restart: 'capitals' was continued with ' Rome.', in which there is no 'PARIS'" in found[1]
    unknown = (Expectation(prompt="never asked", contains="x"),)
    assert verdict(series("as found"), series(), expect=unknown)[0] == "inconclusive"
