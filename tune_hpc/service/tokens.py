"""The service's token in its file, and the session of a browser that has shown it.

A session is ``EXPIRY.SIGNATURE``, signed with a key made from the token: it needs no memory of the service, holds with
all services of one token, and ends with the token.
"""

import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from tune_hpc.errors import FolderError

#: A session ends after so many seconds.
SESSION_S = 12 * 3600
_MIN_LENGTH = 16


def find_or_make_token(path: Path) -> str:
    """Return the token of a file that only its owner can read; make both where there is none.

    Raises:
        FolderError: the file cannot be read or made, others can read it, or what it holds is too short for a token.
    """
    try:
        # Two services that start at the same moment agree: only one of them can make the name.
        made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                os.write(file, f"{secrets.token_urlsafe(32)}\n".encode())
                os.fsync(file)
            finally:
                os.close(file)
            try:
                os.link(made, path)
            except FileExistsError:
                pass
            finally:
                made.unlink()
        mode = path.stat().st_mode
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"the token's file {path} cannot be used: {error}; name another with --token-file") from error
    if mode & 0o077:
        raise FolderError(f"others can read the token in {path} (mode {mode & 0o777:o}); chmod 600 {path}")
    if len(token) < _MIN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise FolderError(
            f"{path} holds no token: it is {_MIN_LENGTH} printable characters or more without a space; remove it, and "
            "a new one is made"
        )
    return token


def is_same(given: str, wanted: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode("utf-8", "replace"))


def cookie_name(token: str) -> str:
    """Return the name of the session's cookie: services of one machine share their cookies, whatever their port."""
    return f"tune_hpc_{hashlib.sha256(b'name' + token.encode()).hexdigest()[:8]}"


def new_session(token: str, moment: float | None = None) -> str:
    """Return a session that begins now."""
    expiry = str(int((time.time() if moment is None else moment) + SESSION_S))
    return f"{expiry}.{_signature(token, expiry)}"


def is_session(session: str, token: str, moment: float | None = None) -> bool:
    """Whether a text is a session of this token that has not ended."""
    expiry, _, signature = session.partition(".")
    if not is_same(signature, _signature(token, expiry)) or not expiry.isdigit():
        return False
    return int(expiry) > (time.time() if moment is None else moment)


def _signature(token: str, expiry: str) -> str:
    key = hashlib.sha256(b"session" + token.encode()).digest()
    return hmac.new(key, expiry.encode("utf-8", "replace"), hashlib.sha256).hexdigest()
