"""Fake commands of Slurm and Ray for batch scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path


class FakeSlurm:
    """Commands that a batch script calls, in the folder of submission."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "programs"
        programs.mkdir()
        # scontrol and ray record their calls; srun and ray run their commands.
        bodies = {
            "scontrol": 'echo "$@" >> calls',
            # The exit code is that of a node that lost its head.
            "srun": 'while [[ $1 == --* ]]; do shift; done; "$@"; exit 143',
            "ray": 'echo "$@" >> calls; while [ "$1" != -- ]; do shift; done; shift; "$@"',
        }
        for name, body in bodies.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        # The number is unique, because the folder of the script below /tmp is named after it.
        self.job_id = f"9{os.getpid()}"
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": self.job_id, "SLURM_JOB_NAME": "job",
            "SLURM_JOB_NODELIST": "here",
            "SLURMD_NODENAME": "here", "SLURM_CPUS_ON_NODE": "2",
        }  # fmt: skip

    def start(self, text: str, **variables: str) -> subprocess.Popen:
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        (self.folder / "job.sbatch").write_text(text, encoding="utf-8")
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                ["bash", "job.sbatch"], cwd=self.folder, env=self.environment | variables, stdout=log, stderr=log
            )

    def warn(self, script: subprocess.Popen) -> None:
        """Send the warning after the start of the command, which may not handle it yet."""
        until = time.monotonic() + 20
        while not list(self.folder.glob(".slurm-*/pid")) and time.monotonic() < until:
            time.sleep(0.02)
        script.send_signal(signal.SIGUSR1)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    @property
    def leftovers(self) -> list[Path]:
        return [*self.folder.glob(".slurm-*"), *Path("/tmp").glob(f"r{self.job_id}")]
