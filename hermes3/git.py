"""Which commit of this repository is at work."""

import subprocess
from pathlib import Path


def commit(folder: Path, digits: int = 40, dirty: bool = True) -> str | None:
    """The commit of the checkout whose root is `folder`; None where there is none, and without git.

    `digits`: more where two commits begin alike. `dirty`: `-dirty` behind it where tracked files differ. Git refuses a
    checkout of another owner (shared disks, containers): the one that is asked for is trusted, as its code runs anyway.
    """
    command = ["git", "-C", str(folder), "-c", f"safe.directory={folder.resolve()}"]
    command += ["describe", "--always", f"--abbrev={digits}", "--exclude=*", *["--dirty"] * dirty]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
