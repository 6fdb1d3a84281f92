"""What has changed since the last pass: the right run is found, and only what differs is told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stored_runs import stored

from pytest_sglang.record import run as records
from pytest_sglang.record.run import Run
from pytest_sglang.session import changed, since


def read(path: Path) -> Run:
    return records.read(path)


def with_environment(run: Run, **facts: Any) -> Run:
    return msgspec.structs.replace(run, environment={**run.environment, **facts})


def with_server(run: Run, **facts: Any) -> Run:
    return with_environment(run, server={**run.environment["server"], **facts})


def names(before: Run, after: Run) -> dict[str, tuple[Any, Any]]:
    return {each["name"]: (each["before"], each["after"]) for each in changed.between(before, after)}


def test_two_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    before, after = (
        read(stored(tmp_path, name, seed=seed, warm_s=warm, started=f"2026-11-0{seed}T00:00:00.000Z"))
        for name, seed, warm in (("a", 1, 80.0), ("b", 2, 81.5))
    )
    assert names(before, after) == {}


def test_everything_that_may_explain_a_failure_is_named(tmp_path: Path) -> None:
    before = with_server(
        read(stored(tmp_path, "a", driver="580.95")), argv=["python", "-m", "s", "--mem-fraction-static", "0.65", "--port", "1"]
    )
    after = read(stored(tmp_path, "b", driver="580.159", engine="0.5.23", power_w=390.0, arguments={"cuda_graph_max_bs": 16}))
    card = {**after.environment["gpus"][0], "pcie_width": 8, "vbios": "94.02"}
    after = with_environment(
        with_server(
            after,
            argv=["/opt/b/python", "-m", "s", "--mem-fraction-static", "0.70", "--port", "2"],
            packages={"torch": "2.13.0"},
        ),
        gpus=[card],
        faults=["narrow"],
        kernel="6.12",
    )
    after = msgspec.structs.replace(
        after, rig={**after.rig, "start": {"warm_s": 60.0}, "workload": {"output_tokens": 256, "streams": 1}}
    )
    assert names(before, after) == {
        "faults": ([], ["narrow"]),
        "power_levels_w": ([250.0], [390.0]),
        "engine": ("0.5.11", "0.5.23"),
        "driver": ("580.95", "580.159"),
        "kernel": (None, "6.12"),
        "package torch": ("2.11.0", "2.13.0"),
        "argument cuda_graph_max_bs": (8, 16),
        "flag program": ("python -m s", "/opt/b/python -m s"),
        "flag --mem-fraction-static": ("0.65", "0.70"),
        "gpu 0 vbios": (None, "94.02"),
        "gpu 0 enforced_power_limit_w": (250.0, 390.0),
        "gpu 0 pcie_width": (16, 8),
        "promise start.warm_s": (None, 60.0),
        "workload output_tokens": (128, 256),
    }
    assert [each["name"] for each in changed.between(before, after)][:3] == ["faults", "power_levels_w", "engine"]


def test_a_raised_promise_is_named_by_its_row(tmp_path: Path) -> None:
    row = {"power_w": 250.0, "nvlink": True, "streams": 1, "quantity": "decode", "min_tok_s": 38.0}
    before, after = (
        msgspec.structs.replace(run, rig={**run.rig, "throughput": [{**row, "min_tok_s": rate}]})
        for run, rate in ((read(stored(tmp_path, "a")), 38.0), (read(stored(tmp_path, "b")), 44.0))
    )
    assert names(before, after) == {"promise throughput 250 W, with NVLink.min_tok_s": (38.0, 44.0)}


def test_a_server_that_was_never_up_is_told_once_and_not_as_a_hundred_arguments(tmp_path: Path) -> None:
    before = read(stored(tmp_path, "a"))
    after = with_environment(read(stored(tmp_path, "b")), server={"url": "http://x", "state": "failed"})
    assert names(before, after) == {"server arguments": ("recorded", None), "server packages": ("recorded", None)}


def test_arguments_that_another_version_knows_are_its_own_doing(tmp_path: Path) -> None:
    before = read(stored(tmp_path, "a"))
    after = read(stored(tmp_path, "b", engine="0.5.23", arguments={"brand_new": 1}))
    assert names(before, after) == {"engine": ("0.5.11", "0.5.23")}


def test_another_card_in_the_slot_is_named_and_a_simulated_one_is_not(tmp_path: Path) -> None:
    for simulated, expected in ((False, {"gpu 0 uuid": ("GPU-a", "GPU-b")}), (True, {})):
        folder = tmp_path / str(simulated)
        sides = [
            with_environment(run, gpus=[{**run.environment["gpus"][0], "uuid": uuid}])
            for run, uuid in ((read(stored(folder, n, simulated=simulated)), f"GPU-{n}") for n in "ab")
        ]
        assert names(*sides) == expected


def test_a_card_that_is_gone_is_one_line(tmp_path: Path) -> None:
    before, after = read(stored(tmp_path, "a")), read(stored(tmp_path, "b"))
    before = with_environment(before, gpus=[*before.environment["gpus"], {"index": 1, "name": "RTX 3090"}])
    assert names(before, after) == {"gpu 1": ("RTX 3090", None)}


def test_warmth_counts_where_it_is_more_than_the_weather(tmp_path: Path) -> None:
    before, after = read(stored(tmp_path, "a")), read(stored(tmp_path, "b"))
    for degrees, expected in ((52.0, set()), (61.0, {"temperature at the first round °C"})):
        measured = [dict(item) for item in after.throughputs]
        first = [dict(each, start_c=degrees) for each in measured[0]["throughput"]["rounds"]]
        measured[0]["throughput"] = {**measured[0]["throughput"], "rounds": first}
        assert set(names(before, msgspec.structs.replace(after, throughputs=tuple(measured)))) == expected


# --- which run -------------------------------------------------------------------------------------------------------------


def at(day: int, tail: str = "") -> str:
    return f"2026-11-{day:02}T00-00-00Z-250W{tail}"


def put(folder: Path, day: int, tail: str = "", **how: Any) -> Path:
    return stored(folder, at(day, tail), started=f"2026-11-{day:02}T00:00:00.000Z", **how)


def test_the_newest_earlier_finished_pass_of_the_same_rig(tmp_path: Path) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2, tok_s=41.0)
    put(tmp_path, 3, verdict="fail")
    put(tmp_path, 4, finished=False)
    put(tmp_path, 5, rig="another")
    put(tmp_path, 6, simulated=True)
    put(tmp_path, 9)
    for name, text in (("2026-11-07T00-00-00Z-x", "{"), ("2026-11-07T00-00-01Z-y", "[]"), ("2026-11-07T00-00-02Z-z", "\0\xff")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "2026-11-07T00-00-03Z-dir").mkdir()
    (tmp_path / "2026-11-07T00-00-03Z-dir" / "run.json").mkdir()
    mine = read(put(tmp_path, 8, driver="581"))
    found = since.of(tmp_path, mine)
    assert (found["run_id"], found["started"]) == (at(2), "2026-11-02T00:00:00.000Z")
    assert found["differences"] == [{"name": "driver", "before": "580", "after": "581"}]
    assert found["measured"]["decode-throughput at 250 W"]["unit"] == "tok/s"
    assert abs(found["measured"]["decode-throughput at 250 W"]["value"] - 41.0) < 0.5


def test_a_pass_at_the_same_power_is_preferred_and_another_named(tmp_path: Path) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2, power_w=390.0)
    mine = read(put(tmp_path, 3))
    assert since.of(tmp_path, mine)["run_id"] == at(1)
    other = msgspec.structs.replace(mine, power_levels_w=(300.0,))
    found = since.of(tmp_path, other)
    assert (found["run_id"], found["power_levels_w"]) == (at(2), [390.0])
    assert {"name": "power_levels_w", "before": [390.0], "after": [300.0]} in found["differences"]


def test_a_run_of_todays_clock_counts_where_a_simulated_rigs_runs_ahead(tmp_path: Path) -> None:
    put(tmp_path, 1, "-simulated", simulated=True)
    ahead = tmp_path / at(1, "-simulated") / "run.json"
    ahead.write_text(ahead.read_text().replace("2026-11-01T00:00:00.000Z", "2026-11-02T05:00:00.000Z"))
    mine = read(put(tmp_path, 2, simulated=True))
    assert since.of(tmp_path, mine)["run_id"] == at(1, "-simulated")


def test_without_a_pass_the_record_says_where_it_was_looked_for(tmp_path: Path) -> None:
    mine = read(put(tmp_path, 2))

    class Kept:
        run, kept = mine, None

        def since_pass(self, found: dict[str, Any]) -> None:
            self.kept = found

    recorder = Kept()
    since.note(recorder, tmp_path)  # type: ignore[arg-type]
    assert recorder.kept == {"looked_in": tmp_path.name}
    since.note(recorder, tmp_path / "nowhere")  # type: ignore[arg-type]
    assert recorder.kept == {"looked_in": "nowhere"}


def test_whatever_a_record_holds_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({"gpus": [3]}, {"gpus": {"index": 0}}, {"server": []}, {"server": {"argv": 5}}, {"faults": 7}):
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        mine = read(put(folder, 2))
        path = put(folder, 1)
        records.write(msgspec.structs.replace(read(path), environment=environment), path)
        kept: list[Any] = []
        recorder = type("Kept", (), {"run": mine, "since_pass": lambda self, found, kept=kept: kept.append(found)})()
        since.note(recorder, folder)
        assert kept


def test_a_thousand_runs_are_not_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio, not a time: of runs that did not pass, and of other rigs, only the beginning is read."""
    put(tmp_path, 1)
    for minute in range(60):
        stored(tmp_path, f"2026-11-05T00-{minute // 60:02}-{minute % 60:02}Z-x", verdict="fail", rounds=1, warm_s=None)
    read_whole: list[Path] = []
    monkeypatch.setattr(since.records, "read", lambda path, real=records.read: read_whole.append(path) or real(path))
    mine = records.read(put(tmp_path, 8))
    read_whole.clear()
    began = time.perf_counter()
    assert since.of(tmp_path, mine)["run_id"] == at(1)
    assert time.perf_counter() - began < 20
    assert len(read_whole) == 1


def test_a_run_that_is_being_removed_is_no_last_pass(tmp_path: Path) -> None:
    stored(tmp_path, "old", started="2026-11-18T00:00:00.000Z")
    (tmp_path / "old").rename(tmp_path / ".removed-old")
    now = records.read(stored(tmp_path / "elsewhere", "now", started="2026-11-25T00:00:00.000Z"))
    assert since.of(tmp_path, now) == {}
    (tmp_path / ".removed-old").rename(tmp_path / "old")
    assert since.of(tmp_path, now)["run_id"] == "old"
