"""The token of a Ray cluster, where Ray itself would look for it."""

import os
from pathlib import Path

from tune_hpc.errors import ClusterError


def find_token() -> str | None:
    """Return the token that Ray would use; ``None`` where there is none.

    Raises:
        ClusterError: ``RAY_AUTH_TOKEN_PATH`` names a file that cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        try:
            return Path(named).expanduser().read_text(encoding="utf-8").strip() or None
        except OSError as error:
            raise ClusterError(
                f"RAY_AUTH_TOKEN_PATH names {named}, which cannot be read ({error.strerror}); correct it, or unset it"
            ) from error
    try:
        return (Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
