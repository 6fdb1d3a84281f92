"""Every quantity of a comparison gets worse when that is what happens, alone, and says how sure it is; no false pass can be had."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_runs import boots, edited, stored

from pytest_sglang.judge import samples
from pytest_sglang.record import run as records
from pytest_sglang.report import comparison as shown
from pytest_sglang.session import baseline, compared_answers, comparison, store
from pytest_sglang.session.compared import Quantity
from pytest_sglang.session.compared_answers import AnswersComparison
from pytest_sglang.session.comparison import Comparison
from pytest_sglang.session.errors import Refused

Edit = Callable[[dict[str, Any]], object]


def quantities(found: Comparison) -> dict[str, Quantity]:
    return {each.name: each for each in found.quantities}


def compared(before: list[Path], after: list[Path]) -> Comparison:
    (found,) = comparison.of_paths([*before, *after])
    return found


def rounds(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for item in told["throughputs"] for each in item["throughput"]["rounds"]]


def every(**values: Any) -> Edit:
    """Each round with these values; a callable gets the old one."""

    def edit(told: dict[str, Any]) -> None:
        for each in rounds(told):
            each.update({name: value(each.get(name)) if callable(value) else value for name, value in values.items()})

    return edit


WORSE: dict[str, tuple[dict[str, Any], Edit | None]] = {
    "decode at 250 W": ({}, every(decode_tok_s=lambda rate: rate * 0.95)),
    "energy per token at 250 W": ({}, every(joules=lambda joules: joules * 1.10)),
    "TTFT median at 250 W": ({"ttft_ms": 130.0}, None),
    "ITL median at 250 W": ({}, every(itl_s=lambda gaps: [each * 1.08 for each in gaps])),
    "ITL p99 at 250 W": ({}, every(itl_s=lambda gaps: [*gaps[:-3], *(each * 2 for each in gaps[-3:])])),
    "warm start, ready": ({"warm_s": 120.0, "capture_s": 70.0}, None),
}


@pytest.mark.parametrize("name", WORSE)
def test_each_quantity_alone_can_be_what_is_worse(tmp_path: Path, name: str) -> None:
    how, edit = WORSE[name]
    before = boots(tmp_path, "old", 5, itl_ms=25.0)
    start = how.pop("warm_s", None)
    after = boots(tmp_path, "new", 3, month=11, engine="0.5.12", itl_ms=25.0, **how)
    if start is not None:
        how["warm_s"] = start
        for path, seconds in zip(after, (118.0, 120.0, 122.0), strict=True):
            edited(path, lambda told, seconds=seconds: told["startups"][0]["startup"].update(_start(seconds)))
    for path in after if edit is not None else ():
        edited(path, edit)  # type: ignore[arg-type]
    found = compared(before, after)
    worse = [each.name for each in found.quantities if each.judged and each.change and each.change.outcome == "worse"]
    # all gaps longer are a longer p99 too
    assert worse == ([name, "ITL p99 at 250 W"] if name.startswith("ITL median") else [name])
    assert found.verdict == "fail"


def _start(ready_s: float) -> dict[str, Any]:
    ends = (("launch", 16.0), ("weights", 40.0), ("capture_decode", ready_s - 10), ("port_open", ready_s))
    phases = [
        {"id": name, "begin_s": begin, "end_s": end}
        for (name, end), begin in zip(ends, (0.0, 16.0, 40.0, ready_s - 10), strict=True)
    ]
    return {"ready_s": ready_s, "phases": phases}


def test_a_ttft_of_90_ms_that_becomes_93_is_nothing(tmp_path: Path) -> None:
    found = compared(boots(tmp_path, "old", 5, ttft_ms=90.0), boots(tmp_path, "new", 3, month=11, engine="0.5.12", ttft_ms=93.0))
    ttft = quantities(found)["TTFT median at 250 W"]
    assert found.verdict == "pass"
    assert ttft.change is not None
    assert "% for certain, which is below 5 %" in ttft.change.why


def test_a_slower_start_names_its_phase_and_its_new_kernels(tmp_path: Path) -> None:
    before, after = boots(tmp_path, "old", 5), boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    diff = {"new_kernels": ["triton_a", "triton_b"]}
    for path, seconds in zip(after, (118.0, 120.0, 122.0), strict=True):
        edited(path, lambda told, s=seconds: told["startups"][0]["startup"].update({**_start(s), "cache_diff": diff}))
    found = compared(before, after)
    by_name = quantities(found)
    assert by_name["warm start, ready"].note.startswith("most of it in capture_decode")
    capture = by_name["warm start: capture_decode"]
    assert capture.change is not None
    assert (capture.change.outcome, capture.judged) == ("worse", False)
    assert by_name["warm start: launch"].change.outcome == "same"  # type: ignore[union-attr]
    assert "the warm start after compiled 2 new kernels: triton_a, triton_b" in found.notes


def test_one_start_on_either_side_is_shown_and_never_worse(tmp_path: Path) -> None:
    found = compared([stored(tmp_path, "a")], [stored(tmp_path, "b", warm_s=300.0, engine="0.5.12")])
    starts = [each for each in found.quantities if "start" in each.name]
    assert len(starts) == 5
    assert all(each.change is None and not each.judged and each.note == "not judged: one start on either side" for each in starts)


def test_starts_of_other_kinds_or_zeros_are_not_compared(tmp_path: Path) -> None:
    a, b = stored(tmp_path, "a"), stored(tmp_path, "b", engine="0.5.12")
    edited(b, lambda told: told["startups"][0]["startup"].update(kind="cold"))
    found = compared([a], [b])
    assert not any("start" in each.name for each in found.quantities)
    assert "starts: warm before, cold after: only those of one kind are compared" in found.notes
    edited(b, lambda told: told["startups"][0]["startup"].update(kind="warm", launched_at_is="first line"))
    found = compared([a], [b])
    assert not any("start" in each.name for each in found.quantities)
    assert "warm starts: counted from launch before, from first line after: not compared" in found.notes


def test_the_energys_own_error_widens_its_interval(tmp_path: Path) -> None:
    before, after = boots(tmp_path, "old", 5), boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    exact = quantities(compared(before, after))["energy per token at 250 W"].change
    for path in (*before, *after):
        edited(path, lambda told: [each.update(joules_error=each["joules"] * 0.5) for each in rounds(told)])
    rough = quantities(compared(before, after))["energy per token at 250 W"].change
    assert exact is not None
    assert rough is not None
    assert exact.outcome == "same"
    assert rough.outcome == "undecided"
    assert rough.high - rough.low > 3 * (exact.high - exact.low)  # type: ignore[operator]


def test_a_boot_that_is_compared_does_not_teach_twice(tmp_path: Path) -> None:
    before, after = boots(tmp_path, "old", 4), boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    change = quantities(compared(before, after))["decode at 250 W"].change
    assert change is not None
    assert change.spread.degrees == 5.0
    boots(tmp_path, "earlier", 4, month=9)
    change = quantities(compared(before, after))["decode at 250 W"].change
    assert change is not None
    assert change.spread.degrees == 9.0
    boots(tmp_path, "cellar", 4, month=8, rig="cellar")
    shutil.copytree(tmp_path / "earlier-00", tmp_path / "a-copy")
    assert quantities(compared(before, after))["decode at 250 W"].change.spread.degrees == 9.0  # type: ignore[union-attr]


def test_a_single_round_does_not_borrow_the_certainty_of_many(tmp_path: Path) -> None:
    boots(tmp_path, "earlier", 8, noise=0.02, month=9)
    many = stored(tmp_path, "many", noise=0.02, engine="0.5.12", rounds=30)
    one = stored(tmp_path, "one", noise=0.02, rounds=1)
    change = quantities(compared([one], [many]))["decode at 250 W"].change
    assert change is not None
    assert change.high - change.low > 0.08  # type: ignore[operator]


# --- no false pass -------------------------------------------------------------------------------------------------------------


def gone(told: dict[str, Any]) -> None:
    told["throughputs"] = []


def other_level(told: dict[str, Any]) -> None:
    told["power_levels_w"] = [300.0]
    told["throughputs"][0]["power_w"] = 300.0


def falling(told: dict[str, Any]) -> None:
    for number, each in enumerate(rounds(told)):
        each["decode_tok_s"] = 41.5 - 0.2 * number


def one_more_level(told: dict[str, Any]) -> None:
    told["throughputs"].append({**told["throughputs"][0], "power_w": 300.0})


def broken(told: dict[str, Any]) -> None:
    told["verdict"] = "fail"
    told["checks"][1].update(verdict="fail", cause="slow disk")


def untold(told: dict[str, Any]) -> None:
    told["checks"][1].update(verdict="inconclusive", inconclusive_because="no log")


def merged(told: dict[str, Any]) -> None:
    every(merged_share=0.02)(told)


def late(told: dict[str, Any]) -> None:
    every(unsure_ttft=1)(told)


def laggy(told: dict[str, Any]) -> None:
    every(stamps="user", itl_lag_s=0.05)(told)


AFTER: dict[str, tuple[Edit, str, str]] = {
    "all rounds invalid": (every(invalid_because="foreign load"), "decode at 250 W", "no valid round after"),
    "no rounds": (lambda told: rounds(told) and told["throughputs"][0]["throughput"].update(rounds=[]), "decode at 250 W", "no valid round"),
    "nothing measured": (gone, "decode at 250 W", "not measured after"),
    "another level": (other_level, "decode at 250 W", "not measured after"),
    "rates of null": (every(decode_tok_s=None), "decode at 250 W", "after, 16 of 16 rounds tell no number"),
    "rates of zero": (every(decode_tok_s=0.0), "decode at 250 W", "after, 16 of 16 rounds tell no number"),
    "the bad rounds without a number": (
        lambda told: [each.update(decode_tok_s=None) for each in rounds(told)[:2]], "decode at 250 W", "2 of 16 rounds tell no number",
    ),
    "energy not read any more": (
        every(joules=None, joules_missing="GPU 0: counter reset"), "energy per token at 250 W", "counter reset",
    ),
    "merged events": (merged, "ITL median at 250 W", "1 % of the token events have no time of their own"),
    "first tokens merged": (late, "TTFT median at 250 W", "came in one read with later ones"),
    "a lagging client": (laggy, "ITL p99 at 250 W", "client's own lag after, 50 ms"),
    "other tokens a round": (every(output_tokens=64), "decode at 250 W", "128 tokens before and 64 after"),
    "a rate that drifts": (falling, "decode at 250 W", "its rounds drift by -7"),
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER)
def test_what_cannot_be_told_after_is_inconclusive_and_says_so(tmp_path: Path, name: str) -> None:
    edit, quantity, why = AFTER[name]
    before = boots(tmp_path, "old", 5, itl_ms=25.0)
    after = [edited(each, edit) for each in boots(tmp_path, "new", 3, month=11, engine="0.5.12", itl_ms=25.0)]
    found = compared(before, after)
    assert found.verdict == "inconclusive"
    change = quantities(found)[quantity].change
    assert change is not None
    assert change.outcome == "undecided"
    assert why in change.why


@pytest.mark.parametrize(
    ("edit", "why"), [(every(decode_tok_s=None), "before, 16 of 16"), (every(invalid_because="x"), "no valid round before")]
)
def test_a_rate_that_was_not_told_before_is_no_pass_either(tmp_path: Path, edit: Edit, why: str) -> None:
    before = [edited(each, edit) for each in boots(tmp_path, "old", 5)]
    found = compared(before, boots(tmp_path, "new", 3, month=11, engine="0.5.12"))
    assert found.verdict == "inconclusive"
    assert why in quantities(found)["decode at 250 W"].change.why  # type: ignore[union-attr]


def test_a_latency_that_was_not_told_before_is_shown_with_the_reason(tmp_path: Path) -> None:
    before = [edited(each, merged) for each in boots(tmp_path, "old", 5, itl_ms=25.0)]
    found = compared(before, boots(tmp_path, "new", 3, month=11, engine="0.5.12", itl_ms=25.0))
    itl = quantities(found)["ITL median at 250 W"]
    assert found.verdict == "pass"
    assert itl.change is None
    assert "not judged: before, 16 of 16 rounds: more than 1 % of the token events" in itl.note


def test_an_itl_that_neither_side_tells_is_named(tmp_path: Path) -> None:
    before, after = boots(tmp_path, "old", 5, itl_ms=25.0), boots(tmp_path, "new", 3, month=11, engine="0.5.12", itl_ms=25.0)
    found = compared([edited(each, merged) for each in before], [edited(each, merged) for each in after])
    itl = quantities(found)["ITL median at 250 W"]
    assert (itl.before, itl.after, itl.change) == (None, None, None)
    assert "token events have no time of their own" in itl.note
    assert found.verdict == "pass"


def test_one_of_two_levels_that_is_gone_is_told(tmp_path: Path) -> None:
    before = [edited(each, one_more_level) for each in boots(tmp_path, "old", 5)]
    after = boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    found = compared(before, after)
    assert found.verdict == "inconclusive"
    assert quantities(found)["decode at 300 W"].change.why == "not measured after"  # type: ignore[union-attr]
    (other,) = comparison.of_paths([*after, *before])
    assert other.verdict == "pass"
    assert "measured only after: 300 W" in other.notes


REFUSED: dict[str, tuple[dict[str, Any], Edit | None, str]] = {
    "output tokens": ({"output_tokens": 256}, None, "workload output_tokens: 128, now 256"),
    "prompt tokens": (
        {},
        lambda told: told["rig"]["workload"].update(prompt_tokens=64),
        "workload prompt_tokens: not known, now 64",
    ),
    "prompts": ({}, lambda told: told["rig"]["workload"].update(prompts="cached"), "workload prompts: not known, now cached"),
    "api": ({}, lambda told: told["rig"]["workload"].update(api="chat"), "workload api: not known, now chat"),
    "client": ({}, lambda told: told["environment"].update(plugin="0.2.0"), "client: 0.1.0, now 0.2.0"),
    "simulated": ({"simulated": True}, None, "simulated: False, now True"),
    "model": ({"arguments": {"model_path": "/models/other"}}, None, "model: /models/m, now /models/other"),
    "another card": ({}, lambda told: told["environment"]["gpus"][0].update(name="RTX 4090"), "gpu 0 name: RTX 3090, now RTX 4090"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unlike_conditions_are_refused(tmp_path: Path, name: str) -> None:
    how, edit, why = REFUSED[name]
    before, after = stored(tmp_path, "a"), stored(tmp_path, "b", **how)
    if edit is not None:
        edited(after, edit)
    found = compared([before], [after])
    assert found.verdict == "inconclusive"
    assert found.quantities == ()
    assert why in found.refused


def test_the_same_run_twice_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    a, b = stored(tmp_path, "a"), stored(tmp_path, "b")
    with pytest.raises(Refused, match="the same run twice: a"):
        comparison.of_paths([a, a])
    text = (b / "run.json").read_text()
    (b / "run.json").write_text(text.replace('"decode_tok_s": 4', '"decode_tok_s": NaN, "x": 4', 1))
    with pytest.raises(records.RecordError, match="not a run"):
        comparison.of_paths([a, b])


def test_promises_stay_floors(tmp_path: Path) -> None:
    before, after = boots(tmp_path, "old", 5), boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    edited(after[1], broken)
    found = compared(before, after)
    assert found.verdict == "fail"
    assert found.broken == ("warm-restart: slow disk",)
    edited(before[0], broken)
    found = compared(before, after)
    assert (found.verdict, found.broken) == ("pass", ())
    assert "broken before and after: warm-restart: slow disk" in found.notes
    edited(after[0], untold)
    edited(after[1], untold)
    edited(before[0], lambda told: told["checks"][1].update(verdict="pass"))
    found = compared(before, after)
    assert (found.verdict, found.lost) == ("inconclusive", ("warm-restart: no log",))


def test_an_interrupted_run_is_named_and_teaches_nothing(tmp_path: Path) -> None:
    earlier = boots(tmp_path, "earlier", 4, month=9)
    for each in earlier:
        edited(each, lambda told: told.update(interrupted=True))
    before, after = boots(tmp_path, "old", 2), boots(tmp_path, "new", 2, month=11, engine="0.5.12")
    edited(after[0], lambda told: told.update(interrupted=True))
    found = compared(before, after)
    assert found.lost == ("the run after was interrupted: new-00",)
    assert found.verdict == "inconclusive"
    assert quantities(found)["decode at 250 W"].change.spread.degrees == 2.0  # type: ignore[union-attr]


def test_levels_of_a_sweep_are_no_spread_where_the_level_is_compared(tmp_path: Path) -> None:
    for each in boots(tmp_path, "earlier", 5, month=9):
        edited(
            each,
            lambda told: told["throughputs"].append(
                {**told["throughputs"][0], "power_w": 390.0, "samples": {"decode_tok_s": [55.0]}}
            ),
        )
    found = compared([stored(tmp_path, "a")], [stored(tmp_path, "b", power_w=390.0, tok_s=52.0)])
    change = quantities(found)["decode"].change
    assert change is not None
    assert change.spread.sd < 0.01
    assert change.outcome == "better"


def test_a_step_in_history_is_no_spread(tmp_path: Path) -> None:
    boots(tmp_path, "fast", 6, tok_s=44.0, month=8)
    boots(tmp_path, "slow", 6, month=9)
    change = quantities(compared(boots(tmp_path, "old", 2), boots(tmp_path, "new", 2, month=11, engine="0.5.12")))[
        "decode at 250 W"
    ].change
    assert change is not None
    assert change.spread.sd < 0.005


# --- the baseline of a run that is going on ------------------------------------------------------------------------------------


def saved(tmp_path: Path, edit: Edit | None = None) -> Path:
    boots(tmp_path, "earlier", 6, month=9)
    path = stored(tmp_path, "base", started="2026-10-01T00:00:00.000Z")
    assert "saved" in baseline.save(path, records.read(path), "default")
    return path if edit is None else edited(path, edit)


def against(tmp_path: Path, **how: Any) -> list[Any]:
    now = records.read(stored(tmp_path / "now", "now", started=how.pop("started", "2026-10-03T00:00:00.000Z"), **how))
    return baseline.against(tmp_path, now, "six-3090", "default")


def test_a_baseline_judges_every_quantity_by_its_own_margin(tmp_path: Path) -> None:
    saved(tmp_path)
    judged = against(tmp_path, engine="0.5.12")
    assert {each.verdict for each in judged} == {"pass"}
    limits = {each.quantity: each.limit.value for each in judged}
    assert limits["change_pct:decode at 250 W"] == -3.0
    assert limits["change_pct:TTFT median at 250 W"] == -15.0
    assert limits["change_pct:warm start, ready"] == -15.0


def test_a_baseline_calls_what_got_worse(tmp_path: Path) -> None:
    saved(tmp_path)
    judged = {each.quantity: each for each in against(tmp_path, engine="0.5.12", ttft_ms=150.0)}
    ttft = judged["change_pct:TTFT median at 250 W"]
    assert ttft.verdict == "fail"
    assert ttft.cause == "engine is the one thing that differs"
    assert judged["change_pct:decode at 250 W"].verdict == "pass"


def fail_run(told: dict[str, Any]) -> None:
    told["verdict"] = "fail"


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (fail_run, "is fail, not a pass"),
        (lambda told: told.update(interrupted=True), "was interrupted"),
        (lambda told: told.update(finished=None), "was interrupted"),
        (lambda told: told["environment"].update(plugin="9"), "its conditions differ: client: 9 then, 0.1.0 now"),
        (lambda told: told["rig"]["workload"].update(output_tokens=64), "its conditions differ: workload output_tokens: 64 then"),
        (lambda told: told["environment"].update(driver="570", kernel="6.1"), "more than one thing differs"),
        (gone, "decode at 250 W against base: not measured before"),
    ],
)
def test_an_unfit_baseline_is_refused(tmp_path: Path, edit: Edit, why: str) -> None:
    saved(tmp_path, edit)
    judged = against(tmp_path)[0]
    assert judged.verdict == "inconclusive"
    assert why in judged.message


def test_no_interrupted_or_failed_run_becomes_a_baseline_and_a_simulated_one_is_none_for_a_real_run(tmp_path: Path) -> None:
    path = edited(stored(tmp_path, "cut"), lambda told: told.update(interrupted=True))
    assert "not saved: the run was interrupted" in baseline.save(path, records.read(path), "default")
    tried = stored(tmp_path, "tried", simulated=True)
    assert "saved" in baseline.save(tried, records.read(tried), "default")
    (judged,) = against(tmp_path)
    assert judged.verdict == "inconclusive"
    assert "no baseline 'default' of six-3090" in judged.message


def test_an_aged_baseline_is_named_as_old(tmp_path: Path) -> None:
    saved(tmp_path)
    judged = against(tmp_path, started="2027-03-01T00:00:00.000Z")
    assert [each.kind for each in judged[0].findings] == ["baseline-old"]


# --- what a measurement's rounds say -------------------------------------------------------------------------------------------


def test_a_p99_takes_as_many_rounds_as_earn_it() -> None:
    gaps = [0.02 + 0.0001 * (number % 7) for number in range(127)]
    told = samples.of({"streams": 1, "rounds": [{"itl_s": gaps, "decode_tok_s": 40.0} for _ in range(10)]})
    assert (len(told["itl_p99_ms"].values), told["itl_p99_ms"].rounds_each) == (2, 4)
    assert len(told["itl_ms"].values) == 10
    few = samples.of({"streams": 1, "rounds": [{"itl_s": gaps} for _ in range(3)]})["itl_p99_ms"]
    assert (few.values, few.unfair) == ((), False)


def test_a_run_that_measured_a_place_twice_counts_as_one_boot(tmp_path: Path) -> None:
    paths = [edited(each, lambda told: told["throughputs"].append(told["throughputs"][0])) for each in boots(tmp_path, "old", 2)]
    found = compared(paths[:1], paths[1:])
    assert quantities(found)["decode at 250 W"].boots == (1, 1)


def test_history_of_runs_that_are_older_than_the_short_form_still_teaches(tmp_path: Path) -> None:
    for each in boots(tmp_path, "earlier", 5, month=9):
        edited(each, lambda told: told["throughputs"][0].pop("samples"))
    found = quantities(compared([stored(tmp_path, "a")], [stored(tmp_path, "b", engine="0.5.12")]))
    assert found["decode at 250 W"].change.spread.degrees == 5.0  # type: ignore[union-attr]
    assert found["energy per token at 250 W"].change.spread.degrees == 5.0  # type: ignore[union-attr]
    assert found["TTFT median at 250 W"].change.spread.degrees is None  # type: ignore[union-attr]


def test_the_short_form_is_what_the_rounds_say(tmp_path: Path) -> None:
    path = stored(tmp_path, "a", itl_ms=25.0)
    short = store.read(path / "run.json").throughputs[0].samples
    whole = samples.of(records.read(path).throughputs[0]["throughput"])
    for name, values in short.items():
        assert list(values) == pytest.approx(list(whole[name].values), rel=1e-5)
    assert {"decode_tok_s", "joules_per_token", "ttft_ms", "itl_ms", "itl_p99_ms"} <= set(short)


# --- answers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "own", "verdict"),
    [
        ("equal", "pass", "pass"),
        ("changed", "fail", "fail"),
        ("too little to compare", "inconclusive", "inconclusive"),
        ("not recorded", None, "pass"),
    ],
)
def test_answers_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Any, own: Any, verdict: str) -> None:
    asked: list[bool] = []

    def told(before: Any, after: Any, *, judged: bool) -> AnswersComparison:
        asked.append(judged)
        return AnswersComparison(outcome=outcome, verdict=own, text="as it is told", tokens=480, equal=470)

    monkeypatch.setattr(compared_answers, "compared", told)
    before, after = boots(tmp_path, "old", 5), boots(tmp_path, "new", 3, month=11, engine="0.5.12")
    found = compared(before, after)
    assert found.verdict == verdict
    text = "\n".join(line for line, _ in shown.terminal(found))
    assert "as it is told" in text
    assert "as it is told" in shown.page([found])
    assert shown.headline(found).startswith(verdict.upper())
    for path in after:
        edited(path, lambda run: run["environment"]["server"]["arguments"].update(quantization="fp8"))
    compared(before, after)
    assert asked == [True, False]
    saved(tmp_path / "reports")
    verdicts = {each.verdict for each in against(tmp_path / "reports", engine="0.5.12")}
    assert verdicts == ({"pass"} if own in (None, "pass") else {"pass", own})


def test_answers_alone_are_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    equal = AnswersComparison(outcome="equal", verdict="pass", text="the same")
    monkeypatch.setattr(compared_answers, "compared", lambda *runs, judged: equal)
    paths = [edited(stored(tmp_path, name, warm_s=None), gone) for name in ("a", "b")]
    found = compared(paths[:1], paths[1:])
    assert found.quantities == ()
    assert found.verdict == "inconclusive"


# --- many streams --------------------------------------------------------------------------------------------------------------


def many_streams(tpot: float = 1.0, aggregate: float = 1.0, ttft: float = 1.0) -> Edit:
    def edit(told: dict[str, Any]) -> None:
        told["throughputs"][0]["throughput"]["streams"] = 64
        del told["throughputs"][0]["samples"]
        for number, each in enumerate(rounds(told)):
            scatter = [1 + 0.01 * ((number + 7 * place) % 11 - 5) for place in range(64)]
            each["tpot_s"] = [0.05 * tpot * one for one in scatter]
            each["ttft_s"] = [0.4 * ttft * one for one in scatter]
            each["aggregate_tok_s"] = 1200.0 * aggregate * scatter[0]

    return edit


@pytest.mark.parametrize(
    ("how", "worse"),
    [
        ({"tpot": 1.12}, ["TPOT median at 250 W, 64 streams", "TPOT p99 at 250 W, 64 streams"]),
        ({"aggregate": 0.9}, ["all streams at 250 W, 64 streams"]),
        ({"ttft": 1.4}, ["TTFT median at 250 W, 64 streams", "TTFT p99 at 250 W, 64 streams"]),
        ({}, []),
    ],
)
def test_of_many_streams_their_rate_and_tpot_are_judged_too(tmp_path: Path, how: dict[str, float], worse: list[str]) -> None:
    before = [edited(each, many_streams()) for each in boots(tmp_path, "old", 5)]
    after = [edited(each, many_streams(**how)) for each in boots(tmp_path, "new", 4, month=11, engine="0.5.12")]
    found = compared(before, after)
    assert sorted(
        each.name for each in found.quantities if each.judged and each.change and each.change.outcome == "worse"
    ) == sorted(worse)
    assert found.verdict == ("fail" if worse else "pass")
    lines = [line for line, _ in shown.terminal(found)]
    assert all(len(line) <= 80 for line in lines)
