"""Runs to render: a realistic one of every kind. Numbers are those of the six-3090 promise and of the recorded starts."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec

from pytest_sglang.record.run import Check, Limit, Measurement, NotChecked, Run, plain, verdict_of
from pytest_sglang.record.values import CacheDiff, CacheSize, Finding, NewEntries, Phase, Round, Startup, Throughput

HEX = [f"GPU-{index:08x}-1111-2222-3333-444455556666" for index in range(6)]


def startup(kind: str = "warm", *, scale: float = 1.0, hang: bool = False) -> Startup:
    ends = {
        "warm": (1.2, 4.0, 6.1, 27.8, 29.9, 52.3, 66.0, 67.1, 74.9, 75.1, 76.4),
        "cold": (1.2, 4.0, 6.1, 27.8, 29.9, 842.0, 1290.5, 1291.7, 1308.0, 1308.2, 1311.0),
    }[kind]
    ids = (
        "launch",
        "arguments",
        "distributed",
        "weights",
        "kv_cache",
        "capture_decode",
        "capture_prefill",
        "port_open",
        "warmup",
        "ready",
        "first_token",
    )
    begin, phases = 0.0, []
    for name, end in zip(ids, ends, strict=True):
        moment = name in ("port_open", "ready")
        phases.append(Phase(name, begin * scale, begin * scale if moment else end * scale))
        begin = end
    if hang:
        phases = [*phases[:5], Phase("capture_decode", phases[5].begin_s, None)]
    return Startup(
        kind="cold" if kind == "cold" else "warm",
        launched_at=1795472524.0,
        ready_s=None if hang else ends[9] * scale,
        port_open_s=None if hang else ends[7] * scale,
        first_token_s=None if hang else ends[10] * scale,
        phases=tuple(phases),
        pid=4711,
        observed=kind == "warm",
        autotune_runs=0 if kind == "warm" else 64,
        cache_diff=None if hang else cache_diff(kind),
    )


CACHES = "/home/owner/.cache/sglang"


def cache_diff(kind: str) -> CacheDiff:
    """A warm start that made variants in one cache and found the others as they were; a cold one that filled all of them."""
    sizes = {"triton": (110, 880, 1_053_854), "inductor": (0, 52, 44_465), "fxgraph": (8, 8, 16_672)}
    held = {name: size if kind == "warm" else (0, 0, 0) for name, size in sizes.items()}
    before = tuple(
        CacheSize(cache=name, path=f"{CACHES}/{name}", exists=kind == "warm", entries=entries, files=files, bytes=size)
        for name, (entries, files, size) in held.items()
    )
    if kind == "warm":
        grown = NewEntries(cache="triton", path=f"{CACHES}/triton", new_variants={"k1": 20, "k2": 9}, files=232, bytes=284_801)
        return CacheDiff(caches=(grown,), new_variants=("k1", "k2"), files=232, bytes=284_801, before_entries=118, before=before)
    names = {f"k{number}": 1 if number < 26 else 21 for number in range(30)}
    new = (
        NewEntries(cache="triton", path=f"{CACHES}/triton", new_kernels=names, files=880, bytes=1_053_854),
        NewEntries(cache="inductor", path=f"{CACHES}/inductor", new_autotune=27, files=52, bytes=44_465),
        NewEntries(cache="fxgraph", path=f"{CACHES}/fxgraph", new_graphs=8, files=8, bytes=16_672),
    )
    return CacheDiff(caches=new, new_kernels=tuple(names), new_graphs=8, files=940, bytes=1_114_991, before=before)


RIG: dict[str, Any] = {
    "name": "six-3090",
    "path": "six-3090.toml",
    "gpus": [{"index": index, "name": "NVIDIA GeForce RTX 3090", "pcie_gen": 4, "pcie_width": 16} for index in range(6)],
    "nvlink": {"pairs": [[0, 1], [2, 3], [4, 5]], "links": 4},
    "server": {"url": "http://127.0.0.1:8001", "model": "/models/qwen3-32b-awq", "tp": 4, "gpus": [0, 1, 2, 3]},
}


def topology(
    links: dict[tuple[int, int], int | None] | None = None,
    *,
    count: int = 6,
    name: str = "NVIDIA GeForce RTX 3090",
    serving: tuple[int, ...] = (0, 1, 2, 3),
    tp: int = 4,
    promised: tuple[tuple[int, int], ...] = ((0, 1), (2, 3), (4, 5)),
    each: int = 4,
    switch: int = 0,
    path: str = "NODE",
    **changes: Any,
) -> dict[str, Any]:
    """As ``session.layout`` records it: six cards in bridged pairs, four of them in one group, unless told otherwise."""
    links = {(0, 1): 4, (2, 3): 4, (4, 5): 4} if links is None else links
    ends = [(one, other) for one in range(count) for other in range(one + 1, count)]
    found = {pair: switch or links.get(pair, 0) for pair in ends}
    up = [switch or sum(number or 0 for pair, number in links.items() if index in pair) for index in range(count)]
    cards = [
        {
            "index": index,
            "uuid": HEX[index % 6],
            "pci": f"0000:{index + 1:02x}:00.0",
            "entry": index,
            "name": name,
            "pcie_gen": 1,
            "pcie_width": 16,
            "pcie_max_gen": 4,
            "pcie_max_width": 16,
            "load_pcie_gen": 4 if index in serving else None,
            "load_pcie_width": 16 if index in serving else None,
            "unreadable": {},
            "lost": None,
            "links": switch or each,
            "links_up": up[index],
            "links_to_switch": switch,
            "links_to_unknown": 0,
            "links_unreadable": None,
            "links_unsupported": False,
        }
        for index in range(count)
    ]
    return {
        "cards": cards,
        "absent": [],
        "promised": [{"entries": list(pair), "gpus": list(pair), "links": each} for pair in promised],
        "paths": [
            {
                "gpus": list(pair),
                "links": number,
                "path": None if number else path,
                "p2p_nvlink": "OK" if number else "CNS",
                "p2p_read": "OK" if number else "CNS",
            }
            for pair, number in found.items()
        ],
        "serving": {
            "promised": list(serving),
            "tp": tp,
            "gpus": list(serving),
            "groups": [list(serving[begin : begin + tp]) for begin in range(0, len(serving), tp)],
        },
        **changes,
    }


def earlier(kind: str, *, scale: float = 0.98) -> dict[str, Any]:
    """As ``session.earlier`` records it."""
    past = plain(startup(kind, scale=scale))
    return {
        "run_id": "20261123T010000Z-simulated",
        "started": "2026-11-23T01:00:00.000Z",
        "label": f"{kind} start",
        "ready_s": past["ready_s"],
        "launched_at_is": "launch",
        "phases": past["phases"],
        "version": "0.5.23",
        "model": "/models/qwen3-32b-awq",
        "cache_bytes": 1_200_000,
        "sizes": [
            {"run_id": f"r{day}", "started": f"2026-11-2{day}T01:00:00.000Z", "bytes": 900_000 + day * 100_000} for day in (1, 3)
        ],
    }


def throughput(level: float, rate: float, *, rounds: int = 8, seed: int = 1, discarded: int = 1) -> Throughput:
    source = random.Random(seed)
    made = []
    for index in range(rounds + discarded):
        decode = source.gauss(rate, rate * 0.01)
        seconds = 256 / decode + 0.09
        foreign = index == 3 and discarded
        made.append(
            Round(
                index=index,
                begin_s=1795473000.0 + index * 7,
                end_s=1795473000.0 + index * 7 + seconds,
                decode_tok_s=decode * (0.82 if foreign else 1),
                end_to_end_tok_s=256 / seconds,
                aggregate_tok_s=decode,
                ttft_s=(0.085 + source.random() * 0.01,),
                output_tokens=256,
                joules=4 * level * 0.97 * seconds,
                start_c=61.0,
                invalid_because="someone else's traffic" if foreign else None,
            )
        )
    valid = tuple(each for each in made if each.invalid_because is None)
    rates = sorted(each.decode_tok_s or 0.0 for each in valid)
    return Throughput(
        streams=1,
        rounds=valid,
        decode_tok_s=rates[len(rates) // 2],
        ci_low=rates[min(1, len(rates) - 1)],
        ci_high=rates[max(len(rates) - 2, 0)],
        confidence=0.99,
        end_to_end_tok_s=sorted(each.end_to_end_tok_s or 0.0 for each in valid)[len(valid) // 2],
        aggregate_tok_s=rates[len(rates) // 2],
        discarded=tuple(each for each in made if each.invalid_because is not None),
    )


def power_series(level: float = 250.0, gpus: int = 6, points: int = 300) -> dict[str, Any]:
    times = [round(index * 0.2, 3) for index in range(points)]
    source = random.Random(7)

    def watts(gpu: int, t: float) -> float:
        if gpu >= 4 or t < 4:
            return 21.0 + source.random() * 2
        return level - 6 + 5 * math.sin(t * 3 + gpu) + source.random() * 3 if (t - 4) % 7 <= 6 else 118.0 + source.random() * 9

    return {
        "t": times,
        "gpus": {
            HEX[gpu]: {"label": f"GPU {gpu}", "w": [round(watts(gpu, t), 1) for t in times], "limit_w": level}
            for gpu in range(gpus)
        },
        "windows": [[4 + 7 * index, 4 + 7 * index + 6, f"round {index}"] for index in range(8)],
    }


def check(check_id: str, verdict: str = "pass", **fields: Any) -> Check:
    return Check(
        id=check_id, promise=fields.pop("promise", f"What {check_id} promises."), verdict=verdict, duration_s=1.0, **fields
    )  # type: ignore[arg-type]


def rate_check(verdict: str, rate: float, limit: float, level: float = 250.0, **fields: Any) -> Check:
    return check(
        "decode-throughput",
        verdict,
        promise="Decode throughput at this power level holds the promised rate, sustained over the rounds.",
        power_w=level,
        quantity="decode_tok_s",
        measured={
            "decode_tok_s": Measurement(rate, "tok/s"),
            "end_to_end_tok_s": Measurement(rate * 0.985, "tok/s"),
            "ci_low_tok_s": Measurement(rate - 0.31, "tok/s"),
            "ci_high_tok_s": Measurement(rate + 0.28, "tok/s"),
            "ttft_ms": Measurement(88.4, "ms"),
            "rounds": Measurement(8, "count"),
            "mean_w": Measurement(968.2, "W"),
            "joules": Measurement(46312.0, "J"),
            "j_per_token": Measurement(22.61, "J/token"),
            "temperature_c": Measurement(61.0, "C"),
            "failed_requests": Measurement(0, "count"),
        },
        limit=Limit(">=", limit, "tok/s"),
        **fields,
    )


def good_checks() -> tuple[Check, ...]:
    return (
        check(
            "gpu-identity",
            promise="Every promised GPU is present and is itself: name, PCIe generation and width it can reach.",
            measured={"pcie_gen": Measurement(4, ""), "pcie_width": Measurement(16, "")},
        ),
        check(
            "power-limit",
            promise="The enforced power limit of every promised GPU equals --power, and persistence mode keeps it.",
            power_w=250.0,
            quantity="enforced_power_limit_w",
            measured={"enforced_power_limit_w": Measurement(250.0, "W")},
            limit=Limit("==", 250.0, "W"),
        ),
        check(
            "nvlink",
            promise="Every promised NVLink pair is up with all its links, and the server's GPUs lie on such pairs.",
            quantity="nvlink_links",
            measured={"nvlink_links": Measurement(4, "count")},
            limit=Limit("==", 4, "count"),
        ),
        check(
            "server-identity",
            promise="The server answers, is the process that was started, and serves the promised model as promised.",
        ),
        check("ready", promise="Ready means ready: a generation comes back whole, with exactly the asked number of tokens."),
        check("findings", promise="Nothing found in the log, the unit and the caches contradicts what is promised."),
        rate_check("pass", 43.42, 42.0),
        check(
            "warm-restart",
            promise="A cache-warm restart is ready within its budget without recompiling.",
            quantity="ready_s",
            measured={
                "ready_s": Measurement(75.1, "s"),
                "autotune_runs": Measurement(0, "count"),
                "new_kernels": Measurement(0, "count"),
                "new_variants": Measurement(14, "count"),
                "capture_s": Measurement(36.1, "s"),
            },
            limit=Limit("<=", 90.0, "s"),
        ),
        check(
            "cold-start",
            promise="A cold start, with nothing compiled, is ready within its budget.",
            quantity="ready_s",
            measured={
                "ready_s": Measurement(1308.2, "s"),
                "autotune_runs": Measurement(64, "count"),
                "new_kernels": Measurement(212, "count"),
            },
            limit=Limit("<=", 1500.0, "s"),
        ),
    )


ENVIRONMENT: dict[str, Any] = {
    "plugin": "0.1.0",
    "python": "3.11.2",
    "host": "rig-a",
    "kernel": "6.1.0-31-amd64",
    "os": "Debian GNU/Linux 12 (bookworm)",
    "simulated": True,
    "faults": [],
    "driver": "580.159.03",
    "gpus": [
        {
            "index": index,
            "name": "NVIDIA GeForce RTX 3090",
            "uuid": HEX[index],
            "pci": f"0000:{index + 1:02x}:00.0",
            "vbios": "94.02.42.00.A9",
            "ecc": None,
        }
        for index in range(6)
    ],
    "server": {
        "url": "http://127.0.0.1:8001",
        "control": "systemd",
        "subject": "sglang.service",
        "pid": 4711,
        "version": "0.5.23",
        "argv": [
            "python3",
            "-m",
            "sglang.launch_server",
            "--model-path",
            "/models/qwen3-32b-awq",
            "--tp",
            "4",
            "--enable-torch-compile",
            "--port",
            "8001",
        ],
        "arguments": {f"argument_{number}": number for number in range(60)},
        "models": ["qwen3-32b-awq"],
        "packages": {"sglang": "0.5.23", "torch": "2.13.0", "triton": "3.6.0", "sgl_kernel": "0.3.9"},
    },
}


def state(**changes: Any) -> dict[str, Any]:
    return {
        "power_limits_w": {str(index): 250.0 for index in range(6)},
        "server": {
            "subject": "sglang.service",
            "kind": "systemd",
            "active": True,
            "pid": 4711,
            "health": 200,
            "detail": "running",
            "run_owned": False,
        },
        "caches_aside": [],
        **changes,
    }


def run(checks: tuple[Check, ...] | None = None, **fields: Any) -> Run:
    """A finished run on the simulated rig, green unless told otherwise."""
    checks = good_checks() if checks is None else checks
    verdict = fields.pop("verdict", verdict_of(checks))
    base: dict[str, Any] = {
        "run_id": "20261124T015300Z-simulated",
        "started": "2026-11-24T01:53:00.000Z",
        "finished": "2026-11-24T02:20:10.000Z",
        "simulated": True,
        "time_scale": 60.0,
        "duration_s": 1630.2,
        "wall_s": 58.4,
        "verdict": verdict,
        "exit_code": {"pass": 0, "fail": 1, "inconclusive": 6}[verdict],
        "power_levels_w": (250.0,),
        "rig": RIG,
        "topology": topology(),
        "earlier_starts": {"warm": earlier("warm"), "cold": earlier("cold")},
        "environment": ENVIRONMENT,
        "checks": checks,
        "as_found": state(),
        "as_left": state(),
        "startups": (
            {"label": "warm restart", "startup": plain(startup("warm")), "budget_s": 90.0},
            {"label": "cold start", "startup": plain(startup("cold")), "budget_s": 1500.0},
        ),
        "throughputs": (throughput_item(250.0, 43.4, 42.0, 45.0),),
        "power_series": power_series(),
    }
    return Run(**{**base, **fields})


def throughput_item(level: float, rate: float, limit: float | None, target: float | None, **fields: Any) -> dict[str, Any]:
    found = plain(throughput(level, rate, **fields))
    return {
        "label": f"{level:g} W, 1 stream",
        "power_w": level,
        "limit_tok_s": limit,
        "target_tok_s": target,
        "quantity": "decode",
        "throughput": found,
    }


def partial_run() -> Run:
    """A pass over a part: seven of nine, two not checked."""
    missing = (
        NotChecked("warm-restart", "restarts the server: not without --sglang-allow-restart"),
        NotChecked("cold-start", "sets the caches aside: not without --sglang-allow-cold"),
    )
    checks = tuple(each for each in good_checks() if each.id not in ("warm-restart", "cold-start"))
    return run(
        checks, not_checked=missing, not_promised=("energy-per-token", "gain"), simulated=False, startups=(run().startups[0],)
    )


def mixed_run() -> Run:
    """Everything at once: pass, marginal, fail, inconclusive, expected failure, not checked, findings, a start that hangs."""
    gpu, power, nvlink, identity, ready, findings, *_ = good_checks()
    warn = Finding(
        "restarted-by-itself",
        "warn",
        "sglang.service",
        "restarted by itself 2 times since boot",
        "journalctl -u sglang.service shows why",
    )
    info = Finding(
        "custom-all-reduce-off", "info", "server log", "custom all-reduce is off, as expected with more than two PCIe-linked GPUs"
    )
    wrong = Finding(
        "power-limit",
        "fail",
        "GPU 3",
        "enforced 350 W, asked for 390 W",
        "set it again at boot, and turn persistence mode on",
        "power-limit",
    )
    checks = (
        gpu,
        msgspec.structs.replace(
            power,
            power_w=390.0,
            verdict="fail",
            measured={"enforced_power_limit_w": Measurement(350.0, "W")},
            limit=Limit("==", 390.0, "W"),
            cause="the limit of GPU 3 fell back to the card's default: set it again at boot, and turn persistence mode on",
            message="GPU 3: enforced 350 W, promised 390 W",
            findings=(wrong,),
        ),
        power,
        msgspec.structs.replace(
            nvlink,
            expected_failure=True,
            verdict="fail",
            cause="bridge GPU 2-3 shows 3 of 4 links: reseat it",
            measured={"nvlink_links": Measurement(3, "count")},
        ),
        identity,
        ready,
        msgspec.structs.replace(findings, findings=(warn, info)),
        rate_check(
            "pass", 41.9, 42.0, marginal=True, message="median 41.9 tok/s, promised 42: undecided, but within 2 % of the limit"
        ),
        rate_check(
            "inconclusive",
            0.0,
            55.0,
            390.0,
            inconclusive_because="power-limit",
            message="not measured, because power-limit is not kept",
        ),
        check(
            "warm-restart",
            "fail",
            promise="A cache-warm restart is ready within its budget without recompiling.",
            quantity="ready_s",
            measured={
                "ready_s": Measurement(312.4, "s"),
                "autotune_runs": Measurement(41, "count"),
                "new_kernels": Measurement(57, "count"),
            },
            limit=Limit("<=", 90.0, "s"),
            cause="recompiled: 41 autotuning runs and 57 kernels that no cache held; is the cache wiped at boot?",
        ),
    )
    checks = tuple(msgspec.structs.replace(each, measured={}) if each.verdict == "inconclusive" else each for each in checks)
    return run(
        checks,
        power_levels_w=(250.0, 390.0),
        not_checked=(NotChecked("cold-start", "sets the caches aside: not without --sglang-allow-cold"),),
        not_promised=("energy-per-token", "gain"),
        findings=(warn,),
        topology=topology({(0, 1): 4, (2, 3): 0, (4, 5): 3}),
        as_left=state(power_limits_w={**state()["power_limits_w"], "3": 350.0}),
        startups=(
            {"label": "warm restart", "startup": plain(startup("warm", scale=4.16)), "budget_s": 90.0},
            {"label": "start with a hang", "startup": plain(startup("warm", hang=True)), "budget_s": 90.0},
        ),
        throughputs=(
            throughput_item(250.0, 41.9, 42.0, 45.0, seed=3),
            throughput_item(300.0, 38.1, 44.0, None, rounds=14, discarded=0),
        ),
    )


# --- pages over many runs ----------------------------------------------------------------------------------------------------


def _stored():
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).resolve().parents[1] / "session"))
    import stored_runs

    return stored_runs


def comparison_page(folder):
    """A slower engine, three boots against six."""
    from pytest_sglang.report import comparison as shown
    from pytest_sglang.session import comparison

    made = _stored()
    paths = [*made.boots(folder, "old", 6), *made.boots(folder, "new", 3, tok_s=38.0, engine="0.5.12", month=11)]
    return shown.page(comparison.of_paths(paths))


def refused_page(folder):
    """Runs whose conditions differ."""
    from pytest_sglang.report import comparison as shown
    from pytest_sglang.session import comparison

    made = _stored()
    return shown.page(comparison.of_paths([made.stored(folder, "a"), made.stored(folder, "b", output_tokens=256)]))


def index_page(folder):
    """Runs of two rigs with a step, one of them not finished, and a broken folder."""
    from pytest_sglang.report import history

    made = _stored()
    made.boots(folder, "a", 6, month=8)
    made.boots(folder, "b", 6, tok_s=36.0, month=9, verdict="fail")
    made.boots(folder, "c", 3, month=10, rig="cellar")
    made.stored(folder, "killed", tok_s=36.0, finished=False, started="2026-11-27T00:00:00.000Z")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    return history.write_index(folder).read_text()


def fleet_page(folder):
    """Six nodes, one fails, one is an outlier, one is missing."""
    from pytest_sglang.report import fleet
    from pytest_sglang.session import merge

    made = _stored()
    odd = {1: {"verdict": "fail"}, 3: {"tok_s": 42.5}}
    paths = [made.stored(folder, f"n{number}", host=f"gpu{number:02}", **odd.get(number, {})) for number in range(6)]
    return fleet.page(merge.merge(paths, ["gpu00", "gpu09"]))


def with_more(folder: Any) -> Run:
    """``mixed_run`` with what has changed since the last pass, and with an excerpt of a log in ``folder`` that is full of traps."""
    quoted = next(each.cause or each.message for each in mixed_run().checks if each.verdict == "fail")
    (folder / "logs").mkdir(exist_ok=True)
    line = f"[2026-11-23 22:30:00 TP0] {quoted} </pre></details><script>alert(1)</script> \u001b[31m {'x' * 900}\n"
    (folder / "logs" / "start-1.log").write_text(line * 40, encoding="utf-8")
    log = {
        "title": "Server: start in warm-restart",
        "source": "/var/log/sglang.log",
        "file": "logs/start-1.log",
        "lines": 900,
        "shown": 40,
    }
    differences = [
        {"name": "driver", "before": "580.95.05", "after": "580.159.03"},
        {"name": "flag --model-path", "before": "/models/" + "a" * 80, "after": "/models/" + "b" * 80},
        {"name": "gpu 3 pcie_width", "before": 16, "after": 8},
        *({"name": f"package p{number}", "before": "1", "after": "2"} for number in range(20)),
    ]
    found = {
        "run_id": "2026-11-23T01-53-00Z-250W-simulated-ab12",
        "started": "2026-11-23T01:53:00.000Z",
        "differences": differences,
    }
    return msgspec.structs.replace(mixed_run(), since_pass=found, logs=(log,))
