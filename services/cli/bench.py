"""`research bench`: strategies against a question set, on the running services, into resumable records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table
from transformers import AutoTokenizer

from research.assets import local_checkpoint
from research.bench.records import Records, read_records
from research.bench.run import ask_all
from research.bench.table import figures_by_kind
from research.clients import HttpService, PolicyClient, RetrieverClient
from research.episode import Sampling, SearchAgent
from research.prompts import load_prompt
from research.questions import Question
from research.questions.model import digest_of
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from research.schemas import Strategy as Name
from research.settings import Settings
from research.strategies import BASELINES, RESEARCH, BaselineStrategy, ReSearchStrategy, Strategy
from research.strategies.token_chat import TokenChat
from research.tokens import HuggingFaceTokenizer
from services.web.auth import API_KEY_VARIABLE, environment_secret

GREEDY = Sampling(0.0)


async def run_bench(settings: Settings, names: Sequence[Name], out: Path, console: Console) -> None:
    """Ask the held-out questions by each strategy and print a table; what `out` holds already is not asked again.

    Raises:
        ConfigurationError: `out` is of a run under other conditions.
        ServiceError: a service does not answer.
    """
    limits = settings.episode
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    questions = first_of_each_kind(held_out, settings.evaluation.per_kind)
    words = HuggingFaceTokenizer(
        AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    )
    key = environment_secret(API_KEY_VARIABLE)
    async with (
        RetrieverClient(settings.trainer.retriever_url, timeout=limits.search_timeout) as retriever,
        PolicyClient(settings.trainer.policy_urls[0], timeout=limits.request_timeout, api_key=key) as policy,
    ):
        served = await _served(policy, retriever)
        policy.weight_version = served["weight_version"]
        for name in names:
            strategy = _strategy(name, settings, policy, retriever, words)
            conditions = {**_conditions(name, settings, questions), **served}
            with (
                Records(out / f"{name}.jsonl", conditions) as records,
                Progress(
                    *Progress.get_default_columns(), TimeRemainingColumn(), console=console, transient=True
                ) as bar,
            ):
                task = bar.add_task(name, total=len(questions), completed=len(records.done))
                failed = await ask_all(
                    strategy,
                    questions,
                    records,
                    sampling=GREEDY,
                    concurrency=settings.policy.max_sequences,
                    on_answer=partial(bar.advance, task),
                )
            if failed:
                console.print(f"{name}: {len(failed)} questions could not be asked; run it again to ask them")
    show_bench(out, names, console)


def show_bench(out: Path, names: Sequence[str], console: Console) -> None:
    """A table with a row for each strategy and kind of question."""
    table = Table("strategy", "questions", title="held-out questions, greedy")
    for column in ("EM [95 %]", "F1", "cover-EM", "recall", "searches", "tokens", "seconds", "cut", "n"):
        table.add_column(column, justify="right")
    for name in names:
        for kind, found in figures_by_kind(read_records(out / f"{name}.jsonl")[1]).items():
            table.add_row(
                name,
                kind,
                f"{found.em.mean:.3f} [{found.em.low:.2f}, {found.em.high:.2f}]",
                f"{found.f1.mean:.3f}",
                f"{found.cover_em.mean:.3f}",
                "" if found.recall is None else f"{found.recall:.3f}",
                f"{found.searches:.2f}",
                f"{found.tokens:.0f}",
                f"{found.seconds:.1f}",
                str(found.truncated),
                str(found.em.n),
            )
    console.print(table)


def _strategy(
    name: Name, settings: Settings, policy: PolicyClient, retriever: RetrieverClient, words: HuggingFaceTokenizer
) -> Strategy:
    limits, context = settings.episode, settings.model.max_length
    if name == RESEARCH:
        return ReSearchStrategy(SearchAgent(policy, retriever, words, load_prompt(limits.prompt), limits, context))
    return BaselineStrategy(
        BASELINES[name],
        TokenChat(policy, words, context),
        retriever,
        top_k=limits.top_k,
        max_tokens=limits.max_turn_tokens or limits.max_tokens,
    )


def _conditions(name: str, settings: Settings, questions: Sequence[Question]) -> dict[str, Any]:
    """What an answer depends on, of what the settings say."""
    limits = settings.episode
    prompt = load_prompt(limits.prompt).text if name == RESEARCH else name
    shown = ("top_k", "max_searches", "max_tokens", "max_turn_tokens", "max_passage_tokens")
    return {
        "strategy": name,
        "questions": digest_of(questions),
        "prompt": hashlib.sha256(prompt.encode()).hexdigest(),
        "context": settings.model.max_length,
        "dtype": settings.model.dtype,
        "limits": {each: getattr(limits, each) for each in shown},
    }


async def _served(policy: HttpService, retriever: HttpService) -> dict[str, Any]:
    """What an answer depends on, of what the services say of themselves."""
    model, index = await policy.request("GET", "/info"), await retriever.request("GET", "/info")
    revisions = {each["name"]: each["revision"] for each in index["indexes"]}
    return {
        "model": model["model"],
        "weight_version": model["weight_version"],
        "encoder": index["encoder"],
        "index": revisions[index["index"]],
    }
