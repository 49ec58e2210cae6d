"""`policy.replicas`: the ports, the GPUs or cores, and the processes of several policy servers on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from research.config import load_settings
from research.errors import ConfigurationError
from research.settings import Settings
from services.machine.division import CARDS_VARIABLE, divided, server_environments, usable_cores, visible_cards
from services.system.launcher import require_startable
from services.system.programs import programs_of
from services.web import ports


def loaded(*overrides: str) -> Settings:
    return load_settings(overrides=["policy.port=8100", "policy.threads=1", *overrides])


def cards_of(settings: Settings, cards: list[str]) -> list[str]:
    return [environment[CARDS_VARIABLE] for environment in divided(settings.policy, cards, cores=1)]


def test_each_server_has_a_port_and_the_trainer_knows_them_all() -> None:
    assert list(loaded("policy.replicas=3").policy.ports) == [8100, 8101, 8102]
    urls = loaded("policy.replicas=3", "policy.host=0.0.0.0").endpoints.policy_urls
    assert urls == ["http://127.0.0.1:8100", "http://127.0.0.1:8101", "http://127.0.0.1:8102"]
    assert loaded("policy.replicas=2", 'endpoints.policy_urls=["http://a"]').endpoints.policy_urls == ["http://a"]


@pytest.mark.parametrize("name", ["retriever.port", "trainer.port"])
def test_the_port_of_another_service_is_refused(name: str) -> None:
    loaded("policy.replicas=2", f"{name}=8102")
    with pytest.raises(ConfigurationError, match=rf"policy\.replicas = 2 takes ports 8100 to 8101, and {name} = 8101"):
        loaded("policy.replicas=2", f"{name}=8101")


def test_ports_end_at_the_last() -> None:
    loaded("policy.replicas=2", "policy.port=65534")
    with pytest.raises(ConfigurationError, match="replicas = 2 from port 65535 on needs ports beyond 65535"):
        loaded("policy.replicas=2", "policy.port=65535")


def test_servers_take_the_last_gpus_and_share_none() -> None:
    settings = loaded("policy.replicas=2", "policy.tensor_parallel_size=2")
    assert cards_of(settings, [str(card) for card in range(6)]) == ["2,3", "4,5"]
    assert cards_of(settings, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]) == ["GPU-a,GPU-b", "GPU-c,GPU-d"]


def test_too_few_gpus_name_both_settings() -> None:
    settings = loaded("policy.replicas=2", "policy.tensor_parallel_size=2")
    message = r"policy\.replicas = 2 with policy\.tensor_parallel_size = 2 needs 4 GPUs, and 3 can be used"
    with pytest.raises(ConfigurationError, match=message):
        divided(settings.policy, ["0", "1", "2"], cores=64)


def test_without_gpus_threads_are_divided() -> None:
    settings = loaded("policy.replicas=2", "policy.threads=3")
    assert divided(settings.policy, [], cores=6) == [{}, {}]
    with pytest.raises(ConfigurationError, match=r"policy\.threads = 3 needs 6 CPU cores, and 5 can be used"):
        divided(settings.policy, [], cores=5)


def test_this_machine_has_what_torch_and_the_kernel_say(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = subprocess.run(
        [sys.executable, "-c", "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
         "from services.machine.division import usable_cores; print(usable_cores())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(allowed.stdout) == 1
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv(CARDS_VARIABLE, "")
    assert visible_cards() == []


def test_a_single_server_may_use_the_whole_machine() -> None:
    assert server_environments(loaded("policy.threads=10000").policy) == [{}]


def test_each_server_is_a_process_with_its_own_name_port_and_log(monkeypatch: pytest.MonkeyPatch) -> None:
    [policy] = programs_of(["policy"], loaded())
    assert (policy.name, policy.own_settings) == ("policy", ())
    monkeypatch.setenv(CARDS_VARIABLE, "")
    retriever, first, second = programs_of(["retriever", "policy"], loaded("policy.replicas=2"))
    assert [each.name for each in (retriever, first, second)] == ["retriever", "policy-8100", "policy-8101"]
    assert [each.url for each in (first, second)] == ["http://127.0.0.1:8100", "http://127.0.0.1:8101"]
    alone = loaded("policy.replicas=2", *second.own_settings).policy
    assert list(alone.ports) == [8101]


def test_a_taken_port_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_PREDECESSOR_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"policy\.port: cannot listen on 127\.0\.0\.1:{port}"):
            require_startable(["policy"], loaded(f"policy.port={port}"))


def test_the_port_of_a_predecessor_that_is_ending_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ports, "_PREDECESSOR_SECONDS", 60.0)
    predecessor = socket.create_server(("127.0.0.1", 0))
    port = predecessor.getsockname()[1]
    ending = threading.Timer(0.3, predecessor.close)
    ending.start()
    ports.require_free_port("127.0.0.1", port, "policy.port")
    ending.join()
    assert f"policy.port: {port} is in use; waiting up to 60 s" in capsys.readouterr().err
