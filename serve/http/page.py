"""`/`: the page for people. It calls the same interface as programs do and fetches nothing else.

Knows nothing of videos; all that the page does is in `static/`.
"""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from dreampose.config import PRESETS

STATIC = Path(__file__).parent / "static"
FILES = {"page.js": "text/javascript", "page.css": "text/css"}
PATHS = ("/", *(f"/{name}" for name in FILES))
"""Answered to anybody: there is nothing in them that a key guards, and a browser has none to show
before the page asks for it."""
HEADERS = {
    # Nothing from elsewhere, nothing inline, and no other page around this one.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src blob: data:; media-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
DEFAULT_PRESET = "balanced"


def router() -> APIRouter:
    """The routes of the page's three files."""
    routes = APIRouter(include_in_schema=False)
    options = "".join(
        f"<option{' selected' if name == DEFAULT_PRESET else ''}>{name}</option>"
        for name in PRESETS
    )
    index = (STATIC / "index.html").read_text("utf-8").replace("<!-- presets -->", options)

    def add(path: str, content: str, media_type: str) -> None:
        @routes.get(path)
        async def file() -> Response:
            return Response(content, media_type=media_type, headers=HEADERS)

    add("/", index, "text/html")
    for name, media_type in FILES.items():
        add(f"/{name}", (STATIC / name).read_text("utf-8"), media_type)
    return routes
