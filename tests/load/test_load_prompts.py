"""Prompts are real text of the asked length, and no two begin alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_sglang.load.prompts import Estimate, make_prompts, sentences


def tokenizer(text: str) -> int:
    """Pieces of at most five letters, single signs, and a token for the beginning: uneven, as real ones are."""
    return 1 + sum(-(-len(word) // 5) for word in re.findall(r"\w+|[^\w\s]", text))


@given(st.integers(4, 700), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_prompts_have_the_asked_length_by_the_servers_own_count(tokens: int, seed: int) -> None:
    made = make_prompts(3, tokens, seed, tokenizer)
    assert {each.tokens for each in made} == {tokens}
    assert all(tokenizer(each.text) == tokens and each.exact for each in made)


def test_no_two_prompts_share_their_beginning() -> None:
    made = make_prompts(200, 40, 1, tokenizer)
    assert len({each.text[:8] for each in made}) == 200


def test_a_seed_gives_the_same_prompts_again() -> None:
    assert make_prompts(3, 40, 5) == make_prompts(3, 40, 5)
    assert make_prompts(3, 40, 5) != make_prompts(3, 40, 6)


def test_prompts_are_text_from_the_corpus() -> None:
    text = make_prompts(1, 200, 3)[0].text.partition(": ")[2]
    whole = " ".join(sentences())
    assert text[:300] in whole + " " + whole
    assert len(sentences()) > 300
    assert len(whole) > 30_000 - 500


def test_few_questions_are_asked_of_the_tokenizer() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return tokenizer(text)

    make_prompts(20, 256, 1, count)
    assert len(asked) < 20 * 5


def test_without_a_tokenizer_lengths_are_estimated_and_say_so() -> None:
    made = make_prompts(2, 1000, 1)[0]
    assert not made.exact
    assert made.tokens == 1000
    assert abs(len(made.text) - 4000) < 20


def test_prompts_longer_than_the_corpus_go_round() -> None:
    assert len(make_prompts(1, 20_000, 1)[0].text) > 79_000


def test_a_length_below_the_code_at_the_beginning_cuts_it() -> None:
    made = make_prompts(2, 1, 1)
    assert all(each.tokens == 1 and 0 < len(each.text) < 9 for each in made)
    assert made[0].text != made[1].text
    least = make_prompts(1, 1, 1, lambda text: 2 + len(text))[0]
    assert (len(least.text), least.tokens) == (1, 3)


def test_a_count_that_cannot_be_met_gives_the_nearest_below() -> None:
    made = make_prompts(1, 101, 1, lambda text: 2 * len(text.split()))[0]
    assert made.tokens == 100
    assert made.exact


def test_a_tokenizer_that_counts_nonsense_ends() -> None:
    counts = iter(range(10**6))
    assert make_prompts(1, 64, 1, lambda text: next(counts) * 7919 % 200)[0].text
    assert make_prompts(1, 64, 1, lambda text: 0)[0].text
    assert make_prompts(1, 64, 1, lambda text: 63)[0].tokens == 63


@pytest.mark.parametrize(("n", "tokens"), [(0, 5), (5, 0)])
def test_nothing_is_refused(n: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_prompts(n, tokens, 1)


def test_an_estimate_learns_from_usage() -> None:
    estimate = Estimate()
    assert estimate("x" * 400) == 100
    estimate.learn(400, 80)
    assert estimate("x" * 400) == 80
    estimate.learn(0, 0)
    assert estimate("x" * 400) == 80
    assert make_prompts(1, 100, 1, estimate)[0].tokens == 100
