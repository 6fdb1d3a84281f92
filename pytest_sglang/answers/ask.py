"""Asks SGLang's native ``/generate`` for a greedy answer with log-probabilities, and reads what comes back.

The form is the same in 0.5.11 and 0.5.23 (both recorded): ``meta_info`` holds lists of ``[log-probability, token id, text]``. With
``logprob_start_len`` 0 the prompt's own tokens are scored, and nothing of the prompt is taken from the prefix cache. That is a request of
its own: SGLang runs no prefill graph where tokens of the prompt are scored (``can_run`` of its prefill runners), and the answer itself
must come the way that users' answers come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pytest_sglang.answers.prompts import TOKENS, Prompt
from pytest_sglang.judge.answers import NEAR_NATS, margin, other_model
from pytest_sglang.record.answers import Answer, Answers, Continued

MOST_CONTINUED = 3
"""So often is an answer that has parted from its reference at a near tie asked for again behind the reference's own tokens."""
_SHOWN = 200

Send = Callable[[dict[str, Any]], tuple[int, str]]
"""Posts a body to ``/generate``: status and text. Raises NoAnswer."""


class NoAnswer(Exception):
    """No usable answer, and why: refused, timed out, another status, another length, no log-probabilities."""


class _Chosen(NamedTuple):
    ids: tuple[int, ...]
    words: tuple[str | None, ...]
    logprobs: tuple[float | None, ...]
    runner_up: tuple[float | None, ...]


class _Read(NamedTuple):
    text: str
    chosen: _Chosen
    prompt_ids: tuple[int, ...]
    prompt_logprobs: tuple[float | None, ...]
    matched: str | None


def ask(
    send: Send, prompts: Sequence[Prompt], reference: Answers | None = None, *, told: Callable[[int], None] = lambda _: None
) -> tuple[tuple[Answer, ...], str]:
    """Every prompt's answer, and why there are no more of them ("" = all are there). ``told`` hears the number of each prompt.

    With a reference, an answer that parts from it at a near tie is asked for again behind the reference's tokens, so that the rest can be
    compared; where it parts at a clear margin, or scores the prompt like another model, there is nothing left to learn.
    """
    answers: list[Answer] = []
    for number, prompt in enumerate(prompts):
        told(number)
        try:
            answers.append(_one(send, prompt, None if reference is None else reference.of(prompt.name)))
        except NoAnswer as error:
            return tuple(answers), f"prompt {prompt.name}: {error}"
    return tuple(answers), ""


def _one(send: Send, prompt: Prompt, reference: Answer | None) -> Answer:
    read = _generate(send, {"text": prompt.text}, TOKENS)
    scored = _generate(send, {"text": prompt.text}, 1, scored=True)
    alike = (
        reference is not None
        and reference.prompt_ids == scored.prompt_ids
        and not other_model(reference.prompt_logprobs, scored.prompt_logprobs)
    )
    matched = read.matched or scored.matched
    continued: list[Continued] = []
    if reference is not None and alike and matched is None:
        continued, matched = _behind(send, reference, read.chosen)
    return Answer(
        prompt=prompt.name,
        prompt_ids=scored.prompt_ids,
        prompt_logprobs=scored.prompt_logprobs,
        text=read.text,
        token_ids=read.chosen.ids,
        words=read.chosen.words,
        logprobs=read.chosen.logprobs,
        runner_up=read.chosen.runner_up,
        matched=matched,
        continued=tuple(continued),
    )


