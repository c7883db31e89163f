"""A real Slurm cluster on this machine: a controller, and isolated nodes.

Each node is a slurmd in separate namespaces (network, processes, host name, mounts) with its network interface and its
/tmp. Nodes resolve the names of one another and share the other files. A node does not see other processes of the
machine, so ``ray stop`` stops only the Ray of the node. Needs root, Debian's packages slurm-wlm and munge, and ``ip``
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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.hosts import connect, namespace, wait

ROOT = Path(__file__).parents[1]
PROGRAMS = ("sbatch", "srun", "scontrol", "slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter")

#: Usual settings, but with short waits for lost nodes and requeued jobs.
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
    """Return the missing requirement and its remedy, or ``None``."""
    if os.geteuid() != 0:
        return "a Slurm cluster on this machine needs root"
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=_PATH)]
    return f"no {', '.join(lacking)} here; on Debian: apt-get install slurm-wlm munge iproute2" if lacking else None


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class SlurmCluster:
    """A running Slurm cluster.

    Attributes:
        folder: Folder of its files.
        nodes: Names of the nodes.
        environment: Environment of Slurm's commands.
        shared: Paths below /tmp that all nodes share.
    """

    def __init__(self, folder: Path, nodes: Sequence[str], environment: dict[str, str], shared: Sequence[Path]) -> None:
        self.folder = folder
        self.nodes = nodes
        self.environment = environment
        self.shared = [ROOT, Path(sys.prefix), *shared]
        self.slurmds: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *words: str, cwd: Path | None = None) -> str:
        """Run a command of Slurm and return its output.

        Raises:
            RuntimeError: The command failed. The message has its error output.
        """
        done = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, cwd=cwd or self.folder, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return the fields of a job as ``scontrol`` prints them."""
        words = self.command("scontrol", "show", "job", "--oneliner", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        inside = """
            mkdir -p $2/tmp-$1 $2/spool-$1
            for path in "${@:3}"; do
                [[ $path == /tmp/* ]] || continue
                mkdir -p "$2/tmp-$1/${path#/tmp/}"
                mount --bind "$path" "$2/tmp-$1/${path#/tmp/}"
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
        """Kill all processes of a node, as a power failure would."""
        slurmd = self.slurmds.pop(name)
        children = Path(f"/proc/{slurmd.pid}/task/{slurmd.pid}/children").read_text(encoding="ascii").split()
        # The end of the first process of a namespace ends all others in it.
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        slurmd.wait()

    def lose_all(self) -> None:
        """Kill all nodes."""
        for name in list(self.slurmds):
            self.lose_node(name)


@contextmanager
def slurm_cluster(nodes: Sequence[str] = ("n1",), cpus: int = 2, shared: Sequence[Path] = ()) -> Iterator[SlurmCluster]:
    """Run a Slurm cluster inside the block.

    Args:
        nodes: Names of the nodes.
        cpus: Cores of each node.
        shared: Folders below /tmp that all nodes share, such as those of submitted jobs.
    """
    with ExitStack() as ending:
        # Socket paths must be short, and each node has a separate /tmp.
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
    """Start munged with a new key for the authentication of Slurm's daemons."""
    (folder / "munge").mkdir(mode=0o755)
    key = folder / "munge" / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {"socket": folder / "munge.socket", **{name: folder / "munge" / f"munged.{name}" for name in (
        "pid-file", "log-file", "seed-file")}}  # fmt: skip
    options = [f"--{name}={path}" for name, path in files.items()]
    _start(ending, ["munged", "--foreground", "--force", f"--key-file={key}", *options], folder / "munged.out")
    wait(lambda: files["socket"].exists(), 10, f"munged, see {folder}")


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

    wait(is_idle, 60, f"nodes, see {cluster.folder}")
