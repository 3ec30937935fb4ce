"""A real Slurm cluster on one machine: munged, slurmctld and a slurmd for each virtual node, all under one folder.

Each node has its own process, mount and host-name namespace: `hostname` is the node's name, nodes find each other by
name, and what runs on a node dies with it. As root each has its own network too, so that 127.0.0.1 is the node's own,
as on real machines. The daemons are our children and die with us.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import slurm_conf
from slurm_conf import program

NEEDS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv")
FOR_NETWORKS = ("ip", "nsenter")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# a job's own variables would reach the jobs submitted from here
DROPPED = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in (*NEEDS, *(FOR_NETWORKS if os.getuid() == 0 else ())) if not program(name)]


class SlurmLab:
    """`nodes` nodes n1, n2, ... with `cpus`, `memory_mb` and `gpus` (pretended) H100 each; use it as a context."""

    def __init__(self, root: Path, nodes: int = 4, cpus: int = 16, memory_mb: int = 64_000, gpus: int = 8):
        self.root = root.absolute()
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.own_network = os.getuid() == 0
        subnet = "10.77.0." if self.own_network else "127.0.77."
        self.addresses = {node: f"{subnet}{i}" for i, node in enumerate(self.nodes, 1)}
        self.controller = f"{subnet}254"
        self.conf = slurm_conf.write(self.root, self.addresses, self.controller, cpus, memory_mb, gpus)
        self.version = slurm_conf.version()
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)} | {"SLURM_CONF": str(self.conf)}
        self.daemons: dict[str, subprocess.Popen] = {}
        self.inside: list[str] = []  # how a command comes into the cluster's network

    def __enter__(self) -> "SlurmLab":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        with suppress(TimeoutError, subprocess.SubprocessError, KeyError):
            if self.daemons["slurmctld"].poll() is None:
                self._cancel_all()
        for name in reversed(list(self.daemons)):  # the nodes first, munged and the network last
            self._end(name)

    # what tests do

    def run(
        self, *command: object, check: bool = True, env: dict | None = None, **options
    ) -> subprocess.CompletedProcess:
        """Run `command` as on the cluster's login node; its output is captured as text."""
        argv = [*self.inside, *map(str, command)]
        settings = {"text": True, "capture_output": True, "timeout": 120} | options
        done = subprocess.run(argv, env=self.env | (env or {}), **settings)
        if check and done.returncode:
            raise AssertionError(f"{command} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def submit(self, *arguments: object, **options) -> int:
        """`sbatch arguments`; the job's id."""
        return int(self.run("sbatch", "--parsable", *arguments, **options).stdout.split(";")[0])

    def job(self, jid: int) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, NodeList, ExitCode, Reason and so on."""
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", self.run("scontrol", "-o", "show", "job", jid).stdout))

    def wait_job(self, jid: int, states: tuple[str, ...] = ENDED, timeout: float = 300) -> dict[str, str]:
        """The job when its state is one of `states`. Raises: TimeoutError after `timeout` seconds."""

        def there() -> dict[str, str] | None:
            job = self.job(jid)
            return job if job["JobState"] in states else None

        return self.until(there, timeout, f"job {jid} in {states}")

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").stdout.split()

    def kill_node(self, node: str) -> None:
        """The machine loses power: all on it is gone, and nobody tells slurmctld."""
        self._end(f"slurmd.{node}")

    def node_states(self) -> dict[str, str]:
        """Node -> its state as sinfo has it: idle, allocated, mixed, down, drained, ..."""
        return dict(line.split() for line in self.run("sinfo", "-hN", "-o", "%N %T").stdout.splitlines())

    def wait_nodes(self, state: str = "idle", nodes: list[str] | None = None, timeout: float = 60) -> None:
        """Wait until `nodes` (all by default) are in `state`. Raises: TimeoutError after `timeout` seconds."""
        wanted = nodes or self.nodes
        self.until(lambda: {self.node_states().get(n) for n in wanted} == {state}, timeout, f"{wanted} {state}")

    def reset(self) -> None:
        """No job, and every node up and idle."""
        self._cancel_all()
        for node, state in self.node_states().items():
            if f"slurmd.{node}" not in self.daemons:
                self.start_node(node)
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.wait_nodes()

    def until(self, seen: Callable, timeout: float, what: str, every: float = 0.1):
        """What `seen()` gives once that is true. Raises: TimeoutError naming `what` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not (got := seen()):
            for name in ("hub", "munged", "slurmctld"):
                daemon = self.daemons.get(name)
                if daemon and daemon.poll() is not None:
                    raise RuntimeError(f"{name} exited {daemon.returncode}: see {self.root}/log")
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout} s: {what}; logs in {self.root}/log")
            time.sleep(every)
        return got

    # the daemons

    def _start(self) -> None:
        munge, mount_hosts = self.root / "munge", f"mount --bind {self.root}/etc/hosts /etc/hosts"
        if self.own_network:  # a bridge in a namespace of its own: nothing is added to the machine's network
            ready = self.root / "run/hub"
            self._spawn(
                "hub", "unshare", "--net", "sh", "-ec",
                f"ip link add br0 type bridge; ip addr add {self.controller}/24 dev br0; ip link set lo up; "
                f"ip link set br0 up; touch {ready}; exec sleep infinity",
            )  # fmt: skip
            self.until(ready.exists, 30, "the lab's network")
            self.inside = ["nsenter", "-t", str(self.daemons["hub"].pid), "--net"]
        self._spawn(
            "munged", program("munged"), "--foreground", "--force", f"--socket={munge}/socket",
            f"--key-file={munge}/key", f"--pid-file={munge}/pid", f"--log-file={munge}/log",
            f"--seed-file={munge}/seed", "--num-threads=2", "--origin=127.0.0.1",
        )  # fmt: skip
        self.until((munge / "socket").exists, 30, "munged's socket")
        # slurmctld must find the nodes by name too: it writes to the srun on them
        self._spawn(
            "slurmctld", *self.inside, "unshare", *self._user_namespace(), "--mount", "sh", "-c",
            f'{mount_hosts} && exec "$@"', "sh", program("slurmctld"), "-D", "-f", self.conf,
        )  # fmt: skip
        self.until(lambda: "is UP" in self.run("scontrol", "ping", check=False).stdout, 30, "slurmctld")
        for node in self.nodes:
            self.start_node(node)
        self.wait_nodes()

    def start_node(self, node: str) -> None:
        """Boot a node, the first time or after kill_node."""
        argv = [
            "unshare", *self._user_namespace(), "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc",
            "--uts", "sh", "-c", f'hostname {node} && mount --bind {self.root}/etc/hosts /etc/hosts && "$@"; exit $?',
            "sh", program("slurmd"), "-D", "-N", node, "-f", self.conf,
        ]  # fmt: skip
        if self.own_network:
            hub = self.daemons["hub"].pid
            argv = [
                "unshare", "--net", "sh", "-ec",
                f"ip link add eth0 type veth peer name {node} netns {hub}; "
                f"ip addr add {self.addresses[node]}/24 dev eth0; ip link set lo up; ip link set eth0 up; "
                f'nsenter -t {hub} --net ip link set {node} master br0 up; exec "$@"',
                "sh", *argv,
            ]  # fmt: skip
        self._spawn(f"slurmd.{node}", *argv)

    @staticmethod
    def _user_namespace() -> list[str]:
        return [] if os.getuid() == 0 else ["--map-current-user", "--keep-caps"]

    def _spawn(self, name: str, *argv: object) -> None:
        with (self.root / f"log/{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=self.root,
            )

    def _end(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        if daemon.poll() is None:
            children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
            if name.startswith("slurmd.") and children:  # the node's pid 1: the kernel ends all in its namespace
                os.kill(int(children[0]), signal.SIGKILL)
            else:
                daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _cancel_all(self) -> None:
        for jid in self.jobs():
            self.run("scancel", jid, check=False)
        self.until(lambda: not self.jobs(), 30, "no job left")
