"""What a crash is told by its logs, which Python itself has written here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hermes3.slurm.verdict import MAX_CRASHES, verdict

STEP = "print({'loss': '1.0', 'epoch': '0.25'})\n"
KILLED = "import os\n" + STEP + "os.kill(os.getpid(), 9)"
# As torch's, without loading it
OUT_OF_MEMORY = (
    "class OutOfMemoryError(RuntimeError): __module__ = 'torch'\n"
    "raise OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')"
)
VALIDATION = "from pydantic import BaseModel\nclass M(BaseModel): lora_r: int\nM(lora_r='many')"
# torch.distributed writes the rank before each line of a traceback
OF_RANK = (
    "import sys, traceback\n"
    "sys.excepthook = lambda *e: print('\\n'.join('[rank1]: ' + line for line in "
    "''.join(traceback.format_exception(*e)).splitlines()), '\\n[rank1]:[W1124] a warning of NCCL', sep='')\n"
    "raise ValueError('no such column')"
)
AT_EXIT = (
    "import atexit\natexit.register(print, 'nanobind: leaked 4 instances!\\n - leaked')\nraise ValueError('no rows')"
)
CAUGHT = (
    "import traceback\ntry: raise ValueError('no network')\nexcept ValueError: traceback.print_exc()\n"
    "import sys; sys.stderr.flush()\n" + KILLED
)


def attempt(job: Path, number: int, *ranks: str) -> Path:
    """The folder of an attempt with a log a rank, each that of a Python program."""
    folder = job / f"attempt_{number}"
    folder.mkdir(parents=True)
    for rank, program in enumerate(ranks):
        with (folder / f"rank_{rank}.log").open("w") as log:
            subprocess.run([sys.executable, "-u", "-c", program], stdout=log, stderr=log)
    return folder


@pytest.mark.parametrize(
    ("program", "last"),
    [
        ("raise ValueError('lora_r: too large')", "ValueError: lora_r: too large"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("open('no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: 'no/such/file'"),
        ("try: 1 / 0\nexcept ZeroDivisionError: raise KeyError('hardware')", "KeyError: 'hardware'"),
        (OUT_OF_MEMORY, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        (OF_RANK, "ValueError: no such column"),
        (AT_EXIT, "ValueError: no rows"),
    ],
)
def test_a_user_s_error_stops_the_job_and_is_the_last_line(tmp_path, program, last):
    # the other rank has an error too: its partner is gone
    again, why = verdict(attempt(tmp_path, 1, "raise RuntimeError('Connection closed by peer')", program))
    assert not again and why.splitlines()[-1] == last


def test_a_message_of_many_lines_is_shown_whole(tmp_path):
    again, why = verdict(attempt(tmp_path, 1, VALIDATION))
    assert not again
    assert "ValidationError: 1 validation error for M\nlora_r\n  Input should be a valid integer" in why


def test_a_preparation_that_fails_is_a_user_s_error(tmp_path):
    folder = attempt(tmp_path, 1)
    (folder / "preprocess.log").write_text("Traceback (most recent call last):\n  File\nValueError: no rows\n")
    assert verdict(folder) == (False, f"{folder.name}, preprocess.log, before the first step: "
                                      "an error that another attempt would meet too\nValueError: no rows")  # fmt: skip


def test_a_machine_s_error_is_tried_again_but_not_the_same_twice(tmp_path):
    nccl = STEP + "import time; raise RuntimeError(f'NCCL error of process {time.time()}')"
    assert verdict(attempt(tmp_path, 1, nccl))[0]
    assert verdict(attempt(tmp_path, 2, STEP.replace("0.25", "0.5") + nccl.removeprefix(STEP)))[0]  # it came further
    again, why = verdict(attempt(tmp_path, 3, nccl))
    assert not again and "the same crash as before" in why


def test_a_rank_that_was_killed(tmp_path):
    again, why = verdict(attempt(tmp_path, 1, KILLED, "raise SystemExit(1)"))
    assert again and "a rank was killed from outside" in why and "epoch 0.25" in why


def test_ranks_killed_twice_at_one_place_are_not_one_fault(tmp_path):
    """As Slurm kills them before it preempts, or a node that is short of memory."""
    assert verdict(attempt(tmp_path, 1, KILLED))[0]
    assert verdict(attempt(tmp_path, 2, KILLED))[0]


def test_an_error_that_training_went_on_after_is_not_its_end(tmp_path):
    assert verdict(attempt(tmp_path, 1, CAUGHT))[0]
    before_training = CAUGHT.replace(KILLED, "for line in range(99): print('loading')\nraise SystemExit(1)")
    assert verdict(attempt(tmp_path, 2, KILLED.replace("0.25", "0.5"), before_training))[0]


def test_crashes_are_capped(tmp_path, monkeypatch):
    for number in range(1, MAX_CRASHES):  # a launch that failed is no crash of the same kind
        assert verdict(attempt(tmp_path, number))[0]
    again, why = verdict(attempt(tmp_path, MAX_CRASHES))
    assert not again and "no rank has started" in why
    monkeypatch.setenv("HERMES3_MAX_CRASHES", "99")
    assert verdict(attempt(tmp_path, MAX_CRASHES + 1))[0]


def test_an_attempt_that_ends_on_notice_is_no_crash_if_it_took_a_step(tmp_path):
    folder = attempt(tmp_path, 1, STEP + "raise SystemExit(75)")
    assert verdict(folder, notified=True)[0] and not (folder / "crash.json").exists()
    folder = attempt(tmp_path, 2, "raise SystemExit(75)")
    again, why = verdict(folder, notified=True)
    assert again and "give more time" in why
    assert json.loads((folder / "crash.json").read_text())["kind"] == "NoStep"


def test_notices_without_progress_end_the_job(tmp_path, monkeypatch):
    """A checkpoint that takes longer than the notice is never there: each attempt begins where the first did."""
    monkeypatch.setenv("HERMES3_MAX_CRASHES", "2")
    ended = STEP + "raise SystemExit(75)"
    assert verdict(attempt(tmp_path, 1, ended), notified=True)[0]
    assert verdict(attempt(tmp_path, 2, ended.replace("0.25", "0.5")), notified=True)[0]
    again, why = verdict(attempt(tmp_path, 3, ended.replace("0.25", "0.50")), notified=True)
    assert again and "more notice" in why
    assert not verdict(attempt(tmp_path, 4, ended), notified=True)[0]
    assert verdict(attempt(tmp_path, 5, ended.replace("0.25", "10.5")), notified=True)[0]  # 10.5 is beyond 0.5
