"""Are two sets of greedy answers the same but for numeric noise? Pure.

Kernels of other shapes, an autotuner's other choice, another batch beside it add up in another order, so that log-probabilities move a
little and a greedy choice tips where the two best tokens were nearly tied. From there on the texts differ, and that is no fault. What
tells noise from a fault is by how much a choice must have moved, never whether two texts differ.

How much noise there is: SGLang's own test of log-probabilities against those of another machine (test_logprobs.py) allows 0.1 nats on
average and 1.0 to 1.5 nats at most over a thousand texts of a dense model; bf16 differs by 0.05 to 0.3 nats in one position. A choice
moves by the difference of two such numbers, sqrt(2) times as much: NEAR is almost five times 0.3 x sqrt(2). Mixture-of-experts models
have rare single outliers beyond (that test allows them 10 nats in one position, 0.1 on average), so that a lone one is no proof
before CERTAIN, and no pass either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_sglang.record.answers import Answer, Answers, Continued
from pytest_sglang.record.values import Value

NEAR_NATS = 2.0
"""A choice that moved by no more than this was nearly a tie."""
CERTAIN_NATS = 10.0
"""One choice that moved by more than this is a fault; between the two it takes a second one."""
MEAN_NATS = 0.5
"""Mean absolute difference of log-probabilities of the same tokens above which the model is another one: five times SGLang's own limit."""
ENOUGH = 0.1
"""The share of a reference's tokens that must have been compared for a claim that nothing has changed."""
SURE = 0.05
"""The share of its tokens of which the model must have been sure as well: one with random weights is sure of none, and shows no fault."""
GREEDY_NATS = 0.1
"""The chosen token may lie so far below the best one: ties, and log-probabilities that were rounded."""
CYCLE = 4
"""A cycle of at most so many tokens counts as repetition,"""
REPEATED = 0.75
"""where it makes up this share of an answer, at its end."""


class Fork(Value, frozen=True, kw_only=True):
    """A token at which an answer parts from its reference in the same context. Margins in nats; ``moved``: the least that the choice moved."""

    prompt: str
    token: int
    """Its number in the answer, from 1."""
    before: str
    now: str
    margin_before: float
    margin_now: float

    @property
    def moved(self) -> float:
        """What the difference of the two tokens' log-probabilities changed by, at least: it had one sign and has the other."""
        return self.margin_before + self.margin_now

    @property
    def clear(self) -> bool:
        """More than noise is known to make."""
        return self.moved > NEAR_NATS

    def __str__(self) -> str:
        return (
            f"prompt {self.prompt}, token {self.token}: {self.before!r} chosen with a margin of {self.margin_before:.1f} nats before, "
            f"{self.now!r} now (by {self.margin_now:.1f})"
        )


