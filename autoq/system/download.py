"""Downloads, each asked for by the user: continued where they stopped, and checked before the file gets its name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from autoq.errors import AutoqError

PIECE = 2**20
TIMEOUT = 60
NOT_SATISFIABLE = 416
"""HTTP status: there is nothing after the part that is already here."""

CHECKSUM = "X-Linked-ETag"
"""Header in which Hugging Face gives the SHA-256 of a file."""


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum that one of them comes with."""

    def __init__(self) -> None:
        self.checksum: str | None = None

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        self.checksum = headers.get(CHECKSUM, self.checksum)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    address: str, file: Path, checksum: str | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Download a file. What an earlier call left is continued.

    Args:
        address: Of http or https.
        file: Where it goes; its folder is made.
        checksum: Its SHA-256, or the first digits of it; where it is not known, the server's.
        progress: Called with the bytes that are here and those of the whole file.

    Raises:
        AutoqError: It cannot be downloaded or written, or its content is not what it should be.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise AutoqError(f"cannot download {address}: expected an address of http or https")
    partial = file.with_name(f"{file.name}.partial")
    redirects = _Redirects()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _receive(address, partial, redirects, progress)
        expected, found = checksum or _digits(redirects.checksum), _sha256(partial)
        if expected and not found.startswith(expected):
            partial.unlink()
            digits = f"SHA-256 {found[:8]}, expected {expected[:8]}"
            raise AutoqError(f"cannot download {address}: its content is damaged ({digits}); try again")
        os.replace(partial, file)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        reason = " ".join(str(error.reason if isinstance(error, URLError) else error).split()) or type(error).__name__
        raise AutoqError(f"cannot download {address} ({reason}); try again, or save the file as '{file}'") from error


def _receive(address: str, partial: Path, redirects: _Redirects, progress: Callable[[int, int], None]) -> None:
    """Append to the part what the server still has."""
    here = partial.stat().st_size if partial.is_file() else 0
    request = Request(address, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        answer = build_opener(redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == NOT_SATISFIABLE and here:
            return
        raise
    with answer:
        redirects.checksum = answer.headers.get(CHECKSUM, redirects.checksum)
        if answer.status != 206:  # the server sends it from its beginning
            here = 0
        length = int(answer.headers.get("Content-Length", 0))
        total = here + length
        with partial.open("ab" if here else "wb") as out:
            while piece := answer.read(PIECE):
                out.write(piece)
                here += len(piece)
                progress(here, max(total, here))
    if length and here < total:
        raise HTTPException(f"the connection ended after {here} of {total} bytes")


def _digits(tag: str | None) -> str | None:
    """The SHA-256 in a server's tag; None for tags of other kinds."""
    found = re.fullmatch('"?([0-9a-f]{64})"?', tag or "")
    return found[1] if found else None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
