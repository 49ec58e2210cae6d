"""Updates that fail: the real vLLM goes on with the old weights, all of them, and takes the next update."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file

from research.clients import PolicyAdmin
from research.errors import ServiceError
from research.schemas import WeightsRequest
from tests.conftest import REPOSITORY, Launch, Server
from tests.services.policy.shared.conftest import ADMIN, hooked
from tests.support.tiny_model import write_thin_model

Tensors = dict[str, torch.Tensor]
MATRIX = "model.layers.0.mlp.down_proj.weight"

# In files tensors come by name: the parts of a fused layer one by one, and other layers in between.
CUTS = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.3.mlp.gate_proj.weight",
    "model.layers.3.mlp.up_proj.weight",
    "model.layers.3.self_attn.k_proj.weight",
    "model.layers.3.self_attn.o_proj.weight",
    "model.layers.3.self_attn.q_proj.weight",
    "model.layers.3.self_attn.v_proj.weight",
    "model.layers.29.self_attn.v_proj.weight",
    "model.norm.weight",
]


def with_admin(policy: Server, use: Callable[[PolicyAdmin], Any]) -> Any:
    async def run() -> Any:
        async with PolicyAdmin(policy.url, token=ADMIN, retries=0) as admin:
            return await use(admin)

    return asyncio.run(run())


def digests(policy: Server) -> dict[str, str]:
    found: dict[str, str] = with_admin(policy, lambda admin: admin.digests())
    return found


@dataclass(frozen=True)
class Served:
    """A policy, two checkpoints that it accepts, which differ in every matrix, and both as they compute."""

    policy: Server
    runs: Path
    original: Path
    other: Path
    original_digests: dict[str, str]
    other_digests: dict[str, str]

    def update(self, path: Path, version: str) -> None:
        with_admin(self.policy, lambda admin: admin.update_weights(WeightsRequest(path=str(path), version=version)))

    def digests(self) -> dict[str, str]:
        return digests(self.policy)

    def require_untouched(self, what: str) -> None:
        """The old weights serve, the next good update succeeds, and the way back as well."""
        assert self.digests() == self.original_digests, what
        self.update(self.other, "good")
        assert self.digests() == self.other_digests, f"{what}, and then a good update"
        self.update(self.original, "back")
        assert self.digests() == self.original_digests, f"{what}, and then back"


def serving_two(policy: Server, runs: Path, base: Path) -> Served:
    """`base` is what it serves."""
    original, other = shutil.copytree(base, runs / "original"), shutil.copytree(base, runs / "other")
    torch.manual_seed(0)
    tensors = load_file(other / "model.safetensors")
    noisy = {name: t + 0.01 * torch.randn_like(t) if t.ndim > 1 else t for name, t in tensors.items()}
    save_file(noisy, other / "model.safetensors", metadata={"format": "pt"})
    before = digests(policy)
    served = Served(policy, runs, original, other, before, {})
    served.update(other, "1")
    after = digests(policy)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]}
    served.update(original, "2")
    assert digests(policy) == before
    return replace(served, other_digests=after)


@pytest.fixture(scope="module")
def thin(launch: Launch, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Served:
    """A policy of the built-in model's tensors, but a twelfth of their bytes: what fails does not depend on them."""
    base = tmp_path_factory.mktemp("base") / "thin"
    write_thin_model(base, data_dir / "models" / "smollm2-135m-instruct")
    runs = tmp_path_factory.mktemp("thin-runs")
    settings = (f"model.name={base}", f"policy.weights_dir={runs}", "policy.kv_cache_gib=1")
    return serving_two(launch("policy", *settings, timeout=300, environment=hooked(), forked=False), runs, base)


@pytest.fixture(scope="module")
def real(policy: Server, runs: Path, data_dir: Path) -> Served:
    """The built-in model, whose updates take long enough to be left in the middle."""
    return serving_two(policy, runs, data_dir / "models" / "smollm2-135m-instruct")


@pytest.mark.parametrize("tensor", CUTS)
def test_a_disk_that_cannot_be_read_on(thin: Served, tensor: str) -> None:
    broken = shutil.copytree(thin.other, thin.runs / f"unreadable-from-{tensor}")
    with pytest.raises(ServiceError, match="still served"):
        thin.update(broken, "broken")
    thin.require_untouched(f"a failure at {tensor}")
    shutil.rmtree(broken)


