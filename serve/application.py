"""The HTTP interface and the application that `serve run serve.app` starts. Knows no tensors.

The interface follows the videos API that clients of hosted video models already speak: post a
video, poll it, fetch its content.
"""

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import ray
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from cluster import resources
from dreampose import video
from dreampose.config import PRESETS
from dreampose.errors import InputError
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.renderer import Renderer
from serve.retry import call_with_retries, reason
from serve.sampler import Sampler
from serve.store import RenderRequest, Store, Video, VideoFolder

SHUTDOWN_SECONDS = 1.0
"""What a replica that is told to go may still finish; what it does not is in storage."""

logger = logging.getLogger("ray.serve")

api = FastAPI(
    title="DreamPose",
    description="One photo of a person and a motion become a video of that person in motion.",
)


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field


@api.exception_handler(RequestError)
async def answer_request_error(_request: Request, error: RequestError) -> JSONResponse:
    """The error object that clients of the videos API expect."""
    body = {
        "message": error.message,
        "type": "invalid_request_error",
        "code": error.code,
        "param": error.field,
    }
    return JSONResponse({"error": body}, status_code=error.status)


@api.exception_handler(InputError)
async def answer_input_error(request: Request, error: InputError) -> JSONResponse:
    """Bad input is the client's fault, in one sentence."""
    field = str(error).split(" ", 1)[0]
    return await answer_request_error(
        request, RequestError(400, "invalid_input", str(error), field)
    )


@api.exception_handler(RequestValidationError)
async def answer_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    """A missing or mistyped form field, in the same shape as every other error."""
    first = error.errors()[0]
    field = str(first["loc"][-1])
    message = f"{field} must be given rightly: {first['msg']}"
    return await answer_request_error(request, RequestError(400, "invalid_form", message, field))


# Serve copies the interface with the names that are known here, so this has to stand above it.
def count_frames(path: Path) -> int:
    """Frames of an uploaded video; decoding them all is the proof that it is one."""
    return len(video.read(path).frames)


