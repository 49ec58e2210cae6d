"""`make test`: every test, in two lanes side by side. With arguments it is plain pytest. Ctrl-C ends both lanes.

The first lane has every test with vLLM and is shown as it runs. The second needs one core at most, runs with less
priority, and is shown when it is over. Two vLLM at work at once would be slower than one after the other: their threads
wait for each other by spinning.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

FIRST = ["tests/end_to_end", *(f"tests/services/{area}" for area in ("agent", "apps", "policy", "restarts"))]
SECOND = ["tests/services/retriever", "tests/services/trainer", "tests/unit"]
# Read by tests/conftest.py: each lane looks for free ports in a range of its own.
LANE = "RESEARCH_TEST_LANE"


def main(arguments: list[str]) -> int:
    """Run the tests; returns the worse exit code of the two lanes."""
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        os.execv(sys.executable, [*pytest, *arguments])
    with tempfile.TemporaryFile() as output:
        second = subprocess.Popen(
            ["nice", *pytest, "--durations=20", *SECOND],
            env={**os.environ, LANE: "2"},
            stdout=output,
            stderr=output,
        )
        try:
            status = subprocess.run(
                [*pytest, "--durations=20", *FIRST], env={**os.environ, LANE: "1"}, check=False
            ).returncode
            codes = [status, second.wait()]
        except BaseException:
            second.terminate()
            second.wait()
            raise
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        return max(map(abs, codes))  # a lane that a signal ended has a negative one


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
