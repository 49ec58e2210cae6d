"""ONNX Runtime sessions for the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.retriever.types import Vectors

Forward = Callable[[NDArray[np.int64], NDArray[np.int64]], Vectors]


def open_session(graph: Path, threads: int) -> Any:
    """Load a graph for the CPU with an explicit number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take cores from other processes on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def forward_of(session: Any) -> Forward:
    """The session as a function of ids and mask, int64 [rows, tokens], to float32 [rows, dimension]."""

    def forward(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        vectors: Vectors = session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    return forward
