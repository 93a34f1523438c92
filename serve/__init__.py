"""The render service on Ray Serve: `serve run serve.app`. Importing it does not import Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.application import app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    """`app` on demand: catalogues and pages are read and written without Ray."""
    if name == "app":
        from serve.application import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
