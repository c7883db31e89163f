"""Copy a job folder to this machine."""

import json
import shutil
from pathlib import Path

from tune_hpc.errors import FolderError
from tune_hpc.jobs.job_folder import ROOM, JobFolder
from tune_hpc.storage.filesystem import pull_tree

#: The list of files that the last fetch wrote; only these are updated and deleted.
LIST = ".fetched.json"
#: Folders that are of no use elsewhere: Ray's own files.
_LEFT_OUT = ("ray",)


def fetch(job: JobFolder, target: Path) -> int:
    """Copy a job folder; a copy made before is brought up to date, and other files in it stay.

    Args:
        job: The job, active or not.
        target: The folder to copy to.

    Returns:
        The number of files copied.

    Raises:
        FolderError: ``target`` holds something else, or cannot be written.
    """
    if target.is_dir() and any(target.iterdir()) and JobFolder(target.resolve()).read_id() != job.id:
        raise FolderError(f"{target} is not empty and holds no copy of {job.id}; choose another folder with --output")
    earlier = _read_list(target)
    names = []
    pull_tree(job.path)
    for path in sorted(job.path.rglob("*")):
        name = path.relative_to(job.path)
        is_left_out = path.suffix == ROOM or any(part in _LEFT_OUT or part[0] == "." for part in name.parts)
        if path.is_dir() or path.is_symlink() or is_left_out:
            continue
        copy = target / name
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        except FileNotFoundError:
            # The file of a trial goes when the trial is in the frames.
            continue
        except OSError as error:
            raise FolderError(f"{copy} cannot be written: {error.strerror or error}; choose another folder") from error
        names.append(str(name))
    for gone in set(earlier).difference(names):
        if ".." not in Path(gone).parts and not Path(gone).is_absolute():
            (target / gone).unlink(missing_ok=True)
    (target / LIST).write_text(json.dumps(names), encoding="utf-8")
    return len(names)


def _read_list(target: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((target / LIST).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
