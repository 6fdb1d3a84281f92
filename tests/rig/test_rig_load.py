"""Every mistake in a rig file is told with its place, what stands there and a right value; all of a file at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pytest_sglang.rig import find
from pytest_sglang.rig.load import KNOWN_READINGS, Problem, RigError, load
from pytest_sglang.rig.merge import Merged
from pytest_sglang.rig.model import GpuPromise, Workload

ROOT = Path(__file__).resolve().parents[2]
TWO_CARDS = "[[gpus]]\nindex = 0\n[[gpus]]\nindex = 1\n"
SERVER = '[server]\nurl = "http://127.0.0.1:30000"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(folder: Path, text: str, *, schema: str = "schema = 1\n") -> list[str]:
    path = folder / "rig.toml"
    path.write_text(schema + text)
    with pytest.raises(RigError) as caught:
        load(path)
    assert str(caught.value) == "\n".join(str(problem) for problem in caught.value.problems)
    return str(caught.value).splitlines()


# --- what a right file gives ----------------------------------------------------------------------------------------------------


def test_packaged_six_3090_promises_what_the_rig_was_built_for() -> None:
    rig = load(find.packaged()["six-3090"])
    assert (rig.name, rig.max_total_w, len(rig.gpus)) == ("six-3090", 2400.0, 6)
    assert rig.gpus[5] == GpuPromise(index=5, name="NVIDIA GeForce RTX 3090", persistence=True, pcie_gen=4, pcie_width=16)
    assert rig.nvlink is not None
    assert rig.nvlink.pairs == ((0, 1), (2, 3), (4, 5))
    assert rig.nvlink.links == 4
    assert rig.server is not None
    assert (rig.server.url, rig.server.tp, rig.server.gpus) == ("http://127.0.0.1:8001", 4, (0, 1, 2, 3))
    assert (rig.server.systemd, rig.server.log) == ("sglang.service", "/var/log/sglang/sglang.log")
    assert rig.start is not None
    assert (rig.start.cold_s, rig.start.warm_s, rig.start.silence_s) == (1500.0, 90.0, 300.0)
    assert (rig.start.max_autotune_runs, rig.start.max_new_kernels) == (0, 0)
    assert {(row.power_w, row.nvlink): (row.min_tok_s, row.target_tok_s) for row in rig.throughput} == {
        (250.0, False): (38.0, 40.0),
        (250.0, True): (42.0, 45.0),
        (390.0, False): (50.0, 55.0),
        (390.0, True): (55.0, 60.0),
    }
    row = rig.row(250.0)
    assert row is not None
    assert row.min_tok_s == 42.0, "the declared bridges choose the row"
    assert rig.row(300.0) is None, "no row is invented"
    assert rig.row(250.0, quantity="end_to_end") is None
    assert rig.row(None) is None
    assert rig.workload == Workload(prompt_tokens=64, output_tokens=128, rounds=5, max_rounds=20, warmups=1)


@pytest.mark.parametrize("name", ["cpu-engine", "h200"])
def test_example_rigs_load(name: str) -> None:
    rig = load(ROOT / "acceptance" / "rigs" / f"{name}.toml")
    assert rig.name == name
    assert rig.row(700.0) is not None
    assert rig.server is not None
    if name == "h200":
        assert rig.server.cwd == str(ROOT / "acceptance" / "rigs")
    else:
        assert not rig.gpus
        assert rig.row(None) is not None


def test_a_file_with_the_schema_alone_promises_nothing(folder: Path) -> None:
    (folder / "attic.toml").write_text("schema = 1\n")
    rig = load(folder / "attic.toml")
    assert (rig.name, rig.gpus, rig.nvlink, rig.server, rig.start, rig.throughput, rig.gain) == (
        "attic",
        (),
        None,
        None,
        None,
        (),
        None,
    )


def test_every_key_reaches_its_field(folder: Path) -> None:
    (folder / "rig.toml").write_text(
        """schema = 1
