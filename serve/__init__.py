"""Render service on Ray Serve: `serve run serve.app`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.application import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """Imports `app` on first access, so that importing a submodule does not import Ray."""
    if name == "app":
        from serve.application import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
