"""The argument ``trial`` of a trainable: identity, folder and resources of the running trial."""

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tune_hpc.storage.experiment_folder import ExperimentFolder


@dataclass(frozen=True)
class TrialDevices:
    """Devices of a trial.

    Attributes:
        cores: Number of CPU cores, which is also PyTorch's number of threads.
        gpus: Number of visible GPUs; a trial with a fraction of a GPU sees one.
    """

    cores: int
    gpus: int

    @property
    def device(self) -> str:
        """Name of the device in PyTorch: ``cuda`` or ``cpu``."""
        return "cuda" if self.gpus else "cpu"


class Trial:
    """The running trial.

    Args:
        trial_id: Its identifier, as in the trials frame.
        seed: Its seed; ``None`` if the experiment has no seeds.
        resources: Its devices.
        experiment_folder: Folder of the experiment.

    Attributes:
        id: Its identifier.
        seed: Its seed.
        resources: Its devices.

    Example:
        >>> def train(config, report, trial):
        ...     (trial.folder / "notes.txt").write_text(f"{trial.id} on {trial.resources.device}")
    """

    def __init__(
        self, trial_id: str, seed: int | None, resources: TrialDevices, experiment_folder: ExperimentFolder
    ) -> None:
        self.id = trial_id
        self.seed = seed
        self.resources = resources
        self._experiment_folder = experiment_folder

    @cached_property
    def folder(self) -> Path:
        """Folder of the trial for files of its own, in ``artifacts`` of the experiment folder.

        It is made at the first access, and contains the files of an interrupted run of the trial. Of an experiment on
        S3 it is a working copy, which is uploaded when the trial ends, pauses or stops.
        """
        storage, folder = self._experiment_folder.storage, self._experiment_folder.artifacts(self.id)
        storage.download_tree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        """Upload the folder, or remove an empty one; an error is printed and does not fail the trial."""
        if "folder" not in vars(self) or not self.folder.is_dir():
            return
        try:
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
            for file in sorted(self.folder.rglob("*")) if self._experiment_folder.storage.is_remote else ():
                if file.is_file():
                    self._experiment_folder.storage.upload(file)
        except OSError as error:
            print(f"the files of {self.id} are not stored: {error}", file=sys.stderr)


def num_visible_gpus() -> int:
    """Return the number of GPUs that this process may use, without the import of PyTorch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
