"""Nodes that must not train are found before they do: each check on real files, and jobs on a real Slurm."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from quick_site import QuickSite
from small_mix import write_mix, write_recipe

from hermes3.files import sha256
from hermes3.slurm import allreduce, node_check, preflight, queue, verdict
from hermes3.slurm.queue import Srun, bad_nodes
from hermes3.slurm.verdict import blame, clocks

ROOT = Path(__file__).parents[1]
CASES = yaml.safe_load(Path(__file__).with_name("preflight.yml").read_text())
PATIENCE = 400  # seconds: a node may be silent for 180, and then the ranks of an all-reduce
ON_TWO = {"gpu": "cpu", "nodes": 2, "gpus_per_node": 1}


@pytest.fixture
def mix(tmp_path) -> Path:
    """A mix whose manifest lists its files, as `hermes3 mix build` writes it."""
    mix = write_mix(tmp_path / "mix", [20, 30, 40, 25] * 4)
    manifest = json.loads((mix / "manifest.json").read_text())
    manifest["output"]["files"] = {str(path.relative_to(mix)): sha256(path) for path in sorted(mix.rglob("*.parquet"))}
    (mix / "manifest.json").write_text(json.dumps(manifest))
    return mix


@pytest.fixture
def asked(tmp_path, mix, base) -> node_check.Expected:
    """What a node is asked that has all it needs; its model is a copy, to be broken."""
    recipe = write_recipe(tmp_path / "run", mix, shutil.copytree(base, tmp_path / "base"))
    expected, lacks = preflight.expected(recipe, tmp_path / "logs")
    assert lacks == []
    return expected


def bad(asked: node_check.Expected) -> dict[str, str]:
    return {name: check["text"] for name, check in node_check.answer(asked)["checks"].items() if check["ok"] is False}


# a node's own checks


def test_a_good_node_passes_every_check(asked):
    from hermes3.plan.plan import plan

    checks = node_check.answer(asked)["checks"]
    assert bad(asked) == {}
    assert [name for name, check in checks.items() if check["ok"] is None] == ["gpus", "health", "idle"]
    assert "torch 2" in checks["versions"]["text"] and "axolotl" in checks["versions"]["text"]
    assert asked.storage == plan(Path(asked.recipe), packed=False).checkpoints.storage > 0
    files = {f"mix train/part-0000{i}.parquet" for i in range(2)}
    read = [files & node_check.answer(replace(asked, share=(i, 3)))["checks"].keys() for i in range(3)]
    assert files < set(checks) and sorted(map(len, read)) == [1, 1, 2]  # each is read by two nodes


@pytest.mark.parametrize(("spoil", "check", "text"), CASES["spoilt"])
def test_what_is_broken_is_named(asked, spoil, check, text):
    token = next(path for path in asked.tokens if "/logs/" in path)
    places = {"TOKEN": token, "OUT": asked.output_dir, "BASE": asked.base_model, "MIX": asked.mix}
    subprocess.run(["sh", "-ec", spoil], env=os.environ | places, check=True)
    assert list(bad(asked)) == [check] and text in bad(asked)[check]


def test_what_is_too_small_is_bad(asked, tmp_path, monkeypatch):
    """Of the disk what the run has written already counts."""
    monkeypatch.setattr(node_check, "SHM", 1e18)
    large = replace(asked, host_memory=1e18, storage=shutil.disk_usage(tmp_path).free + 1e11)
    assert list(bad(large)) == ["disk", "shm", "memory"]
    (Path(asked.output_dir) / "weights").touch()
    os.truncate(Path(asked.output_dir) / "weights", 200_000_000_000)  # no block of it is written
    assert list(bad(large)) == ["shm", "memory"]


@pytest.mark.parametrize(("ill", "check", "text"), CASES["ill"])
def test_gpus_that_are_not_well(ill, check, text, asked, tmp_path, monkeypatch):
    gpus = [CASES["gpu"].format(**CASES["well"] | one) for one in ({}, ill) if one is not None]
    smi = f"<nvidia_smi_log><driver_version>570.86</driver_version>{''.join(gpus)}</nvidia_smi_log>"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "nvidia-smi"
    program.touch(0o755)
    program.write_text(f"#!/bin/bash\necho '{smi}'\n")
    on_gpus = replace(asked, gpu="h100-80gb", gpus_per_node=2)
    assert list(bad(on_gpus)) == [check] and bad(on_gpus)[check].startswith(text)
    program.write_text("#!/bin/bash\necho No devices were found; exit 6\n")
    none = "nvidia-smi ended with 6: No devices were found"
    assert bad(on_gpus) == dict.fromkeys(("gpus", "health", "idle", "versions"), none)


# what the answers say together


def answers(checks: dict[str, list]) -> dict:
    """Of as many nodes as each check has values: True, False, None for not asked, or what must be the same."""
    nodes = {f"n{i}": {"checks": {}} for i in range(1, max(map(len, checks.values())) + 1)}
    for name, values in checks.items():
        for answer, value in zip(nodes.values(), values, strict=False):
            same = value if isinstance(value, str) else None
            if value is not None:
                check = {"ok": bool(value), "text": same or f"{name}!", "remedy": "do it", "same": same}
                answer["checks"][name] = check
    return nodes


@pytest.mark.parametrize(("checks", "nodes", "of_all"), CASES["blame"], ids=str)
def test_whose_fault_it_is_and_the_table(checks, nodes, of_all):
    faults, shared = blame(answers(checks))
    assert list(faults) == nodes and bool(shared) == of_all
    made = answers({"versions": ["torch 1, nccl 2", "torch 3, nccl 2"], "mix": [True, True], "mix part": [True]})
    assert blame(made)[0] == {"n2": ["versions: torch 3; others: torch 1 -> do it"]}
    assert preflight.table(made).splitlines() == ["node versions mix", "n1   ok       ok", "n2   BAD      ok"]


@pytest.mark.parametrize(("offsets", "off", "text"), CASES["clocks"], ids=str)
def test_the_clock_that_differs_from_most_is_the_wrong_one(offsets, off, text):
    checks = clocks({f"n{i}": offset for i, offset in enumerate(offsets, 1)})
    assert [node for node, check in checks.items() if not check["ok"]] == off
    assert all(text in checks[node]["text"] for node in off)


class Answering(Srun):
    """In place of srun: a node's answer is what `options` has for it: its clock's offset, or an exit code as text."""

    def python(self, nodes, arguments, text="", **env):
        said = self.options[nodes[0]]
        if isinstance(said, str):
            return int(said), "", "srun: error\npython: cannot execute"
        return 0, json.dumps({"node": nodes[0], "clock": time.time() + said, "seconds": 0.1, "checks": {}}), ""


@pytest.mark.parametrize(("state", "code"), [("RUNNING", preflight.REQUEUE), ("CANCELLED", preflight.ENDED)])
def test_nodes_that_do_not_answer_or_have_another_time_are_bad(state, code, asked, tmp_path, monkeypatch):
    """But of a job that was ended while it was looked at none is."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1 n2 n3 n4")
    monkeypatch.setattr(preflight, "Srun", lambda _: Answering({"n1": 10, "n2": 0, "n3": "1", "n4": 0}))
    monkeypatch.setattr(queue, "slurm", lambda *argv, **_: argv[-1] if "hostnames" in argv else f"JobState={state}")
    assert preflight.run(Path(asked.recipe), tmp_path / "logs/7/attempt_1", []) == code
    file = tmp_path / "logs/7/bad_nodes"
    assert bad_nodes(file) == (["n3", "n1"] if state == "RUNNING" else [])
    if state == "RUNNING":
        assert "exit code 1: python: cannot execute" in file.read_text() and "is off by 10 s" in file.read_text()
    kept = json.loads((file.parent / "attempt_1/preflight/n3.json").read_text())
    assert kept["checks"]["answer"]["ok"] is False


