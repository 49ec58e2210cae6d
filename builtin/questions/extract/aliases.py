"""Other ways to write an answer that are as good: dates, numbers, names without their accents."""

from __future__ import annotations

import re
from collections.abc import Iterable

from builtin.questions.extract.article import without_accents

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = rf"\d{{1,2}} (?:{_MONTH}) \d{{3,4}}|(?:{_MONTH}) \d{{1,2}}, \d{{3,4}}"
"""A date as articles write it; the pattern has no groups."""

_DAY_FIRST = re.compile(rf"(?P<day>\d{{1,2}}) (?P<month>{_MONTH}) (?P<year>\d{{3,4}})")
_MONTH_FIRST = re.compile(rf"(?P<month>{_MONTH}) (?P<day>\d{{1,2}}), (?P<year>\d{{3,4}})")
_WITH_COMMAS = re.compile(r"\d{1,3}(?:,\d{3})+")
_MILLIONS = re.compile(r"(?P<whole>\d+)(?:\.(?P<part>\d{1,6}))? million")
_SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def with_aliases(answers: Iterable[str]) -> tuple[str, ...]:
    """The answers in their order, then every other way to write one of them, without repeats."""
    given = tuple(answers)
    others = [other for answer in given for other in _other_spellings(answer)]
    return tuple(dict.fromkeys((*given, *others)))


def _other_spellings(answer: str) -> Iterable[str]:
    yield without_accents(answer)
    if match := _DAY_FIRST.fullmatch(answer):
        yield f"{match['month']} {match['day']}, {match['year']}"
    if match := _MONTH_FIRST.fullmatch(answer):
        yield f"{match['day']} {match['month']} {match['year']}"
    if _WITH_COMMAS.fullmatch(answer):
        yield answer.replace(",", "")
    if match := _MILLIONS.fullmatch(answer):
        number = int(match["whole"] + (match["part"] or "").ljust(6, "0"))
        yield f"{number:,}"
        yield str(number)
    if answer.isdigit() and int(answer) < len(_SMALL_NUMBERS):
        yield _SMALL_NUMBERS[int(answer)]
