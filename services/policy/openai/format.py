"""An answer of the agent in the form of OpenAI's chat completions, as vLLM and its clients use it.

The final answer is `content`; thoughts, searches and what was found are `reasoning` (vLLM's field); passages are URL
citations; `research` holds the whole trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from vllm.entrypoints.generate.base.protocol import DeltaMessage, UsageInfo
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionStreamResponse,
    ChatMessage,
)

from research.episode.agent import StopReason
from research.episode.latex import strip_latex
from research.schemas import AnswerPassage, AnswerResponse

AGENT = "research"


def agent_named(adapter: str | None) -> str:
    """The agent's name as a model, with its LoRA adapter if it has one."""
    return AGENT if adapter is None else f"{AGENT}:{adapter}"


def adapter_of(model: str) -> str | None:
    """The LoRA adapter in the agent's name as a model; None if it has none."""
    return model.partition(":")[2] or None


class AgentMessage(ChatMessage):  # type: ignore[misc]
    """vLLM's message, with citations as a list (OpenAI's form)."""

    annotations: list[dict[str, Any]] = Field(default_factory=list)


class AgentDelta(DeltaMessage):  # type: ignore[misc]
    """vLLM's message delta, with citations."""

    annotations: list[dict[str, Any]] | None = None


class AgentResponse(ChatCompletionResponse):  # type: ignore[misc]
    """vLLM's response, with the whole trace."""

    research: AnswerResponse


class AgentChunk(ChatCompletionStreamResponse):  # type: ignore[misc]
    """vLLM's chunk; the last one with a choice holds the whole trace."""

    research: AnswerResponse | None = None


def response_of(answer: AnswerResponse) -> AgentResponse:
    """A finished answer."""
    content = content_of(answer)
    message = AgentMessage(
        role="assistant",
        content=content,
        reasoning=reasoning_of(answer),
        annotations=citations_of(answer.passages, content),
    )
    choice = ChatCompletionResponseChoice(index=0, message=message, finish_reason=finish_reason_of(answer))
    return AgentResponse(model=agent_named(answer.adapter), choices=[choice], usage=usage_of(answer), research=answer)


def content_of(answer: AnswerResponse) -> str:
    """The answer as plain text; without one, what the model wrote last outside of any tag."""
    for kind in ("answer", "text"):
        written = [step.text for step in answer.trace if step.kind == kind and step.text]
        if written:
            return strip_latex(written[0] if kind == "answer" else written[-1])
    return answer.answer or ""  # as in thoughts that were never closed


def reasoning_of(answer: AnswerResponse) -> str:
    """Thoughts, searches and what they found, one paragraph each."""
    titles = {passage.id: passage.title for passage in answer.passages}
    paragraphs = []
    for step in answer.trace:
        if step.kind == "result":
            paragraphs.append(found_line([titles[passage] for passage in step.passages]))
        elif step.kind in ("think", "search", "open", "text") and step.text:
            paragraphs.append(heading(step.kind) + step.text)
    return "\n\n".join(paragraphs)


def heading(kind: str) -> str:
    """The prefix of a step."""
    return {"search": "Search: ", "open": "Open: "}.get(kind, "")


def found_line(titles: Sequence[str]) -> str:
    """What a search found, by title."""
    return "Found: " + ("; ".join(titles) or "nothing")


def citations_of(passages: list[AnswerPassage], content: str) -> list[dict[str, Any]]:
    """Cite every passage that was read for the whole answer: the model does not say which part comes from which."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": 0,
                "end_index": len(content),
                "title": passage.title,
                "url": f"passage:{passage.id}",
            },
        }
        for passage in passages
    ]


def finish_reason_of(answer: AnswerResponse) -> str:
    """OpenAI's term for why the episode ended."""
    return "length" if StopReason(answer.stop_reason).truncated else "stop"


def usage_of(answer: AnswerResponse) -> UsageInfo:
    """Everything that was read counts as prompt: the question, and what the searches found."""
    read, written = answer.usage.prompt_tokens + answer.usage.result_tokens, answer.usage.sampled_tokens
    return UsageInfo(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
