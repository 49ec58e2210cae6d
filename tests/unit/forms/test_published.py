"""Forms of published checkpoints: prompts, passages, queries and ends are those of the projects' own programs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.episode.agent import Episode, Finish, Generation, Sampling, SearchAgent, StopReason, Turn
from research.episode.tokenizer import HuggingFaceTokenizer
from research.episode.trace import trace_of
from research.forms.published import AUTOREFINE, R1_SEARCHER, SEARCH_R1
from research.forms.tags import TAGS, TagForm
from research.passages import Passage
from research.prompts import Prompt, load_prompt
from research.scoring.thoughts import is_thoughtless, plans
from research.settings import EpisodeConfig
from tests.support.byte_tokenizer import byte_tokenizer
from tests.support.characters import Shelf
from tests.unit.episode.test_tag_parser import parts_of

FOUND = [Passage("1", "Paris", "Paris is a city.\nIt is old."), Passage("2", "France", "A country.")]
LOADED = byte_tokenizer()
TOKENIZER = HuggingFaceTokenizer(LOADED)


# As `_passages2string` and `execute_predictions` of Search-R1 make it of wiki-18, whose titles are in quotes.
SEARCH_R1_DOCS = """Doc 1(Title: "Paris") Paris is a city.
It is old.
Doc 2(Title: "France") A country."""
SEARCH_R1_SHOWN = f"\n\n<information>{SEARCH_R1_DOCS}</information>\n\n"


def test_passages_are_shown_as_the_projects_do() -> None:
    assert SEARCH_R1.result(FOUND, ()) == SEARCH_R1_SHOWN
    assert AUTOREFINE.result(FOUND, ()) == SEARCH_R1_SHOWN.replace("information>", "documents>")
    assert R1_SEARCHER.result(FOUND, ()) == (
        "\n\n<|begin_of_documents|>\n(1)Title: Paris Text:  Paris is a city.\nIt is old.\n"
        "(2)Title: France Text:  A country.\n<|end_of_documents|>\n\n"
    )
    assert R1_SEARCHER.result([], ()) == "\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n"
    assert SEARCH_R1.result([], ()) == "\n\n<information></information>\n\n"


FORMS = (TAGS, SEARCH_R1, R1_SEARCHER, AUTOREFINE)
PIECES = [f"{begin}{name}>" for form in FORMS for name in form.names for begin in ("<", "</")]
PIECES += ["< / INFORMATION >", "<|im_end|>", "<", "|", ">", "</", " "]


@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(PIECES)), max_size=12).map("".join))
def test_a_passage_holds_no_tag_of_the_form_that_shows_it(text: str) -> None:
    for form in FORMS:
        shown = form.result([Passage("1", f"a{text}b", f"a{text}b")], ("<|im_end|>",))
        names = "|".join(map(re.escape, form.names))
        assert re.findall(rf"<(?:/\s*)?(?:{names})\s*>", shown, re.IGNORECASE) == list(form.result_tags)
        assert "<|im_end|>" not in shown
        assert shown.replace(" ", "").count(f"a{text}b".replace(" ", "")) == 2


def test_queries_of_r1_searcher_lose_quotes_tabs_and_dots() -> None:
    turn = 'x <|begin_of_query|> "Paris"\tcapital\'s ... <|end_of_query|>'
    assert R1_SEARCHER.query(turn) == "Paris capitals"
    assert R1_SEARCHER.query("<|begin_of_query|>'...'<|end_of_query|>") is None


@pytest.mark.parametrize(
    ("form", "turn", "answer"),
    [
        (SEARCH_R1, "<think>a</think><answer> Paris </answer>", "Paris"),
        (SEARCH_R1, "<think>a</think><answer> </answer>", None),
        (AUTOREFINE, "<refine>a</refine><answer>\\boxed{Paris}</answer>", "\\boxed{Paris}"),
        (R1_SEARCHER, "a</think>\n\n<answer> Paris", None),
        (R1_SEARCHER, "a</think>\n\n<answer> Paris</answer>", "Paris"),
        (R1_SEARCHER, "the form is <answer> and </answer>, so</think>\n\n<answer> Paris</answer>", "Paris"),
        (R1_SEARCHER, "a</think>\n\n<answer> Paris</answer> or <answer>", None),
        (R1_SEARCHER, "a</answer>", None),
        (SEARCH_R1, "<answer> Rome </answer> or <answer> Paris </answer>", "Rome"),
    ],
)
def test_answers_have_no_box(form: TagForm, turn: str, answer: str | None) -> None:
    assert form.answer(turn) == answer


def test_a_thought_that_the_prompt_opens_is_counted() -> None:
    turns = ["a <|begin_of_query|>b<|end_of_query|>", "c</think><answer>d</answer>"]
    assert R1_SEARCHER.fault(turns, "d", ended=True) is None
    assert SEARCH_R1.fault(["c</think><answer>d</answer>"], "d", ended=True) == "thoughts are missing or not closed"


WROTE = [" I have to find it <|begin_of_query|>a<|end_of_query|>", "so it is b\n</think>\n\nWell, <answer>c</answer>"]


@given(st.lists(st.integers(0, 60), max_size=8))
def test_a_thought_that_the_prompt_opens_is_told_as_one_in_each_turn_until_it_ends(cuts: list[int]) -> None:
    episode = Episode(
        "?", [], turns=[Turn(WROTE[0], "a", [], R1_SEARCHER.result((), ())), Turn(WROTE[1])], form="r1_searcher"
    )
    told = [
        ("think", "I have to find it"),
        ("search", "a"),
        ("think", "so it is b"),
        ("text", "Well,"),
        ("answer", "c"),
    ]
    assert [(step.kind, step.text) for step in trace_of(episode) if step.kind != "result"] == told
    reader = R1_SEARCHER.reader()
    pieces = [
        piece
        for turn in WROTE
        for piece in (*(each for part in parts_of(turn, cuts) for each in reader.feed(part)), *reader.close())
    ]
    steps = groupby(pieces, key=lambda piece: (piece.step, piece.kind))
    assert [(kind, "".join(piece.text for piece in own)) for (_, kind), own in steps] == told


def test_a_thought_that_the_prompt_opens_counts_in_the_signs() -> None:
    episode = Episode(
        "?", [], turns=[Turn(WROTE[0], "a"), Turn(WROTE[1]), Turn("and no more thoughts")], form="r1_searcher"
    )
    assert [is_thoughtless(episode, turn) for turn in episode.turns] == [False, False, True]
    assert plans(episode) is True
    episode.turns[0].text = "<|begin_of_query|>a query of words<|end_of_query|>"
    assert plans(episode) is False


def test_a_question_is_put_as_the_projects_do() -> None:
    prompt = load_prompt("search-r1")
    shown = TOKENIZER.decode(TOKENIZER.prompt_ids(prompt, " Where is Paris "))
    assert shown.startswith("<|im_start|>user\nAnswer the given question. You must conduct reasoning")
    assert shown.endswith(
        "For example, <answer> Beijing </answer>. Question: Where is Paris?\n\n<|im_start|>assistant\n"
    )
    bare = byte_tokenizer()
    bare.chat_template = None
    without = HuggingFaceTokenizer(bare)
    assert without.decode(without.prompt_ids(prompt, "Where?")).endswith("Question: Where?\n")
    raw = TOKENIZER.decode(TOKENIZER.prompt_ids(load_prompt("r1-searcher"), "Where is Paris"))
    assert raw.startswith("The User asks a question, and the Assistant solves it.\nThe Assistant first thinks")
    assert raw.endswith("\n\nUser:Where is Paris\nAssistant: <think>")


class Stopping:
    """Ends each turn at the first stop text that it was told of, as vLLM does."""

    def __init__(self, text: list[str]) -> None:
        self.text = text
        self.prompts: list[list[int]] = []

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        text = self.text[len(self.prompts)]
        self.prompts.append(list(prompt_ids))
        ends = [text.index(stop) + len(stop) for stop in sampling.stop if stop in text]
        ids = LOADED.encode(text[: min(ends)] if ends else text) + [TOKENIZER.eos_id] * (not ends)
        return Generation(ids, [0.0] * len(ids), ["1"] * len(ids), Finish.SEARCH if ends else Finish.EOS)


@pytest.mark.parametrize(
    ("prompt", "wrote"),
    [
        (
            load_prompt("search-r1"),
            ["<think>a</think><search>b</search> more", "<think>c</think><answer>d</answer> more"],
        ),
        (load_prompt("r1-searcher"), ["a<|begin_of_query|>b<|end_of_query|> more", "c</think><answer>d</answer> more"]),
        (
            Prompt("mine", "{question}", AUTOREFINE),
            ["<think>a</think><search>b</search> more", "<refine>c</refine><answer>d</answer> more"],
        ),
    ],
    ids=["search-r1", "r1-searcher", "autorefine"],
)
def test_the_end_of_an_answer_ends_the_episode_and_that_of_a_query_searches(prompt: Prompt, wrote: list[str]) -> None:
    shelf = Shelf(FOUND)
    agent = SearchAgent(Stopping(wrote), shelf, TOKENIZER, prompt, EpisodeConfig(top_k=3), 100_000)
    episode = asyncio.run(agent.run("Who?", Sampling(0.0)))
    assert shelf.queries == [("b", 3)]
    assert (episode.stop_reason, episode.answer, episode.format_fault) == (StopReason.ANSWERED, "d", None)
    assert [turn.text for turn in episode.turns] == [text.removesuffix(" more") for text in wrote]
    assert [(step.kind, step.text) for step in trace_of(episode)][-1] == ("answer", "d")
    masked = [token for token, sampled in zip(episode.token_ids, episode.sampled, strict=True) if not sampled]
    assert masked == LOADED.encode(prompt.form.result(FOUND, ()), add_special_tokens=False)
    endless = replace(agent, policy=Stopping(["<answer>" + "x" * 9]))
    assert asyncio.run(endless.run("Who?", Sampling(0.0))).answer is None
