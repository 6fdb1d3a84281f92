"""Rules of systemd-tmpfiles: the real file format, and which rule a path falls under."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sglang.cache import tmpfiles
from pytest_sglang.cache.tmpfiles import Rule

DAY = 86_400.0

DEBIAN = """\
#  This file is part of systemd.
# See tmpfiles.d(5) for details

# Clear tmp directories separately, to make them easier to override
D /tmp 1777 root root -
#q /var/tmp 1777 root root 30d
"""
FEDORA = """\
q /tmp 1777 root root 10d
q /var/tmp 1777 root root 30d
x /tmp/systemd-private-%b-*
X /tmp/systemd-private-%b-*/tmp
R! /tmp/systemd-private-*
"""


def of(path: str, text: str) -> tuple[str | None, str | None]:
    aged, emptied = tmpfiles.of(Path(path), list(tmpfiles.parse(text, "f")))
    return (aged.path if aged else None, emptied.path if emptied else None)


def test_debians_and_fedoras_own_files() -> None:
    assert of("/tmp/torchinductor_sg", DEBIAN) == (None, "/tmp")
    assert of("/tmp/torchinductor_sg", FEDORA) == ("/tmp", None)
    assert of("/tmp/systemd-private-abc-x/tmp/torchinductor_sg", FEDORA) == ("/tmp", "/tmp/systemd-private-*")
    assert of("/home/sg/.cache", DEBIAN + FEDORA) == (None, None)
    assert next(iter(tmpfiles.parse(FEDORA, "f"))) == Rule("q", "/tmp", 10 * DAY, False, "f:1")


def test_this_machines_own_rules_can_be_read() -> None:
    for rule in tmpfiles.read():
        assert rule.path.startswith("/")
        assert rule.type.isalpha()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10d", 10 * DAY),
        ("1w2d", 9 * DAY),
        ("12h", DAY / 2),
        ("90min", 5400.0),
        ("~30d", 30 * DAY),
        ("am:12h", DAY / 2),
        ("~aA:2days", 2 * DAY),
        ("0", 0.0),
        ("5us", 5e-6),
        ("-", None),
        ("soon", None),
        ("10d soon", None),
        ("3fortnights", None),
    ],
)
def test_ages(text: str, seconds: float | None) -> None:
    [rule] = tmpfiles.parse(f'd /c - - - "{text}"', "f")
    assert rule.age_s == pytest.approx(seconds) if seconds is not None else rule.age_s is None


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        ("d /var/cache/sglang - - - 7d", "/var/cache/sglang/inductor", ("/var/cache/sglang", None)),
        ("d /var/cache/sglang - - - 7d", "/var/cache/sglangx", (None, None)),
        ("e /home/*/.cache - - - 7d", "/home/sg/.cache/x", ("/home/*/.cache", None)),
        ("e /home/*/.cache - - - 7d", "/home/sg/x", (None, None)),
        ("d /home/*/.cache - - - 7d", "/home/sg/.cache/x", (None, None)),
        # a line of its own shields a directory from its parent's age, x with all below, X alone
        ("q /tmp - - - 10d\nd /tmp/keep - - - -", "/tmp/keep/x", (None, None)),
        ("q /tmp - - - 10d\nx /tmp/torchinductor_*", "/tmp/torchinductor_sg/ab", (None, None)),
        ("q /tmp - - - 10d\nX /tmp/keep", "/tmp/keep", (None, None)),
        ("q /tmp - - - 10d\nX /tmp/keep", "/tmp/keep/x", ("/tmp", None)),
        ("R /srv/c*", "/srv/cache/x", (None, "/srv/c*")),
        ('d "/srv/with space" - - - 1d', "/srv/with space/x", ("/srv/with space", None)),
        ("e %C/sglang - - - 1d", "/var/cache/sglang/x", ("/var/cache/sglang", None)),
        ("e %m/sglang - - - 1d", "/x/sglang", (None, None)),
        ("f /tmp/file - - - 1d", "/tmp/file/x", (None, None)),
        ("nonsense\nd\nd relative - - - 1d\n'open", "/relative", (None, None)),
    ],
)
def test_which_rule_holds(text: str, path: str, found: tuple[str | None, str | None]) -> None:
    assert of(path, text) == found


def test_a_file_hides_weaker_ones_of_its_name_and_the_first_line_for_a_path_holds(tmp_path: Path) -> None:
    etc, run, lib = (tmp_path / name for name in ("etc", "run", "lib"))
    for folder in (etc, run, lib):
        folder.mkdir()
    (lib / "tmp.conf").write_text("q /tmp - - - 10d\n")
    (lib / "x11.conf").write_text("D! /tmp/.X11-unix 1777 root root 10d\nq /tmp - - - 1d\n")
    (lib / "zz.conf").write_text("q /srv - - - 1d\n")
    (lib / "ignored.txt").write_text("q /ignored - - - 1d\n")
    (etc / "tmp.conf").symlink_to("/dev/null")
    (run / "zz.conf").write_text("")
    found = tmpfiles.read((etc, run, lib, tmp_path / "absent"))
    assert [(rule.path, rule.age_s, rule.at_boot) for rule in found] == [("/tmp/.X11-unix", 10 * DAY, True), ("/tmp", DAY, False)]


def test_a_file_that_cannot_be_read_has_no_rules(tmp_path: Path) -> None:
    (tmp_path / "a.conf").symlink_to(tmp_path / "nowhere")
    assert tmpfiles.read((tmp_path,)) == ()
