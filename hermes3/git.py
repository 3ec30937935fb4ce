"""Which commit of this repository is at work."""

import subprocess
from pathlib import Path


def commit(folder: Path, digits: int = 40, dirty: bool = True) -> str | None:
    """The commit of the checkout whose root is `folder`, `-dirty` behind it where tracked files differ; None without.
    Another owner's (shared disks) is trusted, which git refuses: its code runs anyway. None above it is."""
    command = ["git", "-C", str(folder), "-c", f"safe.directory={folder.resolve()}"]
    command += ["describe", "--always", f"--abbrev={digits}", "--exclude=*", *["--dirty"] * dirty]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
