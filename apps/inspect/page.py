"""Episodes as one HTML file: data and code inside, nothing fetched, readable for as long as there are browsers.

Questions, passages and what the model wrote are untrusted text. They enter the file as JSON without any `<`. The page
shows them as text nodes only, and its content security policy allows nothing but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from html import escape
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from apps.inspect.filters import Filters
from apps.inspect.read import InspectedEpisode, RunEpisodes, Source
from apps.inspect.tokens import TokenTexts
from research.atomic_io import atomic_write
from research.episode.agent import Episode
from research.episode.trace import trace_of

_PARTS = Path(__file__).with_name("web")
_SCRIPTS = ("page.js", "chart.js", "reader.js")
# The page shows four decimals; integers take half the space.
_LOGPROB_SCALE = 10_000


def write_page(
    run: RunEpisodes, filters: Filters, limit: int, texts: TokenTexts | None, path: Path
) -> tuple[int, bool]:
    """Write the newest `limit` episodes that match; returns how many were written, and whether more match."""
    vocabulary: dict[int, int] = {}
    by_source: dict[Source, list[str]] = {}
    fitting = filters.select(run)
    for shown in islice(fitting, limit):
        by_source.setdefault(shown.source, []).append(as_json(_episode(shown, vocabulary)))
    more = next(fitting, None) is not None
    episodes = [episode for source in run.sources() for episode in by_source.get(source, ())]
    write_frame(path, _about(run, more), _words(vocabulary, texts), episodes)
    return len(episodes), more


def write_frame(path: Path, about: dict[str, Any], vocabulary: dict[str, Any] | None, episodes: Iterable[str]) -> None:
    """Write the page around episodes in JSON.

    Args:
        about: `name`, `model`, `earned` (the name of the score, such as "reward"), `logprob_scale`, `more` (a note on
            omitted episodes) and `problems`.
        vocabulary: of the tokens; None if the episodes have no tokens.
        episodes: as `as_json` writes them; fields as in `_episode`.
    """
    head, tail = _frame(about["name"], about["earned"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as out:
        for part in (
            head,
            f'{{"run":{as_json(about)},"vocabulary":{as_json(vocabulary)},"episodes":[',
            ",\n".join(episodes),
            "]}",
            tail,
        ):
            out.write(part.encode("utf-8", "replace"))


def _frame(title: str, earned: str) -> tuple[str, str]:
    """The page before and after its data."""
    html, style = ((_PARTS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    script = "".join((_PARTS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'"
    for name, value in (
        ("policy", policy),
        ("title", escape(title)),
        ("earned", escape(earned)),
        ("style", style),
        ("script", script),
    ):
        html = html.replace(f"{{{{{name}}}}}", value)
    head, _, tail = html.partition("{{data}}")
    return head, tail


def _digest(code: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}"


def _about(run: RunEpisodes, more: bool) -> dict[str, Any]:
    config = run.config
    return {
        "name": run.directory.resolve().name,
        "model": config.get("model", {}).get("name"),
        "earned": "reward",
        "more": "Only the newest episodes are here; --limit and --step show older ones." if more else "",
        "logprob_scale": _LOGPROB_SCALE,
        "problems": list(dict.fromkeys(run.problems)),
    }


def _words(vocabulary: dict[int, int], texts: TokenTexts | None) -> dict[str, Any]:
    return {"ids": list(vocabulary), "texts": [texts.text(token) for token in vocabulary] if texts else None}


def _episode(shown: InspectedEpisode, vocabulary: dict[int, int]) -> dict[str, Any]:
    episode, score, training = shown.episode, shown.score, shown.training
    return {
        "step": shown.source.step,
        "evaluation": shown.source.evaluation,
        "group": shown.group,
        "position": shown.position,
        "id": shown.question.id,
        "question": shown.question.text,
        "gold": shown.question.answers,
        "kind": shown.kind,
        "answer": episode.answer,
        "outcome": shown.outcome,
        "reward": score.reward,
        "em": score.em,
        "f1": score.f1,
        "fault": shown.fault,
        "why": shown.reward_in_words,
        "training": shown.training_in_words,
        "advantage": training and training.advantage,
        "trained": training and training.skip_reason is None,
        "rewards": shown.rewards or None,
        "stop": episode.stop_reason,
        "searches": episode.searches,
        "corrected": shown.corrected,
        "steps": _steps(shown),
        "seconds": [round(episode.generate_seconds, 2), round(episode.search_seconds, 2)],
        "written": episode.sampled_tokens,
        "read": len(episode.token_ids) - episode.sampled_tokens,
        "versions": episode.weight_versions,
        "branch": shown.branch_in_words,
        "tokens": _tokens(episode, vocabulary),
    }


def _steps(shown: InspectedEpisode) -> list[dict[str, Any]]:
    """The trace; a result also has its newly found answers, and whether its query corrected the one before."""
    facts = iter(shown.facts)
    steps: list[dict[str, Any]] = []
    for step in trace_of(shown.episode):
        described: dict[str, Any] = {"kind": step.kind, "text": step.text}
        if step.kind == "result":
            fact = next(facts)
            unseen = shown.last_result_unseen and fact is shown.facts[-1]
            described |= {"found": fact.found, "corrects": fact.corrects, "unseen": unseen}
        steps.append(described)
    return steps


def _tokens(episode: Episode, vocabulary: dict[int, int]) -> dict[str, Any]:
    """`ids` index the vocabulary; `spans` are [length, weight version], "" for the retriever's text."""
    authors = [v if s else "" for v, s in zip(episode.versions, episode.sampled, strict=True)]
    return {
        "ids": [vocabulary.setdefault(token, len(vocabulary)) for token in episode.token_ids],
        "logprobs": [_scaled(lp) for lp, s in zip(episode.logprobs, episode.sampled, strict=True) if s],
        "spans": [[len(list(same)), version] for version, same in groupby(authors)],
    }


def _scaled(logprob: float) -> int | None:
    return round(logprob * _LOGPROB_SCALE) if math.isfinite(logprob) else None


def as_json(value: object) -> str:
    """JSON that is safe inside a script element, whatever its strings hold."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
