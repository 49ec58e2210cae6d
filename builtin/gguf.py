"""The built-in language model: a GGUF file, converted once into an ordinary checkpoint."""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

from research.atomic_io import atomic_directory


def convert_gguf(source: Path, target: Path) -> None:
    """Dequantize a GGUF file to a bfloat16 checkpoint with its tokenizer; it appears complete or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The progress bar of GGUF files, which no option of transformers turns off, would fill a log with one endless line.
    shown = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with shown:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    with atomic_directory(target, replace=True) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(partial)
