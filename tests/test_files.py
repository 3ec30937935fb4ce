"""Folders are replaced only where the same command made them, and what killed runs left is removed."""

import os
import subprocess
import sys
from functools import partial

import pytest

from hermes3.files import MARKER, UserError, new_folder

HOLDS_ONE = """
import sys, time; from pathlib import Path; from hermes3.files import new_folder
with new_folder(Path(sys.argv[1]), 'make') as tmp: print(tmp, flush=True); time.sleep(60)
"""


def write(out, text="new", command="make"):
    with new_folder(out, command) as tmp:
        (tmp / "made.txt").write_text(text)
        (tmp / "room").mkdir()


def put(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


OTHERS = {
    "a file": ([lambda out: out.write_text("keep")], "out is a file"),
    "below a file": ([lambda out: out.parent.rmdir(), lambda out: out.parent.write_text("keep")], "folder is a file"),
    "a folder of the user": ([partial(put, diary="keep")], "did not make it"),
    "a marker that is not ours": ([partial(put, diary="keep", **{MARKER: "[]"})], "did not make it"),
    "another command's": ([partial(write, command="train")], "`make` did not make it"),
    "a file added": ([write, partial(put, diary="keep")], "`make` did not write diary in it"),
    "a file changed": ([write, partial(put, **{"made.txt": "trained since"})], "`make` did not write made.txt in it"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_the_command_did_not_make_is_refused_and_stays(what, tmp_path):
    out, (steps, message) = tmp_path / "folder/out", OTHERS[what]
    out.parent.mkdir()
    for step in steps:
        step(out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"{message}.*; name another"):
        write(out)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_new_empty_and_own_folders_are_written_also_through_a_link(tmp_path):
    out, link = tmp_path / "out", tmp_path / "link"
    out.mkdir()
    link.symlink_to(out)
    for text in ("one", "three"):
        write(link, text)
        assert (out / "made.txt").read_text() == text and link.is_symlink()
        (out / "room/for_others").write_text("what is in a folder left empty goes with it")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link"}


def test_leftovers_of_the_dead_go_and_those_of_the_living_and_of_the_user_stay(tmp_path):
    out, own = tmp_path / "out", {".out.old", ".out.hermes3-mine1234", ".out.hermes3-notes"}
    start = [sys.executable, "-c", HOLDS_ONE, out]
    runs = [subprocess.Popen(start, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, living = (tmp_path / run.stdout.readline().strip() for run in runs)
    for name in own:
        put(tmp_path / name, diary="keep")
    for run, left in zip(runs, ({living.name}, set()), strict=True):
        run.kill()
        run.wait()
        write(out)
        assert {path.name for path in tmp_path.iterdir()} == {"out"} | own | left


def test_two_that_end_at_once_leave_one_whole_folder(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with new_folder(out, "make") as slow:
        (slow / "made.txt").write_text("last")
        write(out, "first")
    assert (out / "made.txt").read_text() == "last" and os.listdir(tmp_path) == ["out"]
