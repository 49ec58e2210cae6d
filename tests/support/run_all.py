"""`make test`: every test, in two lanes side by side, since tests of services mostly wait for one process.

The first lane is shown as it runs: the whole line, and what must end within seconds of a signal. The second, with less
priority, is shown when it is over. With arguments this is plain pytest. Ctrl-C ends both lanes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

FIRST = ["tests/end_to_end", "tests/services/restarts", "tests/services/trainer"]
SECOND = [
    "tests/services/agent",
    "tests/services/apps",
    "tests/services/policy",
    "tests/services/retriever",
    "tests/unit",
]
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
            status = max(status, second.wait())
        except BaseException:
            second.terminate()
            second.wait()
            raise
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