@ray_serve.deployment
@ray_serve.ingress(api)
class Ingress:
    """Accepts videos into storage and has them rendered.

    There is one ingress: it alone takes up what an earlier one left unfinished.
    """

    async def __init__(self, settings: Settings, renderer: DeploymentHandle[Any]) -> None:
        self.settings = settings
        self.renderer = renderer
        self.store = Store(settings.storage)
        self.tasks: set[asyncio.Task[None]] = set()
        for folder in await asyncio.to_thread(self.store.unfinished):
            self._start(folder)

    @api.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Answers when the service can accept requests."""
        return {"status": "ok"}

    @api.post("/v1/videos")
    async def create(
        self,
        input_reference: Annotated[list[UploadFile], File(description="photos of one person")],
        motion: Annotated[UploadFile, File(description="a video, or a pose track (.npz)")],
        model: Annotated[str, Form()] = "",
        subject: Annotated[str, Form()] = "",
        preset: Annotated[str, Form()] = "balanced",
        seed: Annotated[int, Form(ge=0, lt=2**63)] = 0,
        align: Annotated[bool, Form(description="fit the motion to the photo's body")] = True,
    ) -> Video:
        """Accepts a video to render; poll it under its id."""
        size = sum(file.size or 0 for file in [*input_reference, motion])
        limit = self.settings.max_upload_mb
        if size > limit * 2**20:
            raise RequestError(
                413, "too_large", f"files must hold at most {limit} MB, got {size / 2**20:.0f} MB"
            )
        if model not in ("", self.settings.model_name):
            raise InputError(f"model must be {self.settings.model_name!r}, got {model!r}")
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        if subject:
            self.settings.subject_folder(subject)
        photos = [await photo.read() for photo in input_reference]
        motion_bytes = await motion.read()
        folder = await asyncio.to_thread(
            self._accept,
            RenderRequest(
                model=self.settings.model_name,
                subject=subject,
                preset=preset,
                seed=seed,
                align=align,
            ),
            photos,
            motion_bytes,
        )
        self._start(folder)
        return folder.video()

    @api.get("/v1/videos/{video_id}")
    async def retrieve(self, video_id: str) -> Video:
        """The video's status and progress."""
        return self._find(video_id).video()

    @api.get("/v1/videos/{video_id}/content", response_class=FileResponse)
    async def content(self, video_id: str) -> FileResponse:
        """The MP4 of a completed video."""
        folder = self._find(video_id)
        state = folder.video()
        if state.status != "completed":
            raise RequestError(
                409, "not_completed", f"id must be of a completed video, got one {state.status}"
            )
        return FileResponse(folder.result, media_type="video/mp4", filename=f"{video_id}.mp4")

    def _find(self, video_id: str) -> VideoFolder:
        folder = self.store.folder(video_id)
        if not folder.exists():
            raise RequestError(404, "not_found", f"id must be of a video, got {video_id!r}", "id")
        return folder

    def _accept(self, request: RenderRequest, photos: list[bytes], motion: bytes) -> VideoFolder:
        """Looks at the files' contents, whatever they are called, and keeps them."""
        is_track = motion.startswith(b"PK")
        with tempfile.TemporaryDirectory() as name:
            try:
                for number, photo in enumerate(photos, start=1):
                    path = Path(name, f"photo-{number}")
                    path.write_bytes(photo)
                    video.read_photo(path)
                path = Path(name, "motion.npz" if is_track else "motion.mp4")
                path.write_bytes(motion)
                num_frames = Motion.load(path).num_frames if is_track else count_frames(path)
            except InputError as error:
                # Where the server keeps files is nobody's business.
                raise InputError(str(error).replace(f"{name}/", "")) from error
        num_poses = self.settings.recipe().num_poses
        if num_frames < num_poses:
            raise InputError(
                f"motion must hold at least {num_poses} frames, the model's pose window, "
                f"got {num_frames}"
            )
        return self.store.create(
            request=request,
            photos=photos,
            motion=motion,
            motion_suffix=".npz" if is_track else ".mp4",
        )

    def _start(self, folder: VideoFolder) -> None:
        """Has a video rendered in the background, by another renderer if the first dies."""

        async def run() -> None:
            try:
                await call_with_retries(
                    lambda: self.renderer.render.remote(str(folder.path)),
                    what=f"{folder.id}: renderer",
                    max_tries=self.settings.max_tries,
                    first_delay=self.settings.first_delay,
                )
            except Exception as error:
                logger.exception("%s failed", folder.id)
                folder.fail("render_failed", reason(error))

        task = asyncio.create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def renderer_app(settings: Settings, total: Mapping[str, float]) -> ray_serve.Application:
    """Renderer and samplers alone, for callers that hold a handle instead of speaking HTTP.

    Args:
        settings: of the application.
        total: the cluster's resources, which say how many samplers there should be.

    Raises:
        InputError: the model's folder holds no model, or the cluster is too small.
    """
    settings.recipe()
    share = resources.sampling(total, replicas=settings.replicas or None)
    resources.require(total, share, at_least=share.num_processes)
    # Ray's `deployment` is untyped where it is not a decorator.
    deployment: Any = ray_serve.deployment
    sampler = deployment(
        Sampler,
        name="Sampler",
        num_replicas=share.num_processes,
        max_ongoing_requests=1,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options=share.remote_args,
    ).bind(settings, settings.threads or share.num_threads)
    return deployment(
        Renderer,
        name="Renderer",
        max_ongoing_requests=settings.videos_at_once,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, share.num_processes, sampler)


def app(settings: Settings) -> ray_serve.Application:
    """Builds the application: ingress, renderer, samplers.

    `serve run serve.app replicas=2 model=DIR` and `args:` of a deploy file set any field of
    `Settings`. What is wrong with them is said here, before a replica starts.

    Raises:
        InputError: as `renderer_app`.
    """
    renderer = renderer_app(settings, ray.cluster_resources())
    ingress: Any = Ingress
    return ingress.options(ray_actor_options={"num_cpus": 0}).bind(settings, renderer)
