"""What it costs to refuse: for each route that takes a body, the worst bodies of the allowed size.

Run: python -m benchmarks.load.refusals [--share 1.0] [--services retriever policy trainer]; starts the services, and
needs `research prepare`. Requests carry the tokens, so that they get as far as anybody's do; orders to the trainer do
not, as it would follow them whatever their body. Writes a table in Markdown: of all bodies of a route the longest time
and which body took it, the longest that a `/livez` asked all the while waited, the most memory that came on top, and
the largest answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks.retriever.load import SERVE, free_port, serving
from research.config import load_settings
from services.policy.api.guards import variable_of
from services.policy.bodies.sizes import MAX_BODY_BYTES, body_sizes
from services.retriever.app import BODY_SIZES
from services.web.auth import ADMIN_TOKEN_VARIABLE, API_KEY_VARIABLE
from tests.support.web_server import Watch, smallest_wrong_items

SERVICES = ("retriever", "policy", "trainer")
TOKENS = {ADMIN_TOKEN_VARIABLE: "admin-of-the-benchmark", API_KEY_VARIABLE: "key-of-the-benchmark"}
# Its form is not FastAPI's, so the description of the API lacks it.
MCP = ("POST", "/mcp", ["params", "id"])
# vLLM reads their bodies without saying so.
UNDECLARED = [("POST", path, ["request_ids"]) for path in ("/abort_requests", "/inference/v1/abort_requests")]
# They read no body; one is sent all the same.
ORDERS = [("POST", f"/run/{order}", ["order"]) for order in ("start", "pause", "stop")]
_FIELDS = 2


@dataclass
class Cost:
    """The worst of a route, over all bodies."""

    seconds: float = 0.0
    slowest: str = ""
    livez: float = 0.0
    mib: float = 0.0
    answer: int = 0
    statuses: set[str] = field(default_factory=set)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the allowed size")
    parser.add_argument("--services", nargs="+", default=SERVICES, choices=SERVICES)
    arguments = parser.parse_args()
    os.environ.update(TOKENS)
    print("| service | route | body MB | status | seconds | slowest body | `/livez` s | memory MiB | answer bytes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for service in arguments.services:
        with ExitStack() as running:
            url, pid = start(service, running)
            for method, path, fields in routes(service, url):
                size = int(arguments.share * allowed(service, path)) - 1000
                sent = dict(bodies(size, fields))
                if service == "policy" and not path.startswith(("/answer", "/admin")):
                    sent |= dict(dear())
                cost = worst(url, pid, method, path, sent)
                print(
                    f"| {service} | {method} `{path}` | {size / 1e6:.1f} | {', '.join(sorted(cost.statuses))} "
                    f"| {cost.seconds:.2f} | {cost.slowest} | {cost.livez:.2f} | {cost.mib:.0f} | {cost.answer} |",
                    flush=True,
                )


def start(service: str, running: ExitStack) -> tuple[str, int]:
    """A service of its own: address and process."""
    port = free_port()
    runs = running.enter_context(tempfile.TemporaryDirectory())
    command = [*SERVE[:-1], service, f"{service}.port={port}", f"paths.runs={runs}"]
    more = ["policy.serve=base", "policy.kv_cache_gib=1"] if service == "policy" else []
    process = running.enter_context(serving([*command, *more], port, seconds=600))
    return f"http://127.0.0.1:{port}", process.pid


def routes(service: str, url: str) -> list[tuple[str, str, list[str]]]:
    """Every route that takes a body, with its fields of lists and texts: what it requires first, then lists."""
    described = httpx.get(f"{url}/openapi.json", timeout=60).json()
    found = list({"retriever": [MCP], "policy": UNDECLARED, "trainer": ORDERS}[service])
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            if "requestBody" in about:
                content = about["requestBody"]["content"].get("application/json", {})
                found.append((method.upper(), path, _fields(content.get("schema", {}), described)))
    return found


def _fields(schema: dict[str, Any], described: dict[str, Any]) -> list[str]:
    while "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if forms := schema.get("anyOf", []) + schema.get("oneOf", []):
        return sorted({name for form in forms for name in _fields(form, described)})
    properties = schema.get("properties", {})
    lists = [name for name, about in properties.items() if '"array"' in json.dumps(about)]
    texts = [name for name, about in properties.items() if '"string"' in json.dumps(about) and name not in lists]
    required = set(schema.get("required", []))
    return sorted([*lists, *texts], key=lambda name: (name not in required, name not in lists)) or ["x"]


def allowed(service: str, path: str) -> int:
    """Bytes of a body."""
    sizes = body_sizes(load_settings().model.max_model_len) if service == "policy" else BODY_SIZES
    return [MAX_BODY_BYTES, *(size for start, size in sizes.items() if path.startswith(start))][-1]


def bodies(size: int, fields: list[str]) -> Iterator[tuple[str, bytes]]:
    """Wrong in every way that there is room for in the first fields, in some ways in the others; and texts."""
    first, others = fields[:_FIELDS], fields[_FIELDS:]
    for name in others:
        for kind, wrong in {"objects": {}, "numbers": 1, "lists": []}.items():
            yield f"990 {kind} in {name}", json.dumps({name: [wrong] * 990}).encode()
    yield from smallest_wrong_items(size, first).items()
    for name in first:
        yield f"{name} a long text", json.dumps({name: "a " * (size // 2 - 20)}).encode()
        # As many as some route of vLLM passes on, each text as long as there is room for.
        for many in (64, 490, 990, 4_900):
            yield f"{many} numbers in {name}", json.dumps({name: [1] * many}).encode()
            yield f"{many} numbers in a content of {name}", json.dumps({name: [{"content": [1] * many}]}).encode()
            yield f"{many} objects in {name}", json.dumps({name: [{}] * many}).encode()
            yield f"{many} objects in a list in {name}", json.dumps({name: [[{}] * many]}).encode()
            message = {"role": "user", "content": [{}] * many}
            yield f"{many} objects in a content of {name}", json.dumps({name: [message]}).encode()
            yield f"{many} objects in messages of {name}", json.dumps({name: {"messages": [{}] * many}}).encode()
            yield f"{many} keys in {name}", json.dumps({name: {str(number): {} for number in range(many)}}).encode()
            yield f"{many} texts in {name}", json.dumps({name: ["a" * (size // many - 5)] * many}).encode()
    yield "words", b"no JSON " * (size // 8)


def dear() -> Iterator[tuple[str, bytes]]:
    """Of vLLM's routes: fields that multiply, as large as they may be and larger."""
    ranges = {str(at): {"type": "integer", "minimum": at - 10**17, "maximum": 10**17 - at} for at in range(1_000)}
    forms: dict[str, dict[str, object]] = {
        "samples": {"n": 128},
        "too many samples": {"n": 16_384},
        "words": {"bad_words": ["a b " * 3_900]},
        "too many words": {"bad_words": ["a b " * 60_000]},
        "a regular expression": {"structured_outputs": {"regex": "a" * 65_000}},
        "too long an expression": {"structured_outputs": {"regex": "a" * 250_000}},
        "fields of unions": {"vllm_xargs": dict.fromkeys(map(str, range(9_900)))},
    }
    for many in (60, 1_000):
        schema = {"type": "object", "properties": dict(list(ranges.items())[:many])}
        forms[f"{many} ranges"] = {"structured_outputs": {"json": schema}}
    for name, more in forms.items():
        # Each route takes what it knows: a prompt, messages, tokens, an input.
        asked: dict[str, object] = {
            "model": "policy",
            "prompt": "a",
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
        }
        whole = {**asked, "input": "a", "token_ids": [1], "sampling_params": {**more, "max_tokens": 1}, **more}
        yield name, json.dumps({**whole, "chat_request": {**asked, **more}}).encode()
    several = {"model": "policy", "prompt": [[1]] * 512, "max_tokens": 1}
    for many in (90, 7_000):
        bias = {str(at): 1 for at in range(many)}
        yield f"512 prompts with {many} fields", json.dumps({**several, "logit_bias": bias}).encode()


