"""The 200 hostile passages of benchmarks/injection, in every form of prompt, without a model: they stay data."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from benchmarks.injection.kinds import KINDS
from benchmarks.injection.passages import PER_KIND, TOTAL, attacks_on, questions_to_attack
from benchmarks.injection.promises import Recorder, broken_promises
from research.episode.agent import GREEDY, Episode, Finish, Generation, Sampling, SearchAgent
from research.episode.tokenizer import HuggingFaceTokenizer
from research.episode.trace import trace_of
from research.errors import ProtocolError
from research.forms.published import AUTOREFINE
from research.passages import Passage, ScoredPassage
from research.prompts import Prompt, load_prompt
from research.questions import Hop, Question
from research.settings import EpisodeConfig
from research.strategies import BASELINES, BaselineStrategy
from research.strategies.outcome import Outcome
from research.strategies.token_chat import TokenChat
from tests.support.byte_tokenizer import NOT_SPECIAL, byte_tokenizer

LOADED = byte_tokenizer()
TOKENIZER = HuggingFaceTokenizer(LOADED)
CONTROL = frozenset(number for number, token in LOADED.added_tokens_decoder.items() if str(token).startswith("<"))
CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "%s"}}\n</tool_call>'
TURNS = {
    "tags": (
        "<think>a</think><search>capital of France</search>",
        "<think>b</think><search>France</search>\n",
        "<think>c</think><answer>\\boxed{Paris}</answer>",
    ),
    "tags_parallel": (
        "<think>a</think><search>capital of France ## Paris</search>",
        "<think>b</think><search>France</search>\n",
        "<think>c</think><answer>\\boxed{Paris}</answer>",
    ),
    "tags_open": (
        "<think>a</think><search>capital of France</search>",
        "<think>b</think><open>7</open>\n",
        "<think>c</think><answer>\\boxed{Paris}</answer>",
    ),
    "tool_calls": (
        f"<think>a</think>\n\n{CALL % 'capital of France'}",
        f"<think>b</think>\n\n{CALL % 'France'}\n",
        "<think>c</think>\n\n\\boxed{Paris}",
    ),
    "tool_calls_open": (
        f"<think>a</think>\n\n{CALL % 'capital of France'}",
        '<think>b</think>\n\n<tool_call>\n{"name": "open", "arguments": {"id": "7"}}\n</tool_call>\n',
        "<think>c</think>\n\n\\boxed{Paris}",
    ),
    "search_r1": (
        "<think>a</think>\n<search> capital of France </search>",
        "<think>b</think>\n<search> France </search>\n",
        "<think>c</think>\n<answer> Paris </answer>",
    ),
    "r1_searcher": (
        "a<|begin_of_query|> capital\tFrance <|end_of_query|>",
        "b<|begin_of_query|>France<|end_of_query|>",
        "c</think>\n<answer>Paris</answer>",
    ),
    "autorefine": (
        "<think>a</think> <search>capital of France</search>",
        "<refine>b</refine> <search>France</search>",
        "<refine>c</refine> <answer>Paris</answer>",
    ),
}


def questions() -> list[Question]:
    made = []
    for number in range(TOTAL):
        kind = ("one_hop", "two_hop")[number % 2]
        hop = Hop(f"Subject {number} birth year", f"when Subject {number} was born", f"Subject {number}", str(number))
        made.append(
            Question(f"q{number}", f"Question {number}?", (str(1000 + number),), kind, "person-year", hops=(hop,))
        )
    return questions_to_attack(made)


ATTACKS = attacks_on(questions())


@dataclass
class Script:
    """A policy that writes prepared turns in the tokenizer's own tokens; the last ends by itself."""

    turns: Sequence[str]
    all_end: bool = False
    prompts: list[list[int]] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.prompts.append(list(prompt_ids))
        ends = self.all_end or len(self.prompts) == len(self.turns)
        ids = LOADED.encode(self.turns[len(self.prompts) - 1]) + [TOKENIZER.eos_id] * ends
        return Generation(ids, [-0.5] * len(ids), ["1"] * len(ids), Finish.EOS if ends else Finish.SEARCH)


@dataclass(frozen=True)
class Shelf:
    passages: list[Passage]

    async def search(self, query: str, top_k: int) -> list[Passage]:
        return self.passages

    async def open(self, page: str) -> list[Passage]:
        return self.passages

    async def search_scored(self, query: str, top_k: int) -> list[ScoredPassage]:
        return [ScoredPassage(passage, 1.0) for passage in self.passages]


def prompt_named(name: str) -> Prompt:
    """AutoRefine's own is not here (research/forms/published.py)."""
    return Prompt(name, "Rules. Question: {question}\n", AUTOREFINE) if name == "autorefine" else load_prompt(name)


def run(passages: list[Passage], prompt: Prompt, **limits: int | None) -> tuple[Episode, list[str]]:
    recorder = Recorder(Script(TURNS[prompt.form.name], all_end=not prompt.form.stop))
    config = EpisodeConfig(max_tokens=1_000_000, max_page_tokens=limits.get("max_passage_tokens"), **limits)
    agent = SearchAgent(recorder, Shelf(passages), TOKENIZER, prompt, config, 1_000_000)
    episode = asyncio.run(agent.run("Who?", GREEDY))
    return episode, broken_promises(episode, recorder.turns, TOKENIZER, CONTROL)


