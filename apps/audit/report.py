"""The report of an audit: a table in Markdown, an HTML page, the answerable questions, and the missing pages."""

from __future__ import annotations

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.audit.measure import Audited
from research.atomic_io import atomic_write
from research.markdown import markdown_table
from research.questions import write_questions

_ALL = "all"
_SHOWN_PAGES, _SHOWN_QUESTIONS = 200, 200
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #1c2330; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #d6dbe4; padding: .35rem .7rem; text-align: right; vertical-align: top }
th:first-child, td:first-child, .text td, .text th { text-align: left }
th { color: #56617a; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  body { color: #dfe4ee; background: #14181f }
  th { color: #98a3b8 }
  th, td { border-color: #303846 }
}
"""

Sets = Mapping[str, Sequence[Audited]]


def write_audit(directory: Path, sets: Sets, unknown: Mapping[str, int], about: Mapping[str, Any]) -> str:
    """Write all files of an audit; returns the table.

    Args:
        sets: what was found, by the name of a set.
        unknown: of each set, how many questions name no supporting titles; they are in no figure.
        about: index, revision, passages, top_k.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shown = table(sets)
    for name, audited in sets.items():
        write_questions(
            directory / f"{name}-answerable.jsonl", [each.question for each in audited if each.is_answerable]
        )
    pages = missing_pages(sets)
    _write(directory / "missing-pages.csv", _csv(pages))
    figures = {
        "about": about,
        "without_titles": unknown,
        "sets": {name: _figures(found) for name, found in sets.items()},
    }
    _write(directory / "audit.json", json.dumps(figures, indent=2, ensure_ascii=False))
    _write(directory / "audit.html", _page(sets, unknown, about, pages))
    return shown


def table(sets: Sets) -> str:
    """A row per set and kind; shares of its questions."""
    rows = [row for name, audited in sets.items() for row in _rows(name, audited)]
    return markdown_table(_head(sets), rows)


def missing_pages(sets: Sets) -> list[tuple[str, int]]:
    """Titles that the corpus lacks, and how many questions need each; most needed first."""
    needed = Counter(title for audited in sets.values() for each in audited for title in each.missing)
    return sorted(needed.items(), key=lambda page: (-page[1], page[0]))


def _figures(audited: Sequence[Audited]) -> dict[str, dict[str, float]]:
    figures = {}
    for kind, found in _by_kind(audited).items():
        rankings = list(found[0].by_question)
        figures[kind] = {
            "questions": len(found),
            "pages_there": _share(not each.missing for each in found),
            "answer_there": _share(each.said for each in found),
            **{f"found_by_question/{name}": _share(each.by_question[name] for each in found) for name in rankings},
            **{f"found_by_hops/{name}": _share(each.by_chain[name] for each in found) for name in rankings},
            "answer_served": _share(each.served for each in found),
            "answerable": _share(each.is_answerable for each in found),
        }
    return figures


def _head(sets: Sets) -> list[str]:
    rankings = next((list(found[0].by_question) for found in sets.values() if found), [])
    return [
        "set, kind",
        "questions",
        "pages there",
        "answer stands in them",
        *(f"found by the question, {name}" for name in rankings),
        *(f"found by its hops, {name}" for name in rankings),
        "answer served",
        "answerable",
    ]


def _rows(name: str, audited: Sequence[Audited]) -> list[list[str]]:
    return [
        [f"{name}, {kind}", f"{figures['questions']:.0f}", *(f"{share:.3f}" for share in list(figures.values())[1:])]
        for kind, figures in _figures(audited).items()
    ]


def _by_kind(audited: Sequence[Audited]) -> dict[str, list[Audited]]:
    kinds: dict[str, list[Audited]] = {}
    for each in audited:
        kinds.setdefault(each.question.kind, []).append(each)
    return {_ALL: list(audited), **dict(sorted(kinds.items()))} if len(kinds) > 1 else {_ALL: list(audited)}


def _share(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _csv(pages: Sequence[tuple[str, int]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("title", "questions"))
    writer.writerows(pages)
    return text.getvalue()


def _page(sets: Sets, unknown: Mapping[str, int], about: Mapping[str, Any], pages: Sequence[tuple[str, int]]) -> str:
    """One page without scripts; whatever a corpus or a question says is text in it."""
    rows = [row for name, audited in sets.items() for row in _rows(name, audited)]
    beyond = [(name, each) for name, audited in sets.items() for each in audited if not each.is_answerable]
    told = ", ".join(f"{name} {value}" for name, value in about.items())
    left = "; ".join(
        f"{count} questions of {name} name no pages and are in no figure" for name, count in unknown.items()
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>What this corpus can answer</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<style>{_STYLE}</style><h1>What this corpus can answer</h1>",
            f"<p>{html.escape(told)}. {html.escape(left)}</p>",
            _html_table(_head(sets), rows),
            f"<h2>Missing pages</h2><p>{_of(len(pages), _SHOWN_PAGES)} All are in missing-pages.csv.</p>",
            _html_table(("page", "questions that need it"), [(title, str(n)) for title, n in pages[:_SHOWN_PAGES]]),
            f"<h2>Questions beyond reach</h2><p>{_of(len(beyond), _SHOWN_QUESTIONS)}</p>",
            _html_table(
                ("set", "question", "answers", "why"),
                [
                    (name, each.question.text, " / ".join(each.question.answers), why(each))
                    for name, each in beyond[:_SHOWN_QUESTIONS]
                ],
                "text",
            ),
            "</html>\n",
        ]
    )


def _of(count: int, shown: int) -> str:
    if count <= shown:
        return f"{count}." if count else "None."
    return f"The first {shown} of {count}."


def why(audited: Audited) -> str:
    """Why a question is beyond reach, in words."""
    if audited.missing:
        return f"not in the corpus: {', '.join(audited.missing)}"
    if not audited.said:
        return "no answer stands in the passages of its pages"
    return "the searches of its hops do not bring all of its pages"


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "figures") -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = list(rows)
    if not rows:
        return ""
    return f'<table class="{kind}">{line(head, "th")}{"".join(line(row, "td") for row in rows)}</table>'


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as out:
        out.write(text.encode())
