"""A real Slurm on this machine, for as long as a block lasts: a controller, and nodes that cannot see one another.

Each node is a slurmd in namespaces of its own (network, processes, host name, mounts), with a network interface and a
/tmp of its own, and knows the others by name, as machines do that share a file system. Nothing on it sees the machine's
other processes: ``ray stop`` ends no Ray but the node's. Needs root, Debian's packages slurm-wlm and munge, and ``ip``
(iproute2).
"""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.hosts import connect, namespace

ROOT = Path(__file__).parents[1]
PROGRAMS = ("sbatch", "srun", "scontrol", "slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter")

#: As a site would have it, but for waits: a node that is lost is missed soon, and a job is begun again soon.
_CONFIGURATION = """\
ClusterName=here
SlurmctldHost={host}({address})
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=10
SlurmdTimeout=30
MpiDefault=none
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return what a Slurm here would need, and how to get it; ``None``: nothing."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=_PATH)]
    return f"no {', '.join(lacking)} here; on Debian: apt-get install slurm-wlm munge iproute2" if lacking else None


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmCluster:
    """A Slurm that runs.

    Attributes:
        folder: Where its files are.
        nodes: The names of its nodes.
        environment: The variables with which Slurm's commands find it.
        shared: What all nodes see, should it lie in /tmp.
    """

    def __init__(self, folder: Path, nodes: Sequence[str], environment: dict[str, str], shared: Sequence[Path]) -> None:
        self.folder = folder
        self.nodes = nodes
        self.environment = environment
        self.shared = [ROOT, Path(sys.prefix), *shared]
        self.slurmds: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *words: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands and return what it prints.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        done = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, cwd=cwd or self.folder, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return what ``scontrol`` tells of a job."""
        words = self.command("scontrol", "show", "job", "--oneliner", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, and with it the node."""
        inside = """
            mkdir -p $2/tmp-$1 $2/spool-$1
            for one in "${@:3}"; do
                [[ $one == /tmp/* ]] || continue
                mkdir -p "$2/tmp-$1/${one#/tmp/}"
                mount --bind "$one" "$2/tmp-$1/${one#/tmp/}"
            done
            mount --rbind $2/tmp-$1 /tmp
            mount --bind $2/hosts /etc/hosts
            hostname $1
            slurmd -D -N $1 -f $2/slurm.conf
            exit
            """
        with (self.folder / f"slurmd-{name}.out").open("ab") as output:
            self.slurmds[name] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{namespace(name)}", "unshare", "--mount", "--uts", "--pid", "--fork",
                 "--kill-child", "--mount-proc", "bash", "-c", inside, "bash", name, str(self.folder),
                 *map(str, self.shared)],
                env=self.environment, stdout=output, stderr=output,
            )  # fmt: skip

    def lose_node(self, name: str) -> None:
        """Let a node vanish with all its processes, as when its power fails."""
        slurmd = self.slurmds.pop(name)
        children = Path(f"/proc/{slurmd.pid}/task/{slurmd.pid}/children").read_text(encoding="ascii").split()
        # The first process of a namespace takes all others with it.
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        slurmd.wait()

    def lose_all(self) -> None:
        """Let all nodes vanish."""
        for name in list(self.slurmds):
            self.lose_node(name)


@contextmanager
def slurm_cluster(nodes: Sequence[str] = ("n1",), cpus: int = 2, shared: Sequence[Path] = ()) -> Iterator[SlurmCluster]:
    """Run a Slurm inside the block.

    Args:
        nodes: Names of its nodes.
        cpus: Cores that each of them says it has.
        shared: Folders that jobs are submitted from, should they lie in /tmp, of which each node has its own.
    """
    with ExitStack() as ending:
        # Paths of sockets are short, and nodes have a /tmp of their own.
        folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        addresses = connect(ending, nodes)
        here = addresses.pop("")
        known = {platform.node(): here, **addresses}
        hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known.items())]
        (folder / "hosts").write_text("\n".join(hosts) + "\n", encoding="utf-8")
        lines = [
            f"NodeName={name} NodeAddr={address} CPUs={cpus} CoresPerSocket={cpus} State=UNKNOWN"
            for name, address in addresses.items()
        ]
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        text = _CONFIGURATION.format(
            folder=folder, host=platform.node(), address=here, port=port, nodes="\n".join(lines)
        )
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        environment = os.environ | {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        cluster = SlurmCluster(folder, nodes, environment, shared)
        _start_munge(ending, folder)
        _start(ending, ["slurmctld", "-D", "-f", str(folder / "slurm.conf")], folder / "slurmctld.out", environment)
        for name in nodes:
            cluster.start_node(name)
        ending.callback(cluster.lose_all)
        _wait_until_idle(cluster)
        yield cluster


def _start_munge(ending: ExitStack, folder: Path) -> None:
    """Start munged with a key of its own, by which Slurm's parts know one another."""
    (folder / "munge").mkdir(mode=0o755)
    key = folder / "munge" / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"socket": folder / "munge.socket", **{name: folder / "munge" / f"munged.{name}" for name in (
        "pid-file", "log-file", "seed-file")}}  # fmt: skip
    options = [f"--{name}={path}" for name, path in files.items()]
    _start(ending, ["munged", "--foreground", "--force", f"--key-file={key}", *options], folder / "munged.out")
    _wait(lambda: files["socket"].exists(), 10, f"munged, see {folder}")


def _start(ending: ExitStack, words: Sequence[str], output: Path, environment: dict[str, str] | None = None) -> None:
    with output.open("ab") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, env=environment or os.environ | {"PATH": _PATH}, start_new_session=True
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ending.callback(end)


def _wait_until_idle(cluster: SlurmCluster) -> None:
    def is_idle() -> bool:
        try:
            states = cluster.command("sinfo", "--noheader", "--Node", "--format=%T").split()
        except RuntimeError:
            return False
        return states == ["idle"] * len(cluster.nodes)

    _wait(is_idle, 60, f"nodes, see {cluster.folder}")


def _wait(is_there: Callable[[], bool], timeout_s: float, what: str) -> None:
    until = time.monotonic() + timeout_s
    while not is_there():
        if time.monotonic() > until:
            sys.exit(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.2)