def _without(tensors: Tensors) -> None:
    del tensors[MATRIX]


def _changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def of(tensors: Tensors) -> None:
        tensors[MATRIX] = change(tensors[MATRIX])

    return of


def _one_number(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def of(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[3, 5] = value
        return tensor

    return of


WRONG_TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "wrong shape": (_changed(lambda t: t[:-1].contiguous()), MATRIX),
    "wrong dtype": (_changed(lambda t: t.float()), MATRIX),
    "transposed": (_changed(lambda t: t.T.contiguous()), MATRIX),
    "one NaN": (_changed(_one_number(float("nan"))), "not finite"),
    "one infinity": (_changed(_one_number(float("-inf"))), "not finite"),
    "a tensor is missing": (_without, f"{MATRIX} is missing"),
    "a tensor too many": (lambda tensors: tensors.update(more=torch.zeros(2)), "more is not part"),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_tensors_that_are_not_the_models(thin: Served, what: str) -> None:
    change, named = WRONG_TENSORS[what]
    broken = shutil.copytree(thin.other, thin.runs / "wrong")
    tensors = load_file(broken / "model.safetensors")
    change(tensors)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ServiceError, match=f"422.*{named}"):
        thin.update(broken, "broken")
    thin.require_untouched(what)
    shutil.rmtree(broken)


def _cut_in_the_numbers(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def _cut_in_the_header(file: Path) -> None:
    os.truncate(file, 1000)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _pickled(file: Path) -> None:
    file.rename(file.with_name("pytorch_model.bin"))


def _linked_away(file: Path) -> None:
    file.parent.rename(file.parents[2] / "outside")
    file.parent.symlink_to(file.parents[2] / "outside")


WRONG_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off in the numbers": (_cut_in_the_numbers, "cut off"),
    "cut off in the header": (_cut_in_the_header, "not a safetensors file"),
    "empty": (_empty, "not a safetensors file"),
    "no safetensors": (_pickled, "only safetensors"),
    "a link out of the folder": (_linked_away, "weights_dir"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
def test_files_that_are_no_checkpoint(thin: Served, what: str) -> None:
    change, named = WRONG_FILES[what]
    broken = shutil.copytree(thin.other, thin.runs / f"wrong-{what}")
    change(broken / "model.safetensors")
    with pytest.raises(ServiceError, match=f"422.*{named}"):
        thin.update(broken, "broken")
    thin.require_untouched(what)


def test_a_disk_that_is_full_publishes_nothing(thin: Served) -> None:
    target = thin.runs / "version-000001"
    code = (
        "import resource, sys; from functools import partial; from pathlib import Path;"
        "from safetensors.torch import load_file; from services.trainer.parallel.shards import write_state;"
        "from services.trainer.weights.publisher import write_checkpoint;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000));"
        "base, target = map(Path, sys.argv[1:]);"
        "write_checkpoint(partial(write_state, load_file(base / 'model.safetensors')), base, target, '')"
    )
    command = [sys.executable, "-c", code, str(thin.other), str(target)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "File too large" in ended.stderr, ended.stderr
    assert not target.exists()
    with pytest.raises(ServiceError, match="422"):
        thin.update(target.with_name("version-000001.partial"), "broken")
    thin.require_untouched("a full disk")


@pytest.mark.parametrize("patience", [0.0, 0.05, 0.2, 0.4])
def test_a_trainer_that_dies_or_gives_up_in_the_middle(real: Served, patience: float) -> None:
    """It hangs up after `patience` seconds. The server ends by itself what was begun: all of it, or nothing."""
    address = urlsplit(real.policy.url)
    body = WeightsRequest(path=str(real.other), version=f"hung-up-{patience}").model_dump_json().encode()
    head = (
        f"POST /admin/weights HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {ADMIN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((str(address.hostname), address.port)) as connection:
        connection.sendall(head.encode() + body)
        connection.settimeout(patience or None)
        with suppress(TimeoutError):
            connection.recv(1) if patience else None
    # It waits for the update under way, if one was begun.
    real.update(real.original, "after")
    assert real.digests() == real.original_digests
    with real.policy.client() as client:
        assert client.get("/readyz").json()["detail"] == "weight version after"
    real.require_untouched(f"hung up after {patience} s")
