"""When the fixed prompts are asked in a run, and where the answers are kept: before the first stop, after each start, in the check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_sglang.answers import ask as observer
from pytest_sglang.answers.prompts import FIXED, Prompt
from pytest_sglang.judge import answering as judge
from pytest_sglang.judge import answers as judge_answers
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.record import run as records
from pytest_sglang.record.answers import EXPECTED, Answer, Answers
from pytest_sglang.rig.model import AnswersPromise

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

CHECK = "answers"
TIMEOUT_S = 60.0
"""Wall seconds for one answer of 32 tokens."""
PUT_BACK = "caches put back"
_LABELS = {"restart": "warm restart"}


class Answering:
    """The answers of one run, oldest first. ``wanted``: the run has the check, so they are asked around each start by themselves."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.series: list[Answers] = []
        self.wanted = False
        self._start = "as found"
        self._asked = False
        """The newest start has been asked."""

    @property
    def _promise(self) -> AnswersPromise:
        return self._deployment.rig.answers or AnswersPromise()

    def before_stop(self) -> None:
        """The reference, from the server as it was found."""
        if self.wanted and judge.reference_of(self.series) is None:
            self.ask()

    def started(self, label: str) -> None:
        """A start has become ready: its answers, where the run has the check. Caches put back have been asked before they were set aside."""
        cold = bool(self._deployment.kernels.aside)
        self._start, self._asked = "cold start" if cold else _LABELS.get(label, label), False
        if self.wanted and label != PUT_BACK:
            self.ask()

    def ask(self) -> Answers:
        """Ask every prompt now. What could not be had is told in ``why``; nothing is raised."""
        deployment = self._deployment
        reference = judge.reference_of(self.series)
        prompts = (*FIXED, *(Prompt(f"{EXPECTED}{each.prompt}", each.prompt) for each in self._promise.expect))
        at = records.utc(deployment.clock.time())
        why = self._unsafe()
        answers: tuple[Answer, ...] = ()
        try:
            if not why:
                answers, why = observer.ask(
                    self._send,
                    prompts,
                    reference,
                    told=lambda number: deployment.progress(f"answers: prompt {number + 1} of {len(prompts)}"),
                )
        finally:
            deployment.progress(None)
        found = Answers(after=judge.AGAIN if self._asked else self._start, at=at, power_w=self._power_w(), answers=answers, why=why)
        self._asked = True
        self.series.append(found)
        deployment.recorder.answers(found)
        return found

    def judge(self) -> list[Judgement]:
        """All that was asked; asked again where nothing else is there to compare with, or to tell why answers differ."""
        if self._too_few() or self._differ():
            if not self._asked:
                self.ask()
            if not self.series[-1].why and self.series[-1].after != judge.AGAIN and (self._too_few() or self._differ()):
                self.ask()
        return judge.judged(self.series, self._promise)

    def _differ(self) -> bool:
        reference = judge.reference_of(self.series)
        return reference is not None and any(judge_answers.compare(reference, each).changed for each in self.series if not each.why)

    def _too_few(self) -> bool:
        """Fewer than two askings that were answered: nothing to compare."""
        return sum(not each.why for each in self.series) < 2

    def _unsafe(self) -> str:
        """Why the server must not be asked for log-probabilities.

        With speculative decoding several versions of SGLang crash in a prefill that scores the prompt (sgl-project/sglang issues 17349,
        19761, 20555, 21827) or tell the first token's log-probability only (pull request 14046).
        """
        info = self._deployment.server.info
        if not info:
            return "not asked: /server_info cannot be read, so whether the server decodes speculatively is not known"
        algorithm = info.get("speculative_algorithm")
        if not algorithm:
            return ""
        return (
            f"not asked: the server decodes speculatively ({algorithm}), and SGLang may crash where log-probabilities are asked for then; "
            "take [answers] out of the rig file"
        )

    def _send(self, body: dict[str, Any]) -> tuple[int, str]:
        from pytest_sglang.server import redact
        from pytest_sglang.server.http import Unreachable

        try:
            answer = self._deployment.plane.request("POST", "/generate", body=body, timeout_s=TIMEOUT_S)
        except Unreachable as error:
            raise observer.NoAnswer(str(error)) from None
        return answer.status, answer.body if answer.status == 200 else redact.text(answer.body)

    def _power_w(self) -> float | None:
        scope, levels = self._deployment.scope, self._deployment.options.power_levels_w
        level = scope.power_w if scope is not None else None
        return level if level is not None else levels[-1] if levels else None
