"""What the engine does with memory."""

from __future__ import annotations

import pytest

from services.policy.weights import vllm_engine


def test_each_update_returns_what_it_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("finalize_layerwise_reload", "_pack_tied_heads", "return_freed_memory"):
        monkeypatch.setattr(vllm_engine, name, lambda *_, name=name: done.append(name))
    engine = object.__new__(vllm_engine.FileWeightTransferEngine)
    engine.model = engine.model_config = None
    engine.finish_weight_update()
    assert done[-1] == "return_freed_memory"  # the packed weights of before are free only now
