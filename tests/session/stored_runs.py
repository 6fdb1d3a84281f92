"""Run folders with the numbers that a test wants, as the recorder writes them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_sglang.judge import samples
from pytest_sglang.record import run as records
from pytest_sglang.record.run import Check, Limit, Measurement, NotChecked, Run

ARGUMENTS = {"model_path": "/models/m", "enable_torch_compile": True, "cuda_graph_max_bs": 8, "random_seed": 1}


def stored(
    folder: Path,
    name: str,
    *,
    started: str = "2026-11-01T00:00:00.000Z",
    tok_s: float = 40.0,
    noise: float = 0.004,
    rounds: int = 16,
    warm_s: float | None = 80.0,
    engine: str = "0.5.11",
    arguments: dict[str, Any] | None = None,
    host: str = "attic",
    rig: str = "six-3090",
    verdict: str = "pass",
    driver: str = "580",
    power_w: float = 250.0,
    output_tokens: int = 128,
    seed: int = 0,
    finished: bool = True,
    simulated: bool = False,
    uuids: tuple[str, ...] = (),
    ttft_ms: float = 100.0,
    itl_ms: float | None = None,
    capture_s: float = 30.0,
) -> Path:
    """A finished run of one measurement (and one warm start), written below ``folder``. ``itl_ms``: with gaps of about so much."""
    rng = random.Random(f"{name} {seed}")
    rates = [tok_s * (1 + rng.gauss(0, noise)) for _ in range(rounds)]
    measured = [
        {
            "index": number,
            "begin_s": number * 4.0,
            "end_s": number * 4.0 + 3.5,
            "decode_tok_s": rate,
            "end_to_end_tok_s": rate * 0.95,
            "ttft_s": [ttft_ms / 1000 * (1 + rng.gauss(0, noise))],
            "itl_s": [itl_ms / 1000 * (1 + rng.gauss(0, 0.03)) for _ in range(output_tokens - 1)] if itl_ms else [],
            "output_tokens": output_tokens,
            "joules": 1000.0 * output_tokens / rate,
            "start_c": 50.0,
            "invalid_because": None,
        }
        for number, rate in enumerate(rates, 1)
    ]
    starts: tuple[dict[str, Any], ...] = ()
    if warm_s is not None:
        ends = (("launch", 16.0), ("weights", warm_s - 10 - capture_s), ("capture_decode", warm_s - 10), ("port_open", warm_s))
        begins = (0.0, *(end for _, end in ends))
        phases = [{"id": name, "begin_s": begin, "end_s": end} for (name, end), begin in zip(ends, begins, strict=False)]
        launched_at = 1_790_000_000.0 + rng.randrange(10**7)
        startup = {"kind": "warm", "launched_at": launched_at, "pid": 4000, "ready_s": warm_s, "phases": phases}
        starts = ({"label": "warm restart", "budget_s": 90.0, "startup": startup},)
    throughput = {"streams": 1, "rounds": measured}
    middle = sorted(rates)[len(rates) // 2]
    checks = (
        Check(
            id="decode-throughput",
            promise="fast",
            verdict=verdict,  # type: ignore[arg-type]
            power_w=power_w,
            measured={"decode_tok_s": Measurement(middle, "tok/s")},
            limit=Limit(">=", 38.0, "tok/s"),
            quantity="decode_tok_s",
            cause="slow" if verdict == "fail" else None,
        ),
        Check(
            id="warm-restart",
            promise="warm",
            verdict="pass",
            measured={"ready_s": Measurement(warm_s, "s")},
            limit=Limit("<=", 90.0, "s"),
            quantity="ready_s",
        ),
    )
    run = Run(
        run_id=name,
        started=started,
        finished=started if finished else None,
        simulated=simulated,
        verdict=verdict if finished else "inconclusive",  # type: ignore[arg-type]
        exit_code=0,
        power_levels_w=(power_w,),
        rig={"name": rig, "workload": {"output_tokens": output_tokens, "streams": 1}, "nvlink": {"pairs": [[0, 1]]}},
        environment={
            "plugin": "0.1.0",
            "host": host,
            "driver": driver,
            "gpus": [
                {"index": index, "name": "RTX 3090", "enforced_power_limit_w": power_w, "pcie_width": 16, "uuid": uuid}
                for index, uuid in enumerate(uuids or (None,))
            ],
            "server": {"version": engine, "arguments": {**ARGUMENTS, **(arguments or {})}, "packages": {"torch": "2.11.0"}},
        },
        checks=checks,
        not_checked=(NotChecked("cold-start", "not allowed"),),
        startups=starts,
        throughputs=(
            {
                "label": f"{power_w:g} W, 1 stream",
                "power_w": power_w,
                "quantity": "decode",
                "limit_tok_s": 38.0,
                "process": f"boot/4000/{name}",
                "throughput": {**throughput, "decode_tok_s": middle},
                "samples": samples.short(throughput),
            },
        ),
    )
    path = folder / name
    path.mkdir(parents=True)
    records.write(run, path)
    return path


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The run in ``path`` after ``edit`` has had its run.json."""
    file = path / "run.json"
    told = json.loads(file.read_text())
    edit(told)
    file.write_text(json.dumps(told))
    return path


def boots(folder: Path, prefix: str, count: int, **how: Any) -> list[Path]:
    """Several runs alike, a day apart, whose boots differ by half a percent."""
    rng = random.Random(prefix)
    level = how.pop("tok_s", 40.0)
    month = how.pop("month", 10)
    return [
        stored(
            folder,
            f"{prefix}-{number:02}",
            started=f"2026-{month:02}-{number + 1:02}T00:00:00.000Z",
            tok_s=level * (1 + rng.gauss(0, 0.002)),
            warm_s=80.0 * (1 + rng.gauss(0, 0.02)),
            **how,
        )
        for number in range(count)
    ]