[rig]
name = "attic"
max_total_w = "1.2 kW"
unavailable = ["xid", "power-limit"]
[[gpus]]
uuid = "GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49"
[[gpus]]
pci = "00000000:41:00.0"
[server]
url = "https://rig.example:8443/"
model = "/m"
api_key_env = "SGLANG_KEY"
log = "server.log"
command = ["bash", "serve.sh"]
env = {CUDA_VISIBLE_DEVICES = "0,1"}
cwd = "run"
[start]
first_request_ratio = 3
max_new_variants = 40
warm_capture_share = "30 %"
[[throughput]]
power = "0.25 kW"
streams = 8
quantity = "end_to_end"
min = ">= 20 tok/s"
max_ttft = "<= 500 ms"
max_itl_p99 = "40 ms"
max_j_per_token = "30 J/token"
[gain]
compile_gain = ">= 15 %"
compile_baseline = "reports/x"
nvlink_gain = 5
[workload]
streams = 8
soak = "5 min"
confidence = "95 %"
tolerance = 0
api = "native"
prompts = "random-ids"
"""
    )
    rig = load(folder / "rig.toml")
    assert (rig.max_total_w, rig.unavailable) == (1200.0, frozenset({"xid", "power_limit"}))
    assert [gpu.label for gpu in rig.gpus] == ["GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49", "00000000:41:00.0"]
    assert rig.server is not None
    assert rig.server.url == "https://rig.example:8443"
    assert rig.server.api_key_env == "SGLANG_KEY"
    assert (rig.server.log, rig.server.cwd) == (str(folder / "server.log"), str(folder / "run"))
    assert (rig.server.command, rig.server.env) == (("bash", "serve.sh"), {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert rig.start is not None
    assert (rig.start.first_request_ratio, rig.start.max_new_variants, rig.start.warm_capture_share) == (3.0, 40, 0.3)
    assert rig.start.silence_s == 300.0
    row = rig.row(250.4, streams=8, quantity="end_to_end")
    assert row is not None
    assert (row.min_tok_s, row.max_ttft_s, row.max_itl_p99_s, row.max_j_per_token) == (20.0, 0.5, 0.04, 30.0)
    assert rig.gain is not None
    assert (rig.gain.compile_gain_pct, rig.gain.compile_baseline, rig.gain.nvlink_gain_pct) == (15.0, "reports/x", 5.0)
    assert (rig.workload.soak_s, rig.workload.confidence, rig.workload.tolerance) == (300.0, 0.95, 0.0)
    assert (rig.workload.api, rig.workload.prompts) == ("native", "random-ids")


def test_a_row_for_this_level_comes_before_one_for_any(folder: Path) -> None:
    (folder / "rig.toml").write_text("schema = 1\n[[throughput]]\nmin = 10\n[[throughput]]\npower = 250\nmin = 38\n")
    rig = load(folder / "rig.toml")
    assert [rig.row(level).min_tok_s for level in (250.0, 300.0)] == [38.0, 10.0]  # type: ignore[union-attr]


def test_a_unit_without_suffix_is_a_service(folder: Path) -> None:
    (folder / "rig.toml").write_text(f'schema = 1\n{SERVER}systemd = "sglang"\n')
    rig = load(folder / "rig.toml")
    assert rig.server is not None
    assert rig.server.systemd == "sglang.service"


# --- what a wrong one says: exact texts -----------------------------------------------------------------------------------------


WRONG_VALUES: dict[str, tuple[str, str]] = {
    "rate": ('[[throughput]]\nmin = "38 tok"', "throughput[0].min: '38 tok' is not a token rate (write e.g. '38 tok/s')"),
    "duration": ('[start]\nwarm = "90 sek"', "start.warm: '90 sek' is not a duration (write e.g. '250 ms', '90 s', '25 min')"),
    "power": ('[rig]\nmax_total_w = "2400 V"', "rig.max_total_w: '2400 V' is not a power (write e.g. '250 W')"),
    "zero": ("[start]\nsilence = 0", "start.silence: 0 is not above zero (write e.g. '250 ms', '90 s', '25 min')"),
    "negative": ('[workload]\nsoak = "-1 s"', "workload.soak: '-1 s' is below zero (write e.g. '250 ms', '90 s', '25 min')"),
    "sign": (
        '[start]\ncold = ">= 25 min"',
        "start.cold: '>= 25 min' begins with '>=', but '<=' is what this key means (write e.g. '250 ms', '90 s', '25 min')",
    ),
    "no sign": (
        '[[throughput]]\npower = "<= 250 W"\nmin = 3',
        "throughput[0].power: '<= 250 W' begins with '<=', but this key takes none (write e.g. '250 W')",
    ),
    "bool": (
        '[[gpus]]\nindex = 0\npersistence = "yes"',
        "gpus[0].persistence: 'yes' is neither true nor false (write true or false)",
    ),
    "whole": ("[workload]\nrounds = 5.5", "workload.rounds: 5.5 is not a whole number (write e.g. 5)"),
    "true is no number": ("[workload]\nstreams = true", "workload.streams: true is not a whole number (write e.g. 1)"),
    "low": ("[workload]\noutput_tokens = 1", "workload.output_tokens: 1 is below 2 (write e.g. 256)"),
    "span": ("[[gpus]]\nindex = 0\npcie_gen = 16", "gpus[0].pcie_gen: 16 is not from 1 to 7 (write e.g. 4)"),
    "width": (
        '[[gpus]]\nindex = 0\npcie_width = "x16"',
        "gpus[0].pcie_width: 'x16' is not one of 1, 2, 4, 8, 12, 16, 32 (write e.g. 16)",
    ),
    "confidence": (
        "[workload]\nconfidence = 1.0",
        "workload.confidence: 1.0 is not from 0.5 to 0.9999 (write e.g. 0.99 or '99 %')",
    ),
    "share": ("[workload]\ntolerance = nan", "workload.tolerance: nan is not a number (write e.g. 0.02 or '2 %')"),
    "percent": ('[workload]\ntolerance = "x %"', "workload.tolerance: 'x %' is not a number (write e.g. 0.02 or '2 %')"),
    "ratio": ("[start]\nfirst_request_ratio = 0.5", "start.first_request_ratio: 0.5 is not at least 1 (write e.g. 3)"),
    "choice": (
        '[[throughput]]\nquantity = "decod"\nmin = 3',
        "throughput[0].quantity: 'decod' is none of decode, end_to_end; did you mean 'decode'?",
    ),
    "empty text": ('[rig]\nname = " "', "rig.name: ' ' is not a text (write e.g. 'attic')"),
    "no text": ("[rig]\nname = 3", "rig.name: 3 is not a text (write e.g. 'attic')"),
    "uuid": (
        '[[gpus]]\nuuid = "GPU-..."',
        "gpus[0].uuid: 'GPU-...' is not a GPU's UUID (write e.g. 'GPU-2e7d3b3c-4eb8-ce4d-da58-84580d497b49')",
    ),
    "pci": ('[[gpus]]\npci = "41"', "gpus[0].pci: '41' is not a PCI bus id (write e.g. '0000:41:00.0')"),
    "readings": ("[rig]\nunavailable = true", 'rig.unavailable: true is not a list of readings (write e.g. ["xid"])'),
    "reading": (
        '[rig]\nunavailable = ["xids", 3]',
        f"rig.unavailable[0]: 'xids' is none of {', '.join(KNOWN_READINGS)}; did you mean 'xid'?",
    ),
    "url": (
        '[server]\nurl = "127.0.0.1:8001"',
        "server.url: '127.0.0.1:8001' is not an http or https URL with a host (write e.g. 'http://127.0.0.1:30000')",
    ),
    "url number": ("[server]\nurl = 8001", "server.url: 8001 is not a URL (write e.g. 'http://127.0.0.1:30000')"),
    "url port": (
        '[server]\nurl = "http://rig"',
        "server.url: 'http://rig' names no port (write e.g. 'http://127.0.0.1:30000')",
    ),
    "url bad port": (
        '[server]\nurl = "http://rig:99999"',
        "server.url: 'http://rig:99999' is not a URL (write e.g. 'http://127.0.0.1:30000')",
    ),
    "url path": (
        '[server]\nurl = "http://rig:30000/v1"',
        "server.url: 'http://rig:30000/v1' has something behind the port, which must be left away (write e.g. 'http://127.0.0.1:30000')",
    ),
    "url password": (
        '[server]\nurl = "http://me:topsecret@rig:30000"',
        (
            "server.url: what stands there has a user name or password in it: name a variable in api_key_env instead "
            "(write e.g. 'http://127.0.0.1:30000')"
        ),
    ),
    "api key": (
        f'{SERVER}api_key_env = "sk-topsecret"',
        (
            "server.api_key_env: what stands there is not the name of an environment variable, never the key itself "
            "(write e.g. 'SGLANG_API_KEY')"
        ),
    ),
    "unit": (f'{SERVER}systemd = "a b"', "server.systemd: 'a b' is not the name of a systemd unit (write e.g. 'sglang.service')"),
    "command": (
        f"{SERVER}command = \"bash serve.sh 'my model' 1 2\"",
        (
            "server.command: \"bash serve.sh 'my model' 1 2\" is one text, and no shell runs it "
            '(write ["bash", "serve.sh", "my model", "1", ...])'
        ),
    ),
    "command quote": (
        f'{SERVER}command = "it\'s"',
        'server.command: "it\'s" is one text, and no shell runs it (write ["it\'s"])',
    ),
    "command item": (f"{SERVER}command = ['bash', 3]", "server.command[1]: 3 is not a text (write e.g. 'bash')"),
    "command empty": (
        f"{SERVER}command = []",
        'server.command: [] is not a list with something in it (write e.g. ["bash", "serve.sh"])',
    ),
    "env": (
        f"{SERVER}command = ['x']\nenv = 'A=1'",
        "server.env: 'A=1' is not a table (write e.g. env = {CUDA_VISIBLE_DEVICES = \"0,1\"})",
    ),
    "env value": (
        f"{SERVER}command = ['x']\nenv = {{A = 4711}}",
        'server.env.A: what stands there is not a text (put it in quotes, e.g. A = "1")',
    ),
    "env name": (
        f"{SERVER}command = ['x']\nenv = {{'A B' = '1'}}",
        "server.env.A B: is not the name of a variable (write e.g. CUDA_VISIBLE_DEVICES)",
    ),
    "log": (f"{SERVER}log = 3", "server.log: 3 is not a text (write e.g. '/var/log/sglang/sglang.log')"),
    "pair": (f'{TWO_CARDS}[nvlink]\npairs = ["a"]', "nvlink.pairs[0]: 'a' is not a pair of GPUs (write e.g. [0, 1])"),
    "long values are shortened": (
        f"[rig]\nname = [{', '.join('12345' for _ in range(30))}]",
        "rig.name: [12345, 12345, 12345, 12345, 12345, 12345, 12345, 12345, ... is not a text (write e.g. 'attic')",
    ),
    "date": ("[rig]\nname = 2026-11-24", "rig.name: 2026-11-24 is not a text (write e.g. 'attic')"),
    "table for text": ("[rig]\nname = {a = true}", "rig.name: {a = true} is not a text (write e.g. 'attic')"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_value_is_told_with_a_right_one(case: str, folder: Path) -> None:
    text, expected = WRONG_VALUES[case]
    assert errors(folder, text + "\n")[0] == f"rig.toml: {expected}"


@pytest.mark.parametrize("secret", ["sk-topsecret", "topsecret@", "4711"])
def test_what_may_be_a_secret_is_never_shown(secret: str, folder: Path) -> None:
    text = f'{SERVER}api_key_env = "sk-topsecret"\napi_key = "sk-topsecret"\ncommand = ["x"]\nenv = {{A = 4711}}\n'
    assert secret not in "\n".join(errors(folder, text.replace("http://", "http://me:topsecret@")))


WRONG_STRUCTURE: dict[str, tuple[str, str]] = {
    "unknown table": (
        "[gpu]\nindex = 0",
        (
            "gpu: is no key of a rig file (known: schema, extends, rig, gpus, nvlink, server, start, throughput, gain, answers, workload); "
            "did you mean 'gpus'?"
        ),
    ),
    "unknown key": (
        f'{SERVER}modle = "x"',
        (
            "server.modle: is no key of [server] (known: url, model, served_name, tp, gpus, exclusive, torch_compile, api_key_env, log, "
            "systemd, command, env, cwd, container); did you mean 'model'?"
        ),
    ),
    "unknown key in a list": (
        "[[throughput]]\nmin = 3\nzzz = 1",
        (
            "throughput[0].zzz: is no key of [throughput] (known: power, nvlink, streams, quantity, min, target, max_ttft, "
            "max_itl_p99, max_j_per_token)"
        ),
    ),
    "one bracket": (
        "[throughput]\nmin = 3",
        "throughput: a single table is not a list of tables (write [[throughput]] with two brackets)",
    ),
    "two brackets": ("[[start]]\nwarm = 90", "start: a list of tables is not a table (write [start], then its keys below it)"),
    "no table": ("server = 'http://x:1'", "server: 'http://x:1' is not a table (write [server], then its keys below it)"),
    "list of numbers": ("gpus = [0, 1]", "gpus: [0, 1] is not a list of tables (write [[gpus]] with two brackets)"),
    "no cards": ("gpus = []", "gpus: [] promises no GPU (write [[gpus]] once a card, or leave gpus away)"),
    "no url": ('[server]\nmodel = "x"', 'server.url: is missing (write url = "http://127.0.0.1:30000")'),
    "no pairs": (f"{TWO_CARDS}[nvlink]\nlinks = 4", "nvlink.pairs: is missing (write pairs = [[0, 1], [2, 3]])"),
    "no identity": (
        '[[gpus]]\nname = "x"',
        "gpus[0]: says not which card it is (write one of index = 0, uuid = 'GPU-...', pci = '0000:41:00.0')",
    ),
    "two identities": (
        '[[gpus]]\nindex = 0\nuuid = "GPU-2e7d3b3c"',
        "gpus[0]: names its card twice, by index and by uuid (keep one of them)",
    ),
    "index twice": ("[[gpus]]\nindex = 0\n" * 2, "gpus[1].index: 0 is gpus[0] already (each card stands once)"),
    "uuid twice": (
        '[[gpus]]\nuuid = "GPU-2e7d3b3c"\n[[gpus]]\nuuid = "GPU-2E7D3B3C"',
        "gpus[1].uuid: 'GPU-2E7D3B3C' is gpus[0] already (each card stands once)",
    ),
    "bus twice": (
        '[[gpus]]\npci = "0000:41:00.0"\n[[gpus]]\npci = "41:00"',
        "gpus[1].pci: '41:00' is gpus[0] already (each card stands once)",
    ),
    "pair beyond": (
        f"{TWO_CARDS}[nvlink]\npairs = [[0, 7]]",
        "nvlink.pairs[0]: [0, 7] has GPU 7, but [[gpus]] has positions 0 to 1 only (add the card, or correct the position)",
    ),
    "pair without cards": (
        "[nvlink]\npairs = [[0, 1]]",
        "nvlink.pairs[0]: [0, 1] has GPU 0, but [[gpus]] has no card (add the card, or correct the position)",
    ),
    "pair of one": (f"{TWO_CARDS}[nvlink]\npairs = [[1, 1]]", "nvlink.pairs[0]: [1, 1] is one GPU with itself (write e.g. [0, 1])"),
    "card in two pairs": (
        f"{TWO_CARDS}[[gpus]]\nindex = 2\n[nvlink]\npairs = [[0, 1], [1, 2]]",
        "nvlink.pairs[1]: [1, 2] has GPU 1, which is in pairs[0] already (a bridge joins two cards)",
    ),
    "server gpu beyond": (
        f"{TWO_CARDS}{SERVER}gpus = [0, 2]",
        "server.gpus[1]: 2 is none of the cards, but [[gpus]] has positions 0 to 1 only (add the card, or correct the position)",
    ),
    "server gpu twice": (f"{TWO_CARDS}{SERVER}gpus = [1, 1]", "server.gpus[1]: 1 stands there twice (each GPU once)"),
    "tp": (
        f"{TWO_CARDS}{SERVER}gpus = [0, 1]\ntp = 4",
        "server.tp: 4 does not fit gpus, which has 2 of them (write tp = 2, or correct gpus)",
    ),
    "two controls": (
        f'{SERVER}systemd = "a.service"\ncontainer = "b"',
        "server.container: stands beside systemd: there is one way to start the server (keep one of systemd, container)",
    ),
    "env without command": (
        f'{SERVER}systemd = "a.service"\ncwd = "/x"',
        "server.cwd: belongs to a command, and there is none (write command = [...], or leave it away)",
    ),
    "second row": (
        "[[throughput]]\npower = 250\nmin = 38\n[[throughput]]\npower = 251\nmin = 39",
        "throughput[1]: is a second row for the same power, nvlink, streams and quantity as throughput[0] (keep one of them)",
    ),
    "second row for any power": (
        "[[throughput]]\nmin = 38\n[[throughput]]\nmin = 39",
        "throughput[1]: is a second row for the same power, nvlink, streams and quantity as throughput[0] (keep one of them)",
    ),
    "target below min": (
        '[[throughput]]\nmin = "38 tok/s"\ntarget = 30',
        "throughput[0].target: 30 tok/s is below min, 38 tok/s (write min <= target)",
    ),
    "empty promise": (
        "[[throughput]]\npower = 250\ntarget = 40",
        "throughput[0]: promises nothing: a target is only shown (write e.g. min = '38 tok/s')",
    ),
    "baseline alone": (
        "[gain]\nnvlink_baseline = 'reports/x'",
        "gain.nvlink_baseline: compares with nothing promised (write nvlink_gain = '>= 15 %')",
    ),
    "rounds": (
        "[workload]\nrounds = 50",
        "workload.rounds: contradicts the other: rounds = 50, max_rounds = 30, the default (write rounds <= max_rounds)",
    ),
    "max_rounds": (
        "[workload]\nmax_rounds = 4",
        "workload.max_rounds: contradicts the other: rounds = 5, max_rounds = 4 (write rounds <= max_rounds)",
    ),
    "ids in a chat": (
        '[workload]\napi = "chat"\nprompts = "random-ids"',
        "workload.prompts: random-ids does not fit api = 'chat', which takes no token ids (write api = 'completions')",
    ),
}


@pytest.mark.parametrize("case", WRONG_STRUCTURE)
def test_contradiction_is_told_at_the_value_to_change(case: str, folder: Path) -> None:
    text, expected = WRONG_STRUCTURE[case]
    assert errors(folder, text + "\n") == [f"rig.toml: {expected}"]


def test_rows_that_differ_in_anything_stand_side_by_side(folder: Path) -> None:
    rows = [
        "power = 250",
        "power = 252",
        "",
        "power = 250\nnvlink = true",
        "power = 250\nstreams = 2",
        'power = 250\nquantity = "end_to_end"',
    ]
    (folder / "rig.toml").write_text("schema = 1\n" + "".join(f"[[throughput]]\nmin = 1\n{row}\n" for row in rows))
    assert len(load(folder / "rig.toml").throughput) == len(rows)


def test_all_problems_of_a_file_are_told_at_once(folder: Path) -> None:
    told = errors(
        folder,
        f'[rig]\nnam = "x"\n[[gpus]]\nindex = 0\npcie_width = 3\n{SERVER}gpus = ["a", 5]\ntp = 0\n[start]\nwarm = "x"\ncold = 0\n'
        '[[throughput]]\npower = "x"\nmin = "x"\n[workload]\nconfidence = 2\n[nvlink]\npairs = [[0, 0], "x", [0, 9]]\n',
    )
    keys = [line.split(": ")[1] for line in told]
    assert set(keys) == {
        "rig.nam",
        "gpus[0].pcie_width",
        "server.gpus[0]",
        "server.gpus[1]",
        "server.tp",
        "start.warm",
        "start.cold",
        "throughput[0].power",
        "throughput[0].min",
        "workload.confidence",
        "nvlink.pairs[0]",
        "nvlink.pairs[1]",
        "nvlink.pairs[2]",
    }
    assert len(keys) == 13


# --- schema, syntax, file -------------------------------------------------------------------------------------------------------


def test_schema_is_required(folder: Path) -> None:
    assert errors(folder, "[rig]\n", schema="") == ["rig.toml: schema: is missing (write schema = 1 as the first line)"]


@pytest.mark.parametrize("value", ["2", "true", '"1"'])
def test_another_schema_is_refused(value: str, folder: Path) -> None:
    shown = value.replace('"', "'")
    told = errors(folder, "", schema=f"schema = {value}\n")
    assert told == [f"rig.toml: schema: {shown} is not a schema that this version reads (write schema = 1)"]


def test_syntax_error_names_line_and_column_and_the_missing_quotes(folder: Path) -> None:
    told = errors(folder, "[start]\nwarm = 90 s\n")
    assert len(told) == 1
    assert told[0].startswith("rig.toml: line 3, column 11: ")
    assert told[0].endswith('(a number with a unit stands in quotes: warm = "90 s")')


def test_other_syntax_errors_have_no_such_hint(folder: Path) -> None:
    (line,) = errors(folder, "[start\nwarm = 90\n")
    assert line.startswith("rig.toml: line 2, column 7: ")
    assert "quotes" not in line
    assert errors(folder, 'x = "a\n')[0].startswith("rig.toml: line 2, column 7: ")
    assert errors(folder, "x = [1,", schema="")[0].startswith("rig.toml: end of the file: ")


def test_syntax_error_without_a_place_is_told_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> dict[str, object]:
        raise tomllib.TOMLDecodeError("odd")

    monkeypatch.setattr("pytest_sglang.rig.merge.tomllib.loads", broken)
    assert errors(folder, "") == ["rig.toml: odd"]


def test_missing_file_is_told_with_how_to_write_one(folder: Path) -> None:
    with pytest.raises(RigError) as caught:
        load(folder / "rig.toml")
    assert str(caught.value) == "rig.toml: No such file or directory (write one: pytest-sglang init -o rig.toml)"


def test_a_file_that_is_no_text_is_told(folder: Path) -> None:
    (folder / "rig.toml").write_bytes(b"schema = 1\n# \xff\n")
    with pytest.raises(RigError) as caught:
        load(folder / "rig.toml")
    assert str(caught.value) == "rig.toml: line 2: not UTF-8 text (save the file as UTF-8)"


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder: Path) -> None:
    (folder / "rig.toml").write_bytes(b'\xef\xbb\xbfschema = 1\r\n[rig]\r\nname = "attic"\r\n')
    assert load(folder / "rig.toml").name == "attic"


def test_a_file_elsewhere_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(RigError) as caught:
        load(tmp_path / "rig.toml")
    assert caught.value.problems[0].file == tmp_path / "rig.toml"
    assert str(caught.value).startswith(f"{tmp_path}/rig.toml: ")


def test_problems_are_values() -> None:
    problem = Problem(key="start.warm", found="'x'", expected="is not a duration", nearest="y")
    assert str(problem) == "start.warm: 'x' is not a duration; did you mean 'y'?"
    assert RigError([problem]).problems == (problem,)


# --- extends --------------------------------------------------------------------------------------------------------------------


def test_overlay_merges_tables_key_by_key_and_replaces_lists(folder: Path) -> None:
    (folder / "class.toml").write_text(
        f'schema = 1\n[rig]\nname = "class"\nmax_total_w = 1000\n{TWO_CARDS}{SERVER}command = ["a"]\nenv = {{A = "1", B = "2"}}\n'
        '[start]\nwarm = "90 s"\ncold = "25 min"\n'
    )
    (folder / "rig.toml").write_text(
        'schema = 1\nextends = "class.toml"\n[rig]\nname = "host"\n[[gpus]]\nindex = 3\n'
        '[start]\nwarm = "60 s"\n[server.env]\nB = "3"\n[workload]\nrounds = 7\n'
    )
    rig = load(folder / "rig.toml")
    assert (rig.name, rig.max_total_w, rig.path) == ("host", 1000.0, folder / "rig.toml")
    assert [gpu.index for gpu in rig.gpus] == [3]
    assert rig.server is not None
    assert rig.server.env == {"A": "1", "B": "3"}
    assert rig.start is not None
    assert (rig.start.warm_s, rig.start.cold_s, rig.workload.rounds) == (60.0, 1500.0, 7)


def test_overlay_of_a_packaged_rig(folder: Path) -> None:
    (folder / "rig.toml").write_text('schema = 1\nextends = "six-3090"\n[server]\nurl = "http://127.0.0.1:9001"\n')
    rig = load(folder / "rig.toml")
    assert rig.server is not None
    assert (rig.name, rig.server.url, rig.server.tp, len(rig.gpus)) == ("six-3090", "http://127.0.0.1:9001", 4, 6)


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ('systemd = "a.service"', 'command = ["b"]\ncwd = "/x"', (None, ("b",), None, "/x")),
        ('command = ["a"]\ncwd = "/y"', 'systemd = "b.service"', ("b.service", None, None, None)),
        ('command = ["a"]\ncwd = "/y"', 'command = ["b"]', (None, ("b",), None, "/y")),
        ('container = "a"', "tp = 1", (None, None, "a", None)),
    ],
)
def test_another_way_to_start_the_server_replaces_the_one_below(
    below: str, above: str, expected: tuple[object, ...], folder: Path
) -> None:
    (folder / "class.toml").write_text(f"schema = 1\n{SERVER}{below}\n")
    (folder / "rig.toml").write_text(f'schema = 1\nextends = "class.toml"\n[server]\n{above}\n')
    server = load(folder / "rig.toml").server
    assert server is not None
    assert (server.systemd, server.command, server.container, server.cwd) == expected


def test_errors_name_the_file_in_which_the_value_stands(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "class.toml").write_text(f'schema = 1\n{SERVER}tp = "x"\nlog = "a.log"\n[start]\nwarm = "x"\ncold = "x"\n')
    told = errors(folder, 'extends = "sub/class.toml"\n[server]\ngpus = [0]\n[start]\ncold = "y"\n')
    assert told == [
        "sub/class.toml: server.tp: 'x' is not a whole number (write e.g. 4)",
        "sub/class.toml: start.warm: 'x' is not a duration (write e.g. '250 ms', '90 s', '25 min')",
        "rig.toml: start.cold: 'y' is not a duration (write e.g. '250 ms', '90 s', '25 min')",
        "rig.toml: server.gpus[0]: 0 is none of the cards, but [[gpus]] has no card (add the card, or correct the position)",
    ]


def test_a_relative_log_is_meant_from_the_file_it_stands_in(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "class.toml").write_text(f'schema = 1\n{SERVER}log = "a.log"\n')
    (folder / "rig.toml").write_text('schema = 1\nextends = "sub/class.toml"\n')
    server = load(folder / "rig.toml").server
    assert server is not None
    assert server.log == str(folder / "sub" / "a.log")


def test_a_value_replaced_by_a_table_and_back_is_told_of_the_upper_file(folder: Path) -> None:
    (folder / "class.toml").write_text("schema = 1\nstart = 3\n[workload]\nrounds = 5\n")
    told = errors(folder, 'extends = "class.toml"\nworkload = 3\n[start]\nwarm = "x"\n')
    assert [line.split(": ")[:2] for line in told] == [["rig.toml", "start.warm"], ["rig.toml", "workload"]]


def test_a_value_that_stands_nowhere_belongs_to_the_file_itself() -> None:
    assert Merged(Path("rig.toml")).file_of(("start", "warm")) == Path("rig.toml")


def test_loops_are_refused(folder: Path) -> None:
    (folder / "class.toml").write_text('schema = 1\nextends = "rig.toml"\n')
    assert errors(folder, 'extends = "class.toml"\n') == [
        (
            "class.toml: extends: 'rig.toml' makes a loop: rig.toml -> class.toml -> rig.toml "
            "(a class file must not extend what extends it)"
        )
    ]


def test_unknown_class_file_is_told_with_the_packaged_names(folder: Path) -> None:
    assert errors(folder, 'extends = "six-309"\n') == [
        (
            "rig.toml: extends: 'six-309' is neither a file beside this one nor the name of a packaged rig (packaged: six-3090); "
            "did you mean 'six-3090'?"
        )
    ]
    assert errors(folder, "extends = 3\n") == [
        "rig.toml: extends: 3 is not the name of a rig file (write e.g. extends = 'class.toml')"
    ]


def test_problems_of_every_file_in_the_chain_are_told(folder: Path) -> None:
    (folder / "class.toml").write_text("[rig]\n")
    assert errors(folder, 'extends = "class.toml"\n', schema="schema = 9\n") == [
        "rig.toml: schema: 9 is not a schema that this version reads (write schema = 1)",
        "class.toml: schema: is missing (write schema = 1 as the first line)",
    ]
    (folder / "class.toml").write_text("x = = 3\n")
    assert errors(folder, 'extends = "class.toml"\n')[0].startswith("class.toml: line 1, column 5: ")
