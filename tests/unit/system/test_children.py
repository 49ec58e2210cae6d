"""What several children say stays apart, and nobody who stops reading stops them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.process.children import how_it_ended, relay


def said_by(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_each_line_has_the_name_of_its_child(capfd: pytest.CaptureFixture[str]) -> None:
    children = {name: said_by(f"print('{name} is up'); print('no end', end='')") for name in ("first", "second")}
    threads = [relay(child.stdout, name) for name, child in children.items() if child.stdout]
    for thread in threads:
        thread.join(20)
    for child in children.values():
        assert child.wait(20) == 0
    assert sorted(capfd.readouterr().err.splitlines()) == [
        "first | first is up",
        "first | no end",
        "second | no end",
        "second | second is up",
    ]


def test_a_child_goes_on_when_nobody_reads_our_output(tmp_path: Path) -> None:
    """As in `research serve policy | head`: more than a pipe holds is said, and the child still ends by itself."""
    ended = tmp_path / "ended"
    child = f"print('x' * 60 + chr(10), end='', flush=True); print('y' * 300_000); open({str(ended)!r}, 'w')"
    parent = (
        "import subprocess, sys; from services.process.children import relay; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "thread = relay(child.stdout, 'child'); sys.exit(child.wait(20))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE)
    assert process.stderr
    process.stderr.close()
    assert process.wait(30) == 0
    assert ended.exists()


@pytest.mark.parametrize(("code", "words"), [(0, "ended with code 0"), (3, "ended with code 3"), (-9, "by signal 9")])
def test_an_end_is_told_as_the_kernel_tells_it(code: int, words: str) -> None:
    assert words in how_it_ended(code)
