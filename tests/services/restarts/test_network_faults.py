"""A short form of the fault bench: one run through a proxy, with another fault of the network in each of its phases.

Answers that break off, an update whose answer is lost, refused connections, bursts of errors: real services throughout.
The whole table is made by `python -m benchmarks.faults`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.record import Record
from benchmarks.faults.system.proxy import Mode, NetworkFault, Proxy
from tests.conftest import Server
from tests.services.restarts.conftest import Services, copied
from tests.support.command import WAYS, Command, await_condition, command, local

STEPS, EPISODES, ASKED = 2, 8, 2
WEIGHTS, TURN = "/admin/weights", "/inference/v1/generate"


@contextmanager
def before(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(int(server.url.rpartition(":")[2]))
    try:
        yield proxy
    finally:
        proxy.close()


class Faults:
    """Injects one fault after the other into a running command."""

    def __init__(self, running: Command, port: int) -> None:
        self._running, self._port = running, port
        self.met: list[str] = []

    def inject(self, proxy: Proxy, path: str, number: int, fault: NetworkFault, until: Callable[[], bool]) -> None:
        """From the n-th request to a path on, until something is so; `met` gets the phase of the run."""
        begun = False

        def begin() -> None:
            nonlocal begun
            proxy.inject(fault)
            begun = True

        proxy.at_request(path, number, begin)
        await_condition(f"request {number} to {path}", lambda: begun, self._running)
        self.met.append(str(local(self._port, "/status").json()["phase"]))
        await_condition(f"the effect of {fault}", until, self._running)
        proxy.heal()

    def waits(self) -> bool:
        return bool(local(self._port, "/status").json()["waiting_for"])


def test_a_fault_of_the_network_in_each_phase_costs_no_episode_and_no_question(
    services: Services, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    copied(services.warmed, tmp_path / "stopped", "config.json")
    port = free_port()
    with before(services.policy) as policy, before(services.retriever) as retriever:
        through = [f"endpoints.retriever_url={retriever.url}", f'endpoints.policy_urls=["{policy.url}"]']
        arguments = ["train", *services.overrides, *through, f"paths.runs={tmp_path}", f"trainer.port={port}"]
        arguments += [f"grpo.steps={STEPS}", "evaluation.interval=1", "evaluation.interim_per_kind={ one_hop = 2 }"]
        arguments += ["grpo.count_silent_groups=true", "grpo.entropy_coefficient=0.001"]  # each step has an update
        with command(tmp_path / "log", arguments, WAYS[1], services.environment, forked=True) as running:
            faults = Faults(running, port)
            # The weights of the start are loaded, but the trainer never hears of it.
            faults.inject(policy, WEIGHTS, 1, NetworkFault(Mode.CUT), lambda: policy.counts["cut"] >= 1)
            await_condition("the rollout", lambda: local(port, "/status").json()["step"] == 1, running)
            faults.inject(policy, TURN, 3, NetworkFault(Mode.CUT), lambda: policy.counts["cut"] >= 4)
            faults.inject(policy, WEIGHTS, 1, NetworkFault(Mode.REFUSE), faults.waits)
            await_condition("the end of the outage", lambda: not faults.waits(), running)
            burst = NetworkFault(Mode.STATUS, status=500)
            faults.inject(policy, TURN, 1, burst, lambda: policy.counts["answered 500"] >= 2)
            assert running.process.wait(300) == 0, running.log.read_text()
        said = running.log.read_text()

    assert faults.met[1:3] == ["rollout", "publish"], faults.met
    assert "training pauses: the policy" in said
    record = Record(tmp_path / "stopped")
    assert sorted(record.steps()) == [1, 2]
    for step in range(1, STEPS + 1):
        assert len(record.episodes(step)) == EPISODES
    assert record.damage(range(1, STEPS + 1)) == []
    for figures in json.loads((tmp_path / "stopped" / "summary.json").read_text())["eval"].values():
        assert (figures["one_hop"]["n"], figures["one_hop"]["failed"]) == (ASKED, 0)
