"""Which processes the services of one machine are: one each, and the policy one for each of its servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from research.settings import Settings
from research.settings.base import address_of
from services.machine.division import server_environments

Service = Literal["retriever", "policy", "trainer"]


@dataclass(frozen=True, slots=True)
class Program:
    """A process to start.

    Args:
        name: of its log and in messages: the service, with its port if there are several.
        own_settings: as on the command line, after those of all.
        environment: variables besides this process's.
    """

    name: str
    service: Service
    host: str
    port: int
    own_settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return address_of(self.host, self.port)


def programs_of(services: Sequence[Service], settings: Settings) -> list[Program]:
    """The processes of these services, in their order.

    Raises:
        ConfigurationError: the machine has too few GPUs or cores for `policy.replicas`.
    """
    return [program for service in services for program in _programs(service, settings)]


def _programs(service: Service, settings: Settings) -> list[Program]:
    policy, at = settings.policy, getattr(settings, service)
    if service != "policy" or policy.replicas == 1:
        return [Program(service, service, at.host, at.port)]
    # One process each, so that one that dies is restarted while the others serve.
    return [
        Program(
            f"policy-{port}", "policy", policy.host, port, (f"policy.port={port}", "policy.replicas=1"), environment
        )
        for port, environment in zip(policy.ports, server_environments(policy), strict=True)
    ]
