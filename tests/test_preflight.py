"""Nodes that must not train are found before they do: each check on real files, and jobs on a real Slurm."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_mix import write_mix, write_recipe

from hermes3.files import sha256
from hermes3.slurm import node_check, preflight
from hermes3.slurm.preflight import table
from hermes3.slurm.queue import Srun
from hermes3.slurm.verdict import blame, compare

ROOT = Path(__file__).parents[1]
LENGTHS = [20, 30, 40, 25] * 4
BIN = Path(sys.executable).parent
PATIENCE = 400  # seconds: a node may be silent for 180, and then the ranks of an all-reduce
# What `nvidia-smi -q -x` says of a GPU, cut down to what is read; stand-ins, as there is no GPU here
GPU = """<gpu><ecc_errors>
<volatile><sram_correctable>4</sram_correctable><dram_uncorrectable>{ecc}</dram_uncorrectable></volatile>
<aggregate><dram_uncorrectable>7</dram_uncorrectable><sram_threshold_exceeded>No</sram_threshold_exceeded></aggregate>
</ecc_errors><remapped_rows><remapped_row_pending>{pending}</remapped_row_pending></remapped_rows>
<gpu_recovery_action>{action}</gpu_recovery_action><clocks_event_reasons>
<clocks_event_reason_sw_power_cap>Active</clocks_event_reason_sw_power_cap>
<clocks_event_reason_hw_slowdown>{slow}</clocks_event_reason_hw_slowdown></clocks_event_reasons>
<processes>{processes}</processes></gpu>"""
WELL = {"ecc": 0, "pending": "No", "action": "None", "slow": "Not Active", "processes": ""}
PROCESS = "<process_info><pid>7</pid><type>{}</type><process_name>python</process_name></process_info>"


def smi(*ills: dict) -> str:
    gpus = "".join(GPU.format(**WELL | ill) for ill in ills)
    return f"<nvidia_smi_log><driver_version>570.86</driver_version>{gpus}</nvidia_smi_log>"


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Put a program before those of this machine."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return lambda name, script: program(tmp_path / "bin", name, script)


@pytest.fixture
def mix(tmp_path) -> Path:
    """A mix whose manifest lists its files, as `hermes3 mix build` writes it."""
    mix = write_mix(tmp_path / "mix", LENGTHS)
    manifest = json.loads((mix / "manifest.json").read_text())
    files = {str(path.relative_to(mix)): sha256(path) for path in sorted(mix.rglob("*.parquet"))}
    manifest["output"]["files"] = files
    (mix / "manifest.json").write_text(json.dumps(manifest))
    return mix


@pytest.fixture
def asked(tmp_path, mix, base) -> node_check.Expected:
    """What a node is asked that has all it needs; its model is a copy, to be broken."""
    recipe = write_recipe(tmp_path / "run", mix, shutil.copytree(base, tmp_path / "base"))
    expected, lacks = preflight.expected(recipe, tmp_path / "logs")
    assert lacks == []
    return replace(expected, hash_files=preflight.shares(mix, 1)[0])


def bad(asked: node_check.Expected) -> dict[str, str]:
    return {name: check["said"] for name, check in node_check.answer(asked)["checks"].items() if check["ok"] is False}


# a node's own checks


def test_a_good_node_passes_every_check(asked):
    found = node_check.answer(asked)["checks"]
    assert bad(asked) == {}
    assert [name for name, check in found.items() if check["ok"] is None] == ["gpus", "health", "idle"]
    assert asked.hash_files == ["train/part-00000.parquet", "train/part-00001.parquet"]
    assert {f"mix {name}" for name in asked.hash_files} < set(found)
    assert "torch 2" in found["versions"]["said"] and "axolotl" in found["versions"]["said"]


def test_the_plan_says_how_much_room_the_checkpoints_take(asked, tmp_path):
    """What is there already is part of it."""
    from hermes3.plan.plan import plan

    assert asked.storage == plan(Path(asked.recipe), packed=False).checkpoints.storage > 0
    free = shutil.disk_usage(tmp_path).free
    assert list(bad(replace(asked, storage=free + 1e11))) == ["disk"]
    with (Path(asked.output_dir) / "weights").open("wb") as file:
        file.truncate(200_000_000_000)  # a sparse file: no block of it is written
    assert bad(replace(asked, storage=free + 1e11)) == {}


def test_the_head_nodes_files_must_be_seen_with_their_content(asked):
    (token,) = [Path(path) for path in asked.tokens if "/logs/" in path]
    token.write_text("of another file system")
    assert "another content" in bad(asked)["shared"]
    token.unlink()
    assert str(token) in bad(asked)["shared"]


def test_an_output_folder_that_cannot_be_written_is_bad(asked):
    gone = {path: text for path, text in asked.tokens.items() if "/logs/" in path}
    shutil.rmtree(asked.output_dir)
    assert "out" in bad(replace(asked, tokens=gone))["shared"]


def test_a_broken_off_model_is_bad(asked):
    weights = Path(asked.base_model) / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    assert "not a whole safetensors file" in bad(asked)["model"]


def test_a_spoilt_file_of_the_mix_is_bad(asked, mix):
    path = mix / asked.hash_files[1]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert list(bad(asked)) == [f"mix {asked.hash_files[1]}"]


def test_prepared_data_of_another_mix_are_bad(asked, mix):
    (mix / "prepared").unlink()
    (mix / "prepared-of-another").mkdir()
    (mix / "prepared").symlink_to("prepared-of-another")
    assert "does not lead to" in bad(asked)["mix"]


def test_too_little_memory_is_bad(asked, monkeypatch):
    monkeypatch.setattr(node_check, "SHM", 1e18)
    assert list(bad(replace(asked, host_memory=1e18))) == ["shm", "memory"]


def test_every_file_of_the_mix_is_read_by_two_nodes(mix):
    given = preflight.shares(mix, 3)
    names = sorted(sum(given, []))
    assert names == sorted(2 * [f"train/part-0000{i}.parquet" for i in range(2)]) and max(map(len, given)) < 3


# GPUs


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"ecc": 2}, "GPU 1: 2 uncorrected ECC errors"),
        ({"pending": "Yes"}, "GPU 1: row remapping is pending"),
        ({"action": "Reset"}, "GPU 1: the driver asks for: Reset"),
        ({"slow": "Active"}, "GPU 1: its clocks are held down (hw_slowdown)"),
    ],
)
def test_a_gpu_that_is_not_well(ill, said, asked, on_path):
    on = replace(asked, gpu="h100-80gb", gpus_per_node=2)
    on_path("nvidia-smi", f"echo '{smi({}, ill)}'")
    assert list(bad(on)) == ["health"] and bad(on)["health"].startswith(said)


def test_gpus_are_counted_and_must_be_free(asked, on_path):
    """A display server's process is none that computes. The errors of the card's whole life are no fault."""
    said = smi({"processes": PROCESS.format("G")}, {"processes": PROCESS.format("C")})
    on_path("nvidia-smi", f"echo '{said}'")
    found = bad(replace(asked, gpu="h100-80gb", gpus_per_node=8))
    assert found == {"gpus": "2 GPUs, the recipe declares 8", "idle": "GPU 1: python (pid 7)"}


def test_a_driver_that_does_not_answer_is_bad(asked, on_path):
    on_path("nvidia-smi", "echo No devices were found; exit 6")
    found = bad(replace(asked, gpu="h100-80gb", gpus_per_node=8))
    assert set(found) == {"gpus", "health", "idle", "versions"}
    assert found["gpus"] == "nvidia-smi ended with 6: No devices were found"


def test_dcgm_has_its_say(asked, on_path):
    tests = [
        {"name": "Inforom", "results": [{"status": "Pass"}]},
        {"name": "NVML Library", "results": [{"status": "Fail"}]},
    ]
    said = json.dumps({"DCGM Diagnostic": {"test_categories": [{"category": "Deployment", "tests": tests}]}})
    on_path("nvidia-smi", f"echo '{smi({})}'")
    on_path("dcgmi", f"echo '{said}'; exit 226")
    on = replace(asked, gpu="h100-80gb", gpus_per_node=1)
    assert bad(on) == {"health": "dcgmi diag: NVML Library failed"}
    on_path("dcgmi", "echo Error: unable to connect to host engine; exit 1")
    assert bad(on) == {}


# what the answers say together


def answers(**checks: list) -> dict:
    """Of as many nodes as each check has values: True, False, None, or what must be the same."""
    nodes = [f"n{i}" for i in range(1, max(map(len, checks.values())) + 1)]
    made = {node: {"checks": {}} for node in nodes}
    for name, values in checks.items():
        for node, value in zip(nodes, values, strict=False):
            same = value if isinstance(value, str) else None
            check = {"ok": True if same else value, "said": same or f"{name}!", "remedy": "do it", "same": same}
            made[node]["checks"][name.replace("__", " ")] = check
    return made


@pytest.mark.parametrize(
    ("checks", "nodes", "of_all"),
    [
        ({"mix": [True, False, True]}, ["n2"], False),
        ({"mix": [False, False, False]}, [], True),
        ({"answer": [True, False, False]}, ["n2", "n3"], False),
        ({"answer": [True, False], "model": [False]}, ["n2", "n1"], False),  # nobody to compare with
        ({"model": [False]}, [], True),  # on one node alone a missing model is the user's still
        ({"gpus": [False]}, ["n1"], False),
        ({"gpus": [False, False]}, [], True),  # the recipe declares another number than the nodes have
        ({"health": [False, False]}, ["n1", "n2"], False),
        ({"versions": ["torch 1", "torch 2", "torch 1"]}, ["n2"], False),
        ({"versions": ["torch 1", "torch 2"]}, ["n2"], False),  # the head node's count
        ({"mix__part-0": [False, False, None]}, [], False),
    ],
)
def test_whose_fault_it_is(checks, nodes, of_all):
    made = answers(**checks)
    if "mix__part-0" in checks:  # both of its readers find it broken, the third did not look
        del made["n3"]["checks"]["mix part-0"]
        nodes, of_all = [], True
    compare(made)
    found, shared = blame(made)
    assert list(found) == nodes and bool(shared) == of_all


def test_the_table_has_a_line_a_node():
    made = answers(
        gpus=[None, None], versions=["torch 1, nccl 2", "torch 3, nccl 2"], mix=[True, True], mix__part=[True]
    )
    compare(made)
    lines = table(made).splitlines()
    assert lines[:3] == ["node gpus versions mix", "n1   -    ok       ok", "n2   -    BAD      ok"]
    assert blame(made)[0] == {"n2": ["versions: torch 3; others: torch 1 -> do it"]}


def test_not_the_whole_cluster_is_excluded(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    nodes, file = [f"n{i}" for i in range(16)], tmp_path / "bad_nodes"
    assert preflight.exclude({"n1": ["x"], "n2": ["x"]}, nodes, file) == preflight.REQUEUE
    assert preflight.exclude({"n3": ["x"], "n4": ["x"]}, nodes, file) == preflight.REQUEUE
    with pytest.raises(ValueError, match="5 bad nodes in .*, more than the 4"):
        preflight.exclude({"n5": ["x"]}, nodes, file)


def test_a_job_that_is_given_an_excluded_node_again_ends(tmp_path, monkeypatch):
    """Where Slurm does not take the list, it would be queued again for ever."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    preflight.exclude({"n12": ["x"]}, ["n1", "n12"], tmp_path / "bad_nodes")
    preflight.exclude({"n1": ["x"]}, ["n1", "n12"], tmp_path / "bad_nodes")  # another one, whose name begins so
    with pytest.raises(ValueError, match="n12 bad again.*--exclude=n12"):
        preflight.exclude({"n12": ["x"]}, ["n12"], tmp_path / "bad_nodes")


