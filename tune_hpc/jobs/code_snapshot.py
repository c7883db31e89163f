"""Copy the modules of a user's trainable into the job folder, as they are at submission."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tune_hpc.errors import FolderError
from tune_hpc.search.object_reference import load_reference
from tune_hpc.storage.filesystem import push

#: The limit on the size of the code; more is probably the wrong folder.
MAX_BYTES = 20_000_000


def copy_modules(references: Sequence[str], code: Path | None, target: Path) -> None:
    """Copy the modules of trainables; those of installed packages are not copied.

    Args:
        references: ``package.module:function`` each.
        code: A folder whose Python files are all copied; by default a trainable's own module, or its whole package.
        target: The folder to copy to; it is made only where there is something to copy.

    Raises:
        FolderError: there is no such folder, it holds no Python file, or too much.
        OSError: a file cannot be copied.
    """
    if code is not None:
        files = sorted(path for path in code.rglob("*.py") if not _is_hidden(path.relative_to(code)))
        if not files:
            raise FolderError(f"{code} holds no Python file; name the folder of the trainable's modules")
        _copy({file: file.relative_to(code) for file in files}, target)
        return
    found: dict[Path, Path] = {}
    for reference in references:
        load_reference(reference)
        name = reference.partition(":")[0].partition(".")[0]
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or "site-packages" in file or name in ("tune_hpc", "search_spaces"):
            continue
        root = Path(file)
        if root.name == "__init__.py":
            found |= {path: path.relative_to(root.parent.parent) for path in root.parent.rglob("*.py")}
        else:
            found[root] = Path(root.name)
    _copy(found, target)


def _copy(files: dict[Path, Path], target: Path) -> None:
    if (size := sum(file.stat().st_size for file in files)) > MAX_BYTES:
        raise FolderError(f"{size / 1e6:.0f} MB are too much code (at most {MAX_BYTES / 1e6:.0f}); name its own folder")
    for file, place in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target / place)
        push(target / place)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) or part in ("venv", "node_modules") for part in path.parts)
