"""The built-in question set: one-hop and two-hop questions read out of the built-in corpus by code alone.

Extractors turn single passages into facts ("Dracula" —creator→ "Bram Stoker"). Every fact makes a one-hop question, and
two facts that meet in a passage make a two-hop question ("In what year was the author of the novel Dracula born?").

The split goes by entity. Titles that come up together in a two-hop question (its subject and its bridge) form a group;
groups that share a title are merged; and a hash of the group's name sends the whole group, with all its one-hop
and two-hop questions, to training or to the held-out set. So no held-out question has a subject or a bridge that
training asked about.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from research.passages import Passage
from research.questions.builtin.article import Article, read_article
from research.questions.builtin.compose import one_hop_questions, two_hop_questions
from research.questions.builtin.facts import Fact, unambiguous
from research.questions.builtin.history import history_facts, is_dated_polity, organisation_facts
from research.questions.builtin.nature import family_name, nature_facts
from research.questions.builtin.people import is_person, person_facts, polity_facts, relative_facts
from research.questions.builtin.places import country_facts, is_country, place_facts
from research.questions.builtin.split import entity_groups, is_held_out, stable_hash
from research.questions.builtin.verify import verify
from research.questions.builtin.works import idea_facts, work_facts
from research.questions.model import Question

__all__ = ["QuestionSplit", "build_questions", "verify"]

# Without a limit, years of life would be two thirds of all one-hop questions.
_MOST_OF_A_TEMPLATE = 200
# An answer that comes up all the time could be guessed without a search.
_MOST_OF_AN_ANSWER = 8


@dataclass(frozen=True, slots=True)
class QuestionSplit:
    """Questions to train on, and questions about other entities to evaluate with; both in a shuffled, fixed order."""

    train: list[Question]
    held_out: list[Question]


def build_questions(passages: Sequence[Passage], *, served_words: int = 34) -> QuestionSplit:
    """Derive the question set from passages of the built-in corpus.

    `served_words` is how many words of a passage's text a search is sure to show: every answer stands within them.
    The result depends on nothing but the arguments. Takes seconds for 10,000 passages.
    """
    articles = [read_article(passage, served_words) for passage in passages]
    facts = unambiguous(_facts(articles))
    by_title = {passage.title: passage for passage in passages}
    candidates = [*one_hop_questions(facts), *two_hop_questions(facts, _titles_by_name(articles))]
    sound = [question for question in _asked_once(candidates) if not verify(question, by_title, served_words)]
    groups = entity_groups([hop.title for hop in question.hops] for question in sound)
    grouped = [replace(question, entity=groups[question.hops[0].title]) for question in sound]
    chosen = list(_limited(grouped))
    return QuestionSplit(
        train=[question for question in chosen if not is_held_out(question.entity)],
        held_out=[question for question in chosen if is_held_out(question.entity)],
    )


def _facts(articles: Sequence[Article]) -> Iterable[Fact]:
    people = {article.title for article in articles if is_person(article)}
    countries = {article.name for article in articles if is_country(article)}
    polities = {article.title for article in articles if is_dated_polity(article, people)}
    for article in articles:
        made = [*work_facts(article)]
        yield from made or idea_facts(article, people)
        yield from person_facts(article)
        yield from polity_facts(article, polities)
        yield from relative_facts(article, people)
        yield from place_facts(article, countries)
        yield from country_facts(article, countries)
        yield from history_facts(article, people)
        yield from organisation_facts(article, people)
        yield from nature_facts(article)


def _titles_by_name(articles: Sequence[Article]) -> dict[str, str]:
    """Titles by every name that means one article only: the title, the name, a family's scientific name."""
    titles: dict[str, set[str]] = defaultdict(set)
    for article in articles:
        for name in {article.title, article.name, family_name(article)} - {None}:
            titles[str(name)].add(article.title)
    return {name: next(iter(found)) for name, found in titles.items() if len(found) == 1}


def _asked_once(questions: Sequence[Question]) -> list[Question]:
    """Drop every question whose text or id another question has, too."""
    texts = Counter(question.text for question in questions)
    ids = Counter(question.id for question in questions)
    return [question for question in questions if texts[question.text] == 1 and ids[question.id] == 1]


def _limited(questions: Sequence[Question]) -> Iterable[Question]:
    """Keep so many of each template, and of each answer within a kind; which ones is settled by a hash."""
    by_template: Counter[str] = Counter()
    by_answer: Counter[tuple[str, str]] = Counter()
    for question in sorted(questions, key=lambda question: stable_hash(question.id)):
        answer = (question.kind, question.answers[0])
        if by_template[question.template] < _MOST_OF_A_TEMPLATE and by_answer[answer] < _MOST_OF_AN_ANSWER:
            by_template[question.template] += 1
            by_answer[answer] += 1
            yield question
