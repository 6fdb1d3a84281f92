"""Before and after: what changed between runs, and what it did. Runs with equal keys are boots of the same thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.judge import keys
from pytest_sglang.judge.keys import Difference
from pytest_sglang.record import run as records
from pytest_sglang.record.run import Run, Verdict
from pytest_sglang.record.values import Value
from pytest_sglang.session import compared, compared_answers, compared_changes, compared_rates, compared_starts, store
from pytest_sglang.session.compared import Past, Quantity, key, key_text
from pytest_sglang.session.compared_answers import AnswersComparison
from pytest_sglang.session.errors import Refused

__all__ = ["Comparison", "Quantity", "compare", "grouped", "key", "of_paths"]


NUMERICS = frozenset(
    {
        "quantization", "quantization_param_path", "torchao_config", "modelopt_quant", "dtype", "kv_cache_dtype",
        "enable_fp32_lm_head", "revision", "model_checksum", "weight_version", "load_format", "model_loader_extra_config",
        "json_model_override_args", "enable_lora", "lora_paths", "tokenizer_path", "tokenizer_mode", "tokenizer_backend",
        "skip_tokenizer_init", "speculative_algorithm",
    }
)  # fmt: skip
"""Arguments (``ServerArgs`` of SGLang 0.5.11 and 0.5.23) that say which weights, numbers and tokens answer: after a change of one other
answers are no fault."""
DRAFTS = frozenset(
    f"speculative_{name}"
    for name in (
        "draft_model_path", "draft_model_revision", "draft_model_quantization", "draft_load_format", "num_steps", "eagle_topk",
        "num_draft_tokens", "token_map", "accept_threshold_single", "accept_threshold_acc", "use_rejection_sampling",
    )
)  # fmt: skip
"""The same where ``speculative_algorithm`` is set."""
GIVEN = frozenset(
    {"quantization", "revision", "lora_paths", "enable_lora", "speculative_algorithm", "speculative_draft_model_path"}
)
"""Those that have no value in any version unless somebody gives them one."""
UNSET: tuple[Any, ...] = (None, False, "", "{}", [], {})
"""What an argument says that nobody gave."""


class Comparison(Value, frozen=True, kw_only=True):
    """What changed and what it did. ``refused``: why these runs must not be compared (then there are no quantities)."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    title_before: str
    title_after: str
    simulated: bool
    changed: tuple[Difference, ...] = ()
    seen: tuple[Difference, ...] = ()
    """Other things that differ and are no part of the key: temperatures, link widths, caches."""
    under_test: str | None = None
    refused: tuple[str, ...] = ()
    quantities: tuple[Quantity, ...] = ()
    answers: AnswersComparison | None = None
    """Whether the tokens are still the same; None where neither side asked."""
    broken: tuple[str, ...] = ()
    """Promises that a run after breaks and none before did, with their causes: fixed promises stay floors."""
    lost: tuple[str, ...] = ()
    """What a pass would pass over: promises that were kept before and are not told after, runs that were interrupted."""
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """fail beats inconclusive beats pass, over the judged quantities; a refusal, and nothing judged, is inconclusive."""
        verdicts = {each.change.verdict for each in self.quantities if each.judged and each.change is not None}
        nothing = not verdicts
        if self.answers is not None and self.answers.verdict is not None:
            verdicts.add(self.answers.verdict)
        if "fail" in verdicts or self.broken:
            return "fail"
        return "inconclusive" if self.refused or self.lost or "inconclusive" in verdicts or nothing else "pass"


def of_paths(paths: Sequence[Path]) -> list[Comparison]:
    """Comparisons of the first folder's runs with every other kind of run among ``paths``. Raises RecordError, Refused."""
    if len(paths) < 2:
        raise Refused("compare takes at least two run folders: pytest-sglang compare reports/BEFORE reports/AFTER")
    runs = [records.read(path) for path in paths]
    unfinished = [str(path) for path, run in zip(paths, runs, strict=True) if run.finished is None]
    if unfinished:
        raise Refused(f"not a finished run: {', '.join(unfinished)} (it was killed, or is still going on)")
    twice = sorted({run.run_id for run in runs if sum(run.run_id == each.run_id for each in runs) > 1})
    if twice:
        raise Refused(f"the same run twice: {', '.join(twice)} (a run beside itself is always equal; name another one)")
    folders = {(path.parent if path.name == "run.json" else path).resolve().parent for path in paths}
    history = [each for folder in sorted(folders) for each in store.runs(folder)[0]]
    groups = grouped(runs)
    if len(groups) == 1:
        groups = [groups[0][:1], groups[0][1:]]
    return [compare(groups[0], after, history) for after in groups[1:]]


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with equal keys together, in the order in which each kind came first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key_text(run), []).append(run)
    return list(groups.values())


def compare(before: Sequence[Run], after: Sequence[Run], history: Sequence[store.Stored] = ()) -> Comparison:
    """The comparison of two sets of runs, each of one key; ``history`` teaches how far boots differ. Pure."""
    found = keys.differences(key(before[0]), key(after[0]))
    refused = tuple(str(each) for each in found if each.kind == "condition")
    one = keys.under_test(found)
    common: dict[str, Any] = {
        "before": tuple(run.run_id for run in before),
        "after": tuple(run.run_id for run in after),
        "title_before": compared_changes.title(before[0]),
        "title_after": compared_changes.title(after[0]),
        "simulated": before[0].simulated or after[0].simulated,
        "changed": found,
        "seen": compared_changes.seen(before[-1], after[-1]),
        "under_test": one,
    }
    if refused:
        return Comparison(**common, refused=refused)
    finished = [each for each in history if each.finished is not None]
    past = Past.of(finished, before, after)
    fails, lost, still = compared_changes.broken(before, after, across=one == "power")
    notes = [
        *compared_changes.together(found, one),
        *compared_changes.earlier(before, finished),
        *compared_starts.notes(before, after),
        *compared_rates.one_boot(before, after, past),
        *(f"measured only after: {each}" for each in compared_rates.new_places(before, after, one)),
        *(f"broken before and after: {each}" for each in still),
    ]
    return Comparison(
        **common,
        quantities=tuple(_quantities(before, after, past, one)),
        answers=compared_answers.compared(before, after, judged=not _wanted(found, key(before[0]), key(after[0]))),
        broken=tuple(fails),
        lost=(*compared_changes.trouble(before, after), *lost),
        notes=tuple(notes),
    )


def _wanted(found: Sequence[Difference], before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a change was made after which other answers are no fault.

    Another version brings arguments, and defaults, that the one before did not know: those are no such change.
    """
    engines = before.get("engine") != after.get("engine")
    drafts = any(side.get("argument speculative_algorithm") for side in (before, after))
    for each in found:
        _, argument, name = each.name.partition("argument ")
        if not argument or name not in (NUMERICS | DRAFTS if drafts else NUMERICS):
            continue
        told = each.before is not None and each.after is not None
        if (told or name in GIVEN or not engines) and not (each.before in UNSET and each.after in UNSET):
            return True
    return False


def _quantities(before: Sequence[Run], after: Sequence[Run], past: Past, one: str | None) -> list[Quantity]:
    """Everything that is judged shares the alarms; a start's phases are a family of their own."""
    whole = compared.settle([*compared_rates.rates(before, after, past, one), *compared_starts.readiness(before, after, past)])
    phases = compared_starts.phases(before, after, past)
    return [*(compared_starts.explained(each, phases) for each in whole), *phases]
