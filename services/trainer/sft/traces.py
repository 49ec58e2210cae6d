"""Traces for the supervised phase: real searches, scripted words.

A model that cannot follow the format gets no reward and so learns nothing from GRPO. A handful of traces shows it the
format. The episode code of training makes them, with a script in the policy's place, so the passages are those that
the retriever really finds. A trace whose search does not find what it needs is discarded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.episode.agent import Episode, Finish, Generation, Sampling, SearchAgent
from research.episode.tokenizer import Tokenizer
from research.forms.form import PromptForm
from research.forms.tags import TAGS
from research.questions import Hop, Question
from services.trainer.sft.writing import writing_of


@dataclass(slots=True)
class ScriptedPolicy:
    """Writes prepared turns, one per call, with zeros as log-probabilities; the last ends by itself, or all do."""

    turns: list[str]
    tokenizer: Tokenizer
    all_end: bool = False
    written: int = 0

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = self.turns[self.written]
        self.written += 1
        ends = self.all_end or self.written == len(self.turns)
        ids = self.tokenizer.encode(text) + ([self.tokenizer.eos_id] if ends else [])
        return Generation(ids, [0.0] * len(ids), ["script"] * len(ids), Finish.EOS if ends else Finish.SEARCH)


def script(question: Question, *, failed_first: bool, form: PromptForm = TAGS) -> list[str]:
    """The turns of an ideal episode; with `failed_first`, its first search is too vague and is then corrected."""
    turns: list[str] = []
    writing = writing_of(form)
    learnt, found = "", []
    for number, hop in enumerate(question.hops):
        goal = f"{_opening(number, len(question.hops))} {hop.goal}."
        if failed_first and number == 0:
            turns.append(writing.search(goal, vague_query(hop)))
            learnt = "That did not help. I should search again. "
        turns.append(writing.search(learnt + goal, hop.query))
        found.append(hop.answer)
        learnt = f"I found {hop.answer}. "
    if question.kind == "comparison":
        learnt = f"I found {' and '.join(found)}. "
    turns.append(writing.answer(learnt.strip(), question.answers[0]))
    return turns


def _opening(number: int, hops: int) -> str:
    """Says from the start whether one search is enough, so that the model plans before it reads anything."""
    if hops == 1:
        return "I need to find"
    return "First I need to find" if number == 0 else "Now I need to find"


def vague_query(hop: Hop) -> str:
    """The query without its subject: at most its last two words."""
    return " ".join(hop.query.split()[-2:])


async def make_trace(agent: SearchAgent, question: Question, *, failed_first: bool) -> Episode | None:
    """Run a script against the real retriever; None if the trace would show something untrue.

    Each proper search must return a passage with the answer of its hop, and the vague one must not.
    """
    form = agent.prompt.form
    turns = script(question, failed_first=failed_first, form=form)
    policy = ScriptedPolicy(turns, agent.tokenizer, all_end=not form.stop)
    episode = await replace(agent, policy=policy).run(question.text, Sampling())
    searching = [turn for turn in episode.turns if turn.query is not None]
    if failed_first and searching and question.hops[0].answer in searching.pop(0).result:
        return None
    sound = len(searching) == len(question.hops) and all(
        hop.answer in turn.result for hop, turn in zip(question.hops, searching, strict=True)
    )
    return episode if sound and episode.format_fault is None else None


async def make_traces(
    agent: SearchAgent, questions: Sequence[Question], counts: dict[str, int], retry_fraction: float, seed: int
) -> list[Episode]:
    """Draw questions of each kind until each kind has as many traces as `counts` asks for, or no question is left."""
    rng = random.Random(seed)
    traces: list[Episode] = []
    for kind, wanted in counts.items():
        pool = [q for q in questions if q.kind == kind and q.hops]
        rng.shuffle(pool)
        made = 0
        for question in pool:
            if made >= wanted:
                break
            trace = await make_trace(agent, question, failed_first=rng.random() < retry_fraction)
            if trace is not None:
                traces.append(trace)
                made += 1
    rng.shuffle(traces)
    return traces
