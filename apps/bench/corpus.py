"""`research corpus`: passages from the paragraphs of question sets, or from a dump of Wikipedia, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from research.errors import AssetError, ConfigurationError
from research.passages import Passage, write_passages
from research.questions.files import read_question_file
from research.questions.paragraphs import paragraphs_of
from services.process.progress import progress
from services.retriever.build.passage_readers import read_passages

_EVERY = 1000  # passages between two progress updates


def write_corpus(sources: Sequence[Path], out: Path, console: Console) -> int:
    """Write `out`, JSONL; returns how many passages. An interrupted call leaves nothing behind.

    Raises:
        AssetError: a file is missing or corrupt; the message names place and reason.
        ConfigurationError: question sets and dumps are mixed, or there are several dumps.
    """
    dumps = [path for path in sources if not _has_questions(path)]
    if dumps and len(sources) > 1:
        raise ConfigurationError(
            f"{dumps[0]} has no questions, so it is a dump; name one dump (a file or a directory), or question sets"
        )
    passages = read_passages(dumps[0]) if dumps else paragraphs_of(sources)
    count = 0
    with progress("reading", "passages") as advance:

        def counted() -> Iterator[Passage]:
            nonlocal count
            for count, passage in enumerate(passages, 1):
                if count % _EVERY == 0:
                    advance(_EVERY)
                yield passage

        write_passages(out, counted())
    return count


def _has_questions(path: Path) -> bool:
    """Whether the first record is a question; dumps have their own formats."""
    if path.is_dir() or path.suffix in (".tsv", ".gz"):
        return False
    try:
        _, first = next(read_question_file(path))
    except StopIteration:
        raise AssetError(f"{path} is empty") from None
    return isinstance(first, dict) and "question" in {str(name).lower() for name in first}
