"""Retriever, policy and trainer of the bench, with a proxy before the first two, and the run that is trained."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.record import Record
from benchmarks.faults.system.programs import REPOSITORY, Program
from benchmarks.faults.system.proxy import Proxy
from benchmarks.faults.system.tiny_model import write_tiny_model

GROUPS, SIZE, ASKED = 2, 4, 4
TOKEN = "the-token-of-the-fault-bench"
ENVIRONMENT = {"RESEARCH_ADMIN_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
OTHER_INDEX = "other"
_WARM = "warm"
_OTHER_PASSAGES = 64
SETTINGS = [
    f"grpo.questions_per_step={GROUPS}",
    f"grpo.group_size={SIZE}",
    "grpo.num_iterations=4",  # so that an update takes long enough to be met
    # So small a model rarely does one thing better than another, and each step is to have an update.
    "grpo.count_silent_groups=true",
    "grpo.entropy_coefficient=0.001",
    "optimizer.micro_batch_tokens=64",
    "optimizer.frozen_layers=0",
    # So small that a model which searches still does after hundreds of steps.
    "optimizer.learning_rate=1e-6",
    "episode.max_turn_tokens=32",
    "episode.max_tokens=160",
    "episode.request_timeout=8",
    "episode.search_timeout=5",
    "checkpoints.interval=1",
    "checkpoints.keep=3",
    "evaluation.interval=1",
    f"evaluation.interim_per_kind={{ one_hop = {ASKED} }}",
    f"evaluation.per_kind={{ one_hop = {ASKED} }}",
    "questions.mix={ one_hop = 1 }",
    "model.dtype=float32",
    "sft.enabled=false",
    "policy.kv_cache_gib=1",
    "policy.threads=1",
    "policy.serve=base",
    "trainer.threads=1",
]
_WARM_UP = [
    "grpo.steps=0",
    "sft.enabled=true",
    "sft.traces={ one_hop = 40 }",
    "sft.steps=150",
    "sft.learning_rate=1e-2",
]


@dataclass
class Services:
    """What the bench runs against. `work` is the bench's own directory; `disk` holds the runs."""

    work: Path
    disk: Path
    data: Path
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ports = {name: free_port() for name in ("retriever", "policy", "trainer")}
        self.retriever = self._program("retriever", ["serve", "retriever", *self._settings()])
        self.policy = self._program("policy", ["serve", "policy", *self._settings()])
        self.proxies = {name: Proxy(self.ports[name]) for name in ("retriever", "policy")}
        self.trainer = self._program("trainer", [])

    @property
    def clock(self) -> Path:
        """What libfaketime reads: by how much the trainer's clock is off."""
        return self.work / "clock"

    @property
    def model(self) -> Path:
        """The base model: it has learnt the format of an episode, more or less."""
        return self.work / "model"

    def _program(self, name: str, arguments: list[str]) -> Program:
        return Program(name, arguments, self.ports[name], self.work / "logs" / f"{name}.log", dict(ENVIRONMENT))

    def _settings(self) -> list[str]:
        return [
            f"paths.data={self.data}",
            f"paths.runs={self.disk}",
            f"model.name={self.model}",
            f"policy.weights_dir={self.work}",
            f"endpoints.retriever_url=http://127.0.0.1:{self.ports['retriever']}",
            *(f"{name}.port={port}" for name, port in self.ports.items()),
            *SETTINGS,
        ]

    def trainer_of(self, run: str, *overrides: str, preload: str = "") -> Program:
        """The trainer of a run, which reaches the others through the proxies; it is not started."""
        through = [
            f"endpoints.retriever_url={self.proxies['retriever'].url}",
            f'endpoints.policy_urls=["{self.proxies["policy"].url}"]',
        ]
        self.trainer = self._program("trainer", ["train", *self._settings(), *through, f"run={run}", *overrides])
        self.trainer.preload = preload
        if preload:  # only the wall clock jumps; monotonic ones never do
            self.trainer.environment |= {
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return self.trainer

    def record(self, run: str) -> Record:
        return Record(self.disk / run)

    def status(self) -> dict[str, Any]:
        """What the trainer says; nothing if it does not answer."""
        with (
            suppress(OSError, ValueError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.ports['trainer']}/status", timeout=10) as answer,
        ):
            status: dict[str, Any] = json.load(answer)
            return status
        return {}

    def give_other_weights(self) -> None:
        """Make the policy serve its base, as if it had been restarted without the trainer's knowledge."""
        body = json.dumps({"path": str(self.model), "version": "0"}).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['policy']}/admin/weights", body, headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60):
            pass

    def stop(self) -> None:
        """End every process and both proxies."""
        for program in (self.trainer, self.policy, self.retriever):
            with suppress(Exception):
                program.stop()
        for proxy in self.proxies.values():
            proxy.close()


@contextmanager
def started(work: Path, disk: Path) -> Iterator[Services]:
    """Prepare what is needed once, start retriever and policy, and end everything in the end, however it comes."""
    work.mkdir(parents=True, exist_ok=True)
    services = Services(work, disk, _own_data(work))
    try:
        write_tiny_model(services.model, services.data)
        services.retriever.start()
        services.policy.start()
        services.retriever.await_ready()
        services.policy.await_ready()
        if not (services.model / "taught").is_file():
            _teach(services)
        yield services
    finally:
        services.stop()


def _teach(services: Services) -> None:
    """Let a supervised phase teach the model the format, and make the outcome the base of every run."""
    print("teaching the tiny model the format of an episode (once)", flush=True)
    shutil.rmtree(services.disk / _WARM, ignore_errors=True)
    trainer = services.trainer_of(_WARM, *_WARM_UP)
    trainer.start()
    trainer.await_that("done", lambda: trainer.exit_code == 0, 1200)
    shutil.copyfile(
        services.disk / _WARM / "weights" / "version-000001" / "model.safetensors",
        services.model / "model.safetensors",
    )
    (services.model / "taught").touch()
    services.policy.stop()
    services.policy.start()
    services.policy.await_ready()


def _own_data(work: Path) -> Path:
    """The prepared data, with an index of our own that may be spoilt, and a second one of fewer passages."""
    theirs, own = (REPOSITORY / "data").resolve(), work / "data"
    (own / "indexes").mkdir(parents=True, exist_ok=True)
    for name in ("models", "corpus", "questions"):
        if not (own / name).exists():
            (own / name).symlink_to(theirs / name)
    if not (own / "indexes" / "wikipedia-leads").exists():
        shutil.copytree(theirs / "indexes" / "wikipedia-leads", own / "indexes" / "wikipedia-leads")
    if not (own / "indexes" / OTHER_INDEX).exists():
        lines = (theirs / "corpus" / "wikipedia-leads.jsonl").read_text(encoding="utf-8").splitlines()
        few = work / "few.jsonl"
        few.write_text("\n".join(random.Random(0).sample(lines, _OTHER_PASSAGES)) + "\n", encoding="utf-8")
        arguments = ["index", "--passages", str(few), f"corpus.index={OTHER_INDEX}", f"paths.data={own}"]
        builder = Program("index", arguments, 0, work / "logs" / "index.log", dict(ENVIRONMENT))
        builder.start()
        builder.await_that("done", lambda: builder.exit_code == 0, 600)
    return own


def free_port() -> int:
    """A port that nothing listens on, below those that the kernel gives to clients."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError(f"process {os.getpid()} found no free port")
