"""The built-in question sets on the real corpus and retriever: every chain holds, the splits are clean."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from builtin.make_questions import builtin_questions_are_current
from builtin.questions import EDITION, verify
from builtin.questions.extract.article import stands_in
from research.clients import RetrieverClient
from research.config import load_settings
from research.episode.agent import Episode, Sampling, SearchAgent, StopReason
from research.episode.tokenizer import HuggingFaceTokenizer
from research.passages import Passage, iter_passages
from research.prompts import load_prompt
from research.questions import Question, read_questions
from research.questions.sources import builtin_path
from research.scoring.reward import score
from research.settings import Settings
from services.trainer.sft.traces import ScriptedPolicy, script
from tests.conftest import Server

SERVED_WORDS = 40
AT_LEAST = {
    "train": {"one_hop": 800, "two_hop": 300, "three_hop": 80, "comparison": 150},
    "entity": {"one_hop": 300, "two_hop": 220, "three_hop": 60, "comparison": 150},
    "template": {"one_hop": 220, "two_hop": 150, "three_hop": 40, "comparison": 60},
}
KINDS = list(AT_LEAST["train"])
EPISODES_AT_ONCE = 64


@pytest.fixture(scope="module")
def settings(data_dir: Path) -> Settings:
    return load_settings(overrides=[f"paths.data={data_dir}"])


@pytest.fixture(scope="module")
def passages(data_dir: Path) -> dict[str, Passage]:
    return {passage.title: passage for passage in iter_passages(data_dir / "corpus" / "wikipedia-leads.jsonl")}


@pytest.fixture(scope="module")
def sets(settings: Settings) -> dict[str, list[Question]]:
    """The three sets: train, held out by entity, held out by template."""
    if not builtin_questions_are_current(settings):
        pytest.fail("the built-in questions are missing or of another edition; run `make prepare`")
    train, held_out = (read_questions(builtin_path(settings.paths.data, part)) for part in ("train", "held_out"))
    return {
        "train": train,
        "entity": [question for question in held_out if not question.new_template],
        "template": [question for question in held_out if question.new_template],
    }


@pytest.fixture(scope="module")
def everything(sets: Mapping[str, Sequence[Question]]) -> list[Question]:
    return [question for part in sets.values() for question in part]


def test_every_search_of_every_question_finds_what_it_is_for(
    settings: Settings, everything: list[Question], shared_retriever: Server
) -> None:
    faults = asyncio.run(_faults(settings, everything, shared_retriever.url))
    assert faults == {}


async def _faults(settings: Settings, questions: Sequence[Question], url: str) -> dict[str, list[str]]:
    """Play every question's ideal episode against the retriever, many at once, so that queries meet in its batches."""
    model = settings.paths.data / "models" / "smollm2-135m-instruct"
    tokenizer = HuggingFaceTokenizer(AutoTokenizer.from_pretrained(model))
    places = asyncio.Semaphore(EPISODES_AT_ONCE)

    async def play(question: Question) -> list[str]:
        agent = SearchAgent(
            policy=ScriptedPolicy(script(question, failed_first=False), tokenizer),
            retriever=retriever,
            tokenizer=tokenizer,
            prompt=load_prompt(settings.episode.prompt),
            limits=settings.episode,
            context_length=settings.model.max_model_len,
        )
        async with places:
            return _faults_of(question, await agent.run(question.text, Sampling()))

    async with RetrieverClient(url) as retriever:
        found = await asyncio.gather(*map(play, questions))
    return {question.id: faults for question, faults in zip(questions, found, strict=True) if faults}


def _faults_of(question: Question, episode: Episode) -> list[str]:
    faults = []
    if episode.stop_reason is not StopReason.ANSWERED or episode.format_fault is not None:
        faults.append(f"{episode.stop_reason}, {episode.format_fault}")
    if score(episode.answer, question.answers, episode.format_fault).em != 1:
        faults.append(f"answered {episode.answer!r}")
    searching = [turn for turn in episode.turns if turn.query is not None]
    for number, (hop, turn) in enumerate(zip(question.hops, searching, strict=True)):
        if turn.passages[0].title != hop.title:
            faults.append(f"{hop.query!r} finds {turn.passages[0].title!r} instead of {hop.title!r}")
        if not stands_in(hop.answer, turn.result) or (hop.beside and not stands_in(hop.beside, turn.result)):
            faults.append(f"{hop.answer!r} does not stand in what {hop.query!r} shows")
        later = [other.answer for other in question.hops[number + 1 :]] if question.kind != "comparison" else []
        faults += [f"{hop.query!r} shows {answer!r} already" for answer in later if stands_in(answer, turn.result)]
    return faults