class Compared(Value, frozen=True, kw_only=True):
    """Answers beside their reference. ``tokens``: of the reference; ``equal``: chosen again in the same context."""

    prompts: int
    tokens: int
    equal: int
    forks: tuple[Fork, ...]
    scored: int
    """Tokens scored on both sides in the same context: the prompts' and the equal ones."""
    mean_nats: float | None
    """Mean absolute difference of their log-probabilities; None = none was scored."""
    sure: int
    """Of the equal ones: tokens chosen with a margin that noise does not turn over, in the reference."""
    other_prompts: tuple[str, ...] = ()
    """Prompts that were split into other tokens: another tokenizer."""
    missing: tuple[str, ...] = ()
    """Prompts that one side did not answer."""

    @property
    def clear(self) -> tuple[Fork, ...]:
        """Forks that noise does not make, the clearest first."""
        return tuple(sorted((each for each in self.forks if each.clear), key=lambda each: -each.moved))

    @property
    def near(self) -> tuple[Fork, ...]:
        """Forks at near ties."""
        return tuple(each for each in self.forks if not each.clear)

    @property
    def looked_at(self) -> int:
        """Tokens whose choice was compared in the same context and not at a near tie."""
        return self.equal + len(self.clear)

    @property
    def changed(self) -> bool:
        """Not the same model's answers: one certain fork, two clear ones, another tokenizer, or likelihoods that have moved."""
        clear = self.clear
        forked = len(clear) > 1 or (bool(clear) and clear[0].moved > CERTAIN_NATS)
        return forked or bool(self.other_prompts) or (self.mean_nats is not None and self.mean_nats > MEAN_NATS)

    @property
    def doubt(self) -> str | None:
        """Why they cannot be called the same although they have not changed for certain."""
        if self.clear:
            return f"one choice moved by more than noise is known to make, and by less than is certain: {self.clear[0]}"
        if self.missing:
            return f"no answer to compare for {', '.join(self.missing)}"
        if self.looked_at < ENOUGH * self.tokens or not self.tokens:
            return (
                f"only {self.looked_at} of {self.tokens} tokens could be compared: the answers part at near ties everywhere, "
                "as those of a model with random weights do"
            )
        if self.sure < SURE * self.tokens:
            return (
                f"the model was sure of only {self.sure} of {self.tokens} tokens (by more than {NEAR_NATS:g} nats), as with random weights: "
                "answers that are near ties everywhere cannot show a fault"
            )
        return None

    def __str__(self) -> str:
        if self.other_prompts:
            return f"the prompts are split into other tokens than before ({', '.join(self.other_prompts)}): another tokenizer"
        behind = self.tokens - self.equal - len(self.forks)
        parts = [f"{self.equal} of {self.tokens} tokens the same"]
        if self.clear:
            parts.append(f"{_count(len(self.clear), 'clear divergence')}, the clearest: {self.clear[0]}")
        if self.near:
            worst = max(each.moved for each in self.near)
            parts.append(f"{_count(len(self.near), 'fork')} at near ties (by {_nats(worst, 'at most ')})")
        if self.forks and behind > 0:
            parts.append(f"{_count(behind, 'token')} behind {'it' if len(self.forks) == 1 else 'them'} not compared")
        if self.mean_nats is not None and (self.mean_nats > MEAN_NATS or self.forks):
            parts.append(f"log-probabilities differ by {_nats(self.mean_nats)} on average")
        return "; ".join(parts)


def _nats(number: float, before: str = "") -> str:
    return "less than 0.01 nats" if number < 0.01 else f"{before}{number:.2f} nats"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- comparing ---------------------------------------------------------------------------------------------------------------------


def compare(reference: Answers, now: Answers) -> Compared:
    """``now`` beside ``reference``: every token whose context is the same on both sides, behind a fork as far as ``now`` was continued."""
    equal, sure, tokens, forks, differences = 0, 0, 0, [], []
    others, missing = [], []
    for mine in reference.answers:
        found = now.of(mine.prompt)
        tokens += len(mine.token_ids)
        if found is None:
            missing.append(mine.prompt)
            continue
        if found.prompt_ids != mine.prompt_ids:
            others.append(mine.prompt)
            continue
        differences += _differences(mine.prompt_logprobs, found.prompt_logprobs)
        for start, same, fork in _walk(mine, found):
            equal += len(same)
            sure += sum(margin(mine, at) > NEAR_NATS for at in range(start, start + len(same)))
            differences += _differences(mine.logprobs[start : start + len(same)], same)
            forks += [] if fork is None else [fork]
    missing += [each.prompt for each in now.answers if reference.of(each.prompt) is None]
    return Compared(
        prompts=len(reference.answers),
        tokens=tokens,
        equal=equal,
        forks=tuple(forks),
        sure=sure,
        scored=len(differences),
        mean_nats=sum(differences) / len(differences) if differences else None,
        other_prompts=tuple(others),
        missing=tuple(missing),
    )


def _walk(mine: Answer, found: Answer) -> Iterator[tuple[int, tuple[float | None, ...], Fork | None]]:
    """Begin, log-probabilities of the tokens that are equal from there on, and the fork that ends them."""
    first = Continued(behind=(), token_ids=found.token_ids, words=found.words, logprobs=found.logprobs, runner_up=found.runner_up)
    for part in (first, *found.continued):
        begin = len(part.behind)
        if mine.token_ids[:begin] != part.behind:
            continue  # it was continued behind another reference
        wanted = mine.token_ids[begin:]
        same = next((n for n, (one, other) in enumerate(zip(wanted, part.token_ids, strict=False)) if one != other), None)
        length = min(len(wanted), len(part.token_ids)) if same is None else same
        fork = None
        if same is not None:
            at = begin + same
            fork = Fork(
                prompt=mine.prompt,
                token=at + 1,
                before=_word(mine.words, mine.token_ids, at),
                now=_word(part.words, part.token_ids, same),
                margin_before=margin(mine, at),
                margin_now=margin(part, same),
            )
        yield begin, part.logprobs[:length], fork


