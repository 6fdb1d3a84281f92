"""``[answers]``: what a rig file may expect of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sglang.rig.load import RigError, load
from pytest_sglang.rig.model import AnswersPromise, Expectation
from pytest_sglang.session import checks

SERVER = '[server]\nurl = "http://127.0.0.1:30000"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "rig.toml"
    path.write_text(f"schema = 1\n{text}")
    return path


def test_the_table_alone_promises_the_check(tmp_path: Path) -> None:
    assert "answers" not in checks.promised(load(written(tmp_path, SERVER)))
    rig = load(written(tmp_path, f"{SERVER}[answers]\n"))
    assert rig.answers == AnswersPromise()
    assert "answers" in checks.promised(rig)


def test_expectations_are_read(tmp_path: Path) -> None:
    rig = load(
        written(
            tmp_path, f'{SERVER}[answers]\ntext = true\nexpect = [{{ prompt = "The capital of France is", contains = "Paris" }}]\n'
        )
    )
    assert rig.answers == AnswersPromise(text=True, expect=(Expectation(prompt="The capital of France is", contains="Paris"),))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{SERVER}[answers]\nexpect = []\n", "answers.expect: [] is not a list of expectations (write e.g. [{ prompt ="),
        (f'{SERVER}[answers]\nexpect = ["Paris"]\n', "answers.expect[0]: 'Paris' is not a table"),
        (f'{SERVER}[answers]\nexpect = [{{ prompt = "x" }}]\n', "answers.expect[0].contains: is missing"),
        (f'{SERVER}[answers]\nexpect = [{{ prompt = " ", contains = 3 }}]\n', "answers.expect[0].prompt: ' ' is not a text"),
        (
            f'{SERVER}[answers]\nexpect = [{{ promt = "x", contains = "y" }}]\n',
            "answers.expect[0].promt: is no key of an expectation",
        ),
        (
            f'{SERVER}[answers]\nexpect = [{{ prompt = "x", contains = "y" }}, {{ prompt = "x", contains = "z" }}]\n',
            "answers.expect[1].prompt: 'x' stands there twice",
        ),
        (f"{SERVER}[answers]\ntext = 1\n", "answers.text: 1 is neither true nor false"),
        (f"{SERVER}[answers]\nexpects = 1\n", "did you mean 'expect'?"),
        ("[answers]\n", "answers: needs a server to ask (add a [server] table"),
        (f'{SERVER}answers = "yes"\n', "[server]"),
    ],
)
def test_mistakes_are_told_with_their_place_and_a_right_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(RigError) as caught:
        load(written(tmp_path, text))
    assert told in str(caught.value)