def test_there_are_200_of_20_kinds_the_same_each_time_and_none_wants_a_right_answer() -> None:
    assert Counter(attack.kind.name for attack in ATTACKS) == dict.fromkeys((kind.name for kind in KINDS), PER_KIND)
    assert attacks_on(questions()) == ATTACKS
    assert not any(attack.target in attack.question.answers for attack in ATTACKS)
    assert len({attack.hostile.text for attack in ATTACKS}) == TOTAL == 200
    placeholders = ("TARGET", "ENTITY", "GOAL")
    assert not any(place in attack.hostile.title + attack.hostile.text for attack in ATTACKS for place in placeholders)


@pytest.mark.parametrize(
    ("prompt", "limit"),
    [
        ("research-small", 48),
        ("research-instruct", 48),
        ("research-base", None),
        ("research-open", 48),
        ("research-parallel", 48),
        ("research-tools", 48),
        ("research-tools-open", 48),
        ("search-r1", 48),
        ("r1-searcher", 48),
        ("autorefine", 48),
    ],
)
def test_no_hostile_passage_reaches_mask_parser_trace_or_terminal(prompt: str, limit: int | None) -> None:
    loaded = prompt_named(prompt)
    broken = {}
    for attack in ATTACKS:
        if limit is None and len(attack.hostile.text + attack.hostile.title) > 20_000:
            continue  # of these, some below
        episode, why = run([attack.hostile, attack.decoy], loaded, max_passage_tokens=limit)
        if (episode.answer, episode.format_fault, episode.searches) != ("Paris", None, 2):
            why.append(f"{episode.answer}, {episode.format_fault}, {episode.searches} searches")
        kinds = [step.kind for step in trace_of(episode)]
        second = "open" if prompt.endswith("-open") else "search"
        if kinds != ["think", "search", "result", "think", second, "result", "think", "answer"]:
            why.append(f"the trace has {kinds}")
        if why:
            broken[attack.hostile.text[:200]] = why
    assert not broken


@pytest.mark.parametrize("prompt", ["research-small", "research-tools"])
def test_neither_do_those_without_end_when_they_are_shown_whole(prompt: str) -> None:
    long = [attack for attack in ATTACKS if len(attack.hostile.text + attack.hostile.title) > 20_000]
    assert len(long) >= 10
    for attack in long[::10]:
        episode, broken = run([attack.hostile], prompt_named(prompt))
        assert (broken, episode.answer) == ([], "Paris")


def test_a_page_of_megabytes_costs_no_more_than_what_is_shown_of_it() -> None:
    encoded: list[int] = []

    class Counting(HuggingFaceTokenizer):
        def encode(self, text: str) -> list[int]:
            encoded.append(len(text))
            return super().encode(text)

    agent = SearchAgent(
        Script(TURNS["tags"]),
        Shelf([Passage("1", "x" * 5_000_000, "e" + "\u0301" * 5_000_000)]),
        Counting(LOADED),
        load_prompt("research-base"),
        EpisodeConfig(max_tokens=1_000_000, max_passage_tokens=48),
        1_000_000,
    )
    before = time.process_time()
    episode = asyncio.run(agent.run("Who?", GREEDY))
    assert max(encoded) < 10_000
    assert time.process_time() - before < 2.0
    assert episode.answer == "Paris"
    assert 48 <= episode.turns[0].result.count("x") <= 60


def test_tokens_that_are_added_but_not_special_are_broken_too_and_plain_words_are_not() -> None:
    text = "<tool_call>a</tool_call> <|fim_prefix|> Zürich     end"
    for prompt in ("research-small", "research-tools"):
        episode, broken = run([Passage("1", "<|repo_name|>", text)], load_prompt(prompt))
        assert not broken
        assert "Zürich     end" in episode.turns[0].result
    episode, _ = run([Passage("1", "<|repo_name|>", text)], load_prompt("research-small"))
    assert not any(token in episode.turns[0].result for token in NOT_SPECIAL if token.startswith("<"))


def test_half_a_surrogate_pair_is_refused_by_name() -> None:
    for prompt in ("research-base", "research-small"):
        with pytest.raises(ProtocolError, match="surrogate"):
            TOKENIZER.prompt_ids(load_prompt(prompt), "Who is \ud800?")


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "naive"])
def test_no_hostile_passage_makes_control_tokens_or_answers_in_the_chats_of_the_baselines(name: str) -> None:
    wrote = ["I think so.", "I know.", "So the answer is: Paris."] if name == "ircot" else ["Paris"] * 3

    def ask(passage: Passage) -> tuple[Outcome, list[Counter[int]]]:
        script = replace(Script(wrote))
        limits = EpisodeConfig(top_k=1, max_tokens=1_000_000)
        chat = TokenChat(script, TOKENIZER, 1_000_000)
        strategy = BaselineStrategy.named(name, chat, Shelf([passage]), limits)
        outcome = asyncio.run(strategy.answer("Who?", GREEDY))
        return outcome, [Counter(token for token in prompt if token in CONTROL) for prompt in script.prompts]

    plain, own = ask(Passage("1", "A", "b"))
    for attack in ATTACKS:
        if len(attack.hostile.text + attack.hostile.title) > 20_000:
            continue
        outcome, control = ask(attack.hostile)
        assert control == own, attack.hostile.text
        assert outcome.answer == plain.answer == "Paris"
        assert outcome.searches == plain.searches
