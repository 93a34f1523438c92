"""`/`: the page for people, where Gradio is installed, and the form that asks for a key before it.

Gradio answers the page's own paths and no others; what it does for visitors goes through the
interface like any request. Knows nothing of what stands on the page.
"""

import contextlib
import importlib.util
import math
import os
import re
import shutil
import tempfile
from html import escape
from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreampose.io.paths import place
from jobs.common.html import document
from serve.service.limits import ConcurrencyLimiter
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.web.visit import KEY

TITLE = "DreamPose"
HOME, SIGN_IN = "/", "/key"
PUBLIC_PATHS = (SIGN_IN, "/manifest.json", "/favicon.ico", "/theme.css")
FREE_FOLDERS = ("/assets/", "/static/")
"""Answered to anybody: Gradio's own files, which everybody has who installs it."""
GATED = (
    HOME, "/config", "/gradio_api/cancel", "/gradio_api/queue/data", "/gradio_api/queue/join",
    "/gradio_api/startup-events", "/gradio_api/upload", "/gradio_api/upload_progress",
)  # fmt: skip
GATED_FOLDERS = ("/gradio_api/file=/", "/gradio_api/heartbeat/")
"""What the page needs of Gradio; the rest of what it can do is not offered. Only what begins with
a slash is a file: Gradio would fetch URLs as well."""
UPLOAD = "/gradio_api/upload"
STREAMS = ("/gradio_api/heartbeat/", "/gradio_api/queue/data", "/gradio_api/upload_progress")
STREAMS_OF_PAGES = 4
"""So many times as many as streams of events may a key hold open."""
PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)
"""What a proxy may say that it took off the paths."""
MAX_KEY_BYTES = 4096

POLICY = (
    # Gradio writes scripts and styles into its page; nothing comes from elsewhere, and no other
    # page may stand around this one.
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; worker-src 'self' blob:; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
FORM_STYLE = """
form { display: flex; gap: 10px; max-width: 480px; }
input { flex: 1; } input, button { font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; padding: 9px 13px; }
button { cursor: pointer; }
[role=alert] { border-left: 4px solid #c4453c; padding-left: 12px; }
"""
MISSING = "The page needs Gradio: pip install 'dreampose[ray]'. The interface is there without it."


def is_part(path: str) -> bool:
    """Whether a path is one of the page's, for whose requests a browser shows its key."""
    return path in GATED or path.startswith(GATED_FOLDERS)


def is_free(path: str) -> bool:
    """Whether a path is answered to anybody."""
    return path in PUBLIC_PATHS or path.startswith(FREE_FOLDERS)


def mount(api: FastAPI, service: Service) -> None:
    """Puts the page, or what stands in its place, behind all other routes of an interface."""
    api.include_router(sign_in(service))
    if importlib.util.find_spec("gradio") is None:

        @api.get(HOME, include_in_schema=False)
        async def home() -> Response:
            return html(MISSING)

        return
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    from serve.web import blocks

    storage = place(service.settings.storage)
    # Gradio knows this disk alone, and its files are nobody else's.
    root = storage if isinstance(storage, Path) else Path(tempfile.mkdtemp(prefix="dreampose-"))
    folder = (root / ".page").absolute()
    # What an earlier ingress had there belongs to pages that are closed, or begin anew.
    shutil.rmtree(folder, ignore_errors=True)
    # Storage that cannot be reached is for /healthz to tell; Gradio makes the folder when it can.
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    gradio.mount_gradio_app(
        api,
        blocks.build(api, folder),
        path=HOME,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=service.live.limits.max_upload_mb * 2**20,
        theme=blocks.theme(),
        css=blocks.STYLE,
    )
    mounted = api.router.routes.pop()
    assert isinstance(mounted, Mount)
    api.router.routes.append(OwnPaths("", app=Dressed(mounted.app, service)))


class OwnPaths(Mount):
    """A mounted application that is asked for the page's paths alone."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the request is for the page."""
        if scope["type"] == "http" and (is_part(route(scope)) or is_free(route(scope))):
            return super().matches(scope)
        return Match.NONE, {}


class Dressed:
    """Gradio's application as this one serves it: with the page's headers, prefix and bounds."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.streams = ConcurrencyLimiter(
            lambda: STREAMS_OF_PAGES * service.live.limits.streams_per_key, "streams of the page"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def dress(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if headers.get("content-type", "").startswith("text/event-stream"):
                    headers["X-Accel-Buffering"] = "no"
            await send(message)

        prefix = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
        if not scope.get("root_path") and PREFIX.fullmatch(prefix):
            scope = {**scope, "root_path": prefix}
        with contextlib.ExitStack() as held:
            if route(scope).startswith(STREAMS):
                held.enter_context(self.streams.hold(scope["state"]["owner"]))
            await self.app(scope, receive, dress)


def route(scope: Scope) -> str:
    """The path of a request, without what stands before the whole application."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def sign_in(service: Service) -> APIRouter:
    """The route that takes a key from the form; a browser's cookie holds it from then on."""
    routes = APIRouter(include_in_schema=False)

    @routes.post(SIGN_IN)
    async def take(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_KEY_BYTES:
                break
        key = parse_qs(body[:MAX_KEY_BYTES].decode("utf-8", "replace")).get("key", [""])[0].strip()
        if not service.keys.in_use or service.keys.owner(key) is None:
            return form("That is not a valid key.")
        answer = RedirectResponse("./", 303)
        answer.set_cookie(
            KEY, key, httponly=True, samesite="lax", secure=request.url.scheme == "https",
            path=request.scope.get("root_path") or "/",
        )  # fmt: skip
        return answer

    return routes


def refused(refusal: RequestError, path: str) -> Response:
    """What somebody gets to whom the page is refused, as a browser or Gradio's script shows it."""
    headers = dict(HEADERS)
    if refusal.retry_after:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after))
    if path == UPLOAD:
        return PlainTextResponse(refusal.message, refusal.status, headers)
    if path != HOME:
        return JSONResponse({"detail": refusal.message}, refusal.status, headers)
    if refusal.status == 401:
        return form("")
    return html(refusal.message, status=refusal.status)


def form(problem: str) -> Response:
    """Asks for a key."""
    alert = f'<p role="alert">{escape(problem)}</p>' if problem else ""
    body = (
        f'{alert}<form method="post" action="key"><input id="key" name="key" type="password" '
        'aria-label="API key" placeholder="API key" autocomplete="off" required autofocus>'
        "<button>Go on</button></form>"
    )
    return html("This service wants to know who asks.", body, status=401)


def html(summary: str, body: str = "", *, status: int = 200) -> Response:
    """A small page in the look of all pages here."""
    text = document(body, title=TITLE, summary=summary, style=FORM_STYLE)
    return HTMLResponse(text, status, HEADERS | {"Cache-Control": "no-store"})
