"""Copies of a job's folder."""

import shutil
from pathlib import Path

from tune_hpc.analysis.object_store import pull_tree
from tune_hpc.cluster.job_folder import ROOM, JobFolder
from tune_hpc.errors import FolderError

#: What nobody needs elsewhere: Ray's own files, and those that are being written.
_LEFT_OUT = ("ray",)


def fetch(job: JobFolder, target: Path) -> int:
    """Copy what a job has come to; what was fetched before is brought up to date.

    Args:
        job: The job, under way or not.
        target: The folder to copy to.

    Returns:
        The number of files in it.

    Raises:
        FolderError: ``target`` holds something else, or cannot be written.
    """
    if target.is_dir() and any(target.iterdir()) and JobFolder(target).read_id() != job.id:
        raise FolderError(f"{target} is not empty and holds no copy of {job.id}; choose another folder with --output")
    names = []
    pull_tree(job.path)
    for path in sorted(job.path.rglob("*")):
        name = path.relative_to(job.path)
        if path.is_dir() or path.suffix == ROOM or any(part in _LEFT_OUT or part[0] == "." for part in name.parts):
            continue
        copy = target / name
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        except FileNotFoundError:
            # A trial's own file goes when it is in the frames; a job under way is like that.
            continue
        except OSError as error:
            raise FolderError(f"{copy} cannot be written: {error.strerror or error}; choose another folder") from error
        names.append(name)
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(target) not in set(names):
            path.unlink()
    return len(names)