def test_not_the_whole_cluster_is_excluded_and_no_node_twice(tmp_path):
    file = tmp_path / "bad_nodes"
    verdict.exclude({"n12": ["x"], "n2": ["x"]}, 16, file)
    verdict.exclude({"n1": ["x"], "n4": ["x"]}, 16, file)
    assert bad_nodes(file) == ["n12", "n2", "n1", "n4"]
    with pytest.raises(ValueError, match="n12 bad again.*--exclude=n12"):  # Slurm does not take the list
        verdict.exclude({"n12": ["x"]}, 16, file)
    with pytest.raises(ValueError, match="5 bad nodes in .*, more than the 4"):
        verdict.exclude({"n5": ["x"]}, 16, file)


def test_a_node_with_a_slow_link_is_found(tmp_path, monkeypatch):
    """Alone it does well, with both of its neighbours it does not."""

    def measure(srun, group, *more):
        return (0.001 if "n2" in group and len(group) > 1 else 1.0), "so fast"

    monkeypatch.setattr(allreduce, "measure", measure)
    monkeypatch.setenv("HERMES3_MIN_BUS_GBPS", "0.004")
    bad, text = allreduce.over(Srun([]), ["n1", "n2", "n3", "n4"], "cpu", 2, tmp_path)
    assert bad == {"n2": "with n3: so fast"} and "so fast; 0.004 GB/s are asked for" in text


