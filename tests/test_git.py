"""The commit that runs, launches, reports and nodes say they are of: in real checkouts."""

import subprocess
from pathlib import Path

from conftest import ROOT

from hermes3.files import commit
from hermes3.report.build import repository
from hermes3.slurm.node_check import Expected, versions


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=me", "-c", "user.email=me@example.org", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()


def test_another_s_checkout_has_its_commit_and_says_whether_files_differ(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    (checkout / "within").mkdir(parents=True)
    (checkout / "file").write_text("1")
    for command in (["init"], ["add", "file"], ["commit", "-m", "one"], ["tag", "-a", "v1", "-m", "v1"]):
        git(checkout, *command)
    sha = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as git's own tests say it
    assert "dubious ownership" in git(checkout, "rev-parse", "HEAD")
    (checkout / "new").touch()  # git does not know it
    monkeypatch.chdir(checkout)
    assert (commit(Path()), commit(checkout, digits=12)) == (sha, sha[:12])
    (checkout / "file").write_text("2")
    assert (commit(checkout), commit(checkout, dirty=False)) == (f"{sha}-dirty", sha)
    assert (repository(checkout)["commit"], repository(checkout)["changed"]) == (sha, True)
    assert commit(checkout / "within") is None  # a checkout above that another owns is not trusted
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None
    # a node in another's checkout
    expected = dict.fromkeys(Expected.__dataclass_fields__) | {"gpu": "cpu", "repository": str(ROOT)}
    # without -dirty: a file that somebody changes while nodes are asked is no node's fault
    same = versions(Expected(**expected | {"recipe": checkout / "file"})).same
    assert f"commit {commit(ROOT, digits=12, dirty=False)}" in same
