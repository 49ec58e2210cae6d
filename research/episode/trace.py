"""An episode as people read it: thoughts, searches, results and the answer, one after the other.

The trace is the stream read to its end: the same parser cuts both, and counts the same steps.
"""

from __future__ import annotations

from itertools import groupby

from research.episode.agent import Episode, Turn
from research.forms.grammar import RESULT_END, RESULT_START
from research.forms.tag_parser import StreamingTagParser
from research.schemas import Step


def trace_of(episode: Episode) -> list[Step]:
    """The steps of an episode; results come from the retriever's record, never from what the model wrote."""
    return [step for turn in episode.turns for step in _steps_of_turn(turn)]


def _steps_of_turn(turn: Turn) -> list[Step]:
    parser = StreamingTagParser()
    spans = [*parser.feed(turn.text), *parser.close()]
    steps = [
        Step(kind=kind, text="".join(span.text for span in own))
        for (_, kind), own in groupby(spans, key=lambda span: (span.step, span.kind))
    ]
    if turn.result:
        text = turn.result.strip().removeprefix(RESULT_START).removesuffix(RESULT_END).strip()
        steps.append(Step(kind="result", text=text, passages=[passage.id for passage in turn.passages]))
    return steps