def margin(answer: Answer | Continued, at: int) -> float:
    """Nats between the chosen token and the best other one; 0 where that is not told (then it proves nothing)."""
    chosen = answer.logprobs[at] if at < len(answer.logprobs) else None
    other = answer.runner_up[at] if at < len(answer.runner_up) else None
    return max(0.0, chosen - other) if chosen is not None and other is not None else 0.0


def _word(words: Sequence[str | None], ids: Sequence[int], at: int) -> str:
    word = words[at] if at < len(words) else None
    return f"token {ids[at]}" if word is None else word


def other_model(before: Sequence[float | None], now: Sequence[float | None]) -> bool:
    """Log-probabilities of one text are so different that going on would tell nothing more."""
    found = _differences(before, now)
    return bool(found) and sum(found) / len(found) > MEAN_NATS


def _differences(before: Sequence[float | None], now: Sequence[float | None]) -> list[float]:
    return [abs(one - other) for one, other in zip(before, now, strict=False) if one is not None and other is not None]


# --- answers that are no answers -------------------------------------------------------------------------------------------------------


def broken(answers: Answers) -> list[str]:
    """What no sound server answers, whatever the model: a number that is none, a greedy choice that was not the best token."""
    found = []
    for each in answers.answers:
        if each.matched is not None:
            found.append(f"prompt {each.prompt}: the answer ended with {each.matched!r} after {len(each.token_ids)} tokens")
            continue
        unscored = next((n for n, number in enumerate(each.prompt_logprobs) if number is None), None)
        if unscored is not None:
            found.append(f"prompt {each.prompt}: the log-probability of its token {unscored + 2} is not a number")
            continue
        if any(number is None for part in each.continued for number in part.logprobs):
            found.append(f"prompt {each.prompt}: a log-probability of its continuation is not a number")
            continue
        absent = next((n for n, number in enumerate(each.logprobs) if number is None), None)
        if absent is not None:
            found.append(f"prompt {each.prompt}, token {absent + 1}: its log-probability is not a number")
            continue
        parts: tuple[Answer | Continued, ...] = (each, *each.continued)
        for part in parts:
            worse = [
                (other - chosen, n)
                for n, (chosen, other) in enumerate(zip(part.logprobs, part.runner_up, strict=False))
                if chosen is not None and other is not None and other - chosen > GREEDY_NATS
            ]
            if worse:
                by, at = max(worse)
                word = _word(part.words, part.token_ids, at)
                found.append(f"prompt {each.prompt}: {word!r} was chosen although another token was better by {by:.1f} nats")
                break
    return found


def repeats(answer: Answer) -> bool:
    """One token, or a cycle of a few, over and over to the answer's end. Small models do that by themselves."""
    ids = answer.token_ids
    least = max(2 * CYCLE, round(REPEATED * len(ids)))
    if len(ids) < least:
        return False
    return any(all(ids[n] == ids[n - cycle] for n in range(len(ids) - least + cycle, len(ids))) for cycle in range(1, CYCLE + 1))


def unreadable(answer: Answer) -> bool:
    """Replacement characters within the text: bytes that are no UTF-8. At its end a character may be cut."""
    return "\ufffd" in answer.text.rstrip("\ufffd")


def no_text(answers: Answers) -> tuple[str, ...]:
    """Prompts whose answers are no text."""
    return tuple(each.prompt for each in answers.answers if repeats(each) or unreadable(each))


def newly_no_text(reference: Answers, now: Answers) -> tuple[str, ...]:
    """Prompts whose answers were text in the reference and are none now."""
    before = set(no_text(reference))
    return tuple(each for each in no_text(now) if each not in before and reference.of(each) is not None)
