"""A marker that says something impossible ends the run before it begins, with the test's name, the marker's and a right value."""

from __future__ import annotations

import pytest
from plugin_modules import import_all

import_all()
RIG = 'schema = 1\n[rig]\nname = "small"\n[[gpus]]\nindex = 0\n'
ALONE = ("-p", "no:cacheprovider", "-p", "pytest_sglang.plugin")


@pytest.fixture
def refused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a rig file, in which this plugin is the only one; the state directory would be the test's own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", str(pytester.path / "state"))
    (pytester.path / "rig.toml").write_text(RIG)
    return pytester


def message(project: pytest.Pytester, marker: str, *options: str) -> str:
    """What a run says to ``marker`` on ``test_it``; it must be a usage error and no test may have run."""
    project.makepyfile(test_marked=f"import pytest\n@pytest.mark.{marker}\ndef test_it():\n    open('ran', 'w')\n")
    done = project.runpytest_inprocess("--sglang-plan", *ALONE, "-q", *options)
    assert done.ret == pytest.ExitCode.USAGE_ERROR, done.stdout.str()
    assert not (project.path / "ran").exists()
    errors = [line for line in done.stderr.lines if line.startswith("ERROR: ")]
    assert len(errors) == 1, done.stderr.str()
    return errors[0].removeprefix("ERROR: ")


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        ('ready_within("9 bananas")', "not a duration: '9 bananas' (write e.g. '250 ms', '90 s', '25 min')"),
        ('ready_within("90 s", start="lukewarm")', "start='lukewarm' must be 'warm' or 'cold'"),
        ('ready_within("90 s", when="warm")', "unknown argument 'when' (known: start)"),
        ('ready_within("90 s", "warm")', "at most 1 positional argument(s), got 2"),
        ('min_throughput("38 W")', "not a token rate: '38 W' (write e.g. '38 tok/s')"),
        ('min_throughput("38 tok/s", power="hot")', "not a power: 'hot' (write e.g. '250 W')"),
        ("min_throughput(38, streams=0)", "streams=0 must be a whole number of at least 1"),
        ("min_throughput(38, streams=True)", "streams=True must be a whole number of at least 1"),
        ("min_throughput(38, streams=1.5)", "streams=1.5 must be a whole number of at least 1"),
        ('min_throughput(38, quantity="prefill")', "quantity='prefill' must be 'decode' or 'end_to_end'"),
        ('min_throughput(38, nvlink="yes")', "nvlink='yes' must be True or False"),
        ("min_throughput(38, watts=250)", "unknown argument 'watts' (known: power, nvlink, streams, quantity)"),
        ("at_power()", "no power level (write e.g. at_power(250, 390))"),
        ('at_power("warm")', "not a power: 'warm' (write e.g. '250 W')"),
        ("at_power(250, only=True)", "unknown argument 'only' (known: none)"),
        ("max_new_kernels(-1)", "-1 must be a whole number of kernel names, e.g. max_new_kernels(0)"),
        ("max_new_kernels(True)", "True must be a whole number of kernel names, e.g. max_new_kernels(0)"),
        ('max_new_kernels("few")', "'few' must be a whole number of kernel names, e.g. max_new_kernels(0)"),
        ("max_new_kernels(0, 1)", "at most 1 positional argument(s), got 2"),
        ("needs_restart(True)", "at most 0 positional argument(s), got 1"),
        ("needs_cold_cache(why='x')", "unknown argument 'why' (known: none)"),
        ("needs_nvlink(2)", "at most 0 positional argument(s), got 1"),
        ("sglang_check()", 'needs an id (write e.g. sglang_check("my-check"))'),
        ("sglang_check(7)", 'needs an id (write e.g. sglang_check("my-check"))'),
        (
            'sglang_check("mine", stage="later")',
            "stage='later' must be one of identity, power, links, server, findings, measure, restart, cold, answers, health, baseline",
        ),
        ('sglang_check("mine", before=("ready",))', "unknown argument 'before' (known: stage, after)"),
    ],
)
def test_a_marker_that_cannot_be_meant_names_the_test_itself_and_a_right_value(
    refused: pytest.Pytester, marker: str, says: str
) -> None:
    assert message(refused, marker) == f"test_marked.py::test_it: marker {marker.partition('(')[0]}: {says}"


@pytest.mark.parametrize(
    ("power", "says"),
    [
        ("2bananas", "--power=2bananas: '2bananas' is not a power in watts (write e.g. --power=250 or --power=250,390)"),
        ("250,-1", "--power=250,-1: a power level is above 0 W (write e.g. --power=250)"),
        (",", "--power=,: no power level in it (write e.g. --power=250)"),
    ],
)
def test_a_power_level_that_is_none_is_a_usage_error_too(refused: pytest.Pytester, power: str, says: str) -> None:
    assert message(refused, "min_throughput", f"--power={power}") == says


def test_a_bad_marker_is_told_even_where_its_test_is_deselected(refused: pytest.Pytester) -> None:
    assert "marker ready_within: not a duration" in message(refused, 'ready_within("soon")', "-k", "another")


def test_right_markers_are_taken_with_and_without_units(refused: pytest.Pytester) -> None:
    refused.makepyfile(
        test_right="""
        import pytest

        @pytest.mark.ready_within("90 s")
        @pytest.mark.ready_within(1500, start="cold")
        @pytest.mark.max_new_kernels(0)
        @pytest.mark.needs_restart
        def test_starts(): ...

        @pytest.mark.at_power("0.25 kW", 390)
        @pytest.mark.min_throughput("38 tok/s", power=250, nvlink=False, streams=4, quantity="decode")
        def test_rate(): ...
        """
    )
    done = refused.runpytest_inprocess("--sglang-plan", "--power=250,300", *ALONE)
    assert done.ret == pytest.ExitCode.OK
    done.stdout.fnmatch_lines_random(["  + starts: judges the start *", "  + rate at 250 W: *"])
    done.stdout.no_fnmatch_line("*at 300 W*")


def test_every_marker_is_registered_with_one_line_of_help(refused: pytest.Pytester) -> None:
    from pytest_sglang.markers import MARKERS

    done = refused.runpytest_inprocess("--markers", *ALONE)
    for name, line in MARKERS.items():
        assert f"@pytest.mark.{line}" in done.stdout.str(), name
