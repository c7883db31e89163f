"""Copy a job folder to this machine."""

import json
import shutil
from pathlib import Path

from tune_hpc.errors import FolderError
from tune_hpc.jobs.job_folder import RESERVED_SUFFIX, JobFolder

#: List of the files that the last fetch wrote; only these are updated and deleted.
LIST = ".fetched.json"


def fetch(job: JobFolder, target: Path) -> int:
    """Copy a job folder, or update an earlier copy; other files in the target stay.

    Args:
        job: The job, active or not.
        target: The folder to copy to.

    Returns:
        The number of files copied.

    Raises:
        FolderError: ``target`` holds other files, or cannot be written.
    """
    if target.is_dir() and any(target.iterdir()) and JobFolder(target.resolve()).read_id() != job.id:
        raise FolderError(f"{target} is not empty and holds no copy of {job.id}; choose another folder with --output")
    earlier = _read_list(target)
    names: list[str] = []
    job.storage.download_tree()
    for path in sorted(job.path.rglob("*")):
        relative = path.relative_to(job.path)
        is_excluded = path.suffix == RESERVED_SUFFIX or any(part == "ray" or part[0] == "." for part in relative.parts)
        if path.is_dir() or path.is_symlink() or is_excluded:
            continue
        copy = target / relative
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        except FileNotFoundError:
            # Trial files are deleted once the trials are in the frames.
            continue
        except OSError as error:
            raise FolderError(f"{copy} cannot be written: {error.strerror or error}; choose another folder") from error
        names.append(str(relative))
    for name in set(earlier).difference(names):
        if ".." not in Path(name).parts and not Path(name).is_absolute():
            (target / name).unlink(missing_ok=True)
    (target / LIST).write_text(json.dumps(names), encoding="utf-8")
    return len(names)


def _read_list(target: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((target / LIST).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
