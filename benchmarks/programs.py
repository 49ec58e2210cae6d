"""Programs that a benchmark needs and that no Python package brings."""

from __future__ import annotations

import shutil
import sys


def require_program(name: str, package: str) -> None:
    """End with a word where a program is missing; `package` is Debian's."""
    if shutil.which(name) is None:
        sys.exit(f"this benchmark needs the program {name}, which is not here (Debian: apt-get install {package})")
