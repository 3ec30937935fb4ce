"""Which commit of this repository is at work."""

import subprocess
from pathlib import Path


def commit(folder: Path, digits: int = 40, dirty: bool = True) -> str | None:
    """The commit of the checkout whose root is `folder`; None where there is none, and without git.

    `digits`: as many, or more where two commits begin alike. `dirty`: `-dirty` behind it where tracked files differ.

    A checkout on a shared file system often has another owner, as in a container that runs as root: git refuses such
    ones. The one that is asked for is trusted, as its code runs anyway; none above it is.
    """
    command = ["git", "-C", str(folder), "-c", f"safe.directory={folder.resolve()}"]
    command += ["describe", "--always", f"--abbrev={digits}", "--exclude=*", *(["--dirty"] if dirty else [])]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