def test_what_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(queue, "LIMIT", 2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    hangs = "import sys, time; print('mix', file=sys.stderr, flush=True); time.sleep(100)"
    assert Srun([]).python(["here"], ["-c", hangs]) == (None, "", "mix\n")


# on a real Slurm


@pytest.fixture
def site(tmp_path, slurm) -> QuickSite:
    site = QuickSite(tmp_path / "site", slurm)
    site.script("launch/preflight.sh", f'exec {ROOT}/launch/preflight.sh "$@"')
    return site


def test_a_job_goes_on_without_its_broken_node(slurm, site, mix, base, tmp_path):
    """An empty file system lies over the model on n2."""
    model = shutil.copytree(base, tmp_path / "base")
    recipe = write_recipe(tmp_path / "run", mix, model, hardware=ON_TWO)
    slurm.run("srun", "-w", "n2", "mount", "-t", "tmpfs", "none", model)
    try:
        jid = site.submit("", recipe=recipe)
        assert site.end(jid, PATIENCE) == ("COMPLETED", 1), site.log(jid)
    finally:
        slurm.run("srun", "-w", "n2", "umount", model)
    text, logs = site.log(jid), site.folder / f"logs/{jid}"
    assert slurm.job(jid)["ExcNodeList"] == "n2" and "GB/s bus bandwidth" in text
    assert f"n2: model: {model}: no config.json" in text
    assert (logs / "bad_nodes").read_text().startswith("n2\tmodel: ")
    checks = {file.stem: json.loads(file.read_text())["checks"] for file in logs.glob("attempt_1/preflight/*.json")}
    seen = {node: (of["answer"]["ok"], of["model"]["ok"]) for node, of in checks.items()}
    assert seen == {"n1": (True, True), "n2": (True, False)} and not (logs / "attempt_2/preflight/n2.json").exists()


def test_a_single_machine_is_looked_at_without_slurm(mix, base, tmp_path):
    """Two processes of it reduce together over gloo; and what every node lacks is no node's fault."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {"OMP_NUM_THREADS": "1"}
    for model, code in ((base, 0), (tmp_path / "none", 1)):
        hardware = {"gpu": "cpu", "nodes": 1, "gpus_per_node": 2}
        recipe = write_recipe(tmp_path / "run", mix, model, hardware=hardware)
        command = [sys.executable, "-m", "hermes3.slurm.preflight", recipe, tmp_path / "logs"]
        ran = subprocess.run(command, capture_output=True, text=True, env=env)
        assert ran.returncode == code, ran.stdout + ran.stderr
        assert code or ("all-reduce: 2 ranks, " in ran.stdout and "GB/s bus bandwidth" in ran.stdout)
    *_, head, last = ran.stderr.splitlines()
    assert head == "hermes3: preflight: the same on every node, so no node's fault:"
    assert f"model: {tmp_path}/none: no such folder" in last
