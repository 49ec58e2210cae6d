"""An episode as people read it: thoughts, searches, results and the answer, one after the other.

The trace is the stream read to its end: the same parser cuts both, and counts the same steps.
"""

from __future__ import annotations

from itertools import groupby

from research.episode.agent import Episode, Turn
from research.forms import form_named
from research.forms.form import PromptForm, TurnReader
from research.schemas import Step


def trace_of(episode: Episode) -> list[Step]:
    """The steps of an episode; results come from the retriever's record, never from what the model wrote."""
    form = form_named(episode.form)
    reader = form.reader()
    return [step for turn in episode.turns for step in _steps_of_turn(turn, form, reader)]


def _steps_of_turn(turn: Turn, form: PromptForm, reader: TurnReader) -> list[Step]:
    spans = [*reader.feed(turn.text), *reader.close()]
    steps = [
        Step(kind=kind, text="".join(span.text for span in own))
        for (_, kind), own in groupby(spans, key=lambda span: (span.step, span.kind))
    ]
    if turn.result:
        begin, end = form.result_tags
        text = turn.result.strip().removeprefix(begin).removesuffix(end).strip()
        steps.append(Step(kind="result", text=text, passages=[passage.id for passage in turn.passages]))
    return steps
