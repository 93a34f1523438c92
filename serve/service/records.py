"""The values that travel through the service and lie in storage. Knows no folder, HTTP or Ray."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class RenderRequest(BaseModel):
    """What a user asks for, apart from the photos and the motion themselves.

    Attributes:
        subject: name of finetuned weights; empty renders with the base model.
        preset: one of `dreampose.config.PRESETS`.
        seed: of the start noise and of all else that is drawn.
        image_scale: guidance scale of the photo, `None` takes the preset's or the recipe's.
        pose_scale: guidance scale of the pose, `None` likewise.
        align: fit the motion to the photo's body.
        estimator: pose estimator for an uploaded video.
        size: height and width of the frames in pixels; `None` takes the model's own.
        seconds: render only the motion's beginning, of this length; `None` renders all of it.
        timeout_s: seconds after which rendering is given up; `None` never does.
        owner: name of the API key that asked; empty where no keys are in use.
        notes: warnings that were known when the video was accepted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    subject: str = ""
    preset: str = "balanced"
    seed: int = 0
    image_scale: float | None = None
    pose_scale: float | None = None
    align: bool = True
    estimator: str = "blazepose"
    size: tuple[int, int] | None = None
    seconds: float | None = None
    timeout_s: float | None = None
    owner: str = ""
    notes: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a sampler says of a request that it made ready.

    Attributes:
        num_frames: frames of the video.
        fps: frames per second.
        seconds: that it took.
        warnings: sentences to tell the user.
    """

    num_frames: int
    fps: float
    seconds: float
    warnings: list[str]


class Fault(BaseModel):
    """Why something failed: a code for programs and a sentence for people."""

    code: str
    message: str


class Video(BaseModel):
    """The video object of the HTTP interface. Times are Unix seconds, progress is 0 to 100."""

    id: str
    object: Literal["video"] = "video"
    status: Status = "queued"
    progress: int = 0
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    model: str = ""
    subject: str = ""
    preset: str = ""
    seed: int = 0
    prompt: None = Field(default=None, description="always null: a prompt is accepted and ignored")
    size: str | None = None
    seconds: str | None = None
    fps: float | None = None
    num_frames: int | None = None
    num_frames_rendered: int = 0
    """Frames rendered since the video was last taken up; the rest was found in storage."""
    warnings: list[str] = []
    error: Fault | None = None

    @property
    def finished(self) -> bool:
        """Nothing more will happen to it."""
        return self.status in ("completed", "failed", "cancelled")
