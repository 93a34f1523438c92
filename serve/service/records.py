"""Records in storage and objects of the API."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


class RenderRequest(BaseModel):
    """Parameters of a video, apart from its photos and motion.

    Attributes:
        subject: name of finetuned weights; empty renders with the base model.
        preset: one of `dreampose.config.PRESETS`.
        seed: of all random draws.
        image_scale: guidance scale of the photo; `None` takes that of the preset or recipe.
        pose_scale: guidance scale of the pose, `None` likewise.
        align: fit the motion to the photo's body.
        estimator: pose estimator for an uploaded video.
        size: height and width of the frames in pixels; `None` takes the model's own.
        seconds: length to render from the start of the motion; `None` renders all of it.
        timeout_s: seconds after which rendering fails; `None` means no limit.
        owner: name of the API key; empty without keys.
        notes: warnings known when the video was accepted.
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
    """Result of preparing a video.

    Attributes:
        num_frames: frames of the video.
        fps: frames per second.
        seconds: that it took.
        warnings: for the user.
    """

    num_frames: int
    fps: float
    seconds: float
    warnings: list[str]


class JobError(BaseModel):
    """Reason of a failure: a code for programs and a message for users."""

    code: str
    message: str


class Video(BaseModel):
    """Video object of the API. Times are Unix seconds, progress is 0 to 100."""

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
    """Frames rendered since the video was last resumed; the others were in storage."""
    warnings: list[str] = []
    error: JobError | None = None

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.status in ("completed", "failed", "cancelled")
