"""What single turns of an episode are worth: void ones, and searches by what they brought."""

from __future__ import annotations

from research.episode.agent import Episode, Turn
from research.forms import form_named
from research.questions import Question
from research.settings.credit import TurnsConfig


def is_void(episode: Episode, turn: Turn) -> bool:
    """Whether a turn holds neither a search with a query nor an answer; one search too many is a search."""
    form = form_named(episode.form)
    return form.query(turn.text) is None and form.answer(turn.text) is None


def turn_credits(episode: Episode, question: Question, turns: TurnsConfig) -> list[float]:
    """The credit of each turn; 0 for one that was not answered with passages. A page that is opened is a search, too.

    A search gains if it brings a passage with one of the question's supporting titles that no search before it
    brought. It loses if no passage that it brings is new; what searches have brought
    is new once more when it is opened. A new passage that supports nothing does neither. Where a
    question names no supporting titles, nothing gains.
    """
    wanted, seen = set(question.supporting_titles), set[tuple[bool, str]]()
    credits = []
    for turn in episode.turns:
        if turn.query is None:
            credits.append(0.0)
            continue
        titles = {passage.title for passage in turn.passages}
        new = {(turn.opened, passage.id) for passage in turn.passages} - seen
        gain = turns.search_gain if titles & wanted else 0.0
        loss = 0.0 if new else turns.search_loss
        credits.append(gain - loss - turns.search_cost)
        wanted -= titles
        seen |= new
    return credits
