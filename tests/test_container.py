"""Containerfile, which nothing here can build: what it copies is there, and its CUDA is that of the lock's torch."""

import re

from hermes3.files import ROOT

LINES = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def test_what_it_copies_and_runs_is_there():
    copied = [word for line in LINES if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"requirements.txt", "requirements-gpu.txt", "launch", "hermes3"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    named = re.findall(r"(\S+\.(?:txt|sh))", " ".join(line for line in LINES if line.startswith("RUN")))
    assert named and all(name.split("/")[0] in copied and (ROOT / name).is_file() for name in named)


def test_its_cuda_is_the_one_of_the_lock():
    (image,) = re.findall(r"^FROM nvidia/cuda:(\d+\.\d+)\.\d+-devel", "\n".join(LINES), re.MULTILINE)
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert re.search(rf"^cuda-toolkit=={re.escape(image)}\.", lock, re.MULTILINE)
