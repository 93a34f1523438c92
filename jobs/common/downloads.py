"""Resumable, verified HTTP downloads."""

import email.utils
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from dreampose import __version__

_RANGE_REFUSED = 416
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP status codes worth a retry."""
LONGEST_WAIT = 120.0
"""Seconds; a longer Retry-After fails the file for this run."""


class FetchError(Exception):
    """A download failed; the message states the reason."""


class _TransientError(Exception):
    """A temporary failure; `wait` is the delay that the server requests, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def client() -> httpx.Client:
    """An HTTP client with a User-Agent and timeouts."""
    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(60.0, connect=20.0),
        headers={"User-Agent": f"dreampose/{__version__} (data set download)"},
    )


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Fetches single files; one instance may be shared by threads.

    Attributes:
        http: the client.
        max_tries: tries of a file before it fails.
        pause: seconds to wait after each response.
        first_delay: seconds before the second try; doubled at each further one.
        sleep: how to wait.
    """

    http: httpx.Client
    max_tries: int = 5
    pause: float = 0.5
    first_delay: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep)

    def fetch(self, url: str, target: Path, digest: str = "") -> None:
        """Downloads a file atomically.

        A partial download of this or an earlier run is kept in `.NAME.part` and resumed if the
        server still has the same file.

        Args:
            url: URL of the file.
            target: path of the file.
            digest: expected SHA-256; empty skips the check.

        Raises:
            FetchError: the download failed.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
        for number in range(self.max_tries):
            wait: float | None = None
            try:
                self._try(url, target, digest)
            except _TransientError as error:
                reason, wait = str(error), error.wait
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
            except httpx.HTTPError as error:
                raise FetchError(f"{type(error).__name__}: {error}") from error
            else:
                self.sleep(self.pause)
                return
            if wait is not None and wait > LONGEST_WAIT:
                raise FetchError(f"{reason}; the server asks to wait {wait:.0f} s")
            if number + 1 < self.max_tries:
                backoff = min(self.first_delay * 2**number, LONGEST_WAIT)
                self.sleep(max(self.pause, backoff if wait is None else wait))
        raise FetchError(f"{reason}, {self.max_tries} times")

    def _try(self, url: str, target: Path, digest: str) -> None:
        part = target.with_name(f".{target.name}.part")
        tag = target.with_name(f".{target.name}.part.tag")
        headers: dict[str, str] = {"Accept-Encoding": "identity"}
        # Without a tag it is unknown whether the server still has the same file.
        start = part.stat().st_size if part.exists() and tag.exists() else 0
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text("utf-8")}
        with self.http.stream("GET", url, headers=headers) as answer:
            if answer.status_code == _RANGE_REFUSED:
                part.unlink()
                raise _TransientError("HTTP 416", wait=0.0)
            if answer.status_code in RETRIED:
                asked = answer.headers.get("Retry-After")
                raise _TransientError(f"HTTP {answer.status_code}", wait=_seconds(asked))
            if answer.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                raise FetchError(f"HTTP {answer.status_code}")
            kind = answer.headers.get("Content-Type", "").partition(";")[0]
            if kind == "text/html":
                raise FetchError("a web page came instead of the file")
            goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
            begins = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if goes_on and not begins:
                part.unlink()
                raise _TransientError("another part came than was asked for", wait=0.0)
            validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if not goes_on:
                tag.unlink(missing_ok=True)
                if validator and not validator.startswith("W/"):
                    tag.write_text(validator, "utf-8")
            with part.open("ab" if goes_on else "wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
        if digest and (got := sha256(part)) != digest.lower():
            part.unlink()
            raise _TransientError(f"its SHA-256 is {got[:12]}…, not {digest[:12]}…")
        part.replace(target)
        tag.unlink(missing_ok=True)


def _seconds(text: str | None) -> float | None:
    """Parses a Retry-After header: seconds or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
