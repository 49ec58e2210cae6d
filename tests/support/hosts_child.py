"""A trainer's process in the test of two hosts: rank 0 leads until the test says how it ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from research.config import load_settings
from research.errors import TrainingError
from services.trainer.processes import leading


def main() -> None:
    work = Path(sys.argv[1])
    with leading(load_settings(overrides=["trainer.device=cpu"], environment=False)) as ranks:
        if ranks is None:
            return
        assert ranks.world == 2
        (work / f"leads-{os.getpid()}").touch()
        while not (work / "end").exists():
            if (work / "fail").exists():
                (work / "fail").unlink()
                raise TrainingError("the test says so")
            time.sleep(0.05)


if __name__ == "__main__":
    main()
