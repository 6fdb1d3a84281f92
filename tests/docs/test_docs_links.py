"""What README and docs say exists: files, headings, options, tools; and nothing of ours is left out of the reference."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from pytest_sglang import cli, markers, options

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "reports" / "README.md", *(ROOT / "docs").rglob("*.md")])
REFERENCE = ROOT / "docs" / "reference.md"
THEIRS = {
    *("--enable-metrics", "--random-seed", "--include-deps", "--junit-xml", "--html", "--color", "--no-summary"),
    *("--benchmark-disable", "--benchmark-json", "--benchmark-save"),
}
"""Options of SGLang, pytest and others that our pages name."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def tools() -> dict[str, argparse.ArgumentParser]:
    chosen = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(chosen.choices)


def options_of(tool: argparse.ArgumentParser) -> set[str]:
    return {word for each in tool._actions for word in each.option_strings if word.startswith("--")} - {"--help"}


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{target} of {page.name}"
        assert ROOT in (found, *found.parents), f"{target} of {page.name} leaves the repository"
        if anchor:
            assert anchor in anchors(found), f"{target} of {page.name}: no such heading"


def test_every_option_of_pytest_stands_in_the_reference() -> None:
    text = REFERENCE.read_text()
    assert [each.flag for each in options.OPTIONS if f"{each.flag}" not in OPTION.findall(text)] == []


def test_every_tool_and_its_options_stand_in_the_reference() -> None:
    text = REFERENCE.read_text()
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([a-z]+)[^\n]*$", text, flags=re.MULTILINE)}
    assert set(rows) >= set(tools()) == set(cli.TOOLS)
    shared = {"--json", "--rig", "--fault", "--url"}
    own = {"measure": text.partition("## `pytest-sglang measure URL`")[2].partition("\n## ")[0]}
    for name, tool in tools().items():
        missing = options_of(tool) - shared - set(OPTION.findall(own.get(name, rows[name])))
        assert missing == set(), f"pytest-sglang {name}"


def test_every_marker_and_fixture_stands_in_the_reference() -> None:
    text = REFERENCE.read_text()
    assert [name for name in (*markers.MARKERS, *markers.FIXTURES) if f"`{name}" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_an_option_that_does_not_exist(page: Path) -> None:
    if "evidence" in page.parts:
        return  # what was typed then
    ours = {each.flag for each in options.OPTIONS} | {word for tool in tools().values() for word in options_of(tool)}
    text = re.sub(r"https?://\S+", "", page.read_text())
    assert set(OPTION.findall(text)) - ours - THEIRS - {"--help"} == set()


def test_every_command_of_ours_in_the_pages_is_understood() -> None:
    """`pytest-sglang TOOL ...` in code blocks: the tool exists and takes these options."""
    for page in PAGES:
        for line in re.findall(r"^    .*?pytest-sglang ([^#\n]+)", page.read_text(), flags=re.MULTILINE):
            words = re.sub(r"[|>].*", "", line.replace("...", "")).split()
            tool = tools().get(words[0])
            assert tool is not None, f"{page.name}: pytest-sglang {line}"
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options_of(tool), f"{page.name}: {line}"


def test_targets_of_make_in_the_pages_exist() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", page.read_text())) <= made, page.name


def test_every_dependency_has_a_lowest_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [each for each in project["dependencies"] if ">=" not in each] == []
