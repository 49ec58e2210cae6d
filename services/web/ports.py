"""Checks ports before anything slow begins."""

from __future__ import annotations

import socket

from research.errors import ConfigurationError


def require_free_port(host: str, port: int, setting: str) -> None:
    """Raise ConfigurationError, naming the setting, if the port cannot be listened on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"{setting}: cannot listen on {host}:{port} ({error.strerror}); "
                f"stop what uses it or choose another port with {setting}=…"
            ) from error
