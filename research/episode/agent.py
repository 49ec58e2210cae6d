"""One episode: a question, a policy that thinks and searches, a retriever that answers its searches.

The same function serves training, evaluation and `/answer`. It is token-in/token-out: what was sampled is what is
trained on; each prompt is the previous prompt, the sampled ids and the ids of the result, never text tokenized again
(protocol notes, section 1). How the model writes a search and is shown a result is the form's (`research.forms`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Protocol, cast

from research.episode.side_thread import in_side_thread
from research.episode.tokenizer import Tokenizer, text_of
from research.errors import ContextFullError, ProtocolError, ServiceError
from research.forms import form_named
from research.forms.form import PromptForm
from research.forms.grammar import break_special_tokens
from research.forms.tags import TAGS
from research.passages import Passage
from research.prompts import Prompt
from research.settings import EpisodeConfig


class StopReason(StrEnum):
    """Why an episode ended."""

    ANSWERED = "answered"  # the model ended by itself
    TOKEN_LIMIT = "token_limit"  # the episode, a turn or the context is full
    TIME_LIMIT = "time_limit"  # a turn did not end in its time, or the step did not wait for it
    SEARCH_LIMIT = "search_limit"  # it asked for one search too many
    MALFORMED_SEARCH = "malformed_search"  # it asked for a search in a way that holds no query

    @property
    def truncated(self) -> bool:
        """Whether a limit ended the episode, of tokens, time or searches."""
        return self in (StopReason.TOKEN_LIMIT, StopReason.TIME_LIMIT, StopReason.SEARCH_LIMIT)

    @property
    def cut_off(self) -> bool:
        """Whether the last turn is unfinished. One search too many is a finished turn, and the model's own fault."""
        return self in (StopReason.TOKEN_LIMIT, StopReason.TIME_LIMIT)


class Finish(StrEnum):
    """Why one generation ended."""

    EOS = "eos"
    SEARCH = "search"  # a stop text, such as the end of a search
    LENGTH = "length"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, and the texts that end a generation; a temperature of 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = TAGS.stop