def _behind(send: Send, reference: Answer, chosen: _Chosen) -> tuple[list[Continued], str | None]:
    """Answers behind each near tie at which the server parted from the reference, with the reference's token there; what ended one early."""
    found: list[Continued] = []
    start, wanted = 0, reference.token_ids
    part = Continued(behind=(), token_ids=chosen.ids, words=chosen.words, logprobs=chosen.logprobs, runner_up=chosen.runner_up)
    while len(found) < MOST_CONTINUED:
        pairs = enumerate(zip(wanted[start:], part.token_ids, strict=False))
        fork = next((start + n for n, (mine, now) in pairs if mine != now), None)
        if fork is None or fork + 1 >= len(wanted):
            break
        if margin(reference, fork) + margin(part, fork - start) > NEAR_NATS:
            break
        start = fork + 1
        read = _generate(send, {"input_ids": [*reference.prompt_ids, *wanted[:start]]}, len(wanted) - start)
        chosen = read.chosen
        part = Continued(
            behind=wanted[:start],
            token_ids=chosen.ids,
            words=chosen.words,
            logprobs=chosen.logprobs,
            runner_up=chosen.runner_up,
        )
        found.append(part)
        if read.matched is not None:
            return found, read.matched
    return found, None


def _generate(send: Send, prompt: dict[str, Any], tokens: int, *, scored: bool = False) -> _Read:
    """``scored``: the prompt's own tokens too."""
    # all penalties are named: a model's own defaults for sampling would make another token the chosen one
    sampling = {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
    status, text = send(
        {
            **prompt,
            "sampling_params": sampling,
            "return_logprob": True,
            **({"logprob_start_len": 0} if scored else {}),
            "top_logprobs_num": 2,
            "return_text_in_logprobs": True,
            "stream": False,
        }
    )
    if status != 200:
        raise NoAnswer(f"HTTP {status}: {text[:_SHOWN]}")
    return read(text, tokens, scored=scored)


def read(text: str, tokens: int, *, scored: bool = False) -> _Read:
    """The answer in a body of ``/generate`` that asked for so many tokens; ``scored``: the prompt's too. Raises NoAnswer."""
    try:
        body = json.loads(text)
        meta = body["meta_info"]
        made = meta.get("output_token_logprobs")
        top = meta.get("output_top_logprobs")
        before = meta.get("input_token_logprobs") or []
        finish = meta.get("finish_reason") or {}
        if not made or not top or (scored and not before):
            raise NoAnswer("the answer holds no log-probabilities")
        chosen = _Chosen(
            ids=tuple(int(each[1]) for each in made),
            words=tuple(_word(each) for each in made),
            logprobs=tuple(_number(each[0]) for each in made),
            runner_up=tuple(_runner_up(each[1], best) for each, best in zip(made, top, strict=False)),
        )
        found = _Read(
            text=str(body["text"]),
            chosen=chosen,
            prompt_ids=tuple(int(each[1]) for each in before),
            prompt_logprobs=tuple(_number(each[0]) for each in before[1:]),
            matched=_matched(finish),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NoAnswer(f"not an answer of /generate: {text[:_SHOWN]!r}") from None
    kind = finish.get("type") if isinstance(finish, dict) else finish
    told = meta.get("completion_tokens")
    if found.matched is None and told == tokens and len(chosen.ids) < tokens:
        raise NoAnswer(
            f"the server tells log-probabilities of {len(chosen.ids)} of {tokens} tokens only (speculative decoding does that)"
        )
    if found.matched is None and (kind != "length" or len(chosen.ids) != tokens or len(chosen.runner_up) != tokens):
        raise NoAnswer(f"asked for exactly {tokens} tokens, got {len(chosen.ids)} with finish reason {kind}")
    return found


def _matched(finish: Any) -> str | None:
    """A text that stopped an answer without any stop text being asked for: SGLang ends so where it meets a NaN."""
    matched = finish.get("matched") if isinstance(finish, dict) else None
    return matched if isinstance(matched, str) and "nan" in matched.lower() else None


def _number(value: Any) -> float | None:
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def _word(scored: Sequence[Any]) -> str | None:
    return str(scored[2]) if len(scored) > 2 and scored[2] is not None else None


def _runner_up(chosen: Any, best: Sequence[Sequence[Any]]) -> float | None:
    """The greatest log-probability among the best tokens but the chosen one."""
    others = [number for each in best if each[1] != chosen and (number := _number(each[0])) is not None]
    return max(others, default=None)
