"""The search engines by name."""

from __future__ import annotations

from services.retriever.web.engines.brave import BRAVE
from services.retriever.web.engines.engine import Engine
from services.retriever.web.engines.searxng import SEARXNG
from services.retriever.web.engines.serper import SERPER
from services.retriever.web.engines.tavily import TAVILY
from services.retriever.web.engines.wikipedia import WIKIPEDIA

ENGINES: dict[str, Engine] = {each.name: each for each in (SEARXNG, BRAVE, TAVILY, SERPER, WIKIPEDIA)}
