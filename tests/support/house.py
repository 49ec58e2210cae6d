"""What this project's code looks like from outside: `python -m tests.support.house` prints it.

Modules per folder, which room imports which, circles, the longest functions, untyped dicts and asserts that steer.
A room is a folder without subfolders; in a folder with subfolders (`services/trainer`) each module is a room by itself,
since its front door looks down at the rooms that look down at its types.
"""

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(name for name in ("research", "services", "builtin", "apps", "cli") if (ROOT / name).is_dir())


@dataclass(frozen=True, slots=True)
class Module:
    """One file of code: `name` is dotted, `imports` are the project's own modules that it names anywhere."""

    name: str
    path: Path
    tree: ast.Module
    imports: frozenset[str]

    @property
    def folder(self) -> str:
        """Dotted name of the package that the file lies in."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def modules(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """Every module of `packages` below `root`, by its dotted name."""
    files: dict[str, Path] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        found[name] = Module(name, path, tree, frozenset(_imports(tree, files) - {name}))
    return found


def _imports(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import module` names a module; `from module import thing` does not.
            found |= {
                inner if (inner := f"{node.module}.{alias.name}") in known else node.module for alias in node.names
            }
    return found & set(known)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other along `edges` (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges.get(name, set()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in index:
            visit(name)
    return found


def rooms(found: dict[str, Module]) -> dict[str, set[str]]:
    """For each room the other rooms that its modules import."""
    split = {folder.rpartition(".")[0] for folder in {module.folder for module in found.values()}}

    def room(module: Module) -> str:
        return module.name if module.folder in split else module.folder

    edges: dict[str, set[str]] = {room(module): set() for module in found.values()}
    for module in found.values():
        edges[room(module)] |= {room(found[name]) for name in module.imports} - {room(module)}
    return edges


def sizes(found: dict[str, Module]) -> dict[str, int]:
    """Modules directly in each folder; `__init__.py` does not count."""
    counts: dict[str, int] = defaultdict(int)
    for module in found.values():
        counts[module.folder] += module.path.name != "__init__.py"
    return dict(counts)


def _functions(found: dict[str, Module]) -> list[tuple[int, str]]:
    lengths = (
        ((node.end_lineno or 0) - node.lineno + 1, f"{module.name}.{node.name}")
        for module in found.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return sorted(lengths, reverse=True)


def _untyped(module: Module) -> int:
    return sum(
        isinstance(node, ast.Subscript) and ast.unparse(node) == "dict[str, Any]" for node in ast.walk(module.tree)
    )


def main() -> int:
    """Print the picture; 1 if a circle is in it."""
    found = modules()
    edges = rooms(found)
    print("modules  folder")
    for folder, count in sorted(sizes(found).items()):
        print(f"{count:7d}  {folder}")
    print("\nroom <- what it imports")
    for name in sorted(edges):
        print(f"{name} <- {', '.join(sorted(edges[name])) or 'nothing of ours'}")
    rings = circles({name: set(module.imports) for name, module in found.items()})
    print(f"\n{len(found)} modules; circles of modules: {rings}; circles of rooms: {circles(edges)}")
    print("longest functions:", ", ".join(f"{name} {lines}" for lines, name in _functions(found)[:10]))
    print("dict[str, Any]:", sum(map(_untyped, found.values())))
    print("assert:", sum(isinstance(node, ast.Assert) for m in found.values() for node in ast.walk(m.tree)))
    return bool(rings)


if __name__ == "__main__":
    sys.exit(main())
