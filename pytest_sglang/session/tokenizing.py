"""The server's own tokenizer, as far as it has one to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_sglang.load.prompts import Estimate, Kind, Prompt, make_prompts, sentences

if TYPE_CHECKING:
    from pytest_sglang.server.http import ControlPlane

_VOCABULARY_SENTENCES = 60


class Tokenizer:
    """Prompts by /tokenize; where there is none, by an estimate that ``learn`` corrects from a first answer's usage."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._estimate = Estimate()
        self._exact: bool | None = None
        self._vocabulary: tuple[int, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the server counts tokens itself. Asks it once."""
        if self._exact is None:
            self._exact = self._ask("a") is not None
        return self._exact

    def learn(self, characters: int, prompt_tokens: int | None) -> None:
        """An answer told how many tokens a prompt of so many characters was."""
        if prompt_tokens is not None:
            self._estimate.learn(characters, prompt_tokens)

    def prompts(self, n: int, tokens: int, seed: int, kind: Kind = "unique") -> list[Prompt]:
        """``n`` prompts of so many tokens. Raises ValueError for random ids where the server has no /tokenize."""
        if kind == "random-ids" and not self._vocabulary:
            self._vocabulary = self._known_ids()
        counter: Callable[[str], int] = self._count if self.exact else self._estimate
        return make_prompts(n, tokens, seed, counter, kind=kind, vocabulary=self._vocabulary)

    def _count(self, text: str) -> int:
        found = self._ask(text)
        return self._estimate(text) if found is None else len(found)

    def _known_ids(self) -> tuple[int, ...]:
        """Ids that the model surely has: those of the corpus."""
        return tuple(sorted(set(self._ask(" ".join(sentences()[:_VOCABULARY_SENTENCES])) or ())))

    def _ask(self, text: str) -> list[Any] | None:
        from pytest_sglang.server.http import Unreachable

        try:
            answer = self._plane.request("POST", "/tokenize", body={"model": "default", "prompt": text})
            found = json.loads(answer.body)["tokens"] if answer.status == 200 else None
        except (Unreachable, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, list) else None