def worst(url: str, pid: int, method: str, path: str, sent: dict[str, bytes]) -> Cost:
    """The cost of the route over these bodies."""
    cost = Cost()
    token = TOKENS[variable_of(path) or API_KEY_VARIABLE]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    headers["accept"] = "application/json, text/event-stream"
    with httpx.Client(base_url=url, timeout=300, headers=headers) as client:
        for name, body in sent.items():
            memory = Memory(pid)
            with Watch(url) as watch:
                begun = time.perf_counter()
                answer = client.request(method, path.replace("{name}", "x"), content=body)
                seconds = time.perf_counter() - begun
            if seconds > cost.seconds:
                cost.seconds, cost.slowest = seconds, name
            cost.livez = max(cost.livez, watch.longest)
            cost.mib = max(cost.mib, memory.grown())
            cost.answer = max(cost.answer, len(answer.content))
            cost.statuses.add(str(answer.status_code))
            print(f"{path} {name}: {answer.status_code}, {seconds:.2f} s", file=sys.stderr)
    return cost


class Memory:
    """How far a process and its children went beyond what they hold now, in MiB."""

    def __init__(self, pid: int) -> None:
        parent = psutil.Process(pid)
        self._processes = [parent, *parent.children(recursive=True)]
        self._most = self._before = self._held()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def grown(self) -> float:
        """Stop looking; the most that was seen."""
        self._done.set()
        self._thread.join()
        return self._most - self._before

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, self._held())

    def _held(self) -> float:
        return sum(process.memory_info().rss for process in self._processes) / 2**20


if __name__ == "__main__":
    main()
