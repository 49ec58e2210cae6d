"""Another model decides whether an answer means the same as a gold answer; each verdict is kept and asked for once.

The form follows the paper's evaluation (ReSearch, section 4.1: LLM-as-a-judge); the words are ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from research.bench.jsonl import AppendOnlyJsonl, read_lines
from research.episode.agent import GREEDY, Sampling
from research.errors import AssetError, ContextFullError, ResearchError, ServiceError
from research.strategies.chat import Completion, Message

_RULES = """\
You grade answers. You get a question, the answers that are right, and the answer that somebody gave. Decide whether \
the given answer means the same as one of the right answers. Other words, a fuller name, another form of a date or a \
number with its unit are fine; another person, place, time or amount is not, and neither is an answer that names \
several things of which one is right. Reply with a JSON object: {"reason": "one short sentence", "correct": true or \
false}."""

VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string", "maxLength": 300}, "correct": {"type": "boolean"}},
    "required": ["reason", "correct"],
    "additionalProperties": False,
}
_MAX_TOKENS = 256
JUDGE_KEY_VARIABLE = "RESEARCH_JUDGE_API_KEY"

PROMPT_HASH = hashlib.sha256(_RULES.encode()).hexdigest()


class Grader(Protocol):
    """Something that completes a chat with a JSON object."""

    async def complete_json(
        self, messages: list[Message], max_tokens: int, sampling: Sampling, schema: Mapping[str, Any]
    ) -> Completion: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer is right, and why."""

    correct: bool
    reason: str


def key_of(judge: str, record: Mapping[str, Any]) -> str:
    """What a verdict depends on: judge, its rules, question, gold answers and answer."""
    parts = [judge, PROMPT_HASH, record["question"], record["gold"], record["answer"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_verdict(text: str) -> Verdict:
    """The verdict in what a judge wrote: the first JSON object in it. Raises ValueError if there is none."""
    start = text.find("{")
    if start < 0:
        raise ValueError("no JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("objects within objects without end") from error
    if not isinstance(found, dict) or not isinstance(found.get("correct"), bool):
        raise ValueError("`correct` is not a boolean")
    return Verdict(found["correct"], str(found.get("reason", "")))


class Verdicts:
    """Verdicts in a JSONL file, by `key_of`; after a kill, judging continues where it stopped.

    Raises AssetError if the file is corrupt.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self._path, self._judge = path, judge
        self._lines: AppendOnlyJsonl | None = None
        self._known: dict[str, Verdict] = {}
        self._begun: set[tuple[str, str]] = set()
        for number, line in read_lines(path) if path.is_file() else ():
            try:
                if line["judge"] != judge:
                    continue
                if "begun" in line:
                    self._begun.add(tuple(line["begun"]))
                else:
                    self._known[line["key"]] = Verdict(line["correct"], line["reason"])
            except KeyError as error:
                raise AssetError(f"{path}:{number} is not a verdict of the bench") from error

    def __enter__(self) -> Self:
        """Open the file for appending."""
        self._lines = AppendOnlyJsonl(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def begin(self, name: str, strategy: str) -> None:
        """Note that judging a strategy's answers to a set has begun: those without a verdict now count as unjudged."""
        if not self.covers(name, strategy):
            self._begun.add((name, strategy))
            self._add({"judge": self._judge, "begun": [name, strategy]})

    def covers(self, name: str, strategy: str) -> bool:
        """Whether judging of a strategy's answers to a set has begun."""
        return (name, strategy) in self._begun

    def of(self, record: Mapping[str, Any]) -> Verdict | None:
        """The verdict on a record's answer, if there is one; a missing answer is wrong without asking the judge."""
        if not record["answer"]:
            return Verdict(correct=False, reason="no answer")
        return self._known.get(key_of(self._judge, record))

    def add(self, record: Mapping[str, Any], verdict: Verdict) -> None:
        """Keep a verdict; it is on disk before this returns."""
        key = key_of(self._judge, record)
        self._known[key] = verdict
        kept = {"key": key, "judge": self._judge, "question": record["question"], "gold": record["gold"]}
        kept |= {"answer": record["answer"], "correct": verdict.correct, "reason": verdict.reason}
        self._add(kept)

    def _add(self, line: Mapping[str, Any]) -> None:
        if self._lines is None:
            raise ValueError("the verdicts are not open for appending; enter `Verdicts` first")
        self._lines.add(line)


def last_judge(path: Path) -> str | None:
    """The judge that gave the last verdict of a file; None if there is none."""
    if not path.is_file():
        return None
    lines = list(read_lines(path))
    return str(lines[-1][1].get("judge")) if lines else None


async def ask_judge(grader: Grader, record: Mapping[str, Any]) -> Verdict:
    """The verdict on a record's answer.

    Raises:
        ServiceError, ContextFullError: the judge failed, or the answer does not fit.
        ValueError: the judge wrote no verdict.
    """
    written = await grader.complete_json(_messages(record), _MAX_TOKENS, GREEDY, VERDICT_SCHEMA)
    return read_verdict(written.text)


async def judge_all(
    grader: Grader,
    verdicts: Verdicts,
    records: Iterable[Mapping[str, Any]],
    *,
    concurrency: int,
    on_verdict: Callable[[], None] = lambda: None,
) -> int:
    """Judge every answer that has no verdict yet; the same answer to the same question is judged once.

    Returns:
        How many could not be judged: the judge failed, or wrote no verdict. The next call tries them again.

    Raises:
        ServiceError: 32 requests in a row failed.
    """
    open_ones: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if verdicts.of(record) is None:
            open_ones.setdefault(json.dumps([record["question"], record["gold"], record["answer"]]), record)
    slots = asyncio.Semaphore(concurrency)
    failed = in_a_row = 0

    async def judge(record: Mapping[str, Any]) -> None:
        nonlocal failed, in_a_row
        async with slots:
            try:
                verdicts.add(record, await ask_judge(grader, record))
                in_a_row = 0
            except ContextFullError:
                failed += 1
            except ServiceError:
                failed += 1
                in_a_row += 1
                if in_a_row >= 32:
                    raise
            except ValueError:
                failed += 1
                in_a_row = 0
            on_verdict()

    try:
        async with asyncio.TaskGroup() as group:
            for record in open_ones.values():
                group.create_task(judge(record))
    except* ResearchError as errors:
        raise errors.exceptions[0] from None
    return failed


def _messages(record: Mapping[str, Any]) -> list[Message]:
    payload = {"question": record["question"], "right_answers": record["gold"], "given_answer": record["answer"]}
    text = json.dumps(payload, ensure_ascii=False, indent=1)
    # A lone surrogate, which a model can write, cannot be sent.
    return [Message("system", _RULES), Message("user", text.encode("utf-8", "replace").decode())]
