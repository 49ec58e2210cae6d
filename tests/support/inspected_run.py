"""A run directory as the trainer writes it, for the tests of `research inspect`."""

from __future__ import annotations

from pathlib import Path

from apps.inspect.read import RunEpisodes
from research.atomic_io import write_json
from research.config import load_settings
from research.episode.agent import Episode, StopReason, Turn
from research.forms.tags import TAGS
from research.passages import Passage
from research.questions import Hop, Question
from research.scoring.evaluate import Answered
from research.scoring.reward import score
from services.trainer.groups import Group, Member
from services.trainer.learner.advantages import compute_advantages, rewards_of
from services.trainer.run_dir.run_dir import RunDirectory
from tests.support.characters import CharacterTokenizer

PARIS = Question("q/paris", "Capital of France?", ("Paris",), "one_hop", hops=(Hop("q", "g", "France", "Paris"),))
ROME = Question("q/rome", "Capital of Italy?", ("Rome", "Roma"), "two_hop")
HELPFUL = ("capital of France", "Paris is the capital of France.")
USELESS = ("capital", "Capital is a term of economics.")


def episode(answer: str, *searches: tuple[str, str], thought: str = "hm", version: str = "1") -> Episode:
    """Searches are (query, text found) pairs; an empty answer is an episode that was cut off by the token limit."""
    made = Episode("?", [2])
    tokens = CharacterTokenizer()
    for query, text in searches:
        passages = [Passage("1", "Title", text)]
        turn = Turn(f"<think>{thought}</think><search>{query}</search>", query, passages, TAGS.result(passages, ()))
        _append(made, tokens.encode(turn.text), version)
        _append(made, tokens.encode(turn.result), "")
        made.turns.append(turn)
    end = f"<think>{thought}</think><answer>\\boxed{{{answer}}}</answer>" if answer else f"<think>{thought}"
    made.turns.append(Turn(end))
    _append(made, tokens.encode(end), version)
    made.stop_reason = StopReason.ANSWERED if answer else StopReason.TOKEN_LIMIT
    return made


def _append(to: Episode, ids: list[int], version: str) -> None:
    to.token_ids += ids
    to.sampled += [bool(version)] * len(ids)
    to.logprobs += [-0.25 if version else 0.0] * len(ids)
    to.versions += [version] * len(ids)


def group(name: str, question: Question, *episodes: Episode) -> Group:
    scored = [Member(e, score(e.answer, question.answers, e.format_fault), p) for p, e in enumerate(episodes)]
    return Group(name, question, scored)


def write_step(run: RunDirectory, step: int, groups: list[Group], *overrides: str, updated: bool = True) -> None:
    """Write the episodes of a step as the loop does."""
    settings = load_settings(overrides=["seed=7", "grpo.scale_advantages=true", *overrides])
    batch = compute_advantages(groups, rewards_of(groups, settings, step), settings.grpo)
    run.write_episodes(step, groups, batch.uses(updated=updated))


def write_run(directory: Path, *overrides: str) -> RunEpisodes:
    """Two steps (the second made no update) of two groups, and the evaluation `after`."""
    record = RunDirectory(directory)
    first = [
        group(
            "1.0",
            PARIS,
            episode("Paris", HELPFUL),
            episode("Paris", USELESS, HELPFUL),
            episode("Lyon", USELESS),
            episode("", USELESS),
        ),
        group("1.1", ROME, episode("Milan"), episode("Turin")),
    ]
    write_step(record, 1, first, *overrides)
    second = [group("2.0", ROME, episode("Rome", version="2"), episode("Milan"))]
    write_step(record, 2, second, *overrides, updated=False)
    answered = [Answered(q, e, score(e.answer, q.answers, None)) for q, e in ((PARIS, episode("Paris", HELPFUL)),)]
    record.write_evaluation("after", answered, {})
    write_json(directory / "config.json", {"seed": 7})
    return RunEpisodes(directory)
