"""Stands for an NCCL group where there are no GPUs: rank 0 sends to one other rank, over a socket."""

from __future__ import annotations

import socket

import torch

_listening: dict[str, socket.socket] = {}


def new_socket_group() -> str:
    """Listen; the group's id is the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    group_id = str(listener.getsockname()[1])
    _listening[group_id] = listener
    return group_id


def join_sockets(group_id: str, rank: int, ranks: int, device: torch.device) -> SocketGroup:
    """As `services.transport.nccl.join_group`."""
    assert ranks == 2
    assert device.type == "cpu"
    if rank == 0:
        connection, _ = _listening.pop(group_id).accept()
        return SocketGroup(connection, rank)
    return SocketGroup(socket.create_connection(("127.0.0.1", int(group_id))), rank)


class SocketGroup:
    """Two ranks."""

    def __init__(self, connection: socket.socket, rank: int) -> None:
        self._connection = connection
        self._rank = rank

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        assert src == 0
        memory = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        if self._rank == 0:
            self._connection.sendall(memory)
            return
        while memory:
            if not (received := self._connection.recv_into(memory)):
                raise ConnectionError("the sender is gone")
            memory = memory[received:]

    def destroy(self) -> None:
        self._connection.close()
