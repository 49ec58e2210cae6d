"""What a corpus holds of each question: its pages, its answer, and whether searches bring them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from research.questions import Question
from services.process.progress import progress
from services.retriever.encoder.encoder import Encoder
from services.retriever.index.passage_store import PassageStore
from services.retriever.index.search_index import SearchIndex

# Answers that stand in no passage.
_SAID_BY_NOBODY = frozenset({"yes", "no", "noanswer"})
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\w+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3})")  # 1,200
_AT_ONCE = 256

Rankings = Mapping[str, list[list[int]]]


@dataclass(frozen=True, slots=True)
class Audited:
    """One question.

    Attributes:
        missing: supporting titles that the corpus lacks.
        said: whether an answer stands in a passage of the supporting titles; yes and no count as said.
        by_question: by ranking, whether a search for the question itself brings passages of all supporting titles.
        by_chain: the same for the searches of its hops together.
        served: whether an answer stands in a passage that one of these searches brings, by the served ranking.
    """

    question: Question
    missing: tuple[str, ...]
    said: bool
    by_question: Mapping[str, bool] = field(default_factory=dict)
    by_chain: Mapping[str, bool] = field(default_factory=dict)
    served: bool = False

    @property
    def is_answerable(self) -> bool:
        """The pages are there, the answer stands in them, and the searches of the hops bring them, as served."""
        return not self.missing and self.said and any(list(self.by_chain.values())[-1:])


class Auditor:
    """Audits questions against an index.

    Args:
        top_k: passages per search.
    """

    def __init__(self, index: SearchIndex, encoder: Encoder, top_k: int) -> None:
        self._index = index
        self._encoder = encoder
        self._top_k = top_k

    def audit(self, questions: Sequence[Question], chains: Mapping[str, Sequence[str]]) -> list[Audited]:
        """Audit questions whose supporting titles are known.

        Args:
            chains: searches of each question's hops, by its id.
        """
        wanted = {normal_title(title) for question in questions for title in question.supporting_titles}
        places = places_of_titles(self._index.passages, wanted)
        queries = list(dict.fromkeys(text for each in questions for text in (each.text, *chains[each.id])))
        found = self._search(queries)
        return [self._one(question, chains[question.id], places, found) for question in questions]

    def _one(
        self,
        question: Question,
        chain: Sequence[str],
        places: Mapping[str, Sequence[int]],
        found: Mapping[str, Mapping[str, list[int]]],
    ) -> Audited:
        titles = question.supporting_titles
        of_titles = [set(places.get(normal_title(title), ())) for title in titles]
        ranked = found[question.text]

        def brought(queries: Sequence[str], ranking: str) -> bool:
            got = {place for query in queries for place in found[query][ranking]}
            return all(own & got for own in of_titles)

        served = list(ranked)[-1]
        shown = {place for query in (question.text, *chain) for place in found[query][served]}
        return Audited(
            question,
            tuple(title for title, own in zip(titles, of_titles, strict=True) if not own),
            self._is_said(question, {place for own in of_titles for place in own}),
            {ranking: brought([question.text], ranking) for ranking in ranked},
            {ranking: brought(chain, ranking) for ranking in ranked},
            self._is_said(question, shown),
        )

    def _is_said(self, question: Question, places: set[int]) -> bool:
        answers = [words for answer in question.answers if (words := spaced(answer))]
        # Of the canonical answer only: "no" is an alias of Norway.
        if spaced(question.answers[0]).strip() in _SAID_BY_NOBODY:
            return bool(places)
        texts = [spaced(f"{record['title']} {record['text']}") for record in map(self._index.passages.record, places)]
        return any(answer in text for answer in answers for text in texts)

    def _search(self, queries: Sequence[str]) -> dict[str, dict[str, list[int]]]:
        """By query: the positions that each ranking brings; the last ranking is the served one."""
        found: dict[str, dict[str, list[int]]] = {}
        with progress("searching", "queries", total=len(queries)) as advance:
            for start in range(0, len(queries), _AT_ONCE):
                texts = queries[start : start + _AT_ONCE]
                rankings = self._rankings(texts)
                for place, text in enumerate(texts):
                    found[text] = {name: rows[place] for name, rows in rankings.items()}
                advance(len(texts))
        return found

    def _rankings(self, texts: Sequence[str]) -> Rankings:
        vectors = self._encoder.encode_queries(texts)
        near = self._index.dense.search(vectors, self._top_k)[1].tolist()
        rankings = {"vectors": [[place for place in row if place >= 0] for row in near]}
        if self._index.lexical is not None:
            rankings["words"] = self._index.lexical.search(texts, self._top_k).tolist()
            fused = self._index.rank(texts, vectors, self._top_k)
            rankings["both, fused"] = [[place for place, _ in row] for row in fused]
        return rankings


def spaced(text: str) -> str:
    """The words of a text with a space around each, so that whole words are found by `in`; "" if there is none.

    Unlike the normalization of exact match, it divides at every sign: a birth year stands in "(1875–1941)".
    """
    joined = _GROUPED.sub("", unicodedata.normalize("NFKC", text).casefold())
    found = [word for word in _WORD.findall(joined) if word not in _ARTICLES]
    return f" {' '.join(found)} " if found else ""


def normal_title(title: str) -> str:
    """Titles that differ in case, in spaces or underscores, or in how an accent is encoded, are of one page."""
    return " ".join(unicodedata.normalize("NFC", title).replace("_", " ").casefold().split())


def places_of_titles(store: PassageStore, wanted: set[str]) -> dict[str, list[int]]:
    """Positions of the passages of each title, which are given and returned as `normal_title`."""
    places: dict[str, list[int]] = {}
    with progress("reading titles", "passages", total=len(store)) as advance:
        for start, titles in store.column("title"):
            for position, title in enumerate(titles, start=start):
                if (name := normal_title(title)) in wanted:
                    places.setdefault(name, []).append(position)
            advance(len(titles))
    return places
