"""`research audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apps.options import Overrides, Preset, console
from research.config import load_settings
from research.errors import ConfigurationError
from research.questions.benchmarks import benchmark_of, set_name


def audit(
    questions: Annotated[
        list[str],
        typer.Option(help="a file, hub:…, a benchmark's name, or builtin; may be given several times"),
    ],
    out: Annotated[Path, typer.Option(help="directory of the report")] = Path("audit"),
    top_k: Annotated[int, typer.Option(min=1, max=100, help="passages per search")] = 5,
    overrides: Overrides = None,
    preset: Preset = "quickstart-cpu",
) -> None:
    """Tell what the served corpus can answer of question sets: which pages it lacks, and what searches bring.

    Use it before you train: a question whose page is not there teaches nothing. The answerable questions are written
    as a question file (`questions.train=audit/….jsonl`), and the missing pages as a list.

    Example: `research audit --questions musique_dev.jsonl --questions builtin corpus.index=wiki18`
    """
    from apps.audit.chains import chains_of
    from apps.audit.measure import Auditor
    from apps.audit.report import write_audit
    from research.questions.sources import load_questions
    from services.retriever.encoder.checkpoint import open_checkpoint
    from services.retriever.encoder.encoder import load_encoder
    from services.retriever.index.search_index import SearchIndex

    settings = load_settings(preset, overrides)
    data, threads = settings.paths.data, settings.retriever.threads
    sets = {}
    for source in questions:
        loaded = load_questions(source, "held_out", data)
        name = set_name(source, benchmark_of(source, loaded))
        if name in sets:
            raise ConfigurationError(f"two question sets are called {name}; audit them one by one, with another --out")
        sets[name] = (source, loaded)
    checkpoint = open_checkpoint(settings.encoder.name, data)
    index = SearchIndex(settings.corpus.index, settings.index_dir, checkpoint, settings.encoder, threads)
    encoder = load_encoder(checkpoint, settings.encoder, settings.encoder.backend, threads, data)
    auditor = Auditor(index, encoder, top_k)
    audited, unknown = {}, {}
    for name, (source, loaded) in sets.items():
        known = [question for question in loaded if question.supporting_titles]
        if len(known) < len(loaded):
            unknown[name] = len(loaded) - len(known)
        if known:
            audited[name] = auditor.audit(known, chains_of(source, known))
    if not audited:
        raise ConfigurationError(
            "no question names the pages that it needs (supporting titles); nothing can be audited"
        )
    about = {
        "index": index.name,
        "revision": index.manifest.revision,
        "passages": len(index.passages),
        "top_k": top_k,
    }
    console.print(write_audit(out, audited, unknown, about), markup=False, highlight=False, soft_wrap=True)
    for name, count in unknown.items():
        console.print(f"{count} questions of {name} name no pages and are in no figure", highlight=False)
    console.print(f"the page is {out / 'audit.html'}; the answerable questions lie beside it", highlight=False)
