"""Comparison questions: two lookups of the same relation, set side by side.

Guessing gains little. In "which came first" nearly every subject is the right answer of one pair and the wrong answer
of another, against something of about its own time. In "are both in the same country" each subject has one yes and one
no. The right answer comes first exactly as often as second.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from builtin.questions.compose import choose, hop_of, sentence, slug
from builtin.questions.extract.aliases import with_aliases
from builtin.questions.extract.countries import proper_name
from builtin.questions.extract.facts import Fact
from builtin.questions.split import stable_hash
from research.questions.model import Question
from research.scoring.reward import token_f1

Sound = Callable[[Question], bool]

# A place in England is in the United Kingdom, too.
_WITHIN_ANOTHER = frozenset({"England", "Scotland", "Wales", "United Kingdom"})
# These do not exclude each other.
_VAGUE_NATIONS = frozenset(
    (
        "Soviet",
        "Russian",
        "Ukrainian",
        "British",
        "English",
        "Scottish",
        "Welsh",
        "Irish",
        "Flemish",
        "Dutch",
        "Belgian",
    )
)
# The two facts of a pair are one part in this many of the sorted order apart.
_STRIDES = 12


@dataclass(frozen=True, slots=True)
class Comparison:
    """One template: which facts are set side by side, and how `{a}` and `{b}` are asked about.

    `wins` says whether the lower or the higher number is the answer; "alike" asks whether both have the same answer,
    except where one of them is `unclear`.
    """

    name: str
    facts: frozenset[str]
    asks: tuple[str, ...]
    wins: str
    unclear: frozenset[str] = frozenset()

    @property
    def template(self) -> str:
        return f"comparison-{self.name}"


COMPARISONS = (
    Comparison(
        "born_first",
        frozenset({"person-birth_year"}),
        ("Who was born first, {a} or {b}?", "Who was born earlier, {a} or {b}?"),
        "lower",
    ),
    Comparison(
        "died_last",
        frozenset({"person-death_year"}),
        ("Who died later, {a} or {b}?", "Of {a} and {b}, who was the last to die?"),
        "higher",
    ),
    Comparison(
        "older_work",
        frozenset({"work-year"}),
        ("Which is older, {a} or {b}?", "Which appeared first, {a} or {b}?"),
        "lower",
    ),
    Comparison(
        "first_in_office",
        frozenset({"person-reign_start"}),
        ("Who came to power first, {a} or {b}?", "Whose rule or term began earlier, that of {a} or that of {b}?"),
        "lower",
    ),
    Comparison(
        "began_first",
        frozenset({"event-start_year", "polity-start_year"}),
        ("Which began first, {a} or {b}?", "Which started earlier, {a} or {b}?"),
        "lower",
    ),
    Comparison(
        "higher_number",
        frozenset({"element-number"}),
        ("Which has the higher atomic number, {a} or {b}?", "Which has more protons, {a} or {b}?"),
        "higher",
    ),
    Comparison(
        "same_country",
        frozenset({"city-country", "capital-country", "place-country"}),
        ("Are {a} and {b} in the same country?", "Do {a} and {b} lie in the same country?"),
        "alike",
        _WITHIN_ANOTHER,
    ),
    Comparison(
        "same_nationality",
        frozenset({"person-nationality"}),
        ("Are {a} and {b} of the same nationality?", "Do {a} and {b} have the same nationality?"),
        "alike",
        _VAGUE_NATIONS,
    ),
)


def comparison_questions(comparison: Comparison, facts: Sequence[Fact], most: int, sound: Sound) -> Iterator[Question]:
    """At most `most` questions of one template, with every answer and place as frequent as its counterpart.

    `sound` refuses questions; it must not depend on which of the two is named first.
    """
    told = [fact for fact in facts if fact.template in comparison.facts and fact.answer not in comparison.unclear]
    if comparison.wins == "alike":
        pools = [_made(comparison, pairs, sound) for pairs in _alike_and_not(told)]
    else:
        pairs = _apart_in_order([fact for fact in told if re.fullmatch(r"\d{1,4}", fact.answer)])
        pools = [_made(comparison, pairs[half::2], sound) for half in (0, 1)]
    number = min(most // 2, *map(len, pools))
    for place, pool in enumerate(pools):
        for rank, (first, second) in enumerate(pool[:number]):
            # Of the ordered pairs, one half names the answer first; for yes-or-no pairs, place means nothing.
            swapped = (rank if comparison.wins == "alike" else place) % 2
            yield _question(comparison, *((second, first) if swapped else (first, second)))


def _made(comparison: Comparison, pairs: Sequence[tuple[Fact, Fact]], sound: Sound) -> list[tuple[Fact, Fact]]:
    """The pairs whose question is valid, in an order decided by a hash."""
    kept = [pair for pair in pairs if _are_distinct(*pair) and sound(_question(comparison, *pair))]
    return sorted(kept, key=lambda pair: stable_hash(f"{comparison.name}/{pair[0].subject}/{pair[1].subject}"))


def _are_distinct(first: Fact, second: Fact) -> bool:
    """Whether neither name earns part of the reward for the other."""
    return first.title != second.title and token_f1(_name(first), _name(second)) == 0


def _apart_in_order(facts: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    """Pair each fact with one somewhat greater: all but those at the ends are first once and second once."""
    ordered = sorted(facts, key=lambda fact: (int(fact.answer), stable_hash(fact.subject)))
    stride = max(1, len(ordered) // _STRIDES)
    return [(low, high) for low, high in zip(ordered, ordered[stride:], strict=False) if low.answer != high.answer]


def _alike_and_not(facts: Sequence[Fact]) -> tuple[list[tuple[Fact, Fact]], list[tuple[Fact, Fact]]]:
    """Pairs with the same answer, and the same subjects paired again so that the answers differ."""
    groups: dict[str, list[Fact]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: stable_hash(fact.subject)):
        groups[proper_name(fact.answer)].append(fact)
    alike = [pair for group in groups.values() for pair in zip(group[::2], group[1::2], strict=False)]
    alike.sort(key=lambda pair: stable_hash(pair[0].subject + pair[1].subject))
    unlike = []
    left = [second for _, second in alike]
    for first, _ in alike:
        other = next((second for second in left if proper_name(second.answer) != proper_name(first.answer)), None)
        if other is not None:
            left.remove(other)
            unlike.append((first, other))
    return alike, unlike


def _question(comparison: Comparison, first: Fact, second: Fact) -> Question:
    identity = f"{comparison.template}/{slug(first.subject)}/{slug(second.subject)}"
    ask = choose(comparison.asks, identity)
    return Question(
        id=identity,
        text=sentence(ask.replace("{a}", first.phrase).replace("{b}", second.phrase)),
        answers=with_aliases([_answer(comparison, first, second)]),
        kind="comparison",
        template=comparison.template,
        hops=tuple(hop_of(fact, fact.phrase, fact.search) for fact in (first, second)),
    )


def _answer(comparison: Comparison, first: Fact, second: Fact) -> str:
    if comparison.wins == "alike":
        return "yes" if proper_name(first.answer) == proper_name(second.answer) else "no"
    low, high = sorted((first, second), key=lambda fact: int(fact.answer))
    return _name(low if comparison.wins == "lower" else high)


def _name(fact: Fact) -> str:
    """The name as the question has it, without its disambiguation."""
    name = re.sub(r" \([^)]*\)$", "", fact.subject)
    return name if name in fact.phrase else name[0].lower() + name[1:]
