"""What holds for every episode by construction, whatever a passage says; checked against what the policy was asked."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich.console import Console

from apps.inspect.page import as_json
from cli.show import show_answer
from research.episode.agent import Episode, Finish, Generation, Policy, Sampling
from research.episode.tokenizer import Tokenizer
from research.episode.trace import trace_of
from research.forms import form_named
from research.strategies.outcome import answer_response, outcome_of

# A thought may speak of calls; one whose beginning is not in the turn (a prompt may open it) does so, too.
_BEFORE = r"(?:(?!<think>).)*</think>"  # to the last end of a thought before the next one begins
_CALL = re.compile(rf"\A(?:{_BEFORE})?+(?:(?><think>{_BEFORE})|(?!<think>).)*?<tool_call>.*?</tool_call>", re.DOTALL)
_TAGS = re.compile(r"<search>(?:(?!<search>).)*?</search>", re.DOTALL)
_SEARCH = {
    "tags": _TAGS,
    "tags_open": re.compile(rf"{_TAGS.pattern}|<open>(?:(?!<open>).)*?</open>", re.DOTALL),
    "tags_parallel": _TAGS,
    "tool_calls": _CALL,
    "tool_calls_open": _CALL,
    "tool_calls_plain": _CALL,
    "search_r1": re.compile(r"<search>.*?</search>", re.DOTALL),
    "autorefine": re.compile(r"<search>.*?</search>", re.DOTALL),
    "r1_searcher": re.compile(r"<\|begin_of_query\|>.*?<\|end_of_query\|>", re.DOTALL),
}
_CHANGES_DIRECTION = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@dataclass(slots=True)
class Recorder:
    """A policy, and what it was asked and answered."""

    policy: Policy
    turns: list[tuple[list[int], Generation]] = field(default_factory=list)

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation:
        generation = await self.policy.generate(prompt_ids, max_tokens, sampling)
        self.turns.append((list(prompt_ids), generation))
        return generation


def broken_promises(
    episode: Episode, turns: Sequence[tuple[Sequence[int], Generation]], tokenizer: Tokenizer, control: frozenset[int]
) -> list[str]:
    """What does not hold, in words; nothing if all does.

    Args:
        episode: a finished one.
        turns: each prompt that the policy got for it, and what it returned.
        tokenizer: the episode's.
        control: ids that only the model itself may write.
    """
    return [
        *_streams(episode, turns),
        *_results(episode, tokenizer, control),
        *_parsing(episode, turns, tokenizer),
        *_rendering(episode),
    ]


def _streams(episode: Episode, turns: Sequence[tuple[Sequence[int], Generation]]) -> Iterator[str]:
    """The model's own tokens are those that it sampled, in order, and each prompt is all that stood before."""
    at = 0
    for number, (prompt, generation) in enumerate(turns):
        if list(prompt) != episode.prompt_ids + episode.token_ids[:at]:
            yield f"the prompt of turn {number} is not what stood before"
        end = at + len(generation.token_ids)
        own = list(zip(generation.token_ids, generation.logprobs, generation.versions, strict=True))
        kept = zip(episode.token_ids[at:end], episode.logprobs[at:end], episode.versions[at:end], strict=True)
        if list(kept) != own or not all(episode.sampled[at:end]):
            yield f"turn {number} is not recorded as it was sampled"
        at = end
        while at < len(episode.sampled) and not episode.sampled[at]:
            if (episode.logprobs[at], episode.versions[at]) != (0.0, ""):
                yield f"token {at} of a result counts as the model's"
            at += 1
    if at != len(episode.token_ids):
        yield "tokens count as the model's that it did not sample"


