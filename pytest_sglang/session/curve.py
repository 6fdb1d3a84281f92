"""The rig's power curve: what was measured at each power level in this run and in earlier ones on the same engine, model and links.

Kept beside the reports, a small file a run, so that no run has to trust another's writing: ``<reports>/power-curves/<rig>/<run>.json``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.judge import curve as judge
from pytest_sglang.judge.curve import Point
from pytest_sglang.judge.throttling import HOLDING, Worked
from pytest_sglang.record import run as records
from pytest_sglang.record.values import Throughput, Value
from pytest_sglang.session import judging

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

SCHEMA = 1
FOLDER = "power-curves"


class Stored(Value, frozen=True, kw_only=True):
    """One file of the store."""

    schema: int
    run_id: str
    started: str
    key: dict[str, Any]
    points: tuple[Point, ...]


class PowerCurve:
    """Points of one deployment's run, and of earlier runs that may stand beside them."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._points: dict[tuple[int, float], Point] = {}
        self._keys: dict[int, dict[str, Any]] = {}

    def add(self, level_w: float | None, measured: Throughput) -> None:
        """A sound measurement at a verified power level; anything else is no point of a curve. Keeps the curve in run.json."""
        deployment = self._deployment
        if level_w is None or deployment.hardware is None or measured.decode_tok_s is None or judging.unsound(measured) is not None:
            return
        self._points[(measured.streams, level_w)] = self._point(level_w, measured, deployment.worked.get(level_w, ()))
        self._keys[measured.streams] = self._key(measured.streams)
        streams = self._shown()
        mine = [each for (count, _), each in self._points.items() if count == streams]
        self._save(streams, mine)
        earlier = [each for stored in self._stored(self._keys[streams]) for each in stored.points]
        curve = judge.analyse(judge.merged(mine, earlier), deployment.options.max_slowdown_pct)
        deployment.recorder.power_curve({"key": self._keys[streams], **records.plain(curve)})

    def _shown(self) -> int:
        """Of several numbers of streams the one measured at the most levels; the smallest of equals."""
        counts = {streams: sum(1 for count, _ in self._points if count == streams) for streams, _ in self._points}
        return min(counts, key=lambda streams: (-counts[streams], streams))

    def _point(self, level_w: float, measured: Throughput, worked: tuple[Worked, ...]) -> Point:
        numbers = {name: each.value for name, each in judging.throughput_numbers(measured).items()}
        rows = [row for row in self._deployment.rig.rows(level_w) if row.streams == measured.streams and row.quantity == "decode"]
        caps = [each.reasons.get("sw_power_cap", 0.0) for each in worked if each.reasons]
        held = _held(worked)
        return Point(
            power_w=level_w,
            tok_s=float(f"{measured.decode_tok_s or 0.0:.6g}"),
            ci_low=measured.ci_low,
            ci_high=measured.ci_high,
            j_per_token=_number(numbers.get("j_per_token")),
            mean_w=_number(numbers.get("mean_w")),
            tok_s_per_w=_number(numbers.get("tok_s_per_w")),
            sm_mhz=min((each.sm_mhz for each in worked if each.sm_mhz is not None), default=None),
            end_c=max((each.end_c for each in worked if each.end_c is not None), default=None),
            held_by=held or ("" if not caps else "power cap" if max(caps) > 0.0 else "nothing"),
            cap_pct=round(100 * min(caps), 1) if caps else None,
            faulty=bool(held),
            min_tok_s=rows[0].min_tok_s if rows else None,
            target_tok_s=rows[0].target_tok_s if rows else None,
            run_id=self._deployment.recorder.run.run_id,
        )

    def _key(self, streams: int) -> dict[str, Any]:
        """What must be equal for points to stand in one curve. NVLink as it is found, not as it is declared."""
        from pytest_sglang.gpu import links

        deployment = self._deployment
        run, workload = deployment.recorder.run, deployment.rig.workload
        server = dict(run.environment.get("server") or {})
        arguments = dict(server.get("arguments") or {})
        hardware = deployment.hardware
        serving = hardware.serving if hardware is not None else ()
        indices = {card.index for card in serving}
        pairs = links.read(hardware.nvml).pairs if hardware is not None else {}
        promise = deployment.rig.server
        return {
            "rig": deployment.rig.name,
            "simulated": run.simulated,
            "faults": list(deployment.options.faults),
            "gpus": [str(card.name) for card in serving],
            "nvlink": [f"{one}-{other}: {up}" for (one, other), up in sorted(pairs.items()) if {one, other} <= indices and up],
            "driver": run.environment.get("driver"),
            "engine": server.get("version") or arguments.get("version"),
            "packages": dict(server.get("packages") or {}),
            "model": arguments.get("model_path") or (promise.model if promise is not None else None),
            "tp": arguments.get("tp_size") or (promise.tp if promise is not None else None),
            "torch_compile": arguments.get("enable_torch_compile"),
            "streams": streams,
            "prompt_tokens": workload.prompt_tokens,
            "output_tokens": workload.output_tokens,
        }

    # --- the store ---------------------------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self._deployment.rig.name).strip("-.") or "rig"
        return self._deployment.options.report_dir / FOLDER / slug

    def _save(self, streams: int, points: list[Point]) -> None:
        """This run's sound points, written whole and renamed; a report directory that cannot be written costs no measurement."""
        run = self._deployment.recorder.run
        sound = tuple(each for each in points if not each.faulty)
        if not sound:
            return
        stored = Stored(schema=SCHEMA, run_id=run.run_id, started=run.started, key=self._keys[streams], points=sound)
        try:
            records.write_atomic(self._folder / f"{run.run_id}.json", msgspec.json.encode(records.plain(stored)).decode() + "\n")
        except OSError as error:
            self._deployment.progress(f"the power curve is not kept: {error}")

    def _stored(self, key: dict[str, Any]) -> list[Stored]:
        """Earlier runs' points with this very key, oldest first; other files, other keys and broken ones are passed over."""
        mine = self._deployment.recorder.run.run_id
        found = [each for each in map(read, sorted(self._folder.glob("*.json"))) if each is not None]
        kept = [each for each in found if each.run_id != mine and judge.same(each.key, records.plain(key))]
        return sorted(kept, key=lambda each: each.started)


def read(path: Path) -> Stored | None:
    """One file of the store; None = it is not one, is broken, or has another schema."""
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=Stored)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return stored if stored.schema == SCHEMA else None


def _held(worked: tuple[Worked, ...]) -> str:
    """What held a card that should not have, for a person; empty = nothing, as far as it could be read."""
    found = [
        (share, each.label, reason)
        for each in worked
        for reason, share in each.reasons.items()
        if reason in HOLDING and share >= 0.05
    ]
    if not found:
        return ""
    share, label, reason = max(found)
    return f"{reason.replace('_slowdown', '').replace('_', ' ')} ({label}, {share * 100:.0f} %)"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
