"""From passages to the question sets: read facts, make questions, verify, split, limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from builtin.questions.compare import COMPARISONS, comparison_questions
from builtin.questions.compose import chain_questions, hop_of, one_hop_questions
from builtin.questions.extract.article import read_article
from builtin.questions.extract.corpus_facts import facts_of, titles_by_name
from builtin.questions.extract.facts import Fact
from builtin.questions.split import entity_groups, is_held_out, is_new_template, stable_hash
from builtin.questions.verify import verify
from research.passages import Passage
from research.questions.model import Hop, Question

Reached = Callable[[Sequence[Hop]], Sequence[bool]]
"""Returns for each hop whether its search finds its passage and answer."""

# Without a limit, years of life would be two thirds of all one-hop questions.
_MOST_OF_A_TEMPLATE = 100
# A frequent answer could be guessed without a search.
_MOST_OF_AN_ANSWER = 8


@dataclass(frozen=True, slots=True)
class QuestionSplit:
    """Questions to train on, and questions to evaluate with; both in a shuffled, fixed order.

    The held-out ones ask about other entities, and those marked `new_template` use templates that training never saw.
    """

    train: list[Question]
    held_out: list[Question]


def build_questions(
    passages: Sequence[Passage], *, served_words: int = 34, reached: Reached | None = None
) -> QuestionSplit:
    """Derive the question set from passages of the built-in corpus.

    `served_words` is how many words of a passage's text a search is sure to show: every answer is within them.
    `reached` excludes questions whose searches miss a passage or answer; without it, none is excluded for that.
    The result depends only on the arguments. Takes seconds for 10,000 passages.
    """
    by_title = {passage.title: passage for passage in passages}
    questions, facts = chains_and_facts(passages, served_words)
    if reached is not None:
        hops = list(dict.fromkeys((*(hop for q in questions for hop in q.hops), *map(_own_hop, facts))))
        found = {hop for hop, ok in zip(hops, reached(hops), strict=True) if ok}
        questions = [question for question in questions if found.issuperset(question.hops)]
        facts = [fact for fact in facts if _own_hop(fact) in found]
    return _split(questions, facts, lambda question: not verify(question, by_title, served_words))


def chains_and_facts(passages: Sequence[Passage], served_words: int) -> tuple[list[Question], list[Fact]]:
    """Every valid question of one, two or three hops, before any is excluded, and the facts they are made of."""
    articles = [read_article(passage, served_words) for passage in passages]
    titles = titles_by_name(articles)
    facts = facts_of(articles, titles)
    candidates = _asked_once([*one_hop_questions(facts), *chain_questions(facts, titles)])
    by_title = {passage.title: passage for passage in passages}
    return [question for question in candidates if not verify(question, by_title, served_words)], facts


def _split(questions: Sequence[Question], facts: Sequence[Fact], is_sound: Callable[[Question], bool]) -> QuestionSplit:
    # 1. Group the entities: a group is on one side only.
    known = [question for question in questions if not is_new_template(question.template)]
    in_order = sorted(known, key=lambda question: (len(question.hops), stable_hash(question.id)))
    groups = entity_groups([hop.title for hop in q.hops] for q in in_order if len(q.hops) < 3)

    def held_out(title: str) -> bool:
        return is_held_out(groups.get(title, title))

    def compare(new: bool, allowed: Callable[[str], bool]) -> list[Question]:
        usable = [fact for fact in facts if allowed(fact.title)]
        chosen = [comparison for comparison in COMPARISONS if is_new_template(comparison.template) is new]
        return [q for one in chosen for q in comparison_questions(one, usable, _MOST_OF_A_TEMPLATE, is_sound)]

    def ordered(parts: Iterable[Question]) -> list[Question]:
        named = (replace(q, entity=groups.get(q.hops[0].title, q.hops[0].title)) for q in parts)
        return sorted(named, key=lambda question: stable_hash(question.id))

    # 2. Train on known templates about entities that are not held out.
    train = [
        *_limited(q for q in known if not any(held_out(hop.title) for hop in q.hops)),
        *compare(False, lambda title: not held_out(title)),
    ]
    trained = {hop.title for question in train for hop in question.hops}
    # 3. Hold out known templates about held-out entities, and new templates about entities that training never names.
    by_entity = [
        *_limited(q for q in known if all(held_out(hop.title) for hop in q.hops)),
        *compare(False, held_out),
    ]
    by_template = [
        *_limited(
            q for q in questions if is_new_template(q.template) and trained.isdisjoint(hop.title for hop in q.hops)
        ),
        *compare(True, lambda title: title not in trained),
    ]
    return QuestionSplit(
        train=ordered(train),
        held_out=ordered([*by_entity, *(replace(question, new_template=True) for question in by_template)]),
    )


def _own_hop(fact: Fact) -> Hop:
    return hop_of(fact, fact.phrase, fact.search)


def _asked_once(questions: Sequence[Question]) -> list[Question]:
    """Drop every question that shares its text or id with another question."""
    texts = Counter(question.text for question in questions)
    ids = Counter(question.id for question in questions)
    return [question for question in questions if texts[question.text] == 1 and ids[question.id] == 1]


def _limited(questions: Iterable[Question]) -> Iterator[Question]:
    """Keep a limited number per template, and per answer within a kind; a hash decides which ones."""
    by_template: Counter[str] = Counter()
    by_answer: Counter[tuple[str, str]] = Counter()
    for question in sorted(questions, key=lambda question: stable_hash(question.id)):
        answer = (question.kind, question.answers[0])
        if by_template[question.template] < _MOST_OF_A_TEMPLATE and by_answer[answer] < _MOST_OF_AN_ANSWER:
            by_template[question.template] += 1
            by_answer[answer] += 1
            yield question
