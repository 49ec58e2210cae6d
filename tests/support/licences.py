"""The licences of what the CPU image holds, from the metadata of the installed packages.

python -m tests.support.licences > docs/licences-of-packages.md
"""

from __future__ import annotations

from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import cast

from tests.support.house import ROOT

FILE = ROOT / "docs" / "licences-of-packages.md"
HEAD = """# Licences of the packages in the CPU image

As the packages declare them: a licence expression, else classifiers, else the first line of the text. Made by
`python -m tests.support.licences`; a test compares it. The base image's own packages (Debian) list theirs in
`/usr/share/doc/*/copyright`, inside the image.

| Package | Version | Licence |
|---|---|---|
"""
_LONGEST = 60


def page() -> str:
    """The whole file."""
    rows = []
    for line in sorted(pins(), key=str.lower):
        name, _, version = line.partition("==")
        rows.append(f"| {name} | {version} | {_licence(name)} |")
    return HEAD + "\n".join(rows) + "\n"


def pins() -> list[str]:
    """`name==version` of all that the image installs."""
    lists = [(ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8") for name in ("torch-cpu", "cpu")]
    return [line for text in lists for line in text.splitlines() if line and not line.startswith("#")]


def _licence(name: str) -> str:
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        return "not installed"
    metadata = cast(Message, found.metadata)
    classifiers = [
        each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or [] if each.startswith("License ::")
    ]
    text = (metadata.get("License") or "").strip()
    first = text.splitlines()[0].strip(" #") if text else ""
    said = metadata.get("License-Expression") or ", ".join(sorted(set(classifiers) - {"OSI Approved"})) or first
    return said.replace("|", "/")[:_LONGEST] or "not declared"


if __name__ == "__main__":
    print(page(), end="")