GREEDY = Sampling(temperature=0.0)
# On average over a passage: only runs of one character have tokens that are longer.
_MOST_CHARS_PER_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled turn; `logprobs[i]` and `versions[i]` belong to `token_ids[i]`."""

    token_ids: list[int]
    logprobs: list[float]
    versions: list[str]
    finish: Finish

    def __post_init__(self) -> None:
        if not len(self.token_ids) == len(self.logprobs) == len(self.versions):
            raise ProtocolError("the policy returned streams of different lengths for tokens, logprobs and versions")


class Policy(Protocol):
    """Something that continues a token sequence up to a stop text, EOS or a length."""

    async def generate(self, prompt_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> Generation: ...


class PolicyServers(Policy, Protocol):
    """A policy of several servers, each with a prefix cache of its own."""

    def of_episode(self, group: str) -> Policy:
        """The policy for the turns of one episode; episodes of a `group` share a prompt."""
        ...


class Retriever(Protocol):
    """Something that finds passages."""

    async def search(self, query: str, top_k: int) -> list[Passage]: ...


class PageReader(Retriever, Protocol):
    """A retriever whose pages can be opened, by an id or a url; they come whole, or not at all."""

    async def open(self, page: str) -> list[Passage]: ...


@dataclass(slots=True)
class Turn:
    """What the model wrote in one go, and the search that it led to, if any; its query may be several in one.

    `opened`: it was a page that was opened, and the query is its id; of the page only what was shown is kept.
    """

    text: str
    query: str | None = None
    passages: list[Passage] = field(default_factory=list)
    result: str = ""  # the passages as the model saw them
    opened: bool = False


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """The end of a result of another episode of the group, which an episode goes on from.

    Attributes:
        member: the place in the group of the episode that sampled what is copied.
        turn: the last copied turn, from 0; its result is copied, too.
        tokens: how many tokens after the prompt are copied.
    """

    member: int
    turn: int
    tokens: int


class _ReadOnce:
    """Answer, fault of the form and versions, with what they were read from: no fields, so they are in no record."""

    __slots__ = ("_read", "_seen")
    _read: tuple[tuple[object, ...], str | None, str | None] | None
    _seen: tuple[list[str], int, list[str]] | None

    def __post_init__(self) -> None:
        self._read = self._seen = None

    def _reading(
        self, form: PromptForm, texts: Sequence[str], stop_reason: StopReason
    ) -> tuple[str | None, str | None]:
        """Rewards, metrics and records ask for both; they are read again only once the episode has grown."""
        read_from = (*texts, stop_reason)
        if self._read is None or self._read[0] != read_from:
            answer = form.answer(texts[-1]) if texts else None
            self._read = read_from, answer, form.fault(texts, answer, ended=stop_reason is StopReason.ANSWERED)
        return self._read[1:]

    def _seen_in(self, versions: list[str]) -> list[str]:
        """Those that differ, in order; a list of thousands is read again only once it has grown."""
        if self._seen is None or self._seen[0] is not versions or self._seen[1] != len(versions):
            self._seen = versions, len(versions), [version for version in dict.fromkeys(versions) if version]
        return self._seen[2]


@dataclass(slots=True)
class Episode(_ReadOnce):
    """A finished (or growing) episode; the four token streams have equal length and start after the prompt.

    `sampled[i]` says whether the model wrote token i; `logprobs[i]` is its log-probability under the distribution it
    was drawn from (0.0 where it was not sampled) and `versions[i]` the weight version that produced it ("" likewise).
    Those of an episode that is a branch begin with a copy; its seconds are its own. `form` names the prompt form.
    """

    question: str
    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason = StopReason.ANSWERED
    generate_seconds: float = 0.0
    search_seconds: float = 0.0
    branched_from: BranchPoint | None = None
    form: str = TAGS.name

    @property
    def searches(self) -> int:
        """How often it was answered with passages, found or opened."""
        return sum(turn.query is not None for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        return sum(self.sampled)

    @property
    def copied_tokens(self) -> int:
        """How many of the sampled tokens another episode of the group sampled."""
        return sum(self.sampled[: self.branched_from.tokens]) if self.branched_from is not None else 0

    @property
    def weight_versions(self) -> list[str]:
        """The versions that wrote this episode, in order of appearance."""
        return list(self._seen_in(self.versions))

    @property
    def answer(self) -> str | None:
        return self._read_now()[0]

    @property
    def format_fault(self) -> str | None:
        return self._read_now()[1]

    def _read_now(self) -> tuple[str | None, str | None]:
        return self._reading(form_named(self.form), [turn.text for turn in self.turns], self.stop_reason)

    def _append_sampled(self, generation: Generation) -> None:
        self.token_ids += generation.token_ids
        self.sampled += [True] * len(generation.token_ids)
        self.logprobs += generation.logprobs
        self.versions += generation.versions

    def _append_result(self, ids: list[int]) -> None:
        self.token_ids += ids
        self.sampled += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [""] * len(ids)


@dataclass(frozen=True, slots=True)
class SearchAgent:
    """What an episode needs besides the question; `context_length` is what the policy can hold, prompt included."""

    policy: Policy
    retriever: Retriever
    tokenizer: Tokenizer
    prompt: Prompt
    limits: EpisodeConfig
    context_length: int

    def for_episode(self, group: str) -> SearchAgent:
        """The same agent for one episode: where several servers sample, its turns stay where their prefix is cached.

        `group` names what asks the same question at the same time.
        """
        # Not isinstance: a protocol looks at each of its names, for each of a thousand episodes.
        if not hasattr(self.policy, "of_episode"):
            return self
        return replace(self, policy=cast(PolicyServers, self.policy).of_episode(group))

    async def run(self, question: str, sampling: Sampling, begun: Episode | None = None) -> Episode:
        """Run one episode to its end; `begun` is one to go on with, whose last turn has its result.

        Raises:
            ServiceError: the policy or the retriever failed for good; such an episode must not be scored.
            ContextFullError: the prompt leaves no room.
            ProtocolError: tokens or text violate the protocol.
        """
        async with aclosing(self.steps(question, sampling, begun)) as steps:
            async for step in steps:
                episode = step
        return episode

    def begin(self, question: str) -> tuple[list[int], int]:
        """The ids of the prompt, and how many tokens may follow, at least one.

        Raises:
            ContextFullError: the prompt leaves no room.
            ProtocolError: the question cannot be encoded.
        """
        prompt_ids = self.tokenizer.prompt_ids(self.prompt, question)
        room = min(self.limits.max_tokens, self.context_length - len(prompt_ids))
        if room <= 0:
            raise ContextFullError(
                f"the prompt takes {len(prompt_ids)} tokens and leaves no room in a context of "
                f"{self.context_length}; ask a shorter question or raise model.max_model_len"
            )
        return prompt_ids, room

    async def steps(self, question: str, sampling: Sampling, begun: Episode | None = None) -> AsyncGenerator[Episode]:
        """Like `run`, but yields the growing episode after each turn and each search."""
        prompt_ids, room = await in_side_thread(partial(self.begin, question))
        episode = begun or Episode(question=question, prompt_ids=prompt_ids, form=self.prompt.form.name)
        ended = None
        while ended is None:
            generation = await self._generate(episode, room, sampling)
            turn, query = await in_side_thread(partial(self._read, generation, episode))
            ended = self._reason_to_end(episode, query, generation.finish)
            if ended is None and query is not None:
                yield episode
                ended = await self._search(episode, turn, query, room)
            if ended is not None:
                episode.stop_reason = ended
            yield episode

    async def _generate(self, episode: Episode, room: int, sampling: Sampling) -> Generation:
        budget = min(room - len(episode.token_ids), self.limits.max_turn_tokens or room)
        started = time.perf_counter()
        generation = await self.policy.generate(
            episode.prompt_ids + episode.token_ids,
            budget,
            _sampling_of_turn(sampling, len(episode.turns), self.prompt.form.stop),
        )
        episode.generate_seconds += time.perf_counter() - started
        if not generation.token_ids and not episode.token_ids:
            raise ServiceError("the policy was told to end an episode before it had begun")
        return generation

    def _read(self, generation: Generation, episode: Episode) -> tuple[Turn, str | None]:
        """Add what was sampled to an episode; returns the turn and its query, if any."""
        turn = Turn(text_of(generation.token_ids, self.tokenizer, ended=generation.finish is Finish.EOS))
        episode.turns.append(turn)
        episode._append_sampled(generation)
        return turn, self.prompt.form.query(turn.text)

    def _reason_to_end(self, episode: Episode, query: str | None, finish: Finish) -> StopReason | None:
        """Why the episode ends after its last turn, or None if it continues with a search."""
        if finish is Finish.LENGTH:
            return StopReason.TOKEN_LIMIT
        if finish is Finish.TIME:
            return StopReason.TIME_LIMIT
        if not self.prompt.form.asks(episode.turns[-1].text, by_itself=finish is Finish.EOS):
            return StopReason.ANSWERED
        if query is None:
            return StopReason.MALFORMED_SEARCH
        if self.limits.max_searches is not None and episode.searches >= self.limits.max_searches:
            return StopReason.SEARCH_LIMIT
        return None

    async def _search(self, episode: Episode, turn: Turn, query: str, room: int) -> StopReason | None:
        """Answer what a turn asks for; TOKEN_LIMIT if its result does not fit (half a result would mislead)."""
        started = time.perf_counter()
        if self.prompt.form.opens(turn.text):
            turn.opened, passages = True, await cast(PageReader, self.retriever).open(query)
        else:
            passages = await self._search_all(self.prompt.form.searches(query))
        episode.search_seconds += time.perf_counter() - started
        turn.query, turn.passages = query, passages
        return await in_side_thread(partial(self._insert_result, turn, episode, room))

    async def _search_all(self, searches: Sequence[str]) -> list[Passage]:
        """Search for all at once; what several find is there once. If one fails, the others are not waited for."""
        if len(searches) == 1:
            return await self.retriever.search(searches[0], self.limits.top_k)
        tasks = [asyncio.ensure_future(self.retriever.search(each, self.limits.top_k)) for each in searches]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return list(dict.fromkeys(passage for own in found for passage in own))

    def _insert_result(self, turn: Turn, episode: Episode, room: int) -> StopReason | None:
        """Add the passages of a turn to its episode, as the model sees them."""
        limit = self.limits.max_page_tokens if turn.opened else self.limits.max_passage_tokens
        served = [self._cut(passage, limit, " …" if turn.opened else "") for passage in turn.passages]
        turn.passages = served if turn.opened else turn.passages
        form = self.prompt.form
        turn.result = form.result(served, self.tokenizer.special_tokens)
        if form.chat.tools:
            ended = episode.token_ids[-1] == self.tokenizer.eos_id
            ids = self.tokenizer.reply_ids(turn.result, empty=form.result((), ()), ended=ended)
        else:
            ids = self.tokenizer.encode(turn.result)
        if len(episode.token_ids) + len(ids) >= room:
            return StopReason.TOKEN_LIMIT
        episode._append_result(ids)
        return None

    def _cut(self, passage: Passage, limit: int | None, mark: str) -> Passage:
        title, text = self._first_tokens(passage.title, limit), self._first_tokens(passage.text, limit)
        return Passage(passage.id, title, text if text == passage.text else text + mark)

    def _first_tokens(self, text: str, limit: int | None) -> str:
        if limit is None:
            return text
        text = text[: limit * _MOST_CHARS_PER_TOKEN]  # a page of a megabyte is not tokenized to show its first line
        if len(text.encode(errors="surrogatepass")) < limit:  # no token is shorter than a byte
            return text
        ids = self.tokenizer.encode(break_special_tokens(text, self.tokenizer.special_tokens))
        # A cut inside a multi-byte character decodes to a replacement character, which is dropped.
        return self.tokenizer.decode(ids[:limit]).rstrip("\ufffd") if len(ids) > limit else text


def _sampling_of_turn(sampling: Sampling, turn: int, stop: tuple[str, ...]) -> Sampling:
    seed = None if sampling.seed is None else (sampling.seed + 7919 * turn) % 2**31
    return sampling if (seed, stop) == (sampling.seed, sampling.stop) else replace(sampling, seed=seed, stop=stop)
