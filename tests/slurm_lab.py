"""A real Slurm cluster on one machine: munged, slurmctld and a slurmd for each virtual node, all under one folder. Each
node has its own processes, mounts, network and host name: `hostname` is the node's name, 127.0.0.1 is its own, nodes
find each other by name, and what runs on a node dies with it. The daemons are our children and die with us."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

NEEDS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "setpriv", "ip", "nsenter")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # daemons are in sbin, which a user's PATH may lack
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
# a job's own variables would reach the jobs submitted from here
DROPPED = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")
HUB = """ip link add br0 type bridge; ip addr add {controller}/24 dev br0; ip link set lo up; ip link set br0 up
touch {ready}; exec sleep infinity"""
LINK = """ip link add eth0 type veth peer name {node} netns {hub}; ip addr add {address}/24 dev eth0
ip link set lo up; ip link set eth0 up; nsenter -t {hub} --net ip link set {node} master br0 up; exec "$@"
"""


def missing() -> list[str]:
    """The programs that a cluster needs and this machine lacks."""
    return [name for name in NEEDS if not shutil.which(name, path=PATH)] or ["root"] * (os.getuid() != 0)


class SlurmLab:
    """`nodes` nodes n1, n2, ... with `cpus`, `memory_mb` and `gpus` (pretended) H100 each; use it as a context."""

    def __init__(self, root: Path, nodes: int = 4, cpus: int = 16, memory_mb: int = 64_000, gpus: int = 8):
        self.root = root.absolute()
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.addresses = {node: f"10.77.0.{i}" for i, node in enumerate(self.nodes, 1)}
        self.controller, self.conf = "10.77.0.254", self.root / "etc/slurm.conf"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        self.env |= {"SLURM_CONF": str(self.conf), "PATH": PATH}
        self._configure(f"CPUs={cpus} RealMemory={memory_mb} Gres=gpu:h100:{gpus} State=UNKNOWN", gpus)
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

    def run(self, *command, check: bool = True, env: dict | None = None, **options) -> subprocess.CompletedProcess:
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
        """What `scontrol show job` says: JobState, Restarts, NodeList and so on."""
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", self.run("scontrol", "-o", "show", "job", jid).stdout))

    def hosts(self, jid: int) -> list[str]:
        """The job's nodes."""
        return self.run("scontrol", "show", "hostnames", self.job(jid)["NodeList"]).stdout.split()

    def wait_job(self, jid: int, states: tuple[str, ...] = ENDED, timeout: float = 300) -> dict[str, str]:
        """The job when its state is one of `states`. Raises: TimeoutError after `timeout` seconds."""
        self.until(lambda: self.job(jid)["JobState"] in states, timeout, f"job {jid} in {states}")
        return self.job(jid)

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").stdout.split()

    def kill_node(self, node: str) -> None:
        """The machine loses power: all on it is gone, and nobody tells slurmctld."""
        self._end(f"slurmd.{node}")

    def reset(self) -> None:
        """No job, and every node up and idle."""

        def states() -> dict[str, str]:
            return dict(line.split() for line in self.run("sinfo", "-hN", "-o", "%N %T").stdout.splitlines())

        def all_idle() -> bool:
            for node, state in states().items():
                if state.startswith(("down", "drain")):  # as one that was started again is
                    self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            return {*states().values()} == {"idle"}

        self._cancel_all()
        for node in states():
            if f"slurmd.{node}" not in self.daemons:
                self.start_node(node)
        self.until(all_idle, 60, "idle nodes")

    def until(self, seen: Callable, timeout: float, what: str, every: float = 0.1) -> None:
        """Wait until `seen()`. Raises: TimeoutError naming `what` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not seen():
            for name in {"hub", "munged", "slurmctld"} & self.daemons.keys():
                if self.daemons[name].poll() is not None:
                    raise RuntimeError(f"{name} exited {self.daemons[name].returncode}: see {self.root}/log")
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout} s: {what}; logs in {self.root}/log")
            time.sleep(every)

    # the daemons

    def _configure(self, of_node: str, gpus: int) -> None:
        for folder in ("etc", "munge", "state", "spool", "log", "dev", "run"):
            (self.root / folder).mkdir(parents=True)
        (self.root / "munge/key").touch(0o600)
        (self.root / "munge/key").write_bytes(os.urandom(128))
        for i in range(gpus):  # a GPU must be a character device, and a link to one is enough
            (self.root / f"dev/nvidia{i}").symlink_to("/dev/null")
        hosts = {"localhost": "127.0.0.1", socket.gethostname(): self.controller} | self.addresses
        (self.root / "etc/hosts").write_text("".join(f"{address} {name}\n" for name, address in hosts.items()))
        with ExitStack() as held:
            servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(1 + len(self.nodes))]
            port, *node_ports = (server.getsockname()[1] for server in servers)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr={address} Port={port_of} {of_node}"
            for (node, address), port_of in zip(self.addresses.items(), node_ports, strict=True)
        )
        values = {"root": self.root, "controller": self.controller, "port": port, "nodes": nodes}
        values["user"] = pwd.getpwuid(os.getuid()).pw_name
        self.conf.write_text(Path(__file__).with_suffix(".conf").read_text().format(**values))
        devices = f"Name=gpu Type=h100 File={self.root}/dev/nvidia[0-{gpus - 1}]"
        (self.root / "etc/gres.conf").write_text(f"NodeName={','.join(self.nodes)} {devices}\n")
        # slurmd looks for cgroups though nothing here uses them: older ones start with v1, from 23.02 on it can be told
        version = subprocess.run(["slurmctld", "-V"], text=True, capture_output=True, env=self.env).stdout
        new = [*map(int, re.findall(r"\d+", version)[:2])] >= [23, 2]
        (self.root / "etc/cgroup.conf").write_text(f"CgroupPlugin={'disabled' if new else 'cgroup/v1'}\n")

    def _start(self) -> None:
        munge, mount_hosts = self.root / "munge", f"mount --bind {self.root}/etc/hosts /etc/hosts"
        ready = self.root / "run/hub"  # a bridge in a namespace of its own: nothing is added to the machine's network
        self._spawn("hub", "unshare", "--net", "sh", "-ec", HUB.format(controller=self.controller, ready=ready))
        self.until(ready.exists, 30, "the lab's network")
        self.inside = ["nsenter", "-t", str(self.daemons["hub"].pid), "--net"]
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={munge}/{name}" for option, name in files.items()]
        options += ["--foreground", "--force", "--num-threads=2", "--origin=127.0.0.1"]
        self._spawn("munged", "munged", *options)
        self.until((munge / "socket").exists, 30, "munged's socket")
        # slurmctld must find the nodes by name too: it writes to the srun on them
        argv = ["unshare", "--mount", "sh", "-c", f'{mount_hosts} && exec "$@"', "sh"]
        self._spawn("slurmctld", *self.inside, *argv, "slurmctld", "-D", "-f", self.conf)
        self.until(lambda: "is UP" in self.run("scontrol", "ping", check=False).stdout, 30, "slurmctld")
        for node in self.nodes:
            self.start_node(node)
        self.reset()

    def start_node(self, node: str) -> None:
        """Boot a node, the first time or after kill_node."""
        link = LINK.format(node=node, hub=self.daemons["hub"].pid, address=self.addresses[node])
        argv = ["unshare", "--net", "sh", "-ec", link, "sh"]
        argv += ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--uts"]
        # up since now: the controller sees a node that is started again as rebooted, and its jobs as lost
        argv += ["--time", f"--boottime=-{int(time.clock_gettime(time.CLOCK_BOOTTIME))}", "sh"]
        argv += ["-c", f'hostname {node} && mount --bind {self.root}/etc/hosts /etc/hosts && "$@"; exit $?', "sh"]
        self._spawn(f"slurmd.{node}", *argv, "slurmd", "-D", "-N", node, "-f", self.conf)

    def _spawn(self, name: str, *argv: object) -> None:
        with (self.root / f"log/{name}.out").open("ab") as out:
            options = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
            argv = ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]
            self.daemons[name] = subprocess.Popen(argv, env=self.env, cwd=self.root, **options)

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