def test_what_hangs_is_ended(monkeypatch):
    monkeypatch.setenv("HERMES3_PREFLIGHT_SECONDS", "0.5")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert Srun([]).run(["here"], ["sh", "-c", "echo mix >&2; exec sleep 100"]) == (None, "", "mix\n")


# on a real Slurm


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder that jobs are submitted from, as the repository's root is, with logs of its own."""
    (tmp_path / "site/logs").mkdir(parents=True)
    (tmp_path / "site/launch").symlink_to(ROOT / "launch")
    script = 'trap "" TERM; launch/preflight.sh "$1" "logs/$SLURM_JOB_ID/attempt_$((${SLURM_RESTART_COUNT:-0} + 1))"'
    script = f"#!/bin/bash\n#SBATCH --open-mode=append --requeue\n{script}; code=$?; exit $((code == 3 ? 0 : code))\n"
    (tmp_path / "site/preflight.sbatch").write_text(script)
    return tmp_path / "site"


def submit(
    slurm, site: Path, script: str, recipe: Path, *options: str, path: Path = BIN, **env: str
) -> tuple[int, Path]:
    """(job, its log)"""
    log = site / "logs/job.log"
    env |= {"PATH": f"{path}:{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return slurm.submit(*options, "--ntasks-per-node=1", "-o", log, script, recipe, cwd=site, env=env), log


def on(slurm, node: str, *command: object) -> None:
    """Run in the node's own namespaces: what is mounted there, no other node sees."""
    slurm.run("srun", "-w", node, *command)


@pytest.mark.parametrize("broken", ["n2", "n1"])  # n1 runs the script
def test_a_job_goes_on_without_its_broken_node(broken, slurm, site, mix, base, tmp_path):
    """It does not see the model: an empty file system lies over it there."""
    model = shutil.copytree(base, tmp_path / "base")
    recipe = write_recipe(tmp_path / "run", mix, model, hardware={"gpu": "cpu", "nodes": 2, "gpus_per_node": 1})
    on(slurm, broken, "mount", "-t", "tmpfs", "none", model)
    try:
        jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N2")
        job = slurm.wait_job(jid, timeout=PATIENCE)
    finally:
        on(slurm, broken, "umount", model)
    text = log.read_text(errors="replace")
    assert (job["JobState"], job["Restarts"], job["ExcNodeList"]) == ("COMPLETED", "1", broken), text[-5000:]
    assert broken not in (nodes := slurm_nodes(slurm, job["NodeList"]))
    assert f"{broken}: model: {model}: no config.json" in text and "GB/s bus bandwidth" in text
    assert (site / f"logs/{jid}/bad_nodes").read_text().startswith(f"{broken}\tmodel: ")
    first, second = (site / f"logs/{jid}/attempt_{n}/preflight" for n in (1, 2))
    answers = {path.stem: json.loads(path.read_text())["checks"] for path in first.glob("*.json")}
    assert {node: (checks["answer"]["ok"], checks["model"]["ok"]) for node, checks in answers.items()} == {
        node: (True, node != broken) for node in ("n1", "n2")
    }
    assert sorted(path.stem for path in second.glob("*.json")) == sorted(nodes)


def slurm_nodes(slurm, expression: str) -> list[str]:
    return slurm.run("scontrol", "show", "hostnames", expression).stdout.split()


def test_a_fault_of_all_nodes_fails_once(slurm, site, mix, tmp_path):
    hardware = {"gpu": "cpu", "nodes": 2, "gpus_per_node": 1}
    recipe = write_recipe(tmp_path / "run", mix, tmp_path / "no_such_model", hardware=hardware)
    jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N2")
    job = slurm.wait_job(jid)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    *_, head, last = log.read_text().splitlines()
    assert head == "hermes3: preflight: the same on every node, so no node's fault:"
    assert f"model: {tmp_path}/no_such_model: no config.json" in last
    assert not (site / f"logs/{jid}/bad_nodes").exists()


def test_two_of_three_nodes_where_python_does_not_start(slurm, site, mix, base, tmp_path):
    recipe = write_recipe(tmp_path / "run", mix, base, hardware={"gpu": "cpu", "nodes": 3, "gpus_per_node": 1})
    python = Path(sys.executable).resolve()
    for node in ("n2", "n3"):
        on(slurm, node, "mount", "--bind", shutil.which("false"), python)
    try:
        jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N3")
        slurm.until(lambda: slurm.job(jid)["ExcNodeList"] == "n2,n3", PATIENCE, "n2 and n3 excluded")
    finally:
        slurm.run("scancel", jid)
        for node in ("n2", "n3"):
            on(slurm, node, "umount", python)
    assert "n3: answer: exit code 1: " in log.read_text()


@pytest.mark.parametrize("command", ["scancel", "scontrol requeue"])
def test_a_job_that_is_ended_while_it_is_looked_at_has_no_bad_node(command, slurm, site, mix, base, tmp_path):
    """n1 has answered, n2 is cut off. The cancelled job does not come back, and nobody's node is excluded."""
    recipe = write_recipe(tmp_path / "run", mix, base, hardware={"gpu": "cpu", "nodes": 2, "gpus_per_node": 1})
    hangs = '[ "$1" = --nodelist=n2 ] && exec /usr/bin/srun "$1" --nodes=1 --ntasks=1 --overlap sleep 3600'
    stand_in = program(tmp_path / "bin", "srun", f'{hangs}\nexec /usr/bin/srun "$@"')
    jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N2", path=stand_in)
    slurm.until((site / f"logs/{jid}/attempt_1/preflight/n1.json").exists, PATIENCE, "the answer of n1")
    slurm.run(*command.split(), jid)
    slurm.until(lambda: log.exists() and "from outside" in log.read_text(), PATIENCE, "the end of attempt 1")
    slurm.until(lambda: slurm.job(jid)["JobState"] != "COMPLETING", PATIENCE, "what comes of it")
    job = slurm.job(jid)
    assert (job["JobState"] == "CANCELLED") == (command == "scancel"), log.read_text()
    assert job["Restarts"] == ("0" if command == "scancel" else "1")
    assert job["ExcNodeList"] == "(null)" and not (site / f"logs/{jid}/bad_nodes").exists()


def test_a_gpu_with_memory_errors_keeps_its_node_out(slurm, site, mix, base, tmp_path):
    """nvidia-smi is a stand-in: it lists the GPUs that Slurm gave to the step, with an error on n2's last."""
    one, ill = (smi(gpu).split("</driver_version>")[1].removesuffix("</nvidia_smi_log>") for gpu in ({}, {"ecc": 1}))
    script = f"""echo '<nvidia_smi_log><driver_version>570</driver_version>'
    for gpu in $(echo $CUDA_VISIBLE_DEVICES | tr , ' '); do
      if [ $SLURMD_NODENAME$gpu = n27 ]; then echo '{ill}'; else echo '{one}'; fi
    done; echo '</nvidia_smi_log>'"""
    hardware = {"gpu": "h100-80gb", "nodes": 2, "gpus_per_node": 8}
    recipe = write_recipe(tmp_path / "run", mix, base, hardware=hardware)
    stand_in = program(tmp_path / "bin", "nvidia-smi", script)
    jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N2", "--gpus-per-node=8", path=stand_in)
    slurm.until(lambda: slurm.job(jid)["ExcNodeList"] == "n2", PATIENCE, "n2 excluded")
    assert "n2: health: GPU 7: 1 uncorrected ECC errors (dram_uncorrectable)" in log.read_text()


def test_a_node_with_a_slow_link_is_found(slurm, site, mix, base, tmp_path):
    """n2's network lets 8 Mbit/s through: alone it does well, with both of its neighbours it does not.

    4 MB/s are asked for: four times that, and a small part of what two idle cores reduce with (over 100).
    """
    if not slurm.own_network or not shutil.which("tc", path="/usr/sbin:/sbin:/usr/bin"):
        pytest.skip("needs root and tc, to slow one node's network down")
    recipe = write_recipe(tmp_path / "run", mix, base, hardware={"gpu": "cpu", "nodes": 4, "gpus_per_node": 1})
    link = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "8mbit", "burst", "64kb", "latency", "50ms"]
    on(slurm, "n2", *link)
    try:
        jid, log = submit(slurm, site, "preflight.sbatch", recipe, "-N4", HERMES3_MIN_BUS_GBPS="0.004")
        slurm.until(lambda: log.exists() and "all-reduce: " in log.read_text(), PATIENCE, "the table")
        slurm.until(lambda: slurm.job(jid)["JobState"] != "RUNNING", PATIENCE, "an end")
    finally:
        on(slurm, "n2", "tc", "qdisc", "del", "dev", "eth0", "root")
    assert slurm.job(jid)["ExcNodeList"] == "n2", log.read_text()
    assert "n2: all-reduce: with n" in log.read_text()


def test_a_single_machine_is_looked_at_without_slurm(mix, base, tmp_path):
    """Two processes of it reduce together over gloo."""
    recipe = write_recipe(tmp_path / "run", mix, base, hardware={"gpu": "cpu", "nodes": 1, "gpus_per_node": 2})
    command = [sys.executable, "-m", "hermes3.slurm.preflight", recipe, tmp_path / "logs"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    ran = subprocess.run(command, capture_output=True, text=True, env=env | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all-reduce: 2 ranks, " in ran.stdout and "GB/s bus bandwidth" in ran.stdout
