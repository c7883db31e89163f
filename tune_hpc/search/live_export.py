"""Exports of a running search: each in its own process of low priority beside the driver.

An exporter reads the experiment folders (export/export.py). It ends when the searches have ended or the driver is gone.
An error in it is logged at the end of the search, and has no effect on results.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Seconds to wait for exporters at the end of the searches; a slower one continues in the background.
WAIT_S = 10.0

#: The command line with a lower priority than that of the trials.
_PROGRAM = "import os; os.nice(10); from tune_hpc.cli import run_and_exit; run_and_exit()"

_log = logging.getLogger(__name__)


class LiveExport:
    """Processes that export searches.

    Args:
        folders: Folders of the searches, which have started.
        tools: Names of registered exporters.
    """

    def __init__(self, folders: Sequence[ExperimentFolder], tools: Sequence[str]) -> None:
        self._folders = [str(folder.path) for folder in folders]
        self._logs = {tool: folders[0].log(f"export.{tool}") for tool in tools}
        self._processes = {tool: self._start(tool) for tool in tools}

    def _start(self, tool: str) -> subprocess.Popen[bytes]:
        log = self._logs[tool]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "export", *self._folders, "--to", tool, "--follow"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Ctrl-C is for the driver only: trials that end after it are exported, too.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait for the exporters, and log which of them are not finished or have failed."""
        deadline = time.monotonic() + WAIT_S
        for tool, process in self._processes.items():
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.info("the export to %s continues in the background, process %d", tool, process.pid)
                continue
            if code:
                command = f"`tune-hpc export {' '.join(self._folders)} --to {tool}`"
                _log.warning(
                    "the export to %s failed: %s; the results are complete, and %s repeats the export",
                    tool, _last_line(self._logs[tool]), command,
                )  # fmt: skip


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "its log is empty")
    return last.removeprefix("tune-hpc: ")
