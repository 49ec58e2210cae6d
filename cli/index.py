"""`research index`: builds an index of passages, imports one, or measures it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apps.options import Overrides, Preset, console
from research.config import DEFAULT_PRESET, load_settings
from research.errors import ConfigurationError
from services.process import stopping


def index(
    passages: Annotated[
        Path | None,
        typer.Option(help="file or directory: JSONL, TSV, Parquet (docs/own-data.md); default: corpus.name"),
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="build nothing; print the recall of the index")] = False,
    questions: Annotated[
        Path | None, typer.Option(help="with --evaluate: MuSiQue, HotpotQA or our own; for recall of gold passages")
    ] = None,
    imported: Annotated[
        Path | None,
        typer.Option("--import", help="a FAISS index of these --passages, in their order: nothing is embedded"),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="with --import: serve that file as it is instead of converting it")
    ] = False,
    overrides: Overrides = None,
    preset: Preset = DEFAULT_PRESET,
) -> None:
    """Embed passages and build the index that the retriever serves.

    Use it to search your own passages (docs/own-data.md), or with `--evaluate` to measure an index. An interrupted
    build continues when you run the same command again.

    With `--import` it takes the vectors from a FAISS index that you have, such as Search-R1's `e5_Flat.index`, and
    embeds only a sample, to see that `encoder.name` is the encoder that made it (docs/retriever.md).

    - Your own passages:
      `research index --preset own-documents corpus.name=my.jsonl corpus.index=mine`
    - An index that you have:
      `research index --import e5_Flat.index --passages wiki-18.jsonl.gz corpus.index=wiki18
      encoder.name=intfloat/e5-base-v2 encoder.max_passage_tokens=256`
    """
    from builtin.prepare import passages_path

    settings = load_settings(preset, overrides)
    if imported and not passages:
        raise ConfigurationError("--import: name the file of passages that the index was made from with --passages")
    if keep and not imported:
        raise ConfigurationError("--keep: name the FAISS index that is to be kept with --import")
    if evaluate or questions:
        if imported:
            raise ConfigurationError("--evaluate measures an index that is there; import first, without it")
        from cli.recall import print_recall

        print_recall(settings, questions, console)
        return
    from services.retriever.build.build import build_index

    with stopping.keeping(lambda: "the vectors made so far are kept; the same command continues from there"):
        built = build_index(settings, passages or passages_path(settings), imported, keep=keep)
        console.print(f"index: {built}", highlight=False, soft_wrap=True)
