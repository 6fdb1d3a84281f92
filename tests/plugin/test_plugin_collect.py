"""Collection: the order is ours whatever anybody shuffles, what is not promised is not there, and nothing is touched."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from plugin_modules import import_all

import_all()
CARDS = 'schema = 1\n[rig]\nname = "small"\n[[gpus]]\nindex = 0\n'
SERVED = (
    CARDS + '[server]\nurl = "http://127.0.0.1:{port}"\nmodel = "/models/tiny"\ncommand = ["serve-it"]\n[start]\nwarm = "90 s"\n'
)
ALONE = ("-p", "no:cacheprovider", "-p", "pytest_sglang.plugin")
ONE = 'import pytest\n@pytest.mark.sglang_check("gpu-identity")\ndef test_cards(gpu_power): ...\n'
SHUFFLED = """
import pytest

@pytest.mark.sglang_check("last", stage="cold")
def test_1(): ...

@pytest.mark.needs_restart
def test_restarts(): ...

@pytest.mark.sglang_check("rate", stage="measure")
def test_2(power_level_w): ...

@pytest.mark.sglang_check("findings")
def test_3(): ...

@pytest.mark.sglang_check("ready")
def test_8(): ...

@pytest.mark.sglang_check("server-identity")
def test_4(): ...

@pytest.mark.sglang_check("bridges", stage="links")
def test_5(): ...

@pytest.mark.sglang_check("power-limit")
def test_6(): ...

@pytest.mark.sglang_check("gpu-identity")
def test_7(): ...

def test_stranger(): ...
"""
ORDER = [
    *("test_7", "test_6[250W]", "test_5", "test_8", "test_4", "test_3", "test_2[250W]"),
    *("test_6[300W]", "test_2[300W]", "test_restarts", "test_1", "test_stranger"),
]
WATCH = """
import json, os, sys

seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, args):
    if event == "open":
        path, _, flags = args
        if isinstance(flags, int) and flags & WRITES and str(path) != os.devnull:
            seen.append([event, str(path)])
    elif event in TOUCHES:
        seen.append([event, str(args[:2])])

TOUCHES = {
    "socket.connect", "socket.bind", "subprocess.Popen", "os.posix_spawn", "os.fork", "os.kill", "os.system",
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod",
}
sys.addaudithook(watch)

