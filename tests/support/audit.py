"""Reads what pip-audit found. That says "no known vulnerabilities" also of what it could not look up; this does not.

python -m tests.support.audit FILE (pip-audit's JSON); ends with 1 if nothing could be looked up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def report(text: str) -> str | None:
    """What is known, in lines; None if nothing could be looked up."""
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError):
        return None
    scanned = [package for package in packages if "vulns" in package]
    if not scanned:
        return None
    found = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package in scanned
        for fault in package["vulns"]
    ]
    head = f"[supply chain] {len(found)} known vulnerabilities in {len(scanned)} of {len(packages)} packages looked up"
    return "\n".join([head, *found])


if __name__ == "__main__":
    said = report(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(said or "[supply chain] no package could be looked up")
    sys.exit(said is None)