def _results(episode: Episode, tokenizer: Tokenizer, control: frozenset[int]) -> Iterator[str]:
    """A result is one masked block whose only tags and control tokens are its form's own."""
    form = form_named(episode.form)
    # One that is broken has a space after its bracket.
    tag = re.compile(rf"<(?:/\s*)?(?:{'|'.join(map(re.escape, form.names))})\s*>", re.IGNORECASE)

    def ids_of(result: str) -> list[int]:
        return tokenizer.reply_ids(result, empty=empty, ended=True) if form.chat.tools else tokenizer.encode(result)

    empty = form.result((), ())
    own = [token for token in ids_of(empty) if token in control]
    blocks = [
        [token for token, _ in block]
        for mine, block in groupby(zip(episode.token_ids, episode.sampled, strict=True), key=lambda pair: pair[1])
        if not mine
    ]
    if form.chat.tools:  # the end of a message that the model ended with another token
        blocks = [block[1:] if block[0] == tokenizer.eos_id else block for block in blocks]
    shown = [turn.result for turn in episode.turns if turn.result]
    if len(blocks) != len(shown) - _does_not_fit(episode):
        yield f"{len(blocks)} masked blocks for {len(shown)} results"
    for block, text in zip(blocks, shown, strict=False):
        if (found := [token for token in block if token in control]) != own:
            yield f"control tokens in a result: {found}"
        read = tokenizer.decode(block)
        if tag.findall(read) != list(form.result_tags):
            yield f"tags in a result: {tag.findall(read)}"
        if block != ids_of(text):
            yield "a result in the record is not the one that was read"


def _does_not_fit(episode: Episode) -> bool:
    """Whether the last turn has a result that did not go into the context."""
    return bool(episode.turns[-1].result) and episode.sampled[-1]


def _parsing(
    episode: Episode, turns: Sequence[tuple[Sequence[int], Generation]], tokenizer: Tokenizer
) -> Iterator[str]:
    """Searches, answers and steps come from what the model wrote, and from nothing else."""
    # The token that ended a turn is no text; a model may have others than the tokenizer's.
    wrote = [tokenizer.decode(g.token_ids[:-1] if g.finish is Finish.EOS else g.token_ids) for _, g in turns]
    if [turn.text for turn in episode.turns] != wrote:
        yield "a turn does not read as it was sampled"
    form = form_named(episode.form)
    end = Finish.SEARCH if form.stop else Finish.EOS
    asked = sum(
        bool(_SEARCH[form.name].search(text)) for text, (_, g) in zip(wrote, turns, strict=True) if g.finish is end
    )
    refused = episode.stop_reason.value in ("search_limit", "malformed_search")
    if not episode.searches <= asked <= episode.searches + refused:
        yield f"{episode.searches} searches, but the model wrote {asked}"
    if episode.answer is not None and not _is_in(episode.answer, wrote[-1]):
        yield "the answer is not in the model's last turn"
    steps = trace_of(episode)
    if sum(step.kind == "result" for step in steps) != sum(bool(turn.result) for turn in episode.turns):
        yield "the trace has another number of results"
    if any(step.kind != "result" and not any(step.text in text for text in wrote) for step in steps):
        yield "a step of the trace is not what the model wrote"


def _is_in(answer: str, text: str) -> bool:
    """Apart from LaTeX, which is taken off where an answer is boxed."""
    own, wrote = (re.sub(r"\\\w+|\W", "", each) for each in (answer, text))
    return own in wrote


def _rendering(episode: Episode) -> Iterator[str]:
    """The terminal gets no character that acts on it, and the page's data no markup."""
    terminal = io.StringIO()
    show_answer(answer_response(outcome_of(episode), 1.0, "research"), Console(file=terminal, width=100))
    for character in set(terminal.getvalue()) - {"\n", "\t"}:
        if unicodedata.category(character) in ("Cc", "Cs"):
            yield f"the terminal gets {character!r}"
        if unicodedata.bidirectional(character) in _CHANGES_DIRECTION:
            yield f"the terminal gets {character!r}"
    if "<" in as_json([step.model_dump() for step in trace_of(episode)]):
        yield "the page gets markup"
