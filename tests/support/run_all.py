"""`make test`: every test, in two lanes side by side. With arguments it is plain pytest. Ctrl-C ends both lanes.

The first lane has every test with vLLM and is shown as it runs. The second needs one core at most, runs with less
priority, and is shown when it is over. Tests with vLLM in both lanes were slower on two cores than one after the other.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

FIRST = ["tests/end_to_end", *(f"tests/services/{area}" for area in ("agent", "apps", "policy", "restarts"))]
SECOND = ["tests/services/retriever", "tests/services/trainer", "tests/unit"]
# Read by tests/conftest.py: each lane looks for free ports in a range of its own.
LANE = "RESEARCH_TEST_LANE"
_TEARDOWN_SECONDS = 90


def main(arguments: list[str]) -> int:
    """Run the tests; returns the worse exit code of the two lanes."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        os.execv(sys.executable, [*pytest, *arguments])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryFile() as output:
        lanes = [
            subprocess.Popen(
                [*pytest, "--durations=20", *FIRST], env={**os.environ, LANE: "1"}, start_new_session=True
            ),
            subprocess.Popen(
                ["nice", *pytest, "--durations=20", *SECOND],
                env={**os.environ, LANE: "2"},
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches a lane once, from us
            ),
        ]
        try:
            codes = [lane.wait() for lane in lanes]
        except BaseException:
            _interrupt(lanes)
            raise
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        return max(map(abs, codes))  # a lane that a signal ended has a negative one


def _interrupt(lanes: list[subprocess.Popen[bytes]]) -> None:
    """End both lanes as Ctrl-C does, so that pytest ends the services that it has started."""
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
