"""CRC-32 checksums inside files, so that a flipped bit is an error instead of a wrong number.

A file contains its own checksum: the CRC-32 of its bytes, with eight zeros in place of the checksum. A JSON object
has it as the last key, a Parquet file in the metadata of its schema. Files of early releases have none.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

#: Key of the checksum.
CRC = "crc32"
#: Entry of the metadata of a Parquet file before it is sealed.
PARQUET_ENTRY = {b"tune_hpc.crc32": b"0" * 8}
_JSON_FIELD = re.compile(rb'"crc32": "([0-9a-f]{8})"\s*\}\Z')
#: Key and value of the metadata as Thrift's compact protocol stores them: field 2, a text of 8 bytes.
_PARQUET_FIELD = re.compile(rb"tune_hpc\.crc32\x18\x08([0-9a-f]{8})")


def dump_json(data: Mapping[str, Any], indent: int | None = None) -> str:
    """Return an object as JSON text with its checksum and a line break."""
    text = json.dumps({**data, CRC: "0" * 8}, indent=indent, allow_nan=False)
    return _sealed(text.encode("utf-8"), _JSON_FIELD).decode("utf-8") + "\n"


def load_json(data: bytes | str) -> Any:
    """Return the value of a JSON text, without its checksum.

    Raises:
        ValueError: It is no JSON, or its checksum differs.
    """
    data = (data.encode("utf-8") if isinstance(data, str) else data).strip()
    _check(data, _JSON_FIELD)
    value = json.loads(data)
    if isinstance(value, dict):
        value.pop(CRC, None)
    return value


def seal_parquet(data: bytes) -> bytes:
    """Return a Parquet file with ``PARQUET_ENTRY`` with its checksum."""
    return _sealed(data, _PARQUET_FIELD)


def check_parquet(data: bytes) -> None:
    """Raise ``ValueError`` if the checksum of a Parquet file differs."""
    _check(data, _PARQUET_FIELD)


def _sealed(data: bytes, field: re.Pattern[bytes]) -> bytes:
    match = _last(data, field)
    assert match is not None
    return b"".join([data[: match.start(1)], b"%08x" % zlib.crc32(data), data[match.end(1) :]])


def _check(data: bytes, field: re.Pattern[bytes]) -> None:
    match = _last(data, field)
    if match is None:
        return
    zeros = b"".join([data[: match.start(1)], b"0" * 8, data[match.end(1) :]])
    if zlib.crc32(zeros) != int(match[1], 16):
        raise ValueError("its checksum differs; if you edited it, remove its crc32")


def _last(data: bytes, field: re.Pattern[bytes]) -> re.Match[bytes] | None:
    """Return the last field in the file; it is near the end."""
    match = None
    start = data.rfind(b"crc32")
    if start >= 0:
        match = field.search(data, max(0, start - len(b"tune_hpc.")))
    return match
