"""What a server answered to fixed prompts, greedily: tokens with their log-probabilities (nats). Kept in run.json as they stand."""

from __future__ import annotations

from pytest_sglang.record.values import Value

EXPECTED = "expect: "
"""Before the text of a prompt that the rig file gives, in its name: a fixed prompt's name may be somebody's prompt."""


class Continued(Value, frozen=True, kw_only=True):
    """What the server chose behind the tokens ``behind`` of a reference answer, after its own answer had parted from it."""

    behind: tuple[int, ...]
    token_ids: tuple[int, ...]
    words: tuple[str | None, ...]
    logprobs: tuple[float | None, ...]
    runner_up: tuple[float | None, ...]


class Answer(Value, frozen=True, kw_only=True):
    """One prompt's answer. ``logprobs`` of each chosen token, ``runner_up`` of the best other one; None: not a number, or not told."""

    prompt: str
    """Name of the prompt; ``EXPECTED`` and its text where the rig file gives it."""
    prompt_ids: tuple[int, ...]
    prompt_logprobs: tuple[float | None, ...]
    """Of each of the prompt's tokens but the first: a text that is the same in every run, whatever is answered."""
    text: str
    token_ids: tuple[int, ...]
    words: tuple[str | None, ...]
    """Text of each token."""
    logprobs: tuple[float | None, ...]
    runner_up: tuple[float | None, ...]
    matched: str | None = None
    """What ended the answer where that was no length: "NaN happened"."""
    continued: tuple[Continued, ...] = ()


class Answers(Value, frozen=True, kw_only=True):
    """Every prompt, asked one at a time after a start. ``why``: they could not be had, or not all."""

    after: str
    """The start before it: "as found", "first start", "warm restart", "cold start", "caches put back"; or "asked again"."""
    at: str
    power_w: float | None = None
    answers: tuple[Answer, ...] = ()
    why: str = ""

    def of(self, prompt: str) -> Answer | None:
        """The answer to a prompt."""
        return next((each for each in self.answers if each.prompt == prompt), None)
