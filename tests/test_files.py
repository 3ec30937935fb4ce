"""Folders are replaced only where the same command made them, and what killed runs left is removed."""

import os
import signal
import subprocess
import sys

import pytest

from hermes3.files import MARKER, UserError, check_out, new_folder, write_text

MAKE = "make"


def write(out, text="new", command=MAKE):
    with new_folder(out, command) as tmp:
        (tmp / "made.txt").write_text(text)
        (tmp / "room").mkdir()


def foreign(folder):
    folder.mkdir()
    (folder / "diary.txt").write_text("keep")


def made_and_added_to(folder):
    write(folder)
    (folder / "diary.txt").write_text("keep")


def made_and_changed(folder):
    write(folder)
    (folder / "made.txt").write_text("trained since")


def with_another_marker(folder):
    foreign(folder)
    (folder / MARKER).write_text("[]")


OTHERS = {
    "a file": (lambda out: out.write_text("keep"), "out is a file"),
    "below a file": (lambda out: out.parent.rmdir() or out.parent.write_text("keep"), "folder is a file"),
    "a folder of the user": (foreign, "`make` did not make it"),
    "another command's": (lambda out: write(out, command="train"), "`train` made it, not `make`"),
    "a file added": (made_and_added_to, "`make` did not write diary.txt in it"),
    "a file changed": (made_and_changed, "`make` did not write made.txt in it"),
    "a marker that is not ours": (with_another_marker, "did not make it"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_the_command_did_not_make_is_refused_and_stays(what, tmp_path):
    out = tmp_path / "folder/out"
    out.parent.mkdir()
    OTHERS[what][0](out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for attempt in (check_out, write):
        with pytest.raises(UserError, match=rf"{OTHERS[what][1]}.*; name another"):
            attempt(out) if attempt is write else check_out(out, MAKE)
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
    out = tmp_path / "out"
    code = "import sys, time; from pathlib import Path; from hermes3.files import new_folder\n"
    code += "with new_folder(Path(sys.argv[1]), 'make') as tmp: print(tmp, flush=True); time.sleep(60)"
    runs = [subprocess.Popen([sys.executable, "-c", code, out], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, living = (tmp_path / run.stdout.readline().strip() for run in runs)
    runs[0].send_signal(signal.SIGKILL)
    runs[0].wait()
    (tmp_path / ".out.hermes3-00000000").mkdir()  # killed between two lines
    for name in (".out.old", ".out.hermes3-mine1234", ".out.hermes3-notes"):
        foreign(tmp_path / name)
    write(out)
    assert not dead.exists() and living.exists()
    runs[1].kill()
    runs[1].wait()
    write(out)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        ".out.old",
        ".out.hermes3-mine1234",
        ".out.hermes3-notes",
    }


def test_two_that_end_at_once_leave_one_whole_folder(tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with new_folder(out, MAKE) as slow:
        (slow / "made.txt").write_text("last")
        write(out, "first")
    assert (out / "made.txt").read_text() == "last" and os.listdir(tmp_path) == ["out"]


def test_a_file_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "notes").write_text("keep")
    with pytest.raises(UserError, match="notes is a file, not a folder"):
        write_text(tmp_path / "notes/report.json", "{}")
