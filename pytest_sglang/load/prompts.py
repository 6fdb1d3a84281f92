"""Prompts of real text, of known token length, each with a beginning of its own.

Real text, because random token ids starve speculative decoding and would fail a healthy rig. A beginning of its own, because
a prefix cache would flatter. The corpus is the package's own (corpus.txt). A seed gives the same prompts again. On request: one
text for all of them ("cached": what a prefix cache makes of it), or random token ids ("random-ids").
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Literal

from pytest_sglang.record.values import Value

CHARACTERS_A_TOKEN = 4.0
"""First estimate for English text; corrected by what the server counts."""

_FILLER = " and"
_TRIES = 8
_WORDS_A_TOKEN = 4
"""No tokenizer makes fewer tokens of English; a counter that says otherwise must not fill the memory."""


Kind = Literal["unique", "cached", "random-ids"]


class Prompt(Value, frozen=True, kw_only=True):
    """``tokens`` is what ``text`` counts (by the server where ``exact``, else an estimate), a chat template's own not included.

    ``ids``: token ids to send instead of the text.
    """

    text: str
    tokens: int
    exact: bool
    ids: tuple[int, ...] = ()


class Estimate:
    """Token counter where no tokenizer can be asked: characters a token, corrected by ``learn`` from a first answer's usage."""

    def __init__(self, characters_a_token: float = CHARACTERS_A_TOKEN) -> None:
        self.characters_a_token = characters_a_token

    def __call__(self, text: str) -> int:
        return max(1, round(len(text) / self.characters_a_token))

    def learn(self, characters: int, prompt_tokens: int) -> None:
        """The server counted ``prompt_tokens`` in a text of so many characters."""
        if prompt_tokens > 0 and characters > 0:
            self.characters_a_token = characters / prompt_tokens


@functools.cache
def sentences() -> tuple[str, ...]:
    """The corpus, sentence by sentence."""
    text = resources.files("pytest_sglang.load").joinpath("corpus.txt").read_text(encoding="utf-8")
    return tuple(re.findall(r"\S.*?[.!?](?=\s|$)", " ".join(text.split())))


def make_prompts(
    n: int,
    prompt_tokens: int,
    seed: int,
    count_tokens: Callable[[str], int] | None = None,
    *,
    kind: Kind = "unique",
    vocabulary: Sequence[int] = (),
) -> list[Prompt]:
    """``n`` prompts of ``prompt_tokens`` tokens each, by ``count_tokens`` (the server's /tokenize), else by an estimate.

    Some token counts cannot be met exactly with whole words; then the prompt is the nearest found below, and says its count. Random
    ids are drawn from ``vocabulary``. Raises ValueError where ``n`` or ``prompt_tokens`` is not positive, and for random ids without a vocabulary.
    """
    if n < 1 or prompt_tokens < 1:
        raise ValueError(f"{n} prompts of {prompt_tokens} tokens: both must be at least 1")
    chance = random.Random(f"{seed}/{prompt_tokens}")
    if kind == "random-ids":
        return [_random_ids(chance, prompt_tokens, vocabulary) for _ in range(n)]
    if kind == "cached":
        return make_prompts(1, prompt_tokens, seed, count_tokens) * n
    counter: Callable[[str], int] = Estimate() if count_tokens is None else count_tokens
    exact = not isinstance(counter, Estimate)
    characters_a_token = CHARACTERS_A_TOKEN
    made = []
    for _ in range(n):
        text, tokens = _fit(_Words(chance), prompt_tokens, counter, characters_a_token)
        characters_a_token = max(1.0, len(text) / max(tokens, 1))
        made.append(Prompt(text=text, tokens=tokens, exact=exact))
    return made


def _random_ids(chance: random.Random, tokens: int, vocabulary: Sequence[int]) -> Prompt:
    if not vocabulary:
        raise ValueError("random token ids without a vocabulary to draw them from")
    return Prompt(text="", tokens=tokens, exact=True, ids=tuple(chance.choices(vocabulary, k=tokens)))


class _Words:
    """An endless text that begins with a code of its own; a prefix of any number of words can be had."""

    def __init__(self, chance: random.Random) -> None:
        self._all = sentences()
        self._at = chance.randrange(len(self._all))
        self._words = [f"{chance.getrandbits(32):08x}:"]

    def prefix(self, words: int) -> str:
        """The first so many words."""
        self._have(words)
        return " ".join(self._words[:words])

    def _have(self, words: int) -> None:
        while len(self._words) < words:
            self._words.extend(self._all[self._at % len(self._all)].split())
            self._at += 1

    def words_of(self, characters: float) -> int:
        """How many words make about so many characters."""
        total, words = 0.0, 0
        while total < characters:
            words += 1
            self._have(words)
            total += len(self._words[words - 1]) + 1
        return max(1, words)


def _fit(text: _Words, wanted: int, counter: Callable[[str], int], characters_a_token: float) -> tuple[str, int]:
    """The text cut so that it counts ``wanted``: by proportion first, then word by word, then with short words behind it."""
    words = text.words_of(wanted * characters_a_token)
    best: tuple[str, int] | None = None
    tried: set[int] = set()
    for _ in range(_TRIES):
        found = text.prefix(words)
        tokens = counter(found)
        tried.add(words)
        if tokens == wanted:
            return found, tokens
        if tokens < wanted and (best is None or tokens > best[1]):
            best = (found, tokens)
        step = round((wanted - tokens) * words / max(tokens, 1))
        words = min(max(1, words + (step or (1 if tokens < wanted else -1))), wanted * _WORDS_A_TOKEN)
        if words in tried:
            break
    if best is None:
        found = _shortest(text, wanted, counter)
        return found, counter(found)
    return _filled(best, wanted, counter)


def _filled(best: tuple[str, int], wanted: int, counter: Callable[[str], int]) -> tuple[str, int]:
    """Short words behind the text until it counts ``wanted``; never beyond."""
    words = wanted - best[1]
    for _ in range(_TRIES):
        if words <= 0:
            break
        found = best[0] + _FILLER * words
        tokens = counter(found)
        if tokens == wanted:
            return found, tokens
        if tokens < wanted:
            best = (found, tokens)
            words = wanted - tokens
        else:
            words -= tokens - wanted
    return best


def _shortest(text: _Words, wanted: int, counter: Callable[[str], int]) -> str:
    """So few tokens are wanted that even the code at the beginning is too long: as much of it as fits, at least one character."""
    code = text.prefix(1)
    while len(code) > 1 and counter(code) > wanted:
        code = code[:-1]
    return code
