"""HTTP API of the service."""

from serve.api.app import build

__all__ = ["build"]
