"""Exports that follow a search: each a process of its own beside the driver, of low priority.

An exporter reads the folders (export/__init__.py) and ends by itself when the searches have, or when the driver's
process is gone. What goes wrong in one is told when the search has ended, and changes nothing of its results.
"""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Seconds that exporters have to finish when the searches have; what takes longer goes on in the background.
WAIT_S = 10.0

#: Trials need the cores more.
_PROGRAM = "import os; os.nice(10); from tune_hpc.cli import run_and_exit; run_and_exit()"

_log = logging.getLogger(__name__)


class LiveExport:
    """The processes that export some searches.

    Args:
        homes: The folders of the searches, which have begun.
        tools: Where to, by the names of ``exports.TOOLS``.
    """

    def __init__(self, homes: Sequence[ExperimentFolder], tools: Sequence[str]) -> None:
        self._folders = [str(home.path) for home in homes]
        self._logs = {tool: homes[0].log(f"export.{tool}") for tool in tools}
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
                # Ctrl-C is for the driver: what ends after it is to be exported, too.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait a while for the exporters to finish, and say which of them have not, or failed."""
        deadline = time.monotonic() + WAIT_S
        for tool, process in self._processes.items():
            again = f"`tune-hpc export {' '.join(self._folders)} --to {tool}`"
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.info("the export to %s goes on in the background, process %d", tool, process.pid)
                continue
            if code:
                reason = _last_line(self._logs[tool])
                _log.warning(
                    "the export to %s failed: %s; the results are whole, and %s exports them", tool, reason, again
                )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it says nothing")
    return last.removeprefix("tune-hpc: ")
