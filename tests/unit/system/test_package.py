"""The package on the shelf: its dependencies are what the code imports, at the versions of the pinned lists."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.house import PACKAGES, ROOT, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Loaded by name only: tensorboard by torch's writer, gguf by transformers, wandb where a user has installed it.
BY_NAME = {"tensorboard", "gguf"}
OPTIONAL = {"wandb"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    found = (line.split("#")[0].strip().partition("==") for line in lines)
    return {normal(name): version for name, _, version in found if version}


def imported() -> set[str]:
    names = set()
    for module in modules().values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES) - OPTIONAL


def test_every_import_is_a_dependency_and_no_dependency_is_idle() -> None:
    distributions = packages_distributions()
    needed = {normal(distributions[name][0]) for name in imported()} | BY_NAME
    declared = pins(PROJECT["dependencies"]) | pins(PROJECT["optional-dependencies"]["cpu"])
    assert needed == set(declared)


@pytest.mark.parametrize(("extra", "lists"), [("", ["torch-cpu", "cpu"]), ("cpu", ["cpu"]), ("dev", ["dev", "cpu"])])
def test_the_versions_are_those_of_the_pinned_lists(extra: str, lists: list[str]) -> None:
    declared = pins(PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"])
    pinned: dict[str, str] = {}
    for name in lists:
        pinned |= pins((ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines())
    assert declared == {name: pinned.get(name) for name in declared}


def test_the_wheel_carries_every_file_that_the_code_reads() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    carried = {
        path for package, patterns in data.items() for pattern in patterns for path in (ROOT / package).glob(pattern)
    }
    files = {
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {str(path) for path in files - carried} == set()
    assert Path(ROOT / "research" / "presets" / "quickstart-cpu.toml") in carried
