"""An episode as people read it: thoughts, searches, results and the answer, one after the other."""

from __future__ import annotations

import re

from research.episode.agent import Episode, Turn
from research.episode.protocol import RESULT_END, RESULT_START
from research.schemas import Step

_PIECE = re.compile(r"<(?P<kind>think|search|answer)>(?P<text>.*?)(?:</(?P=kind)>|$)", re.DOTALL)


def trace_of(episode: Episode) -> list[Step]:
    """The steps of an episode; results come from the retriever's record, never from what the model wrote."""
    return [step for turn in episode.turns for step in _steps_of_turn(turn)]


def _steps_of_turn(turn: Turn) -> list[Step]:
    steps: list[Step] = []
    position = 0
    for piece in _PIECE.finditer(turn.text):
        _add_loose_text(steps, turn.text[position : piece.start()])
        steps.append(Step(kind=piece["kind"], text=piece["text"].strip()))
        position = piece.end()
    _add_loose_text(steps, turn.text[position:])
    if turn.result:
        text = turn.result.strip().removeprefix(RESULT_START).removesuffix(RESULT_END).strip()
        steps.append(Step(kind="result", text=text, passages=[passage.id for passage in turn.passages]))
    return steps


def _add_loose_text(steps: list[Step], text: str) -> None:
    if text.strip():
        steps.append(Step(kind="text", text=text.strip()))
