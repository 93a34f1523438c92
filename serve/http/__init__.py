"""The HTTP interface of a `serve.service.Service`, as one FastAPI application."""

from serve.http.interface import build

__all__ = ["build"]
