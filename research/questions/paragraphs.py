"""The paragraphs that come with a question set (MuSiQue, HotpotQA or 2Wiki), as a corpus to search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from research.errors import AssetError
from research.passages import Passage
from research.questions.files import Record, read_question_file


def paragraphs_of(paths: Iterable[Path]) -> Iterator[Passage]:
    """The distinct paragraphs of question files, in order of first appearance, numbered from 0.

    Raises AssetError naming the place if a file is corrupt or a question has no paragraphs.
    """
    seen: set[tuple[str, str]] = set()
    for path in paths:
        for place, record in read_question_file(path):
            try:
                paragraphs = list(_paragraphs(record))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise AssetError(f"{path}, {place}, is not a question with its paragraphs ({error!r})") from error
            for title, text in paragraphs:
                if (title, text) not in seen:
                    seen.add((title, text))
                    yield Passage(str(len(seen) - 1), title, text)


def _paragraphs(record: Record) -> Iterator[tuple[str, str]]:
    if "paragraphs" in record:
        for paragraph in record["paragraphs"]:
            yield paragraph["title"].strip(), paragraph["paragraph_text"].strip()
        return
    context = record["context"]
    if isinstance(context, dict):  # the form of the hub's data sets
        context = zip(context["title"], context["sentences"], strict=True)
    for title, sentences in context:
        yield title.strip(), joined(sentences)


def joined(sentences: Iterable[str]) -> str:
    """Sentences as one text: HotpotQA's include the space between them, those of 2WikiMultiHopQA do not."""
    text = ""
    for sentence in sentences:
        text += sentence if not text or text[-1:].isspace() or sentence[:1].isspace() else f" {sentence}"
    return text.strip()