def pytest_unconfigure(config):
    found = list(seen)
    with open(os.environ["WATCHED"], "w") as file:
        json.dump({"touched": found, "libraries": [each for each in open("/proc/self/maps") if "libnvidia-ml" in each]}, file)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project in which this plugin is the only one."""
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", str(pytester.path / "state"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def rig(project: pytest.Pytester, text: str) -> None:
    (project.path / "rig.toml").write_text(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_inprocess(*ALONE, *options)


def names(done: pytest.RunResult) -> list[str]:
    """The collected tests in their order, of ``--collect-only -q``."""
    assert done.ret == pytest.ExitCode.OK, done.stderr.str()
    return [line.partition("::")[2] for line in done.stdout.lines if "::" in line]


def refusal(done: pytest.RunResult) -> str:
    assert done.ret == pytest.ExitCode.USAGE_ERROR, done.stdout.str()
    return done.stderr.str().removeprefix("ERROR: ").strip()


@pytest.mark.parametrize("options", [(), *(("-p", "pytest_randomly", f"--randomly-seed={seed}") for seed in (1, 2, 3, 4, 5, 6))])
def test_stages_keep_their_order_whatever_is_shuffled(project: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytest.importorskip("pytest_randomly")
    rig(project, SERVED.format(port=free_port()))
    project.makepyfile(test_shuffled=SHUFFLED)
    assert names(run(project, "--collect-only", "-q", "--power=250,300", *options)) == ORDER


def test_a_hook_that_turns_the_order_round_has_no_say(project: pytest.Pytester) -> None:
    rig(project, SERVED.format(port=free_port()))
    project.makeconftest(
        "import pytest\n@pytest.hookimpl(trylast=True)\ndef pytest_collection_modifyitems(items): items.reverse()\n"
    )
    project.makepyfile(test_shuffled=SHUFFLED)
    assert names(run(project, "--collect-only", "-q", "--power=250,300")) == ORDER


def test_the_plan_tells_the_same_order_and_runs_nothing(project: pytest.Pytester) -> None:
    rig(project, SERVED.format(port=free_port()))
    project.makepyfile(test_shuffled=SHUFFLED.replace("...", "open('ran', 'w')"))
    done = run(project, "--sglang-plan", "--power=250,300")
    assert done.ret == pytest.ExitCode.OK
    lines = [line[4:].partition(":")[0] for line in done.stdout.lines if line.startswith(("  + ", "  - "))]
    assert lines[:3] != []
    assert {"gpu-identity", "power-limit at 250 W", "rate at 300 W", "restarts", "last"} <= set(lines)
    done.stdout.fnmatch_lines(["PLAN: small, nothing below has been done, nothing was touched"])
    done.stdout.no_fnmatch_line("*passed*")
    assert not (project.path / "ran").exists()


@pytest.mark.parametrize("mode", ["--collect-only", "--sglang-plan"])
def test_looking_at_the_tests_touches_nothing(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Watched by an audit hook from inside: no file written, no process, no connection, no driver library."""
    monkeypatch.setenv("WATCHED", str(project.path / "watched.json"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    rig(project, SERVED.format(port=free_port()))
    project.makeconftest(WATCH)
    project.makepyfile(test_shuffled=SHUFFLED)
    changing = ("--power=250", "--sglang-allow-cold", "--sglang-set-power")
    done = project.runpytest_subprocess(mode, *changing, *ALONE, "--capture=no")
    assert done.ret == pytest.ExitCode.OK, done.stderr.str()
    watched = json.loads((project.path / "watched.json").read_text())
    ours = [each for each in watched["touched"] if not _pytests_own(each)]
    assert ours == []
    assert watched["libraries"] == []
    made = {each.name for each in project.path.iterdir() if not each.name.startswith(("std", "runpytest-"))}
    assert made == {"conftest.py", "rig.toml", "test_shuffled.py", "watched.json"}


def _pytests_own(event: list[str]) -> bool:
    """pytester gives the run a --basetemp, which pytest makes."""
    return "basetemp" in event[1] or "pytest-of-" in event[1] or Path(event[1]).name == "watched.json"


def test_two_tests_with_one_check_id_are_refused_naming_both(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(
        test_twice="import pytest\n"
        '@pytest.mark.sglang_check("mine")\ndef test_a(): ...\n'
        '@pytest.mark.sglang_check("mine")\ndef test_b(): ...\n'
    )
    said = refusal(run(project, "--sglang-plan"))
    assert said == "test_twice.py::test_b and test_twice.py::test_a have the same check id 'mine'"


def test_two_tests_of_the_same_name_are_told_apart(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    test = "import pytest\n@pytest.mark.needs_restart\ndef test_mine(): ...\n"
    for module in ("test_here", "test_there"):
        project.makepyfile(**{module: test})
    done = run(project, "--sglang-plan")
    done.stdout.fnmatch_lines(["  ? mine: *", "  ? mine:test_mine: *"])


def test_parameters_of_one_check_are_told_apart(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(
        test_many='import pytest\n@pytest.mark.sglang_check("mine")\n@pytest.mark.parametrize("n", [1, 2])\ndef test_it(n): ...\n'
    )
    done = run(project, "--sglang-plan")
    done.stdout.fnmatch_lines(["  ? mine: *", "  ? mine:test_it[[]2]: *"])


def test_what_the_rig_file_does_not_promise_is_not_there(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(
        test_some=ONE
        + '@pytest.mark.sglang_check("ready")\ndef test_ready(sglang_server): ...\n'
        + '@pytest.mark.sglang_check("nvlink")\ndef test_nvlink(nvlink_topology): ...\n'
    )
    assert names(run(project, "--collect-only", "-q")) == ["test_cards"]
    done = run(project, "--sglang-plan")
    done.stdout.fnmatch_lines(["  + gpu-identity: read only", "  not promised by rig.toml: nvlink, ready"])


def test_a_promised_check_that_nobody_collected_is_told(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(test_some=ONE)
    done = run(project, "--sglang-plan", "--power=250")
    done.stdout.fnmatch_lines(["  + gpu-identity: read only", "  - power-limit: not checked, not collected"])


def test_a_deselected_check_is_told(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(test_some=ONE + '@pytest.mark.sglang_check("mine")\ndef test_other(): ...\n')
    done = run(project, "--sglang-plan", "-k", "cards")
    done.stdout.fnmatch_lines(["  + gpu-identity: read only", "  - mine: not checked, deselected"])


def test_parallel_runs_are_refused(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    rig(project, CARDS)
    project.makepyfile(test_one=ONE)
    done = project.runpytest_subprocess("-p", "no:cacheprovider", "-n", "1")
    assert "test_one.py::test_cards: checks of a rig do not run in parallel: leave -n away" in refusal(done)
    assert "INTERNALERROR" not in done.stdout.str()


def test_tests_of_others_still_run_in_parallel(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    project.makepyfile(test_one="def test_stranger(): ...\n")
    project.runpytest_subprocess("-p", "no:cacheprovider", "-n", "1").assert_outcomes(passed=1)


@pytest.mark.parametrize("marked", [False, True])
def test_reruns_are_refused(project: pytest.Pytester, marked: bool) -> None:
    pytest.importorskip("pytest_rerunfailures")
    rig(project, CARDS)
    project.makeini("[pytest]\nmarkers = flaky: for the test that needs it\n")
    project.makepyfile(test_one=ONE.replace("def", "@pytest.mark.flaky\ndef") if marked else ONE)
    said = refusal(run(project, "--sglang-plan", *(() if marked else ("-p", "pytest_rerunfailures", "--reruns=2"))))
    assert "a check of a rig is not rerun until it passes" in said
    assert ("test_one.py::test_cards" in said) == marked


def test_without_rig_file_and_hardware_one_message_says_what_was_looked_for(project: pytest.Pytester) -> None:
    project.makepyfile(test_one=ONE)
    url = f"http://127.0.0.1:{free_port()}"
    done = run(project, f"--sglang-url={url}")
    said = refusal(done).splitlines()
    assert said[0] == "nothing to judge: no rig file says what is promised."
    assert said[1].startswith(f"  looked for: rig.toml: not in {project.path} and not in {project.path / 'acceptance'} ")
    assert said[2].startswith("  driver library: ")
    assert said[3] == f"  server: {url}: Connection refused"
    assert "pytest-sglang init -o rig.toml" in said[4]
    assert "--rig=simulated" in said[5]
    assert len(said) == 6
    assert done.stderr.str().count("ERROR") == 1
    assert "Traceback" not in done.stdout.str() + done.stderr.str()


def test_a_rig_file_that_is_wrong_tells_every_mistake_at_once(project: pytest.Pytester) -> None:
    rig(project, CARDS + 'nmae = "RTX"\npcie_width = "wide"\n')
    project.makepyfile(test_one=ONE)
    said = refusal(run(project))
    assert "nmae" in said
    assert "pcie_width" in said


def test_a_named_rig_that_is_not_there_is_told(project: pytest.Pytester) -> None:
    project.makepyfile(test_one=ONE)
    assert "--rig=six-3080 is neither a file nor the name of a packaged rig" in refusal(run(project, "--rig=six-3080"))


@pytest.mark.parametrize("option", ["--sglang-fault=dies-loading", "--sglang-simulated-dir=kept"])
def test_options_of_the_simulated_rig_are_refused_elsewhere(project: pytest.Pytester, option: str) -> None:
    rig(project, CARDS)
    project.makepyfile(test_one=ONE)
    assert refusal(run(project, option)) == f"{option.partition('=')[0]} is for the simulated rig only: add --rig=simulated"
    assert not (project.path / "kept").exists()


def test_command_line_beats_ini_beats_default(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makeini("[pytest]\nsglang_power = 250\nsglang_level = 7\n")
    project.makepyfile(test_one="def test_it(power_level_w): ...\n")
    assert names(run(project, "--collect-only", "-q", "--sglang-level=1")) == ["test_it[250W]"]
    assert names(run(project, "--collect-only", "-q", "--sglang-level=1", "--power=0.3 kW")) == ["test_it[300W]"]
    assert refusal(run(project)) == "--sglang-level=7: must be one of 1, 2, 3 (e.g. --sglang-level=2)"


def test_a_level_that_at_power_excludes_leaves_a_skip_with_its_reason(project: pytest.Pytester) -> None:
    rig(project, CARDS)
    project.makepyfile(
        test_one="import pytest\n@pytest.mark.at_power(390)\ndef test_it(power_level_w): ...\n"
        "@pytest.mark.at_power(250, 390)\ndef test_both(power_level_w): ...\n"
    )
    assert names(run(project, "--collect-only", "-q", "--power=250")) == [
        "test_it[no-level]",
        "test_both[250W]",
    ]
