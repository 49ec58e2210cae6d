"""A million vectors: exact search against the structures that compress, in memory, speed, recall and start-up.

Run: python -m benchmarks.retriever.million [--count 1000000] [--data DIR]; 20 minutes on two cores, 6 GB of disk.
The vectors are synthetic: the 10,033 real passages of the built-in index, each repeated with noise that leaves a cosine
of about .85 to the original, so that they lie as texts do, around topics. Queries are the built-in questions' searches.
Everything runs on one thread. Prints a table in Markdown; each row is measured in a process of its own. What is built
already is not built again, only searched. Full vectors lie on disk; how much of what was read stays in memory is up to
the system.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.retriever.index.faiss_config import FaissConfigName

NAMES: tuple[FaissConfigName, ...] = ("flat", "hnsw", "ivf-sq8", "ivf-pq", "ivf-rabitq")
PART = 50_000
QUERIES = 1000
TOP_K = 5
NOISE = 0.62


class Synthetic:
    """The vectors, made part by part from a seed of its own each, so that they need no room."""

    def __init__(self, count: int) -> None:
        import faiss

        real = faiss.read_index("data/indexes/wikipedia-leads/vectors.faiss")
        self._real = real.reconstruct_n(0, real.ntotal)
        self._count = count
        self.dimension = int(real.d)

    def __len__(self) -> int:
        return self._count

    def parts(self, start: int = 0) -> Iterator[np.ndarray]:
        """All of them, from the beginning of a part on."""
        return (self._part(first) for first in range(start, self._count, PART))

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Draw `count` of them, evenly from the parts."""
        share = -(-count // -(-self._count // PART))
        rng = np.random.default_rng(seed)
        return np.concatenate([part[rng.permutation(len(part))[:share]] for part in self.parts()])[:count]

    def _part(self, start: int) -> np.ndarray:
        rng = np.random.default_rng(start)
        size = min(PART, self._count - start)
        base = self._real[np.arange(start, start + size) % len(self._real)]
        noisy = base + NOISE / np.sqrt(self.dimension) * rng.standard_normal(base.shape, dtype=np.float32)
        return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def build(name: FaissConfigName, count: int, directory: Path) -> dict[str, Any]:
    """Write one structure, unless the same is there; seconds and bytes on disk."""
    from services.retriever.index.faiss_config import faiss_config_for
    from services.retriever.index.vector_index import write_dense

    vectors = Synthetic(count)
    structure = faiss_config_for(name, count, vectors.dimension)
    asked = {"count": count, "factory": structure.factory}
    noted = directory / "built.json"
    built: dict[str, Any] = json.loads(noted.read_text()) if noted.is_file() else {}
    if built.items() >= asked.items():
        return built
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    begun = time.perf_counter()
    write_dense(directory, vectors, structure, vectors.dimension)
    sizes = {file.name: file.stat().st_size for file in directory.iterdir() if file.suffix != ".json"}
    built = {**asked, "seconds": time.perf_counter() - begun, **sizes}
    noted.write_text(json.dumps(built))
    return built


def search(name: FaissConfigName, count: int, directory: Path) -> dict[str, Any]:
    """Open one structure and search it; seconds, resident memory and what was found."""
    from services.retriever.index.faiss_config import faiss_config_for
    from services.retriever.index.vector_index import FULL_VECTORS, open_dense

    queries = np.load(directory.parent / "queries.npy")
    before = resident()
    begun = time.perf_counter()
    index = open_dense(directory, faiss_config_for(name, count, queries.shape[1]), threads=1)
    opened = time.perf_counter() - begun
    index.search(queries[:32], TOP_K)
    begun = time.perf_counter()
    found = [index.search(queries[start : start + 32], TOP_K)[1] for start in range(0, len(queries), 32)]
    rate = len(queries) / (time.perf_counter() - begun)
    np.save(directory / "found.npy", np.concatenate(found))
    return {"opened": opened, "rate": rate, "resident": resident() - before, "full vectors": resident(FULL_VECTORS)}


def resident(file: str = "") -> int:
    """Bytes of memory that this process holds, the pages of mapped files that it touched among them; or of one file."""
    total, counts = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            counts = rest.endswith(file)
        elif name == "Rss:" and counts:
            total += int(rest.split()[0]) * 1024
    return total


def in_process(step: str, name: str, count: int, directory: Path) -> dict[str, Any]:
    """Run a step alone, so that memory is its own."""
    command = [sys.executable, "-m", "benchmarks.retriever.million", "--step", step, "--name", name]
    command += ["--count", str(count), "--data", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(name, step, result, file=sys.stderr)
    return result


def prepare_queries(directory: Path) -> None:
    """Encode the searches of held-out questions once."""
    from research.config import load_settings
    from services.retriever.encoder.checkpoint import open_checkpoint
    from services.retriever.encoder.encoder import load_encoder

    lines = Path("data/questions/builtin-held_out.jsonl").read_text(encoding="utf-8").splitlines()
    texts = sorted({hop["query"] for line in lines for hop in json.loads(line)["hops"]})
    settings = load_settings()
    checkpoint = open_checkpoint(settings.encoder.name, settings.paths.data)
    encoder = load_encoder(checkpoint, settings.encoder, "onnx-int8", 1, settings.paths.data)
    chosen = np.random.default_rng(0).permutation(len(texts))[:QUERIES]
    np.save(directory / "queries.npy", encoder.encode_queries([texts[place] for place in chosen]))


def main() -> None:
    """Measure and print, or do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path, default=Path("data/benchmarks/million"))
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    parser.add_argument("--name", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step = build if arguments.step == "build" else search
        print(json.dumps(step(arguments.name, arguments.count, arguments.data / arguments.name)))
        return
    arguments.data.mkdir(parents=True, exist_ok=True)
    prepare_queries(arguments.data)
    rows = {}
    for name in NAMES:
        built = in_process("build", name, arguments.count, arguments.data)
        rows[name] = (built, in_process("search", name, arguments.count, arguments.data))
    print(table(rows, arguments.count, arguments.data))


def table(rows: Mapping[FaissConfigName, tuple[dict[str, Any], dict[str, Any]]], count: int, data: Path) -> str:
    """In Markdown, every structure against flat."""
    exact = np.load(data / "flat" / "found.npy")
    flat_rate = rows["flat"][1]["rate"]
    lines = [
        f"{count:,} vectors (synthetic), {len(exact)} queries in batches of 32, one thread",
        "",
        f"| structure | recall@{TOP_K} of flat | queries/s ÷ flat's | RAM MiB | full vectors read MiB | disk MiB "
        "| build s | open ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (built, searched) in rows.items():
        found = np.load(data / name / "found.npy")
        recall = np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found, exact, strict=True)])
        opened_ms = searched["opened"] * 1e3
        disk = sum(size for file, size in built.items() if "." in file) / 2**20  # the names of files
        lines.append(
            f"| {name} ({built['factory']}) | {recall:.3f} | {searched['rate'] / flat_rate:.1f} | "
            f"{(searched['resident'] - searched['full vectors']) / 2**20:.0f} | "
            f"{searched['full vectors'] / 2**20:.0f} | {disk:.0f} | {built['seconds']:.0f} | {opened_ms:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
