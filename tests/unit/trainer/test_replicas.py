"""Several policy servers as one: nobody samples from a server that serves other weights than the others."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest

from research.clients import PolicyAdmin, PolicyClient
from research.episode.agent import Finish, Generation, Sampling
from research.errors import ServiceError
from research.schemas import WeightsRequest, WeightsResponse, WeightsStatus
from services.trainer.weights.replicas import Replica, Replicas
from services.trainer.weights.weight_sync import DiskSync


@dataclass
class FakeServer:
    """A policy server as its two clients see it."""

    url: str
    version: str = "0"
    alive: bool = True
    takes_updates: bool = True
    weight_version: str = "0"
    asked: int = 0
    hangs: asyncio.Event | None = None  # until it is set, updates do
    fault: str | None = None  # its weights are half loaded
    loses_answers: bool = False  # it loads, and its answer to that is lost
    loses_orders: bool = False

    def _must_live(self) -> None:
        if not self.alive:
            raise ServiceError(f"{self.url} does not answer")

    async def check_ready(self, limit: float = 5.0) -> None:
        self._must_live()
        if self.fault is not None:
            raise ServiceError(self.fault, 503)

    async def weights(self, limit: float = 5.0) -> WeightsStatus:
        self._must_live()
        updating = self.hangs is not None
        return WeightsStatus(version=self.version, source="x", workers=1, fault=self.fault, updating=updating)

    async def update_weights(self, request: WeightsRequest) -> WeightsResponse:
        self._must_live()
        if self.loses_orders:
            await asyncio.Event().wait()
        if self.loses_answers:
            self.version = request.version
            await asyncio.Event().wait()
        if self.hangs is not None:
            await self.hangs.wait()
        if not self.takes_updates:
            raise ServiceError(f"{self.url} is out of memory")
        self.version, self.fault = request.version, None
        return WeightsResponse(version=request.version, seconds={"pause": 0.1, "update": 0.2})

    async def generate(self, prompt_ids: list[int], max_tokens: int, sampling: Sampling) -> Generation:
        self.asked += 1
        return Generation([1], [0.0], [self.version], Finish.EOS)

    async def close(self) -> None:
        pass


@dataclass
class Bench:
    servers: list[FakeServer]
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        pairs = [Replica(cast(PolicyClient, server), cast(PolicyAdmin, server)) for server in self.servers]
        self.replicas = Replicas(pairs, DiskSync(), self.said.append)

    def update(self, version: str) -> float:
        return asyncio.run(self.replicas.update(WeightsRequest(path="x", version=version)))

    def reconcile(self, version: str) -> str | None:
        return asyncio.run(self.replicas.reconcile(WeightsRequest(path="x", version=version)))

    def sampled_versions(self) -> set[str]:
        async def many() -> list[Generation]:
            return [await self.replicas.generate([prompt], 8, Sampling()) for prompt in range(64)]

        return {version for generation in asyncio.run(many()) for version in generation.versions}


@pytest.fixture
def bench() -> Bench:
    return Bench([FakeServer("http://a"), FakeServer("http://b"), FakeServer("http://c")])


def test_an_update_reaches_all_and_all_are_asked(bench: Bench) -> None:
    assert bench.update("1") == pytest.approx(0.3)
    assert bench.sampled_versions() == {"1"}
    assert all(server.asked and server.weight_version == "1" for server in bench.servers)
    assert bench.said == []


def test_the_same_question_goes_to_the_same_server(bench: Bench) -> None:
    async def ten() -> None:
        for _ in range(10):
            await bench.replicas.generate([1, 2, 3], 8, Sampling(seed=4))

    asyncio.run(ten())
    assert sorted(server.asked for server in bench.servers) == [0, 0, 10]


def test_one_that_does_not_take_an_update_is_taken_out_and_told(bench: Bench) -> None:
    bench.servers[1].takes_updates = False
    bench.update("1")
    assert bench.sampled_versions() == {"1"}
    assert bench.servers[1].asked == 0
    assert bench.said == ["the policy at http://b is taken out of service: http://b is out of memory; 2 of 3 serve"]


def test_it_comes_back_when_it_takes_the_published_version(bench: Bench) -> None:
    bench.servers[1].takes_updates = False
    bench.update("1")
    bench.servers[1].takes_updates = True
    bench.update("2")
    assert bench.servers[1].version == "0"
    assert bench.reconcile("2") is None
    assert bench.sampled_versions() == {"2"}
    assert bench.servers[1].asked > 0
    assert bench.said[-1] == "the policy at http://b is in service again; 3 of 3 serve"


def test_if_none_takes_it_all_go_on_as_they_were(bench: Bench) -> None:
    bench.update("1")
    for server in bench.servers:
        server.takes_updates = False
    with pytest.raises(ServiceError, match="http://a is out of memory"):
        bench.update("2")
    assert bench.sampled_versions() == {"1"}
    assert all(server.asked and server.weight_version == "1" for server in bench.servers)


def test_a_dead_one_is_left_out_and_one_started_anew_gets_the_published_weights(bench: Bench) -> None:
    bench.update("3")
    bench.servers[0].alive = False
    assert bench.reconcile("3") is None
    assert bench.sampled_versions() == {"3"}
    assert bench.servers[0].asked == 0
    bench.servers[0].alive, bench.servers[0].version = True, "0"
    assert bench.reconcile("3") is None
    assert bench.sampled_versions() == {"3"}
    assert bench.servers[0].asked > 0
    assert len(bench.said) == 2


def test_the_same_number_of_another_run_is_not_the_same_version(bench: Bench) -> None:
    bench.servers[1].version = "1"  # of a run that was killed
    bench.servers[1].takes_updates = False
    bench.update("1")
    assert bench.reconcile("1") is None
    bench.sampled_versions()
    assert bench.servers[1].asked == 0
    bench.servers[1].takes_updates = True
    bench.reconcile("1")
    bench.sampled_versions()
    assert bench.servers[1].asked > 0


def test_without_any_the_first_fault_is_told(bench: Bench) -> None:
    for server in bench.servers:
        server.alive = False
    assert bench.reconcile("0") == "http://a does not answer"
    with pytest.raises(ServiceError, match="no policy server is in service"):
        bench.sampled_versions()


def test_of_a_single_server_nothing_is_said(bench: Bench) -> None:
    alone = Bench(bench.servers[:1])
    alone.servers[0].alive = False
    assert alone.reconcile("0") == "http://a does not answer"
    alone.servers[0].alive = True
    assert alone.reconcile("0") is None
    assert alone.said == []


def test_one_that_lacks_whole_weights_gets_them_though_it_is_not_ready(bench: Bench) -> None:
    alone = Bench(bench.servers[:1])
    alone.update("1")
    alone.servers[0].fault = "version 2 could not be loaded, nor version 1 reloaded"
    assert asyncio.run(alone.replicas.unready()) is None
    assert alone.reconcile("1") is None
    assert (alone.servers[0].fault, alone.servers[0].version) == (None, "1")


def test_one_that_hangs_is_not_waited_for_by_the_others_and_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.weights.replicas._GRACE_SECONDS", 0.01)
    first, second, hanging = bench.servers

    async def scenario() -> None:
        async with asyncio.timeout(10):
            one, two = (WeightsRequest(path="x", version=version) for version in "12")
            hanging.alive = False
            await bench.replicas.update(one)
            hanging.alive, hanging.hangs = True, asyncio.Event()
            assert await bench.replicas.reconcile(one) is None
            await bench.replicas.update(two)
            assert await bench.replicas.reconcile(two) is None
            assert (first.version, second.version, hanging.version) == ("2", "2", "0")
            hanging.hangs.set()
            monkeypatch.setattr("services.trainer.weights.replicas._GRACE_SECONDS", 10)
            assert await bench.replicas.reconcile(two) is None
            assert hanging.version == hanging.weight_version == "2"
            await bench.replicas.close()

    asyncio.run(scenario())
    assert bench.said[-1] == "the policy at http://c is in service again; 3 of 3 serve"


def test_one_that_comes_back_with_the_former_version_during_an_update_stays_out(bench: Bench) -> None:
    first, _, returning = bench.servers

    async def scenario() -> None:
        async with asyncio.timeout(10):
            one, two = (WeightsRequest(path="x", version=version) for version in "12")
            returning.alive = False
            await bench.replicas.update(one)
            first.hangs = asyncio.Event()
            updating = asyncio.create_task(bench.replicas.update(two))
            await asyncio.sleep(0)
            returning.alive = True
            assert await bench.replicas.reconcile(one) is None
            first.hangs.set()
            await updating
            assert returning.version == "1"
            for prompt in range(64):
                await bench.replicas.generate([prompt], 8, Sampling())
            assert returning.asked == 0
            await bench.replicas.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "asked"), [(500, 1), (504, 1), (503, 3)])
def test_an_update_that_failed_is_not_asked_for_again_by_itself(status: int, asked: int) -> None:
    requests: list[str] = []

    class Failing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    async def scenario(port: int) -> None:
        async with PolicyAdmin(f"http://127.0.0.1:{port}", token="secret") as admin:
            with pytest.raises(ServiceError, match=str(status)):
                await admin.update_weights(WeightsRequest(path="x", version="1"))

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asyncio.run(scenario(server.server_address[1]))
        server.shutdown()
    assert requests == ["/admin/weights"] * asked


def slow_to_believe(servers: list[FakeServer]) -> Replicas:
    pairs = [Replica(cast(PolicyClient, server), cast(PolicyAdmin, server)) for server in servers]
    return Replicas(pairs, DiskSync(patience=0.05), print)


def test_a_server_that_is_gone_while_it_loads_is_not_waited_for(bench: Bench) -> None:
    """Its host is gone, or the network: nothing tells but that it shows no sign of life."""
    replicas = slow_to_believe(bench.servers)

    async def run() -> set[str]:
        gone = bench.servers[1]
        gone.hangs = asyncio.Event()
        updating = asyncio.create_task(replicas.update(WeightsRequest(path="x", version="1")))
        await asyncio.sleep(0.12)
        assert not updating.done(), "it lives, so it may take its time"
        gone.alive = False
        await asyncio.wait_for(updating, 5)
        return {version for n in range(64) for version in (await replicas.generate([n], 8, Sampling())).versions}

    assert asyncio.run(run()) == {"1"}
    assert bench.servers[1].asked == 0


def test_an_order_that_is_lost_on_the_way_is_noticed_long_before_its_time_is_over(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a network that swallows packets: the server lives, serves what it served, and loads nothing."""
    replicas = slow_to_believe(bench.servers)

    async def run() -> None:
        bench.servers[1].loses_orders = True
        await asyncio.wait_for(replicas.update(WeightsRequest(path="x", version="1")), 5)

    asyncio.run(run())
    assert [replica.in_service for replica in replicas._replicas] == [True, False, True]
    assert "was lost" in capsys.readouterr().out


def test_an_update_whose_answer_is_lost_is_seen_by_what_the_server_serves(bench: Bench) -> None:
    bench.servers[0].loses_answers = True

    async def run() -> None:
        replicas = slow_to_believe(bench.servers[:1])
        await asyncio.wait_for(replicas.update(WeightsRequest(path="x", version="1")), 5)
        await replicas.generate([1], 8, Sampling())

    asyncio.run(run())
    assert bench.servers[0].weight_version == "1"
