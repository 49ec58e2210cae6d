"""`make test`: every test, in lanes side by side. With arguments it is plain pytest. Ctrl-C ends all lanes.

Two lanes have the tests with vLLM. Everything computes with one thread, because the threads of several programs wait
for each other by spinning. The other two need no vLLM and run with less priority. The first lane is shown as it
runs, the others when they are over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_EACH_SERVICE = {
    "RESEARCH__POLICY__THREADS": "1",
    "RESEARCH__TRAINER__THREADS": "1",
}
WITH_VLLM = [
    ["tests/end_to_end", "tests/services/restarts"],
    [f"tests/services/{area}" for area in ("policy", "agent", "apps")],
]
_WITHOUT = [["tests/services/retriever", "tests/services/trainer"], ["tests/unit"]]
# Read by tests/conftest.py: each lane looks for free ports in a range of its own.
LANE = "RESEARCH_TEST_LANE"
_TEARDOWN_SECONDS = 90


def main(arguments: list[str]) -> int:
    """Run the tests; returns the worst exit code of the lanes."""
    if arguments:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        lanes = [
            _start(1, WITH_VLLM[0], _EACH_SERVICE),
            _start(2, WITH_VLLM[1], _EACH_SERVICE, output=outputs[0]),
            _start(3, _WITHOUT[0], {}, output=outputs[1], nice=["nice"]),
            _start(4, _WITHOUT[1], {}, output=outputs[2], nice=["nice"]),
        ]
        try:
            codes = [lane.wait() for lane in lanes]
        except BaseException:
            _interrupt(lanes)
            raise
        finally:
            for output in outputs:
                output.seek(0)
                sys.stdout.buffer.write(output.read())
        return max(map(abs, codes))  # a lane that a signal ended has a negative one


def _start(
    number: int,
    tests: list[str],
    environment: dict[str, str],
    output: IO[bytes] | None = None,
    nice: list[str] | None = None,
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*(nice or []), sys.executable, "-m", "pytest", "-p", "tests.support.cpu_by_file", "--durations=20", *tests],
        env={**os.environ, **_ONE_THREAD, **environment, LANE: str(number)},
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches a lane once, from us
    )


def _interrupt(lanes: list[subprocess.Popen[bytes]]) -> None:
    """End the lanes as Ctrl-C does, so that pytest ends the services that it has started."""
    for lane in lanes:
        if lane.poll() is None:
            lane.send_signal(signal.SIGINT)
    for lane in lanes:
        try:
            lane.wait(_TEARDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            lane.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
