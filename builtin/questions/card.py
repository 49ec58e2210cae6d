"""What the built-in question sets hold: `python -m builtin.questions.card [--data DIR] [--sample]`.

Prints how many questions of each kind and template there are; with `--sample`, fifty held-out questions of all kinds,
always the same ones, each with the passages as an episode shows them, for a person to read.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from builtin.questions.extract.article import served_text
from research.passages import Passage, iter_passages
from research.questions.model import Question, read_questions
from research.questions.sources import builtin_path

_KINDS = ("one_hop", "two_hop", "three_hop", "comparison")
_SETS = ("train", "entity", "template")
_SAMPLE = {
    ("one_hop", False): 10,
    ("one_hop", True): 7,
    ("two_hop", False): 8,
    ("two_hop", True): 7,
    ("three_hop", False): 5,
    ("three_hop", True): 4,
    ("comparison", False): 5,
    ("comparison", True): 4,
}
_SEED = 2
_SHOWN_WORDS = 40


def main() -> None:
    """Print the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the directory of the prepared data")
    parser.add_argument("--sample", action="store_true", help="print fifty held-out questions with their passages")
    arguments = parser.parse_args()
    held_out = read_questions(builtin_path(arguments.data, "held_out"))
    if arguments.sample:
        corpus = arguments.data / "corpus" / "wikipedia-leads.jsonl"
        passages = {passage.title: passage for passage in iter_passages(corpus)}
        lines = _described(sample(held_out), passages)
    else:
        lines = counts(read_questions(builtin_path(arguments.data, "train")), held_out)
    print("\n".join(lines))


def counts(train: Sequence[Question], held_out: Sequence[Question]) -> Iterator[str]:
    """Two Markdown tables: kinds by set, then templates by set."""
    sets = {
        "train": train,
        "entity": [question for question in held_out if not question.new_template],
        "template": [question for question in held_out if question.new_template],
    }
    kinds = {name: Counter(question.kind for question in part) for name, part in sets.items()}
    yield "| kind | train | held out by entity | held out by template |\n|---|---|---|---|"
    for kind in _KINDS:
        yield f"| {kind} | " + " | ".join(str(kinds[name][kind]) for name in _SETS) + " |"
    yield "| all | " + " | ".join(str(kinds[name].total()) for name in _SETS) + " |"
    yield "\n| template | kind | train | held out by entity | held out by template |\n|---|---|---|---|---|"
    templates = {name: Counter((q.kind, q.template) for q in part) for name, part in sets.items()}
    for kind, template in sorted(set().union(*templates.values()), key=lambda one: (_KINDS.index(one[0]), one[1])):
        numbers = (str(templates[name][kind, template]) for name in _SETS)
        yield f"| {template} | {kind} | " + " | ".join(numbers) + " |"


def sample(held_out: Sequence[Question]) -> list[Question]:
    """Fifty questions: a fixed number of each kind, with known and with new templates."""
    rng = random.Random(_SEED)
    drawn = []
    for (kind, new), number in _SAMPLE.items():
        pool = sorted((q for q in held_out if (q.kind, q.new_template) == (kind, new)), key=lambda q: q.id)
        drawn += rng.sample(pool, min(number, len(pool)))
    return drawn


def _described(questions: Sequence[Question], passages: Mapping[str, Passage]) -> Iterator[str]:
    for number, question in enumerate(questions, start=1):
        yield f"{number}. [{question.id}] {question.text} → {' / '.join(question.answers)}"
        for hop in question.hops:
            shown = served_text(passages[hop.title], _SHOWN_WORDS).replace("\n", ": ")
            yield f"   {hop.goal} ({hop.query}) = {hop.answer} | {shown}"


if __name__ == "__main__":
    main()
