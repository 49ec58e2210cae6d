"""Whole runs on the web: a cap that is reached in the middle loses nothing, and a recorded run repeats without it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from research.errors import TrainingError
from tests.support.search_engines import KEYS, SearchEngine
from tests.support.tiny_model import write_tiny_model
from tests.support.tiny_run import CAPITALS, train
from tests.support.web_search import searching

STEPS = 3


@dataclass
class AtlasOnline(SearchEngine):
    """Finds the page on a country by its name."""

    def _pages(self, query: str) -> list[tuple[str, str, str]]:
        return [
            (f"https://atlas.example/{country}", country, f"The capital of {country} is {city}.")
            for country, city in CAPITALS.items()
            if country in query
        ][:1]


def run(model: Path, work: Path, url: str) -> None:
    told: Any = SimpleNamespace(send=lambda _: None)
    train(model, work, told, overrides=[f"grpo.steps={STEPS}"], retriever_url=url)


def episodes(work: Path) -> list[Any]:
    found = []
    for step in range(1, STEPS + 1):
        path = work / "runs" / "demo" / "episodes" / f"step-{step:06d}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found += [json.loads(line)["episode"]["token_ids"] for line in lines]
    return found


@pytest.mark.slow
def test_a_run_whose_budget_ends_goes_on_and_one_that_is_recorded_repeats_without_the_web(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", KEYS["tavily"])
    model, data, engine = write_tiny_model(tmp_path / "tiny"), tmp_path / "data", AtlasOnline("tavily")
    # 1. Raise the cap by one request whenever the run ends, until it does not.
    with engine.serving() as address:
        for cap in range(2, 100):
            with searching(data, address, f"web.max_requests={cap}") as client:
                try:
                    run(model, tmp_path / "broken", str(client.base_url))
                    break
                except TrainingError as error:
                    assert f"web.max_requests = {cap}; raise it" in str(error)  # noqa: PT017
                    assert "the same command goes on" in str(error)  # noqa: PT017
    ends = cap - 2
    assert ends >= 2
    # Each request was for a query that had not been answered, whatever was sampled again.
    assert len(engine.asked) == len({sent.query for sent in engine.asked}) == cap
    # 2. The same run in one go, from the record alone: nobody listens at the address any more.
    with searching(data, address, "web.replay=true") as client:
        run(model, tmp_path / "replayed", str(client.base_url))
    assert episodes(tmp_path / "replayed") == episodes(tmp_path / "broken")
