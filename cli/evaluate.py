"""`research eval`: asks the running policy the held-out questions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer

from cli.show import show_evaluations
from research.atomic_io import atomic_write
from research.clients import PolicyClient
from research.episode.build import build_agent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.errors import ServiceError
from research.model_paths import local_checkpoint
from research.questions.sampling import first_of_each_kind
from research.questions.sources import load_questions
from research.retrievers import retriever_of
from research.scoring.evaluate import evaluate, figures_as_dict
from research.settings import Settings
from services.process.progress import progress
from services.web.auth import API_KEY_VARIABLE, environment_secret


async def evaluate_policy(settings: Settings, output: Path | None, console: Console) -> None:
    """Ask, score and print; with `output`, write one line of JSON per episode.

    Raises ServiceError if questions could not be asked, or several versions of the weights answered: after all is
    printed and written.
    """
    limits = settings.episode
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    held_out = load_questions(settings.questions.held_out, "held_out", settings.paths.data)
    questions = first_of_each_kind(held_out, settings.evaluation.per_kind)
    tokenizer = AutoTokenizer.from_pretrained(local_checkpoint(settings.model.name, settings.paths.data))
    key = environment_secret(API_KEY_VARIABLE)
    async with (
        retriever_of(settings.endpoints.retriever_urls, timeout=limits.search_timeout) as retriever,
        PolicyClient(settings.endpoints.policy_urls[0], timeout=limits.request_timeout, api_key=key) as policy,
    ):
        await retriever.check_ready()
        await policy.check_ready()
        agent = build_agent(settings, policy, retriever, HuggingFaceTokenizer(tokenizer))
        with progress("asking", "questions", total=len(questions)) as advance:
            answered, figures = await evaluate(
                agent,
                questions,
                concurrency=settings.policy.max_num_seqs,
                on_answer=lambda: advance(1),
            )
    show_evaluations({"now": figures_as_dict(figures)}, console)
    if output is not None:
        with atomic_write(output) as out:
            for a in answered:
                record = {"question": asdict(a.question), "score": asdict(a.score), "episode": asdict(a.episode)}
                out.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        console.print(f"{len(answered)} episodes are in {output}", highlight=False)
    if failed := sum(each.failed for each in figures.values()):
        raise ServiceError(
            f"{failed} of {len(questions)} questions could not be asked, and are in no figure; see the services' logs, "
            "and ask again"
        )
    if len(versions := sorted({version for a in answered for version in a.episode.weight_versions})) > 1:
        raise ServiceError(
            f"weight versions {', '.join(versions)} answered: the policy got new ones meanwhile, and the figures are "
            "of no single one; ask again while no run is under way"
        )
