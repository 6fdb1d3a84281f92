"""The keys of rig.toml, schema 1: table by table, each key with the field that it fills and how its value is read."""

from __future__ import annotations

from typing import NamedTuple

from pytest_sglang.rig import leaves
from pytest_sglang.rig.leaves import Leaf
from pytest_sglang.rig.model import APIS, PROMPTS

SCHEMA = 1


class Key(NamedTuple):
    """A key's field in the typed promise, and the reader of its value."""

    field: str
    leaf: Leaf


class Table(NamedTuple):
    """A table: its keys, whether it is a list of tables (``[[gpus]]``), and the keys that it needs, each with a right line."""

    keys: dict[str, Key]
    listed: bool = False
    required: dict[str, str] = {}


def _same(**found: Leaf) -> dict[str, Key]:
    return {name: Key(name, leaf) for name, leaf in found.items()}


TOP: tuple[str, ...] = (
    "schema",
    "extends",
    "rig",
    "gpus",
    "nvlink",
    "server",
    "start",
    "throughput",
    "gain",
    "answers",
    "workload",
)

TABLES: dict[str, Table] = {
    "rig": Table(_same(name=leaves.text("attic"), max_total_w=leaves.quantity("W"), unavailable=leaves.readings)),
    "gpus": Table(
        _same(
            index=leaves.whole(0, low=0),
            uuid=leaves.uuid,
            pci=leaves.pci,
            name=leaves.text("NVIDIA GeForce RTX 3090"),
            persistence=leaves.yes_no,
            pcie_gen=leaves.whole(4, high=7),
            pcie_width=leaves.one_of((1, 2, 4, 8, 12, 16, 32), 16),
        ),
        listed=True,
    ),
    "nvlink": Table(
        _same(pairs=leaves.many(leaves.pair, "[[0, 1], [2, 3]]"), links=leaves.whole(4)),
        required={"pairs": "pairs = [[0, 1], [2, 3]]"},
    ),
    "server": Table(
        _same(
            url=leaves.address,
            model=leaves.text("/models/my-model"),
            served_name=leaves.text("my-model"),
            tp=leaves.whole(4),
            gpus=leaves.many(leaves.whole(0, low=0), "[0, 1]"),
            exclusive=leaves.yes_no,
            torch_compile=leaves.yes_no,
            api_key_env=leaves.variable,
            log=leaves.local_path("/var/log/sglang/sglang.log"),
            systemd=leaves.unit_name,
            command=leaves.arguments,
            env=leaves.variables,
            cwd=leaves.local_path("/srv/sglang"),
            container=leaves.text("sglang"),
        ),
        required={"url": 'url = "http://127.0.0.1:30000"'},
    ),
    "start": Table(
        {
            "cold": Key("cold_s", leaves.quantity("s", "<=")),
            "warm": Key("warm_s", leaves.quantity("s", "<=")),
            "silence": Key("silence_s", leaves.quantity("s", "<=")),
            "phases": Key("phases_s", leaves.phases),
            **_same(
                first_request_ratio=leaves.number(3.0, 1.0),
                max_autotune_runs=leaves.whole(0, low=0),
                max_new_kernels=leaves.whole(0, low=0),
                max_new_graphs=leaves.whole(0, low=0),
                max_new_variants=leaves.whole(0, low=0),
                warm_capture_share=leaves.number(0.3, 0.001, 1.0, percent=True),
            ),
        }
    ),
    "throughput": Table(
        {
            "power": Key("power_w", leaves.quantity("W")),
            **_same(nvlink=leaves.yes_no, streams=leaves.whole(1), quantity=leaves.choice(("decode", "end_to_end"))),
            "min": Key("min_tok_s", leaves.quantity("tok/s", ">=")),
            "target": Key("target_tok_s", leaves.quantity("tok/s", ">=")),
            "max_ttft": Key("max_ttft_s", leaves.quantity("s", "<=")),
            "max_itl_p99": Key("max_itl_p99_s", leaves.quantity("s", "<=")),
            "max_j_per_token": Key("max_j_per_token", leaves.quantity("J/token", "<=")),
        },
        listed=True,
    ),
    "gain": Table(
        {
            "compile_gain": Key("compile_gain_pct", leaves.quantity("%", ">=", zero=True)),
            "nvlink_gain": Key("nvlink_gain_pct", leaves.quantity("%", ">=", zero=True)),
            **_same(compile_baseline=leaves.text("reports/<run id>"), nvlink_baseline=leaves.text("reports/<run id>")),
        }
    ),
    "answers": Table(_same(expect=leaves.expectations, text=leaves.yes_no)),
    "workload": Table(
        {
            **_same(
                prompt_tokens=leaves.whole(64),
                # two tokens are the least that have a decode rate; fewer than three rounds say nothing about their own spread
                output_tokens=leaves.whole(256, low=2),
                streams=leaves.whole(1),
                rounds=leaves.whole(5, low=3),
                max_rounds=leaves.whole(30, low=3),
                warmups=leaves.whole(1, low=0),
                confidence=leaves.number(0.99, 0.5, 0.9999, percent=True),
                tolerance=leaves.number(0.02, 0.0, 0.5, percent=True),
            ),
            "soak": Key("soak_s", leaves.quantity("s", zero=True)),
            **_same(api=leaves.choice(APIS), prompts=leaves.choice(PROMPTS)),
        }
    ),
}
