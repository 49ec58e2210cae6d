"""A streamed answer of the agent, as chunks of OpenAI's chat completions."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import orjson
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseStreamChoice

from research.episode.latex import LatexStripper
from research.episode.streaming import SearchDone
from research.errors import ResearchError, ServiceError
from research.forms.tag_parser import TagSpan
from research.schemas import AnswerResponse
from services.policy.answer.service import AnswerEvent
from services.policy.openai.errors import OpenAIHttpError
from services.policy.openai.format import (
    AgentChunk,
    AgentDelta,
    citations_of,
    content_of,
    finish_reason_of,
    found_line,
    heading,
    usage_of,
)

logger = logging.getLogger(__name__)


class AnswerStream:
    """The chunks of one answer; together they hold what `format.response_of` returns.

    Args:
        model: the agent's name, as in the request.
        with_usage: whether a last chunk reports the token counts.
    """

    def __init__(self, model: str, *, with_usage: bool) -> None:
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._with_usage = with_usage
        self._unboxed = LatexStripper()
        self._answer_step: int | None = None
        self._content_begun = False
        self._last_step: int | None = None
        self._reasoning_begun = False

    async def chunks(self, events: AsyncGenerator[AnswerEvent]) -> AsyncGenerator[str]:
        """Server-sent events, the last of them `[DONE]`; a failure is an event with `error`."""
        yield self._chunk(AgentDelta(role="assistant", content=""))
        try:
            async with aclosing(events):
                async for event in events:
                    for chunk in self._event_chunks(event):
                        yield chunk
        except ResearchError as error:
            yield f"data: {json.dumps(OpenAIHttpError(error).body)}\n\n"
        except Exception as bug:
            logger.exception("a stream failed")
            broken = ServiceError(f"the answer failed: {bug!r}")
            yield f"data: {json.dumps(OpenAIHttpError(broken).body)}\n\n"
        yield "data: [DONE]\n\n"

    def _event_chunks(self, event: AnswerEvent) -> Iterator[str]:
        if isinstance(event, AnswerResponse):
            yield from self._ended(event)
        elif isinstance(event, SearchDone):
            yield self._paragraph(found_line([passage.title for passage in event.passages]))
            self._last_step = None
        elif event.piece.kind == "answer":
            yield from self._answered(event.piece)
        else:
            yield self._thought(event.piece)

    def _thought(self, piece: TagSpan) -> str:
        if piece.step == self._last_step:
            return self._chunk(AgentDelta(reasoning=piece.text))
        self._last_step = piece.step
        return self._paragraph(heading(piece.kind) + piece.text)

    def _paragraph(self, text: str) -> str:
        before = "\n\n" if self._reasoning_begun else ""
        self._reasoning_begun = True
        return self._chunk(AgentDelta(reasoning=before + text))

    def _answered(self, piece: TagSpan) -> Iterator[str]:
        """Only the first answer counts."""
        if self._answer_step is None:
            self._answer_step = piece.step
        if piece.step == self._answer_step:
            yield from self._content(self._unboxed.feed(piece.text))

    def _content(self, text: str) -> Iterator[str]:
        if text:
            self._content_begun = True
            yield self._chunk(AgentDelta(content=text))

    def _ended(self, answer: AnswerResponse) -> Iterator[str]:
        yield from self._content(self._unboxed.close())
        whole = content_of(answer)
        if not self._content_begun:
            yield from self._content(whole)
        last = AgentDelta(annotations=citations_of(answer.passages, whole))
        yield self._chunk(last, finish_reason=finish_reason_of(answer), research=answer)
        if self._with_usage:
            yield self._event(self._wrapped([], usage=usage_of(answer)))

    def _chunk(
        self, delta: AgentDelta, finish_reason: str | None = None, research: AnswerResponse | None = None
    ) -> str:
        choice = ChatCompletionResponseStreamChoice(index=0, delta=delta, finish_reason=finish_reason)
        return self._event(self._wrapped([choice], research=research))

    def _wrapped(self, choices: list[ChatCompletionResponseStreamChoice], **more: object) -> AgentChunk:
        return AgentChunk(id=self._id, created=self._created, model=self._model, choices=choices, **more)

    @staticmethod
    def _event(chunk: AgentChunk) -> str:
        told = chunk.model_dump(mode="json", exclude_none=True, exclude={"research"})
        if chunk.research is not None:  # whole, as `/answer` gives it: what it has none of is null
            told["research"] = chunk.research.model_dump(mode="json")
        return f"data: {orjson.dumps(told).decode()}\n\n"
