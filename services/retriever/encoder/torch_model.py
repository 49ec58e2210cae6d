"""The encoder as one torch module: tokens in, pooled unit vectors out.

The torch backend runs it; the ONNX backends export it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.retriever.encoder.checkpoint import Checkpoint


class SentenceModel(nn.Module):
    """Transformer, pooling and L2 norm in one graph, so that every backend pools alike."""

    def __init__(self, transformer: nn.Module, pooling: str) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode [rows, tokens] ids and their mask into [rows, dimension] unit vectors."""
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(pooled.float(), dim=-1)


def load_sentence_model(checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str) -> SentenceModel:
    """Load the weights in `dtype` on the CPU; `attention` is the name of an implementation in transformers."""
    from transformers import AutoModel
    from transformers.utils import logging

    # The warning about BERT's classification head misleads: the checkpoint lacks it and nothing uses it.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    transformer = AutoModel.from_pretrained(checkpoint.directory, dtype=dtype, attn_implementation=attention)
    return SentenceModel(transformer, checkpoint.pooling).eval()
