"""The HTTP interface of a `serve.service.service.Service`, as one FastAPI application."""

from serve.api.app import build

__all__ = ["build"]
