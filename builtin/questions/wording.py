"""How one relation is asked about, searched for and referred to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wording:
    """The phrases of one relation, where `{s}` is the subject and `{role}` the role of the fact.

    `asks` are whole questions, `query` is what to search for, `goal` completes "I need to find …", and `refers` mention
    the answer without naming it ("the author of {s}"), for relations that a two-hop question can start from.
    """

    asks: tuple[str, ...]
    query: str
    goal: str
    refers: tuple[str, ...] = ()


def maker_wording(verb: str, participle: str, noun: str) -> Wording:
    """ "wrote", "written", "author" → "Who wrote {s}?" and so on."""
    return Wording(
        asks=(f"Who {verb} {{s}}?", f"Who is the {noun} of {{s}}?", f"By whom was {{s}} {participle}?"),
        query=f"{{s}} {noun}",
        goal=f"who {verb} {{s}}",
        refers=(f"the {noun} of {{s}}", f"the person who {verb} {{s}}"),
    )


def relative_wording(noun: str) -> Wording:
    """ "teacher" → "Who was the teacher of {s}?" and so on."""
    return Wording(
        asks=(f"Who was the {noun} of {{s}}?", f"Name the {noun} of {{s}}."),
        query=f"{{s}} {noun}",
        goal=f"the {noun} of {{s}}",
        refers=(f"the {noun} of {{s}}",),
    )
