"""The house stands: imports run down only, no circle, no crowded folder. `python -m tests.support.house` shows it."""

from tests.support.house import circles, modules, rooms, sizes

FOUND = modules()
# What a package may import besides itself; a service never imports another.
SHARED = ("services.machine", "services.process", "services.transport", "services.web")
BELOW = {
    "research": (),
    **dict.fromkeys(SHARED, ("research", *SHARED)),
    **dict.fromkeys(("services.retriever", "services.policy", "services.trainer"), ("research", *SHARED)),
    "services.system": ("research", *SHARED),
    "builtin": ("research", *SHARED, "services.retriever"),
    "apps": ("research", "services", "builtin"),
    "cli": ("research", "services", "builtin", "apps"),
}
MOST_MODULES = 13


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_imports_run_down_only() -> None:
    upward = []
    for module in FOUND.values():
        owner = next((package for package in BELOW if within(module.name, (package,))), None)
        allowed = (owner, *BELOW[owner]) if owner else ()
        upward += [f"{module.name} imports {name}" for name in module.imports if not within(name, allowed)]
    assert not upward


def test_no_circle_of_modules_or_rooms() -> None:
    assert not circles({name: set(module.imports) for name, module in FOUND.items()})
    assert not circles(rooms(FOUND))


def test_no_folder_is_crowded() -> None:
    assert not {folder: count for folder, count in sizes(FOUND).items() if count > MOST_MODULES}
