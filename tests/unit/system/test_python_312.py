"""No comprehension may reuse the name of a variable that its function takes from an outer function.

Python 3.12 and 3.13 inline comprehensions (https://peps.python.org/pep-0709/) and then lose the outer variable for the
rest of the function: "cannot access free variable". Training broke so on a machine with 3.12, while 3.11 was fine.
"""

from __future__ import annotations

import symtable
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="inlined comprehensions are not in the symbol table; there the code itself fails",
)
BROKEN = """
def outer():
    def member(): ...
    def group(size):
        many = tuple(member() for _ in range(size))
        return [member for member in many]
"""


def shadowed(table: symtable.SymbolTable) -> Iterator[str]:
    """Each outer variable that a comprehension shadows, with its function and line."""
    for child in table.get_children():
        if isinstance(table, symtable.Function) and child.get_name() in ("listcomp", "setcomp", "dictcomp"):
            targets = {symbol.get_name() for symbol in child.get_symbols() if symbol.is_local()}
            yield from (
                f"{name} in {table.get_name()}, line {child.get_lineno()}" for name in targets & set(table.get_frees())
            )
        yield from shadowed(child)


def test_the_check_sees_the_fault() -> None:
    assert list(shadowed(symtable.symtable(BROKEN, "broken", "exec"))) == ["member in group, line 6"]


def test_no_comprehension_shadows_an_outer_variable() -> None:
    sources = [path for part in ("research", "services", "tests") for path in sorted((REPOSITORY / part).rglob("*.py"))]
    assert len(sources) > 100
    found = [
        f"{path.relative_to(REPOSITORY)}: {fault}"
        for path in sources
        for fault in shadowed(symtable.symtable(path.read_text(encoding="utf-8"), path.name, "exec"))
    ]
    assert not found, f"rename the variable of the comprehension: {found}"
