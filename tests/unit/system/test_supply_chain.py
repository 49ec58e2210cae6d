"""What is installed is what was pinned: by hash where a file has one, and under licences that are written down."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.audit import report
from tests.support.house import ROOT
from tests.support.licences import FILE, page

LISTS = ("cpu", "dev", "gpu")


def pins(text: str) -> set[str]:
    return {line.removesuffix(" \\") for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)}


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def normal(pin: str) -> str:
    return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() + "==" + pin.partition("==")[2]


@pytest.mark.parametrize("name", LISTS)
def test_each_pin_has_hashes(name: str) -> None:
    hashed = read(f"requirements/hashed/{name}.txt")
    assert {*map(normal, pins(hashed))} == {*map(normal, pins(read(f"requirements/{name}.txt")))}, "run .ci/hashes"
    entries = re.split(r"\n(?=[A-Za-z0-9])", hashed)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_everything_but_torch_is_installed_by_hash() -> None:
    for path, install in (
        ("Makefile", r"\$\(INSTALL\)"),
        ("Dockerfile", "pip install"),
        ("Dockerfile.gpu", "pip install"),
    ):
        commands = [line for line in re.findall(rf"{install}[^;&\n]*", read(path)) if " -r " in line]
        assert commands
        for command in commands:
            assert "--require-hashes -r" in command or command.strip().endswith("torch-cpu.txt"), f"{path}: {command}"


def test_the_licences_are_those_of_the_installed_packages() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "python -m tests.support.licences > docs/licences-of-packages.md"
    assert "not installed" not in page()


def test_what_could_not_be_looked_up_is_not_called_safe() -> None:
    skipped = {"name": "six", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    fault = {"id": "CVE-1", "fix_versions": ["2.0"]}
    known = {"name": "zipp", "version": "1.0", "vulns": [fault]}
    assert report("") is None
    assert report(json.dumps({"dependencies": [skipped]})) is None
    said = report(json.dumps({"dependencies": [skipped, known, {**known, "vulns": []}]}))
    assert said == (
        "[supply chain] 1 known vulnerabilities in 2 of 3 packages looked up\nzipp 1.0: CVE-1, mended in 2.0"
    )
