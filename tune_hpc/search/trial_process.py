"""State of the process of a trial that a trainable inherits or may change: seeds, threads, folder, child processes."""

import contextlib
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def call_in_this_process(call: Callable[[], Any]) -> Any:
    """Call a trainable; a process that it forks ends here, and runs no further trials."""
    process = os.getpid()
    code = 0
    try:
        returned = call()
    except BaseException as error:
        if os.getpid() == process:
            raise
        traceback.print_exc()
        code = 1 if not isinstance(error, SystemExit) or error.code else 0
    if os.getpid() != process:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return returned


@contextlib.contextmanager
def same_folder() -> Iterator[None]:
    """Restore the working directory, which a trainable may change."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        yield  # It has been deleted.
        return
    try:
        yield
    finally:
        os.chdir(folder)


def set_seeds(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch for the function of a user."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - functions of users may use the global generator
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def set_threads(number: int) -> None:
    """Set the number of threads of PyTorch, if it is imported."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(number)
