"""Copy of a user's code in a job: the packages of its trainables, and what they import."""

import ast
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError, InvalidExperimentError, UnknownNameError
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.search.command import Command
from tune_hpc.search.experiment import TRAIN, Experiment
from tune_hpc.search.object_reference import load_reference, reference_to
from tune_hpc.search.provenance import REPOSITORY_FILE, repository_state
from tune_hpc.search.user_code import is_installed, package_paths

#: Limit in bytes on the code of a job; more is probably the wrong folder.
MAX_CODE_BYTES = 20_000_000
#: Limit in bytes on a data file of a package, like a vocabulary or a template; larger files are data sets.
MAX_DATA_FILE_BYTES = 1_000_000

_log = logging.getLogger(__name__)


def copy_code(job: JobFolder, experiments: Sequence[Experiment], code: str | Path | None) -> None:
    """Copy the modules and package data of a folder, or of the packages of users' trainables, into the job folder.

    Raises:
        InvalidExperimentError: a driver cannot import a trainable by name.
        UnknownNameError: a trainable cannot be imported, or ``code`` does not contain its package.
        FolderError: the code is too large, ``code`` has no module, or a file cannot be copied.
    """
    trainables = [experiment.trainable for experiment in experiments if experiment.trainable != TRAIN]
    references = [reference_to(trainable) for trainable in trainables if not isinstance(trainable, Command)]
    modules = [reference.partition(":")[0] for reference in references]
    for reference, module in zip(references, modules, strict=True):
        if module == "__main__":
            raise InvalidExperimentError(
                f"a job imports its trainable by name, and {reference} is in the main program; move it into a module"
            )
        load_reference(reference)
    packages = dict.fromkeys(module.partition(".")[0] for module in modules if not is_installed(module))
    files = _files_in(Path(code).absolute(), packages) if code else _files_of(packages)
    if _size(files) > MAX_CODE_BYTES:
        files = {file: name for file, name in files.items() if file.suffix == ".py"}
        _log.warning("the code of %s has over %d MB: its data files are not copied", job.id, MAX_CODE_BYTES // 10**6)
    if (size := _size(files)) > MAX_CODE_BYTES:
        raise FolderError(
            f"the code has {size / 1e6:.0f} MB, but at most {MAX_CODE_BYTES / 1e6:.0f} are copied; "
            "name the folder of the trainable's modules with code"
        )
    try:
        for file, name in files.items():
            target = job.code / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
            job.storage.upload(target)
        if states := _repository_states(packages, code):
            job.storage.write_atomic(job.code / REPOSITORY_FILE, json.dumps(states))
    except OSError as error:
        raise FolderError(f"the code of {job.id} cannot be copied: {error}; name its folder with code") from error


def _repository_states(packages: Iterable[str], code: str | Path | None) -> dict[str, Any]:
    """Return the state of the repository of each package that is in one."""
    paths = {package: code or package_paths(package)[0] for package in packages}
    states = {package: repository_state(Path(path).absolute()) for package, path in paths.items()}
    return {package: state for package, state in states.items() if state}


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _files_in(folder: Path, packages: Iterable[str]) -> dict[Path, Path]:
    """Return the files of a folder, with their names below the folder that must be on ``sys.path``."""
    while (folder / "__init__.py").exists() and (folder.parent / "__init__.py").exists():
        folder = folder.parent
    root = folder.parent if (folder / "__init__.py").exists() else folder
    files = _tree_files(folder, root, {root / package for package in packages})
    if not any(path.suffix == ".py" for path in files):
        raise FolderError(f"{folder} holds no Python file; name the folder of the trainable's modules")
    found = {name.parts[0].removesuffix(".py") for name in files.values()}
    if missing := [package for package in packages if package not in found]:
        raise UnknownNameError(f"{folder} does not contain the trainable's module {missing[0]}; name its folder")
    return files


def _files_of(packages: Iterable[str]) -> dict[Path, Path]:
    """Return the files of top-level modules and packages and of all that they import, except installed ones."""
    files: dict[Path, Path] = {}
    waiting, seen = list(packages), set()
    while waiting:
        package = waiting.pop()
        seen.add(package)
        for path in [] if is_installed(package) else package_paths(package):
            new = _tree_files(path, path.parent, {path}) if path.is_dir() else {path: Path(path.name)}
            files |= new
            imported = {name for file in new if file.suffix == ".py" for name in _imported_packages(file)}
            waiting += sorted(imported - seen - set(waiting))
    return files


def _tree_files(folder: Path, root: Path, packages: set[Path]) -> dict[Path, Path]:
    """Return the modules below a folder and the data files of packages, with their names below ``root``.

    Hidden files, virtual environments and large data files are omitted.
    """
    files: dict[Path, Path] = {}
    for name, folders, names in os.walk(folder):
        parent = Path(name)
        folders[:] = sorted(one for one in folders if not _is_excluded(parent / one))
        is_package = "__init__.py" in names or parent in packages or parent.parent in packages
        packages = packages | {parent} if is_package else packages
        for file in (parent / one for one in sorted(names) if one[0] != "."):
            is_data = is_package and file.is_file() and file.stat().st_size <= MAX_DATA_FILE_BYTES
            if file.suffix == ".py" or is_data:
                files[file] = file.relative_to(root)
    return files


def _is_excluded(folder: Path) -> bool:
    return folder.name[0] == "." or folder.name in ("__pycache__", "node_modules") or (folder / "pyvenv.cfg").exists()


def _imported_packages(file: Path) -> set[str]:
    """Return the top-level names that a module imports, also inside functions."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
