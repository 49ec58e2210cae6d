"""The paragraphs that come with a question set, as a corpus: what MuSiQue, HotpotQA and 2Wiki give to be searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from research.errors import AssetError
from research.passages import Passage
from research.questions.files import Record, read_question_file


def paragraphs_of(paths: Iterable[Path]) -> Iterator[Passage]:
    """The distinct paragraphs of question files, in the order in which they first come up, numbered from 0.

    Raises AssetError that names the place, if a file is broken or a question has no paragraphs.
    """
    seen: set[tuple[str, str]] = set()
    for path in paths:
        for place, record in read_question_file(path):
            try:
                paragraphs = list(_paragraphs(record))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise AssetError(f"{path}, {place}: no question with its paragraphs ({error!r})") from error
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
    if isinstance(context, dict):  # as the hub's data sets have it
        context = zip(context["title"], context["sentences"], strict=True)
    for title, sentences in context:
        yield title.strip(), joined(sentences)


def joined(sentences: Iterable[str]) -> str:
    """Sentences as a text: HotpotQA's bring the space between them along, those of 2WikiMultiHopQA do not."""
    text = ""
    for sentence in sentences:
        text += sentence if not text or text[-1:].isspace() or sentence[:1].isspace() else f" {sentence}"
    return text.strip()
