"""Stored responses of requests with an idempotency key."""

import time

from pydantic import BaseModel

from dreampose.io.paths import Place, modified
from serve.service.store import digest, write_atomically

KEEP_SECONDS = 86400.0
"""Time for which a repeated request returns the first response."""


class StoredResponse(BaseModel):
    """A request that was started, and its response once there is one.

    Attributes:
        started_at: Unix seconds.
        content_length: of the request's body; empty if it was not declared.
        status: of the response; 0 while the request is in progress.
        body: of the response.
    """

    started_at: float
    content_length: str
    status: int = 0
    body: str = ""


class IdempotencyStore:
    """Responses by owner, route and key, shared by all ingress replicas.

    Args:
        root: folder, on any storage.
    """

    def __init__(self, root: Place) -> None:
        self.root = root

    def name(self, owner: str, path: str, key: str) -> str:
        """File name of a request; keys are hashed, so they may hold any characters."""
        return f"{digest(owner, path, key)[:40]}.json"

    def get(self, name: str) -> StoredResponse | None:
        """A request that was sent before; None if it is new or has expired."""
        try:
            stored = StoredResponse.model_validate_json((self.root / name).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return stored if time.time() - stored.started_at < KEEP_SECONDS else None

    def put(self, name: str, response: StoredResponse) -> None:
        """Stores the state of a request."""
        write_atomically(self.root / name, response.model_dump_json().encode(), mode=0o600)

    def drop(self, name: str) -> None:
        """Forgets a request that failed, so that it may be repeated."""
        (self.root / name).unlink(missing_ok=True)

    def expire(self) -> None:
        """Deletes old responses."""
        for path in self.root.glob("*.json"):
            if modified(path) < time.time() - KEEP_SECONDS:
                path.unlink(missing_ok=True)
