"""Static files of the web page and the API reference."""

from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).with_name("static")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
PUBLIC_PATHS = ("/", "/docs")
PUBLIC_FOLDER = "/static/"


def is_public(path: str) -> bool:
    """Whether a path is a file of the page, which needs no key: it holds no data of anybody."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def mount(api: FastAPI) -> None:
    """Adds the page, the API reference and their files to an application."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/")
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    @routes.get("/docs")
    async def reference() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers=HEADERS)

    api.include_router(routes)
    api.mount(PUBLIC_FOLDER.rstrip("/"), StaticFiles(directory=STATIC))
