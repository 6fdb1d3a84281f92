"""The file that init writes loads as it is, says what was found, warns of what may be a fault, and invents no promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_sglang.rig.load import KNOWN_READINGS, load
from pytest_sglang.rig.model import Rig
from pytest_sglang.rig.write import Found, FoundCache, FoundCard, FoundPair, FoundServer, render


def card(index: int, **fields: Any) -> FoundCard:
    usual: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index:08x}-1111-2222-3333-444455556666",
        "pci": f"0000:{index + 1:02x}:00.0",
        "name": "NVIDIA GeForce RTX 3090",
        "persistence": True,
        "requested_w": 250.0,
        "enforced_w": 250.0,
        "default_w": 350.0,
        "min_w": 100.0,
        "max_w": 390.0,
        "pcie_gen": 4,
        "pcie_max_gen": 4,
        "pcie_width": 16,
        "pcie_max_width": 16,
    }
    return FoundCard(**{**usual, **fields})


SERVER = FoundServer(
    url="http://127.0.0.1:8001",
    model="/models/x",
    served_name="x",
    tp=4,
    gpus=(0, 1, 2, 3),
    torch_compile=True,
    systemd="sglang.service",
    log="/var/log/sglang/sglang.log",
    version="0.5.23",
    argv=("python", "-m", "sglang.launch_server"),
    ready_s=81.3,
)
GOOD = Found(
    name="attic",
    cards=tuple(card(index) for index in range(4)),
    pairs=(FoundPair(one=0, other=1, links=4, most=4), FoundPair(one=2, other=3, links=4, most=4)),
    server=SERVER,
)


def loaded(text: str, folder: Path) -> Rig:
    path = folder / "rig.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def line_of(text: str, key: str) -> str:
    (line,) = [each for each in text.splitlines() if each.startswith(f"{key} =")]
    return line


def test_a_healthy_rig_is_written_down_as_promises_without_warnings(tmp_path: Path) -> None:
    text = render(GOOD)
    rig = loaded(text, tmp_path)
    assert rig.name == "attic"
    assert [gpu.uuid for gpu in rig.gpus] == [each.uuid for each in GOOD.cards]
    assert {(gpu.name, gpu.persistence, gpu.pcie_gen, gpu.pcie_width) for gpu in rig.gpus} == {
        ("NVIDIA GeForce RTX 3090", True, 4, 16)
    }
    assert rig.nvlink is not None
    assert (rig.nvlink.pairs, rig.nvlink.links) == (((0, 1), (2, 3)), 4)
    assert rig.server is not None
    assert (rig.server.url, rig.server.model, rig.server.served_name) == ("http://127.0.0.1:8001", "/models/x", "x")
    assert (rig.server.tp, rig.server.gpus, rig.server.torch_compile) == (4, (0, 1, 2, 3), True)
    assert (rig.server.systemd, rig.server.log) == ("sglang.service", "/var/log/sglang/sglang.log")
    assert "may be a fault" not in text
    assert "# index 2, bus 0000:03:00.0" in text
    assert "took 81.3 s" in text


def test_no_speed_is_promised_but_a_row_at_the_present_level_is_shown(tmp_path: Path) -> None:
    text = render(GOOD)
    rig = loaded(text, tmp_path)
    assert (rig.throughput, rig.start, rig.gain, rig.max_total_w) == ((), None, None, None)
    assert "# power = 250 " in text


def uncommented(text: str) -> str:
    """The file with the sign taken away from every line that is a key or a table."""
    return re.sub(r"^# (?=\[\[?\w+\]\]?$|\w+ = )", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "found",
    [
        GOOD,
        Found(
            name="bare", server=FoundServer(url="http://127.0.0.1:30000"), missing={"server.log": "the unit writes to the journal"}
        ),
        Found(
            name="cards", cards=(card(0, name=None, persistence=None, pcie_width=None, pcie_gen=None, pcie_max_gen=None), card(1))
        ),
    ],
    ids=["good", "server alone", "cards alone"],
)
def test_every_commented_example_is_right_once_its_sign_is_taken_away(found: Found, tmp_path: Path) -> None:
    rig = loaded(uncommented(render(found)), tmp_path)
    assert rig.server is not None
    if found.server is not None:
        assert rig.start is not None
        assert (rig.start.cold_s, rig.start.warm_s, rig.start.silence_s) == (1500.0, 90.0, 300.0)
        assert [row.min_tok_s for row in rig.throughput] == [1.0]
    if not found.pairs and found.cards:
        assert rig.nvlink is not None


def test_what_was_not_found_stands_as_a_comment_with_its_reason(tmp_path: Path) -> None:
    server = FoundServer(url="http://127.0.0.1:8001")
    missing = {
        "server.log": "the unit writes to the journal",
        "gpus": "the driver is not loaded",
        "server.systemd": "no unit owns it",
    }
    text = render(Found(name="x", server=server, missing=missing))
    assert '# log = "/var/log/sglang/sglang.log"    # not found: the unit writes to the journal' in text
    assert '# model = "/models/my-model"    # not found\n' in text
    assert "# No GPU was found: the driver is not loaded. Without [[gpus]] there are no hardware checks." in text
    assert "# How to start it again was not found: no unit owns it." in text
    rig = loaded(text, tmp_path)
    assert (rig.gpus, rig.server.log if rig.server else "") == ((), None)


def test_nothing_found_gives_a_file_that_promises_nothing(tmp_path: Path) -> None:
    text = render(Found(name=" ", missing={"server": "nothing listens on port 30000"}))
    rig = loaded(text, tmp_path)
    assert (rig.name, rig.gpus, rig.server) == ("rig", (), None)
    assert "# No server was found: nothing listens on port 30000." in text
    assert "# No GPU was found. Without" in text


def test_a_server_with_an_unusable_url_is_not_written_as_a_promise(tmp_path: Path) -> None:
    text = render(Found(name="x", server=FoundServer(url="unix:/run/x")))
    assert loaded(text, tmp_path).server is None
    assert "'unix:/run/x' is no usable URL" in text


@pytest.mark.parametrize(
    ("fields", "key", "expected"),
    [
        (
            {"pcie_width": 4},
            "pcie_width",
            "pcie_width = 4    # x4 of x16: this may be a fault and not a promise (riser, slot, BIOS setting)",
        ),
        (
            {"pcie_gen": 3, "loaded": True},
            "pcie_gen",
            "pcie_gen = 3    # gen 3 of 4 under load: this may be a fault and not a promise",
        ),
        ({"pcie_gen": 1}, "pcie_gen", "pcie_gen = 4    # its maximum; gen 1 now, to which idle cards drop"),
        (
            {"pcie_gen": 1, "pcie_max_gen": None},
            "pcie_gen",
            "pcie_gen = 1    # its maximum was not found, and idle cards drop to gen 1",
        ),
        ({"pcie_gen": None, "pcie_max_gen": None}, "# pcie_gen", "# pcie_gen = 4    # not found"),
        ({"pcie_width": None}, "# pcie_width", "# pcie_width = 16    # not found"),
        ({"name": None}, "# name", '# name = "NVIDIA GeForce RTX 3090"    # not found'),
        ({"persistence": None}, "# persistence", "# persistence = true    # not found"),
        (
            {"persistence": False},
            "persistence",
            (
                "persistence = false    # off: a power limit is lost whenever the driver unloads; "
                "this may be a fault and not a promise"
            ),
        ),
        ({"uuid": "?"}, "pci", 'pci = "0000:01:00.0"    # index 0'),
        ({"uuid": "?", "pci": None}, "index", "index = 0    # may move at a reboot: no UUID and no bus id was found"),
    ],
)
def test_a_state_below_the_cards_best_is_warned_of(fields: dict[str, Any], key: str, expected: str, tmp_path: Path) -> None:
    text = render(Found(name="x", cards=(card(0, **fields),)))
    assert line_of(text, key) == expected
    loaded(text, tmp_path)


def test_cards_with_different_limits_are_warned_of() -> None:
    text = render(Found(name="x", cards=(card(0), card(1, enforced_w=350.0, requested_w=250.0))))
    assert "# The cards enforce different power limits (250 W, 350 W): this may be a fault and not a promise." in text
    assert "# power limit: enforced 350 W, requested 250 W, default 350 W, range 100 to 390 W" in text
    assert "power limit:" not in render(Found(name="x", cards=(FoundCard(index=0, uuid="GPU-12345678"),)))


@pytest.mark.parametrize(
    ("pairs", "key", "expected"),
    [
        (
            ((0, 1, 4, 4), (2, 3, 3, 4)),
            "links",
            "links = 3    # 2-3 has 3 of 4 links: this may be a fault and not a promise (a bridge that sits half)",
        ),
        (((0, 1, 4, None), (2, 3, 4, None)), "links", "links = 4    # per pair"),
        (((0, 1, 4, 4), (2, 3, 0, 4)), "pairs", "pairs = [[0, 1]]    # no link on GPU 2, 3: a bridge may be missing or dead"),
    ],
)
def test_a_bridge_worse_than_its_pair_partner_is_warned_of(
    pairs: tuple[tuple[int, int, int, int | None], ...], key: str, expected: str, tmp_path: Path
) -> None:
    links = tuple(FoundPair(one=one, other=other, links=count, most=most) for one, other, count, most in pairs)
    text = render(Found(name="x", cards=GOOD.cards, pairs=links))
    assert line_of(text, key) == expected
    assert loaded(text, tmp_path).declares_nvlink


def test_cards_behind_a_switch_are_not_promised_as_pairs(tmp_path: Path) -> None:
    mesh = tuple(FoundPair(one=one, other=other, links=18) for one in range(4) for other in range(one + 1, 4))
    text = render(Found(name="x", cards=GOOD.cards, pairs=mesh))
    assert loaded(text, tmp_path).nvlink is None
    assert "# Cards with NVLink to more than one other" in text


def test_links_that_cannot_be_read_are_not_called_dead() -> None:
    text = render(Found(name="x", cards=(card(0), card(1)), missing={"nvlink": "Not Supported"}))
    assert "# NVLink was not found: Not Supported. If this rig has bridges" in text
    assert "# No NVLink link is up. If this rig has bridges" in render(Found(name="x", cards=(card(0), card(1))))


def test_positions_count_the_cards_not_their_indices(tmp_path: Path) -> None:
    cards = (card(3), card(5))
    server = FoundServer(url="http://127.0.0.1:1", gpus=(5, 3), tp=2)
    rig = loaded(render(Found(name="x", cards=cards, pairs=(FoundPair(one=3, other=5, links=4),), server=server)), tmp_path)
    assert rig.server is not None
    assert rig.nvlink is not None
    assert (rig.server.gpus, rig.nvlink.pairs) == ((1, 0), ((0, 1),))


def test_more_cards_than_ranks_keeps_tp_and_says_why(tmp_path: Path) -> None:
    server = FoundServer(url="http://127.0.0.1:1", gpus=(0, 1, 2, 3), tp=2)
    text = render(Found(name="x", cards=GOOD.cards, server=server))
    rig = loaded(text, tmp_path)
    assert rig.server is not None
    assert (rig.server.tp, rig.server.gpus) == (2, None)
    assert "# gpus: it runs on cards [0, 1, 2, 3], which are not 2, one a rank" in text


@pytest.mark.parametrize(
    ("exclusive", "promised", "says"),
    [(True, True, "exclusive = true    # nobody else"), (False, None, "# exclusive = true    # somebody else"), (None, None, "")],
)
def test_cards_that_nobody_else_uses_are_promised_as_the_servers_own(
    exclusive: bool | None, promised: bool | None, says: str, tmp_path: Path
) -> None:
    text = render(msgspec.structs.replace(GOOD, server=msgspec.structs.replace(SERVER, exclusive=exclusive)))
    server = loaded(text, tmp_path).server
    assert server is not None
    assert server.exclusive is promised
    assert says in text
    assert ("exclusive" in text) is (exclusive is not None)


def test_a_container_and_a_key_are_written_down(tmp_path: Path) -> None:
    server = FoundServer(url="http://127.0.0.1:1", container="sglang", api_key_needed=True)
    rig = loaded(render(Found(name="x", server=server)), tmp_path)
    assert rig.server is not None
    assert (rig.server.container, rig.server.api_key_env) == ("sglang", "SGLANG_API_KEY")


def test_waived_readings_caches_state_and_problems_are_told(tmp_path: Path) -> None:
    found = Found(
        name="x",
        cards=(card(0),),
        unavailable={"xid": "no right to read the kernel log", "nvlink-errors": "not supported", "unheard-of": "odd"},
        caches=(
            FoundCache(name="triton", path="/tmp/t", files=3, bytes=3 << 20, note="a reboot empties it"),
            FoundCache(name="inductor", path="/c"),
        ),
        state=("driver 580",),
        problems=("GPU 0 runs hot",),
    )
    text = render(found)
    assert loaded(text, tmp_path).unavailable == {"xid", "nvlink_errors"}
    assert "# triton: /tmp/t, 3 files, 3.0 MiB (a reboot empties it)\n# inductor: /c\n" in text
    assert "# xid: no right to read the kernel log" in text
    assert "# driver 580\n" in text
    assert "# GPU 0 runs hot\n" in text


HOSTILE = st.text(st.characters(codec=None, categories=("L", "N", "P", "S", "Z", "Cc", "Cs", "Cf")), max_size=12)
MAYBE_WATTS = st.none() | st.floats(0.0, 1500.0)
CARDS = st.lists(
    st.builds(
        FoundCard,
        index=st.integers(0, 9),
        uuid=st.uuids().map(lambda each: f"GPU-{each}") | HOSTILE,
        pci=st.none() | st.integers(0, 255).map(lambda bus: f"0000:{bus:02x}:00.0") | HOSTILE,
        name=st.none() | HOSTILE,
        persistence=st.none() | st.booleans(),
        requested_w=MAYBE_WATTS,
        enforced_w=MAYBE_WATTS,
        default_w=MAYBE_WATTS,
        min_w=MAYBE_WATTS,
        max_w=MAYBE_WATTS,
        pcie_gen=st.none() | st.integers(0, 9),
        pcie_max_gen=st.none() | st.integers(0, 9),
        pcie_width=st.none() | st.integers(0, 32),
        pcie_max_width=st.none() | st.integers(0, 32),
        loaded=st.booleans(),
    ),
    max_size=5,
    # NVML gives each card an index, a UUID and a bus id of its own
    unique_by=(lambda each: each.index, lambda each: each.uuid.lower(), lambda each: each.pci or each.index),
)
SERVERS = st.builds(
    FoundServer,
    url=st.integers(1, 65535).map(lambda port: f"http://127.0.0.1:{port}") | HOSTILE,
    model=st.none() | HOSTILE,
    served_name=st.none() | HOSTILE,
    tp=st.none() | st.integers(0, 8),
    gpus=st.none() | st.lists(st.integers(0, 9), max_size=5).map(tuple),
    torch_compile=st.none() | st.booleans(),
    systemd=st.none() | HOSTILE,
    container=st.none() | HOSTILE,
    log=st.none() | HOSTILE,
    api_key_needed=st.booleans(),
    version=st.none() | HOSTILE,
    argv=st.lists(HOSTILE, max_size=3).map(tuple),
    ready_s=st.none() | st.floats(0, 3000),
)
PAIRS = st.lists(
    st.builds(
        FoundPair, one=st.integers(0, 9), other=st.integers(0, 9), links=st.integers(0, 4), most=st.none() | st.integers(0, 4)
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(
    found=st.builds(
        Found,
        name=HOSTILE,
        cards=CARDS.map(tuple),
        pairs=PAIRS.map(tuple),
        server=st.none() | SERVERS,
        caches=st.lists(st.builds(FoundCache, name=HOSTILE, path=HOSTILE, note=HOSTILE), max_size=2).map(tuple),
        unavailable=st.dictionaries(st.sampled_from([*KNOWN_READINGS, "odd"]), HOSTILE, max_size=3),
        missing=st.dictionaries(st.sampled_from(["gpus", "nvlink", "server", "server.log", "gpus.name"]), HOSTILE, max_size=4),
        state=st.lists(HOSTILE, max_size=2).map(tuple),
        problems=st.lists(HOSTILE, max_size=2).map(tuple),
    )
)
def test_whatever_was_found_the_file_loads_and_says_it(found: Found, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    rig = loaded(render(found), folder)
    assert len(rig.gpus) == len(found.cards)
    for promise, each in zip(rig.gpus, found.cards, strict=True):
        assert promise.persistence == each.persistence
        if each.uuid.startswith("GPU-"):
            assert promise.uuid == each.uuid
    assert not rig.throughput
    if rig.server is not None and found.server is not None:
        assert rig.server.url == found.server.url
        assert rig.server.torch_compile == found.server.torch_compile
