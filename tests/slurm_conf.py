"""The configuration files of a Slurm cluster that lives in one folder: nothing in /etc, no fixed port."""

import os
import pwd
import re
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=localhost({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits cred_expire seconds before it starts again: 120 by default, 5 is the least that is taken
AuthInfo=socket={root}/munge/socket,cred_expire=5
# between TERM and KILL; must be under cred_expire - 2, or the srun of a job's first life kills a step of its second
KillWait=2
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
# the nodes below may have more CPUs and memory than this machine, so that requests of real size are weighed
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
# a job starts within a second of its submission, not 3 to 30
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
GresTypes=gpu
# with 2, a node that scontrol set down is back before its job is queued again
ReturnToService=1
JobRequeue=1
# scontrol knows a finished job for an hour
MinJobAge=3600
# a node that gets no CPU time for a while, as on a busy machine, is not dead
MessageTimeout=30
SlurmdTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP GraceTime=60
PartitionName=urgent Nodes=ALL DefaultTime=60 State=UP PriorityTier=10
"""


def program(name: str) -> str | None:
    """Path of a daemon or command: daemons are in sbin, which a user's PATH may lack."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def write(root: Path, addresses: dict[str, str], controller: str, cpus: int, memory_mb: int, gpus: int) -> Path:
    """Write slurm.conf, gres.conf, cgroup.conf, hosts and munge's key under `root`; the path of slurm.conf.

    `addresses`: node -> IPv4 address; `controller`: slurmctld's. `cpus`, `memory_mb`, `gpus` are of each node.
    """
    for folder in ("etc", "munge", "state", "spool", "log", "dev", "run"):
        (root / folder).mkdir(parents=True)
    key = root / "munge/key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    for i in range(gpus):  # a GPU must be a character device, and a link to one is enough
        (root / f"dev/nvidia{i}").symlink_to("/dev/null")
    hosts = [("127.0.0.1", "localhost"), (controller, socket.gethostname())]
    hosts += [(address, node) for node, address in addresses.items()]
    (root / "etc/hosts").write_text("".join(f"{address} {name}\n" for address, name in hosts))

    port, *node_ports = free_ports(1 + len(addresses))
    nodes = [
        f"NodeName={node} NodeHostname=localhost NodeAddr={address} Port={node_port} CPUs={cpus} "
        f"RealMemory={memory_mb} Gres=gpu:h100:{gpus} State=UNKNOWN"
        for (node, address), node_port in zip(addresses.items(), node_ports, strict=True)
    ]
    conf = root / "etc/slurm.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    conf.write_text(
        SLURM_CONF.format(root=root, user=user, controller=controller, port=port, nodes="\n".join(nodes)),
    )
    (root / "etc/gres.conf").write_text(
        f"NodeName={','.join(addresses)} Name=gpu Type=h100 File={root}/dev/nvidia[0-{gpus - 1}]\n"
    )
    # slurmd looks for cgroups though nothing here uses them: older ones start with v1 unlooked at, newer can be told
    plugin = "disabled" if version() >= (23, 2) else "cgroup/v1"
    (root / "etc/cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    return conf


def version() -> tuple[int, int]:
    """Of the installed Slurm."""
    said = subprocess.run([program("slurmctld"), "-V"], text=True, capture_output=True, check=True).stdout
    year, month = re.search(r"(\d+)\.(\d+)", said).groups()
    return int(year), int(month)


def free_ports(n: int) -> list[int]:
    """`n` different TCP ports that nobody listens on."""
    with ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(n)]
