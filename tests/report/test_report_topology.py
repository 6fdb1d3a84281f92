"""The drawing of cards, links and groups: every kind of machine, every state of a bridge, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
import report_samples as samples

from pytest_sglang.record import run as records
from pytest_sglang.report import cards, charts

SPACE = "{http://www.w3.org/2000/svg}"
EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
PAIRS = ((0, 1), (2, 3), (4, 5))


def drawn(**fields):
    chart = charts.topology_chart(samples.run(**fields))
    assert chart.panels, chart.empty
    return chart.panels


def texts(panel):
    return [element.text for element in ElementTree.fromstring(panel.svg).iter(f"{SPACE}text")]


def described(panel):
    return ElementTree.fromstring(panel.svg).find(f"{SPACE}desc").text


def test_six_cards_in_pairs_four_of_them_in_a_group():
    machine, ways = drawn()
    assert machine.heading == "6 cards, the server on GPUs 0 to 3"
    assert machine.note == "4 of 6 pairs of the group exchange over PCIe"
    found = texts(machine)
    assert found.count("NVLink, 4 links") == 3
    assert found.count("as promised") == 3
    assert found.count("PCIe gen 4, x16 under load") == 4
    assert found.count("PCIe gen 1 of 4, x16 now") == 2
    assert {"tensor parallel group, 4 cards", "not used by the server", "over PCIe (NODE)", "no peer-to-peer (CNS)"} <= set(found)
    told = described(machine)
    assert "NVLink GPU 0 to GPU 1: 4 links, as promised" in told
    assert "between GPU 1 and GPU 2 the group goes over PCIe (NODE), no peer-to-peer (CNS)" in told
    assert "not used by the server: GPU 4 RTX 3090" in told
    assert texts(ways).count("NV4") == 6
    assert "NODE: over PCIe host bridges of one NUMA node" in ways.note
    assert "stroke-dasharray" in machine.svg, "PCIe inside the group is dotted"


def test_a_dead_bridge_is_seen_without_colours():
    dead = samples.topology({(0, 1): 4, (2, 3): 0, (4, 5): 4}, path="PHB")
    machine, ways = drawn(topology=dead)
    assert {"NVLink down", "4 links promised", "over PCIe (PHB)"} <= set(texts(machine))
    assert "A dashed line with a cross is a bridge that is down." in charts.topology_chart(samples.run(topology=dead)).note
    assert machine.note == "1 of 3 promised bridges not as promised; 5 of 6 pairs of the group exchange over PCIe"
    assert "NVLink GPU 2 to GPU 3: NVLink down, 4 links promised" in described(machine)
    assert "stroke-dasharray" in ways.svg
    whole, _ = drawn()
    assert machine.svg.count("stroke-dasharray") > whole.svg.count("stroke-dasharray")
    assert "--sg-fail" in machine.svg
    assert "--sg-fail" not in whole.svg


@pytest.mark.parametrize(
    ("links", "more", "found"),
    [
        ({(0, 1): 3}, {}, ("partial", "3 links up", "4 promised")),
        ({(0, 1): 4}, {"promised": ()}, ("extra", "4 links", "not promised")),
        ({(0, 1): None}, {}, ("unknown", "NVLink not read", "4 links promised")),
        ({(0, 1): 0}, {}, ("down", "NVLink down", "4 links promised")),
        ({(0, 1): 1}, {"each": 1}, ("up", "1 link", "as promised")),
    ],
)
def test_states_of_a_bridge(links, more, found):
    made = samples.topology(links, **{"count": 2, "serving": (0, 1), "tp": 2, "promised": ((0, 1),), **more})
    (join,) = cards.plan(samples.run(topology=made)).joins
    assert (join.state, join.text, join.more) == found
    assert (join.state in cards.BAD) == (found[0] in ("partial", "down"))
    drawn(topology=made)


def test_links_that_programs_may_not_use_are_no_links():
    made = samples.topology()
    made["paths"][0]["p2p_nvlink"] = "NS"
    plan = cards.plan(samples.run(topology=made))
    assert (plan.joins[0].state, plan.joins[0].more) == ("unusable", "peer-to-peer: NS")
    assert ("GPU 0", "GPU 1") in [(f"GPU {each.one}", f"GPU {each.other}") for each in plan.crossings]


def test_a_bridge_that_went_down_in_the_run_says_so():
    first = samples.topology()["paths"]
    made = samples.topology({(0, 1): 4, (2, 3): 0, (4, 5): 4}, first_paths=first)
    assert "4 when the run began" in texts(drawn(topology=made)[0])


def test_bridges_between_other_cards_than_promised_stand_on_lanes_and_are_told_in_words():
    made = samples.topology({(0, 2): 4, (1, 3): 4, (4, 5): 4})
    machine, _ = drawn(topology=made)
    assert texts(machine).count("×") == 2
    assert texts(machine).count("4") == 3
    assert "GPU 0 to 1: NVLink down, 4 links promised" in machine.note
    assert "GPU 0 to 2: 4 links, not promised" in machine.note


def test_four_cards_on_switches():
    """As four H200 answer: 18 links a card, all of them to NVSwitches."""
    made = samples.topology({}, count=4, name="NVIDIA H200", promised=(), switch=18)
    (machine,) = drawn(topology=made)
    assert texts(machine).count("18 links") == 4
    assert {"NVSwitch", "not promised", "H200"} <= set(texts(machine))
    assert machine.note == "", "nothing crosses PCIe"
    promised = samples.topology({}, count=4, promised=((0, 1), (2, 3)), each=18, switch=18)
    assert "as promised" in texts(drawn(topology=promised)[0])
    promised["cards"][2] |= {"links_up": 16, "links_to_switch": 16}
    (short,) = drawn(topology=promised)
    assert {"16 of 18", "18 links promised"} <= set(texts(short))
    assert "GPU 2 has 16 links to NVSwitches, 18 there" in described(short)
    assert "--sg-fail" in short.svg


def test_switches_that_peers_may_not_use_fail_the_group():
    made = samples.topology({}, count=2, serving=(0, 1), tp=2, promised=(), switch=18)
    made["paths"][0] |= {"p2p_nvlink": "NS", "p2p_read": "NS"}
    plan = cards.plan(samples.run(topology=made))
    assert plan.fabric_off == "NS"
    assert "unusable (NS)" in texts(drawn(topology=made)[0])


def test_eight_cards_in_two_groups():
    made = samples.topology({}, count=8, serving=tuple(range(8)), promised=(), switch=18)
    (machine,) = drawn(topology=made)
    assert {"tensor parallel group 1, 4 cards", "tensor parallel group 2, 4 cards"} <= set(texts(machine))
    assert machine.heading == "8 cards, the server on GPUs 0 to 7"


def test_cards_that_are_all_bridged_with_one_another_are_one_bar():
    every = {(one, other): 4 for one in range(4) for other in range(one + 1, 4)}
    (machine,) = drawn(topology=samples.topology(every, count=4, promised=()))
    assert {"every two", "4 links"} <= set(texts(machine))


def test_cards_without_nvlink_go_over_pcie():
    made = samples.topology({}, count=4, promised=(), path="PHB")
    for each in made["cards"]:
        each |= {"links": 0, "links_unreadable": "Not Supported", "links_unsupported": True}
    made["paths"] = [{**each, "links": None} for each in made["paths"]]
    (machine,) = drawn(topology=made)
    assert texts(machine).count("over PCIe (PHB)") == 3
    assert machine.note == "6 of 6 pairs of the group exchange over PCIe"
    assert "NVLink not readable" not in described(machine)


def test_links_that_cannot_be_read_are_never_fine():
    made = samples.topology({(0, 1): None, (2, 3): None, (4, 5): None})
    for each in made["cards"]:
        each["links_unreadable"] = "Insufficient Permissions"
    made["paths"] = [{**each, "links": None} for each in made["paths"]]
    (machine,) = drawn(topology=made)
    assert texts(machine).count("NVLink not read") == 3
    assert "link not known" in texts(machine)
    assert "as promised" not in texts(machine)
    assert machine.note == "NVLink not readable: Insufficient Permissions"


def test_one_card():
    made = samples.topology({}, count=1, serving=(0,), tp=1, promised=())
    (machine,) = drawn(topology=made)
    assert machine.heading == "1 card, the server on GPU 0"
    assert "the server's card" in texts(machine)
    assert charts.topology_chart(samples.run(topology=made)).note == "The second line of a card is its PCIe link."


def test_pcie_below_the_promise_is_told_with_it():
    made = samples.topology()
    made["cards"][1] |= {"load_pcie_gen": 3, "load_pcie_width": 4}
    found = texts(drawn(topology=made)[0])
    assert "PCIe gen 3 x4, promised gen 4 x16" in found
    waived = {**samples.RIG, "unavailable": ["pcie"]}
    assert "PCIe gen 3 of 4, x4 of 16 under load" in texts(drawn(topology=made, rig=waived)[0])
    made["cards"][1] |= dict.fromkeys(
        ("pcie_gen", "pcie_width", "pcie_max_gen", "pcie_max_width", "load_pcie_gen", "load_pcie_width")
    )
    assert "PCIe not readable" in texts(drawn(topology=made)[0])


def test_a_lost_card_and_one_that_is_not_there():
    made = samples.topology(absent=[{"entry": 6, "label": "GPU 6"}])
    made["cards"][2] = {"index": 2, "uuid": "u", "pci": "p", "entry": 2, "lost": "GPU is lost"}
    machine, _ = drawn(topology=made)
    assert {"lost", "not found", "promised, not found"} <= set(texts(machine))
    assert "GPU 2 name not readable GPU is lost" in described(machine)


def test_where_the_server_runs_was_not_read():
    made = {**samples.topology(), "serving": {"promised": [0, 1, 2, 3], "tp": 4, "unreadable": "the server was not running"}}
    machine, _ = drawn(topology=made)
    assert machine.heading == "6 cards"
    assert {"tensor parallel group (promised)", "not promised to the server"} <= set(texts(machine))
    assert machine.note.startswith("where the server runs was not read: the server was not running")


def test_a_server_on_other_cards_than_promised():
    made = samples.topology()
    made["serving"] |= {"gpus": [2, 3, 4, 5], "groups": [[2, 3, 4, 5]]}
    machine, _ = drawn(topology=made)
    assert machine.heading == "6 cards, the server on GPUs 2 to 5"
    assert "the server was promised to run on GPUs 0, 1, 2, 3" in machine.note


def test_a_rig_without_a_server_and_one_without_cards():
    machine, _ = drawn(topology={**samples.topology(), "serving": {}})
    assert machine.heading == "6 cards"
    assert not any("server" in each for each in texts(machine))
    chart = charts.topology_chart(samples.run(topology={}, environment={"server": {}}, rig={"name": "far"}))
    assert (chart.panels, chart.empty) == ((), "This run looked at no cards.")


def test_a_record_of_before_is_drawn_as_far_as_it_tells():
    run = records.read(EVIDENCE / "2026-11-27-h200-sglang-0.5.11")
    (machine,) = charts.topology_chart(run).panels
    assert machine.heading == "1 card, the server on GPU 0"
    old = samples.run(topology={}, checks=samples.good_checks())
    (machine,) = charts.topology_chart(old).panels
    assert texts(machine).count("as promised") == 3, "the check held"
    assert "where the server runs was not read: not in this record" in machine.note
    assert "tensor parallel group (promised)" in texts(machine)
    unchecked = samples.run(topology={}, checks=())
    (machine,) = charts.topology_chart(unchecked).panels
    assert texts(machine).count("NVLink not read") == 3
    assert "links not readable: not in this record" in machine.note