def test_sets_of_another_edition_or_another_retriever_are_noticed(settings: Settings, tmp_path: Path) -> None:
    for part in ("indexes", "models", "questions"):
        (tmp_path / part).symlink_to(settings.paths.data.resolve() / part)
    here = [f"paths.data={tmp_path}"]
    assert builtin_questions_are_current(load_settings(overrides=here))
    assert not builtin_questions_are_current(load_settings(overrides=[*here, "episode.max_passage_tokens=32"]))
    # A trained checkpoint cuts passages as its base does: nothing is searched for again.
    trained = tmp_path / "version-000009"
    trained.mkdir()
    shutil.copyfile(tmp_path / "models" / "smollm2-135m-instruct" / "tokenizer.json", trained / "tokenizer.json")
    assert builtin_questions_are_current(load_settings(overrides=[*here, f"model.name={trained}"]))
    (trained / "tokenizer.json").write_text("{}")
    assert not builtin_questions_are_current(load_settings(overrides=[*here, f"model.name={trained}"]))
    (tmp_path / "questions").unlink()
    shutil.copytree(settings.paths.data / "questions", tmp_path / "questions")
    note = tmp_path / "questions" / "builtin.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "edition": EDITION - 1}))
    assert not builtin_questions_are_current(load_settings(overrides=here))
    note.unlink()
    assert not builtin_questions_are_current(load_settings(overrides=here))


def test_every_question_is_sound(passages: dict[str, Passage], everything: list[Question]) -> None:
    problems = {question.id: found for question in everything if (found := verify(question, passages, SERVED_WORDS))}
    assert problems == {}


def test_texts_and_ids_are_unique(everything: list[Question]) -> None:
    assert len({question.id for question in everything}) == len(everything)
    assert len({question.text for question in everything}) == len(everything)


def test_nothing_held_out_asks_about_what_training_asks_about(sets: dict[str, list[Question]]) -> None:
    titles, entities, templates = (
        {name: {value for question in part for value in values(question)} for name, part in sets.items()}
        for values in (
            lambda question: [hop.title for hop in question.hops],
            lambda question: [question.entity],
            lambda question: [question.template],
        )
    )
    assert titles["train"].isdisjoint(titles["entity"] | titles["template"])
    assert entities["train"].isdisjoint(entities["entity"])
    assert templates["train"].isdisjoint(templates["template"])
    assert templates["entity"].isdisjoint(templates["template"])


@pytest.mark.parametrize("name", list(AT_LEAST))
def test_there_are_enough_of_each_kind(sets: dict[str, list[Question]], name: str) -> None:
    kinds = Counter(question.kind for question in sets[name])
    assert kinds.keys() == AT_LEAST[name].keys()
    for kind, least in AT_LEAST[name].items():
        assert kinds[kind] >= least


@pytest.mark.parametrize("kind", KINDS)
def test_no_template_dominates_the_held_out_questions(sets: dict[str, list[Question]], kind: str) -> None:
    templates = Counter(question.template for question in sets["entity"] if question.kind == kind)
    assert max(templates.values()) <= 0.35 * templates.total()


@pytest.mark.parametrize("name", list(AT_LEAST))
@pytest.mark.parametrize("kind", ["one_hop", "two_hop", "three_hop"])
def test_no_answer_pays_without_a_search(sets: dict[str, list[Question]], name: str, kind: str) -> None:
    answers = Counter(question.answers[0] for question in sets[name] if question.kind == kind)
    assert max(answers.values()) <= max(8, 0.06 * answers.total())


@pytest.mark.parametrize("name", list(AT_LEAST))
def test_comparisons_are_balanced(sets: dict[str, list[Question]], name: str) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for question in sets[name]:
        if question.kind == "comparison":
            counts[question.template, _place_of_answer(question)] += 1
    for template in {template for template, _ in counts}:
        places = {place: count for (of, place), count in counts.items() if of == template}
        assert places.keys() in ({"yes", "no"}, {"first", "second"})
        assert len(set(places.values())) == 1, (template, places)


def _place_of_answer(question: Question) -> str:
    answer = question.answers[0]
    if answer in ("yes", "no"):
        return answer
    first, second = (question.hops[number].goal.find(answer) >= 0 for number in (0, 1))
    assert first != second
    return "first" if first else "second"
