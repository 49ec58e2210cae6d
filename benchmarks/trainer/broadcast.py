"""Weights to several receivers: one group of all against a group for each, one after the other.

    python -m benchmarks.trainer.broadcast --mib 256 --receivers 1 2 4

Over gloo on one machine: every receiver is a process, all share its cores and its memory's bandwidth. NCCL between GPUs
behaves otherwise; only how the two ways grow with the number of receivers carries over. Medians of five.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import torch

from services.transport import nccl
from services.transport.broadcast import receive, send
from services.transport.nccl import Seat
from tests.support.gloo_group import join_gloo, new_gloo_id

CPU, TENSORS, TRIES = torch.device("cpu"), 16, 5


def receiver(orders: Connection, numbers: int) -> None:
    """Receive whenever told where."""
    torch.set_num_threads(1)
    nccl.join_group = join_gloo
    wire = [(f"tensor-{number}", "BF16", [numbers]) for number in range(TENSORS)]
    while (order := orders.recv()) is not None:
        group_id, rank, ranks = order
        receive(Seat(group_id, rank, ranks, CPU), wire)
        orders.send(True)


def seconds(receivers: list[Connection], tensors: list[torch.Tensor]) -> float:
    """Seconds until all of one group have everything."""
    started = time.perf_counter()
    group_id, ranks = new_gloo_id(), 1 + len(receivers)
    for rank, each in enumerate(receivers, 1):
        each.send((group_id, rank, ranks))
    send(Seat(group_id, 0, ranks, CPU), tensors).result()
    for each in receivers:
        each.recv()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="size of the weights")
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    nccl.join_group = join_gloo
    numbers = options.mib * 2**20 // 2 // TENSORS
    tensors = [torch.ones(numbers, dtype=torch.bfloat16) for _ in range(TENSORS)]
    context = multiprocessing.get_context("spawn")
    print("| receivers | one group, s | one after the other, s |\n|---|---|---|")
    for count in options.receivers:
        pipes = [context.Pipe() for _ in range(count)]
        processes = [context.Process(target=receiver, args=(theirs, numbers)) for _, theirs in pipes]
        for process in processes:
            process.start()
        receivers = [ours for ours, _ in pipes]
        seconds(receivers, tensors)
        together = [seconds(receivers, tensors) for _ in range(TRIES)]
        apart = [sum(seconds([each], tensors) for each in receivers) for _ in range(TRIES)]
        print(f"| {count} | {statistics.median(together):.2f} | {statistics.median(apart):.2f} |", flush=True)
        for each in receivers:
            each.send(None)
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
