"""Tool calls as a prompt form: what counts as a call, an answer, a good form, and what a chat template makes of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from benchmarks.injection.promises import Recorder, broken_promises
from research.episode.agent import Episode, Finish, Generation, Sampling, SearchAgent, StopReason, Turn
from research.episode.tokenizer import HuggingFaceTokenizer
from research.episode.trace import trace_of
from research.errors import ConfigurationError, ProtocolError
from research.forms.form import PromptForm
from research.forms.grammar import without_end
from research.forms.tool_calls import TOOL_CALLS, TOOL_CALLS_PLAIN
from research.passages import Passage
from research.prompts import Prompt, load_prompt
from research.settings import EpisodeConfig
from tests.support.byte_tokenizer import CHAT, CHAT_WITH_TOOLS, OTHER_CALLS, byte_tokenizer, template_of
from tests.support.characters import Shelf
from tests.unit.episode.test_linear_reading import HOSTILE, LENGTH, processor_seconds
from tests.unit.episode.test_tag_parser import parts_of

THOUGHT = "<think>\nhm\n</think>\n\n"


def call(text: str) -> str:
    return f"{THOUGHT}<tool_call>\n{text}\n</tool_call>"


def search(query: object) -> str:
    return call(json.dumps({"name": "search", "arguments": {"query": query}}))


@pytest.mark.parametrize(
    ("turn", "query"),
    [
        (search(" two\n words "), "two words"),
        (search('a "quoted" one, <tool_call> and 北京'), 'a "quoted" one, <tool_call> and 北京'),
        (search("who").replace("\n", ""), "who"),
        ("Let me look.\n" + search("who") + "\n", "who"),
        ("<think>I may write <tool_call>x</tool_call>.</think>" + search("who"), "who"),
        (search(" "), None),
        (search(7), None),
        (search(["a", "b"]), None),
        (search("a") + search("b"), None),
        (search("a") + "<tool_call>", None),
        (search("a") + "</tool_call>", None),
        (call('{"name": "open", "arguments": {"query": "a"}}'), None),
        (call('{"name": "search", "arguments": {"query": "a"}, "id": 1}'), None),
        (call('{"name": "search", "arguments": {"query": "a", "top_k": 3}}'), None),
        (call('{"name": "search", "arguments": "{\\"query\\": \\"a\\"}"}'), None),
        (call('{"name": "search", "parameters": {"query": "a"}}'), None),
        (call("{'name': 'search', 'arguments': {'query': 'a'}}"), None),
        (call('{"name": "search", "arguments": {"query": "a"}} and more'), None),
        (call('{"name": "search", "arguments": {"query": "\\ud800"}}'), None),
        (call('{"name": "search", "arguments": {"query": NaN}}'), None),
        (call("[" * 100_000), None),
        (search("a").removesuffix("</tool_call>"), None),
        (search("a").replace("<tool_call>", ""), None),
        (THOUGHT + "</tool_call>" + search("a").removeprefix(THOUGHT), None),
        (search("a").replace("</think>", ""), None),
    ],
)
def test_one_well_written_call_is_a_search_and_all_else_is_malformed(turn: str, query: str | None) -> None:
    assert TOOL_CALLS.query(turn) == query
    assert TOOL_CALLS.asks(turn, by_itself=True) == ("</think>" in turn)


def test_a_thought_about_calls_wants_no_search() -> None:
    turn = "<think>I could write <tool_call>{}</tool_call>.</think>\\boxed{Paris}"
    assert not TOOL_CALLS.asks(turn, by_itself=True)
    assert TOOL_CALLS.answer(turn) == "Paris"


@pytest.mark.parametrize(
    ("turn", "boxed", "plain"),
    [
        (f"{THOUGHT}It is \\boxed{{\\text{{Paris}}}}. ", "Paris", "It is \\boxed{\\text{Paris}}."),
        (f"{THOUGHT}Paris\n", None, "Paris"),
        ("\\boxed{a} or \\boxed{b}", "b", "\\boxed{a} or \\boxed{b}"),
        (f"<think>\\boxed{{a}}</think>{THOUGHT}", None, None),
        ("<think>\\boxed{a}", None, None),
        (search("a") + "\\boxed{a}", None, None),
    ],
)
def test_the_answer_stands_after_the_thoughts(turn: str, boxed: str | None, plain: str | None) -> None:
    assert (TOOL_CALLS.answer(turn), TOOL_CALLS_PLAIN.answer(turn)) == (boxed, plain)


@pytest.mark.parametrize(
    ("turns", "ended", "fault"),
    [
        ([f"{THOUGHT}\\boxed{{c}}"], True, None),
        ([search("a"), search("b"), f"{THOUGHT}\\boxed{{c}}"], True, None),
        ([search("a"), f"{THOUGHT}\\boxed{{c}}"], False, "did not end"),
        ([search("a"), f"<tool_response>mine</tool_response>{THOUGHT}\\boxed{{c}}"], True, "result itself"),
        (["\\boxed{c}"], True, "thoughts"),
        (["<think>a" + f"{THOUGHT}\\boxed{{c}}"], True, "thoughts"),
        ([search("a"), search("b")], True, "search"),
        ([search("a"), f"{THOUGHT}c"], True, "boxed"),
    ],
)
def test_format_fault(turns: list[str], ended: bool, fault: str | None) -> None:
    found = TOOL_CALLS.fault(turns, TOOL_CALLS.answer(turns[-1]), ended=ended)
    assert found is None if fault is None else found is not None and fault in found


FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "<", "</tool", " ", "\n", "a b"]
FRAGMENTS += ['{"name": "search", "arguments": {"query": "who"}}', "\\boxed{x}"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join), st.lists(st.integers(0, 200), max_size=8))
def test_what_is_told_while_it_is_written_are_the_steps_of_the_trace(text: str, cuts: list[int]) -> None:
    reader = TOOL_CALLS.reader()
    pieces = [piece for part in parts_of(text, cuts) for piece in reader.feed(part)] + reader.close()
    steps = [
        (kind, "".join(piece.text for piece in own))
        for (_, kind), own in groupby(pieces, key=lambda piece: (piece.step, piece.kind))
    ]
    shown = trace_of(Episode("?", [], turns=[Turn(text)], form="tool_calls"))
    assert steps == [(step.kind, step.text) for step in shown]
    assert len({step for step, _ in groupby(pieces, key=lambda piece: piece.step)}) == len(steps)


def test_a_message_with_the_end_of_a_call_is_malformed_and_told_as_no_answer() -> None:
    turn = f"{THOUGHT}Paris </tool_call>"
    assert (TOOL_CALLS_PLAIN.asks(turn, by_itself=True), TOOL_CALLS_PLAIN.answer(turn)) == (True, None)
    shown = trace_of(Episode("?", [], turns=[Turn(turn)], form="tool_calls_plain"))
    assert [step.kind for step in shown] == ["think", "text"]


def test_a_trace_shows_queries_and_the_answer() -> None:
    turns = [
        Turn("I look. " + search("who"), "who", [], TOOL_CALLS.result((), ())),
        Turn(f"{THOUGHT}It is \\boxed{{c}}"),
    ]
    steps = trace_of(Episode("?", [], turns=turns, form="tool_calls"))
    assert [(step.kind, step.text) for step in steps] == [
        ("text", "I look."),
        ("think", "hm"),
        ("search", "who"),
        ("result", "No passage was found."),
        ("think", "hm"),
        ("answer", "It is \\boxed{c}"),
    ]


READERS = {
    "asks": lambda text: TOOL_CALLS.asks(text, by_itself=True),
    "query": TOOL_CALLS.query,
    "call": lambda text: TOOL_CALLS.query(f"<tool_call>{text}</tool_call>"),
    "string": lambda text: TOOL_CALLS.query(search(text)),
    "answer": TOOL_CALLS.answer,
    "form": lambda text: Episode("?", [], turns=[Turn(text)], form="tool_calls").format_fault,
    "trace": lambda text: trace_of(Episode("?", [], turns=[Turn(text)], form="tool_calls")),
    "result": lambda text: TOOL_CALLS.result([Passage("1", text, text)], ("<tool_call>", "<|im_end|>")),
}
MORE = {
    "calls": "<tool_call>",
    "ends of calls": "</tool_call>",
    "responses": "<tool_response>",
    "[": "[",
    "objects": '{"a":',
}


@pytest.mark.parametrize("reader", READERS)
def test_it_is_read_in_linear_time(reader: str) -> None:
    slow = []
    for name, unit in (HOSTILE | MORE).items():
        try:
            with processor_seconds(2):
                READERS[reader](unit * max(1, LENGTH // len(unit)))
        except TimeoutError:
            slow.append(name)
    assert not slow


@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from([*FRAGMENTS, "</tools>", "< / TOOL_RESPONSE >", "<|im_end|>"])),
        max_size=12,
    ).map("".join)
)
def test_a_passage_closes_no_response_and_begins_no_call(text: str) -> None:
    result = TOOL_CALLS.result([Passage("1", text, text)], ("<|im_end|>",))
    inside = result.removeprefix("<tool_response>\n").removesuffix("\n</tool_response>")
    assert result == f"<tool_response>\n{inside}\n</tool_response>"
    assert not re.findall(r"<(?:/\s*)?(?:think|tool_call|tool_response|tools)\s*>", inside, re.IGNORECASE)
    assert "<|im_end|>" not in inside
    assert inside.replace(" ", "") == f'"{text}"\n{text}'.replace(" ", ""), "and it stays readable"


# --- what the chat template makes of it ---

RULES = load_prompt("research-tools")
EMPTY = TOOL_CALLS.result((), ())


def with_template(template: str | None, eos: str = "<|im_end|>") -> HuggingFaceTokenizer:
    loaded = byte_tokenizer()
    loaded.chat_template, loaded.eos_token = template, eos
    return HuggingFaceTokenizer(loaded)


TEMPLATES = {"qwen": CHAT_WITH_TOOLS, "none": CHAT, **OTHER_CALLS}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_tools_are_told_by_a_template_that_calls_them_as_the_form_does_or_else_in_our_words(template: str) -> None:
    told = "# The template's own words" if template is CHAT_WITH_TOOLS else "These are the functions"
    tokenizer = with_template(template)
    for _ in range(2):  # the second time, the template was tried before
        shown = tokenizer.decode(tokenizer.prompt_ids(RULES, "Who?"))
        assert shown.startswith(f"<|im_start|>system\n{RULES.text}\n\n")
        assert shown.count(told) == shown.count('"name": "search"') == 1
        assert "# form:" not in shown
        assert shown.endswith("<|im_start|>user\nWho?\n<|im_start|>assistant\n")  # no text for the end of a message


QWEN = {name: template_of(name) for name in ("qwen2_5", "qwen3", "qwen3_instruct_2507")}


@pytest.mark.parametrize("template", [CHAT_WITH_TOOLS, *QWEN.values()], ids=["ours", *QWEN])
def test_what_is_inserted_is_what_the_template_writes_between_the_models_messages(template: str) -> None:
    tokenizer = with_template(template)
    loaded = byte_tokenizer()
    loaded.chat_template = template
    result = TOOL_CALLS.result([Passage("1", "Paris", "A city.")], tokenizer.special_tokens)
    told = result.removeprefix("<tool_response>\n").removesuffix("\n</tool_response>")
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": search("who")}]
    before = loaded.apply_chat_template(chat, tokenize=False).removesuffix("\n")
    whole = loaded.apply_chat_template(
        [*chat, {"role": "tool", "content": told}], tokenize=False, add_generation_prompt=True
    )
    ids = loaded.encode(whole, add_special_tokens=False)
    assert ids == loaded.encode(before, add_special_tokens=False) + tokenizer.reply_ids(result, empty=EMPTY, ended=True)
    assert tokenizer.reply_ids(result, empty=EMPTY, ended=False) == [
        tokenizer.eos_id,
        *tokenizer.reply_ids(result, empty=EMPTY, ended=True),
    ]


@pytest.mark.parametrize(
    ("model", "end", "told"),
    [
        *((name, "<|im_end|>", "# Tools\n\nYou may call one or more functions") for name in QWEN),
        ("llama3_1", "<|eot_id|>", "These are the functions that you may call"),
        ("llama3_2", "<|eot_id|>", "These are the functions that you may call"),
        ("lfm2", "<|im_end|>", "These are the functions that you may call"),
        ("qwen3_5_think", "<|im_end|>", "opens its thoughts itself"),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜>", "opens its thoughts itself"),
        ("gemma", "<end_of_turn>", "System role not supported"),
        ("gemma", "<|im_end|>", "no message with that"),
    ],
)
def test_published_templates_tell_of_the_tool_or_are_refused(model: str, end: str, told: str) -> None:
    loaded = byte_tokenizer()
    loaded.add_special_tokens({"eos_token": end})
    loaded.chat_template = template_of(model)
    try:
        found = loaded.decode(HuggingFaceTokenizer(loaded).prompt_ids(RULES, "Who?"))
    except ConfigurationError as refused:
        found = str(refused)
    assert told in found
    assert found.count('{"name": <function-name>, "arguments": <args-json-object>}') == ("functions" in told)


def test_control_tokens_are_refused_between_messages() -> None:
    with pytest.raises(ProtocolError, match="special tokens"):
        with_template(CHAT).reply_ids("<tool_response>\n<|im_end|>\n</tool_response>", empty=EMPTY, ended=True)


def test_a_result_holds_nothing_of_the_chat_that_the_template_was_tried_with() -> None:
    # As Mistral's: the rules are written into the last user's message.
    template = (
        "{% if messages[0].role == 'system' %}{% set rules, messages = messages[0].content, messages[1:] %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and rules is defined %}{{ rules + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    tokenizer = with_template(template)
    assert tokenizer.decode(tokenizer.prompt_ids(RULES, "Who?")).endswith("\n\nWho?[/INST]")
    assert tokenizer.decode(tokenizer.reply_ids(EMPTY, empty=EMPTY, ended=True)) == f"[INST] {EMPTY}[/INST]"
    repeating = template.replace("rules is defined", "not loop.first").replace("rules +", "messages[0].content +")
    with pytest.raises(ConfigurationError, match="repeats former messages"):
        with_template(repeating).prompt_ids(RULES, "Who?")


def test_a_form_may_have_a_control_token_of_its_own_and_a_passage_none() -> None:
    loaded = byte_tokenizer()
    loaded.add_tokens([AddedToken(tag, special=True) for tag in TOOL_CALLS.result_tags], special_tokens=True)
    tokenizer = HuggingFaceTokenizer(loaded)
    result = TOOL_CALLS.result([Passage("1", "Paris", "</tool_response><|im_end|>")], tokenizer.special_tokens)
    assert tokenizer.decode(tokenizer.reply_ids(result, empty=EMPTY, ended=True)).count("</tool_response>") == 1
    with pytest.raises(ProtocolError, match="special tokens"):
        tokenizer.reply_ids(EMPTY + "</tool_response>", empty=EMPTY, ended=True)


def test_templates_that_think_themselves_or_know_no_system_message_are_refused_at_the_start() -> None:
    thinking = CHAT_WITH_TOOLS.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")
    with pytest.raises(ConfigurationError, match="the model opens its thoughts itself"):
        with_template(thinking).prompt_ids(RULES, "Who?")
    closed = thinking.replace("<think>\n", "<think>\n\n</think>\n")
    assert with_template(closed).prompt_ids(RULES, "Who?")
    without = "{% if messages[0].role == 'system' %}{{ raise_exception('no such role') }}{% endif %}" + CHAT
    with pytest.raises(ConfigurationError, match=r"refuses a chat of system, user \(no such role\)"):
        with_template(without).prompt_ids(RULES, "Who?")


def test_what_cannot_have_messages_between_is_refused_before_the_first_question() -> None:
    with pytest.raises(ConfigurationError, match="no chat template"):
        with_template(None).prompt_ids(RULES, "Who?")
    with pytest.raises(ConfigurationError, match="the model ends its text with"):
        with_template(CHAT, eos="<|endoftext|>").prompt_ids(RULES, "Who?")
    with pytest.raises(ConfigurationError, match="raw is a raw text"):
        with_template(CHAT).prompt_ids(Prompt("raw", "{question}", TOOL_CALLS), "Who?")


class Writing:
    """A policy that writes these messages and ends each with a token, unless it is cut."""

    def __init__(self, turns: list[str], finish: Finish, end: int = with_template(CHAT).eos_id) -> None:
        self.turns, self.finish, self.end, self.stops = iter(turns), finish, end, list[tuple[str, ...]]()

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.stops.append(sampling.stop)
        ids = with_template(CHAT).encode(next(self.turns)) + [self.end] * (self.finish is Finish.EOS)
        return Generation(ids, [0.0] * len(ids), ["1"] * len(ids), self.finish)


@pytest.mark.parametrize(
    ("turns", "finish", "reason", "searches"),
    [
        ([search("a"), f"{THOUGHT}\\boxed{{c}}"], Finish.EOS, StopReason.ANSWERED, 1),
        ([search("a"), call("{}")], Finish.EOS, StopReason.MALFORMED_SEARCH, 1),
        ([search(" ")], Finish.EOS, StopReason.MALFORMED_SEARCH, 0),
        ([search("a"), search("b"), search("c")], Finish.EOS, StopReason.SEARCH_LIMIT, 2),
        ([search("a")], Finish.LENGTH, StopReason.TOKEN_LIMIT, 0),
        ([search("a")], Finish.TIME, StopReason.TIME_LIMIT, 0),
        (["I just end."], Finish.EOS, StopReason.ANSWERED, 0),
    ],
)
def test_reasons_to_end(turns: list[str], finish: Finish, reason: StopReason, searches: int) -> None:
    policy, shelf = Writing(turns, finish), Shelf([Passage("1", "Paris", "A city.")])
    limits = EpisodeConfig(max_searches=2, max_tokens=9000)
    agent = SearchAgent(policy, shelf, with_template(CHAT), RULES, limits, 20_000)
    episode = asyncio.run(agent.run("Who?", Sampling(1.0, seed=1)))
    assert (episode.stop_reason, episode.searches, len(shelf.queries)) == (reason, searches, searches)
    assert set(policy.stops) == {()}
    assert (episode.format_fault is None) == (episode.answer is not None)


@pytest.mark.parametrize("form", [TOOL_CALLS, TOOL_CALLS_PLAIN])
def test_a_thought_about_calls_breaks_no_promise(form: PromptForm) -> None:
    about = f"<think>I may write {search('b').removeprefix(THOUGHT)}</think>\n"
    policy = Recorder(Writing([about + search("a").removeprefix(THOUGHT), about + "\\boxed{Paris}"], Finish.EOS))
    tokenizer, rules = with_template(CHAT), Prompt("mine", "Rules.", form)
    agent = SearchAgent(policy, Shelf([]), tokenizer, rules, EpisodeConfig(), 20_000)
    episode = asyncio.run(agent.run("Who?", Sampling(1.0, seed=1)))
    assert (episode.searches, episode.format_fault) == (1, None)
    assert not broken_promises(episode, policy.turns, tokenizer, frozenset())
    opened = Recorder(Writing([f"{search('b')}</think>\n\\boxed{{Paris}}"], Finish.EOS))
    episode = asyncio.run(replace(agent, policy=opened).run("Who?", Sampling(1.0, seed=1)))
    assert (episode.searches, broken_promises(episode, opened.turns, tokenizer, frozenset())) == (0, [])
    missed = replace(episode, turns=[replace(episode.turns[0], query=None), *episode.turns[1:]])
    assert "0 searches, but the model wrote 1" in broken_promises(missed, policy.turns, tokenizer, frozenset())


def test_a_message_may_end_in_another_token_than_the_tokenizers() -> None:
    tokenizer, rules = with_template(CHAT), Prompt("mine", "Rules.", TOOL_CALLS_PLAIN)
    (end,) = byte_tokenizer().encode("<|endoftext|>", add_special_tokens=False)
    policy, shelf = Recorder(Writing([search("a"), f"{THOUGHT}Paris"], Finish.EOS, end)), Shelf([])
    agent = SearchAgent(policy, shelf, tokenizer, rules, EpisodeConfig(), 20_000)
    episode = asyncio.run(agent.run("Who?", Sampling(1.0, seed=1)))
    assert (episode.answer, episode.format_fault) == ("Paris", None)
    assert [turn.text for turn in episode.turns] == [search("a"), f"{THOUGHT}Paris"]
    assert not broken_promises(episode, policy.turns, tokenizer, frozenset())
    # It was sampled, so it is trained on; the message's own end follows, as in any chat.
    assert [id for id, sampled in zip(episode.token_ids, episode.sampled, strict=True) if sampled].count(end) == 2
    inserted = tokenizer.reply_ids(EMPTY, empty=EMPTY, ended=False)
    begins = episode.token_ids.index(end) + 1
    assert episode.token_ids[begins : begins + len(inserted)] == inserted


def test_the_token_that_ends_a_message_is_taken_off_once() -> None:
    ends = ("<|end|>", "<|im_end|>", "|>", "</tool_call>")
    assert without_end("a</tool_call><|im_end|>", ends) == "a</tool_call>"
    assert without_end("a<|im_end|><|im_end|>", ends) == "a<|im_end|>"
    assert without_end("a", ends) == "a"
