"""The commit that runs, launches, reports and nodes say they are of: in real checkouts."""

import subprocess
from pathlib import Path

import pytest
from axolotl.utils.dict import DictDefault
from conftest import ROOT

from hermes3.git import commit
from hermes3.report.build import repository
from hermes3.train.metrics import facts_of


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True)
    return done.stdout.strip() or done.stderr


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """One commit, with a tag, in a checkout that another user owns: git's own tests say so by this variable."""
    made = tmp_path / "checkout"
    made.mkdir()
    git(made, "init")
    (made / "file").write_text("1")
    git(made, "add", "file")
    git(made, "commit", "-m", "one")
    git(made, "tag", "-a", "v1", "-m", "v1")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "dubious ownership" in git(made, "rev-parse", "HEAD")
    return made


def head(checkout: Path) -> str:
    return (checkout / ".git" / (checkout / ".git/HEAD").read_text().split()[1]).read_text().strip()


def test_another_s_checkout_has_its_commit_and_says_whether_files_differ(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    sha = head(checkout)
    assert (commit(Path()), commit(checkout, digits=12)) == (sha, sha[:12])
    assert (repository(checkout)["commit"], repository(checkout)["changed"]) == (sha, False)
    (checkout / "new").touch()  # git does not know it
    assert commit(checkout) == sha
    (checkout / "file").write_text("2")
    assert (commit(checkout), commit(checkout, dirty=False)) == (f"{sha}-dirty", sha)
    assert (repository(checkout)["commit"], repository(checkout)["changed"]) == (sha, True)


def test_none_outside_and_none_of_a_checkout_above_that_another_owns(checkout, tmp_path, monkeypatch):
    (checkout / "within").mkdir()
    assert commit(checkout / "within") is None
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) is None


def test_a_run_in_another_s_checkout_is_named_by_its_commit(monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    facts = facts_of(DictDefault({"wandb_name": "8b_sft", "seed": 1}))
    assert facts["commit"] == commit(ROOT, digits=7)


def test_a_node_says_it_too(monkeypatch, tmp_path):
    """Without -dirty: a file that somebody changes while nodes are asked is no node's fault."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    from hermes3.slurm.node_check import Expected, versions

    recipe = tmp_path / "recipe.yml"
    recipe.write_text("")
    asked = dict.fromkeys(Expected.__dataclass_fields__) | {"gpu": "cpu", "repository": str(ROOT), "recipe": recipe}
    assert f"commit {commit(ROOT, digits=12, dirty=False)}" in versions(Expected(**asked)).same
