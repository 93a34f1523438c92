"""Settings of the Serve application, typed. Knows nothing of Ray or models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.io.paths import RemotePath, place
from serve.service.store import checked_name, stamp

PROJECT = Path(__file__).resolve().parent.parent


class Limits(BaseModel):
    """What the service puts up with. A running one takes new values as `user_config`.

    Attributes:
        queue: videos that may wait for their turn; one more is answered with 429.
        videos_per_key: unfinished videos of one API key.
        posts_per_minute: uploads of one key.
        requests_per_minute: requests of one key, uploads included.
        streams_per_key: event streams that one key holds open.
        subjects_waiting: people who may wait for their finetuning.
        motions_waiting: uploaded motions whose poses may wait to be read.
        max_upload_mb: largest request body in megabytes.
        upload_timeout_s: seconds that sending a request's body may take.
        max_photos: photos in one request.
        photo_megapixels: largest photo.
        frame_megapixels: largest frame of a motion's video.
        video_megapixels: all frames of a motion's video together; bounds the memory that reading
            its poses takes, at 3 MB a megapixel.
        max_frames: frames of a motion.
        max_seconds: length of a motion.
        max_fps: frames per second of a motion.
        max_scale: pixels of a rendered frame, as a multiple of those of the model's own size.
        probe_timeout_s: seconds that looking at an upload may take.
        render_timeout_s: seconds that rendering a video, or reading a motion's poses, may take from
            the moment it begins.
        finetune_timeout_s: seconds that one finetuning may take.
        keep_hours: how long finished videos, and poses that were not uploaded for keeping, stay.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: int = Field(default=20, ge=0)
    videos_per_key: int = Field(default=10, ge=1)
    posts_per_minute: int = Field(default=60, ge=1)
    requests_per_minute: int = Field(default=1200, ge=1)
    streams_per_key: int = Field(default=16, ge=1)
    subjects_waiting: int = Field(default=8, ge=0)
    motions_waiting: int = Field(default=20, ge=0)
    max_upload_mb: int = Field(default=200, ge=1)
    upload_timeout_s: float = Field(default=300, gt=0)
    max_photos: int = Field(default=8, ge=1)
    photo_megapixels: float = Field(default=50, gt=0)
    frame_megapixels: float = Field(default=2.1, gt=0)
    video_megapixels: float = Field(default=600, gt=0)
    max_frames: int = Field(default=900, ge=1)
    max_seconds: float = Field(default=60, gt=0)
    max_fps: float = Field(default=120, gt=0)
    max_scale: float = Field(default=2, ge=1)
    probe_timeout_s: float = Field(default=30, gt=0)
    render_timeout_s: float = Field(default=3600, gt=0)
    finetune_timeout_s: float = Field(default=14400, gt=0)
    keep_hours: float = Field(default=168, gt=0)


class Autoscaling(BaseModel):
    """How many replicas of a deployment there are, and when there are more or fewer.

    Attributes:
        min_replicas: 0 lets the deployment go away when nobody needs it; the next call waits.
        max_replicas: at most so many.
        target_ongoing_requests: calls per replica that are aimed at.
        upscale_delay_s: how long there must be too much work before replicas are added.
        downscale_delay_s: how long there must be too little before they are taken away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=1.0, gt=0)
    upscale_delay_s: float = Field(default=5.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def check_order(self) -> "Autoscaling":
        """At most cannot be less than at least."""
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas = {self.min_replicas}, "
                f"got {self.max_replicas}"
            )
        return self


class Settings(Limits):
    """What `serve run serve.app KEY=VALUE …` or `args:` of a deploy file may set.

    Relative paths are looked up in the current folder, then beside the package `serve`. The limits
    can be set here too; `user_config` changes them without a restart.

    Attributes:
        model: folder of the model.
        subjects: folder with one folder of finetuned weights per subject; empty: none.
        storage: folder for requests, finished frames and results: on a disk that every replica
            sees, or on any filesystem that pyarrow knows (`s3://bucket/videos`).
        motions: folder for poses that are used again, on such a place too.
        default_motion: motion file for requests that name none; empty: a motion must be given.
        keys: file of API keys, see `python -m serve.keys`; empty: no keys are in use.
        nsfw_model: ONNX file of a classifier of unsafe pictures that every photo must pass, see
            `serve.service.moderation`; empty: no photo is judged.
        nsfw_threshold: score from which a photo is refused.
        open: answer other machines although no keys are in use, since something else guards it.
        replicas: sampler replicas; 0 means one a GPU, or without GPUs one a core, 8 at most.
        sampler_autoscaling: instead of a fixed number of samplers.
        extractor_autoscaling: of the replicas that read poses from videos.
        chunk_size: frames a sampler renders at once; bounds what a dead replica can lose.
        frames_at_once: chunks that wait in a sampler are joined into batches of so many frames at
            most, those of several videos too, where size, preset, scales and weights agree. What
            else is rendered then changes frames by a grey level or two. 0 never joins any.
        calls_per_sampler: batches a sampler holds: one that it works on, and others that wait in
            it, so that it need not wait for them; a batch is one call, unless chunks are joined.
        threads: torch threads per sampler; 0 gives each its share of the cores.
        subjects_in_memory: subjects whose weights one replica keeps, least recently used out first.
        videos_at_once: videos one renderer works on.
        max_tries: how often a chunk is tried when replicas die or are full.
        first_delay: seconds before the second try; doubles with each further one, up to 8 s.
        ready_timeout_s: seconds within which renderer and sampler must answer to count as ready.
        finetunes_at_once: people who are finetuned on side by side.
        finetune_gpus: GPUs that one finetuning asks for; `None` takes one where the cluster has any
            and says so where none is free, a number waits until there are as many.
        finetune_steps: of UNet and adapter; `None` takes the recipe's.
        finetune_vae_steps: of the VAE's decoder; `None` takes the recipe's.
    """

    model: str = "models/catwalk"
    subjects: str = ".dreampose/subjects"
    storage: str = ".dreampose/videos"
    motions: str = ".dreampose/motions"
    default_motion: str = "examples/motions/catwalk-turn.npz"
    keys: str = ""
    nsfw_model: str = ""
    nsfw_threshold: float = Field(default=0.8, gt=0, le=1)
    open: bool = False
    replicas: int = Field(default=0, ge=0)
    sampler_autoscaling: Autoscaling | None = None
    extractor_autoscaling: Autoscaling = Autoscaling(min_replicas=0, max_replicas=2)
    chunk_size: int = Field(default=8, ge=1)
    frames_at_once: int = Field(default=0, ge=0)
    calls_per_sampler: int = Field(default=2, ge=1)
    threads: int = Field(default=0, ge=0)
    subjects_in_memory: int = Field(default=4, ge=1)
    videos_at_once: int = Field(default=4, ge=1)
    max_tries: int = Field(default=10, ge=1)
    first_delay: float = Field(default=0.5, gt=0)
    ready_timeout_s: float = Field(default=10, gt=0)
    finetunes_at_once: int = Field(default=1, ge=1)
    finetune_gpus: float | None = Field(default=None, ge=0)
    finetune_steps: int | None = Field(default=None, ge=1)
    finetune_vae_steps: int | None = Field(default=None, ge=0)

    @field_validator("sampler_autoscaling", "extractor_autoscaling", mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """On a command line a value is text: `'sampler_autoscaling={"max_replicas": 4}'`."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("default_motion")
    @classmethod
    def read_poses(cls, path: str) -> str:
        """It is used as it is, for frames of any size: nothing is extracted from it."""
        if path and not path.endswith(".npz"):
            raise ValueError(f"must be a motion file (.npz), got {path!r}")
        return path

    @field_validator("storage", "motions")
    @classmethod
    def reachable(cls, path: str) -> str:
        """The path or URI as replicas will find it, if it is one."""
        if "://" not in path:
            return cls.absolute(path)
        where = place(path)
        if isinstance(where, RemotePath):
            # Says now that there is no such storage.
            _ = where.filesystem
        return str(where)

    @field_validator("model", "subjects", "default_motion", "keys", "nsfw_model")
    @classmethod
    def absolute(cls, path: str) -> str:
        """The path as replicas, whose current folder is another, will find it."""
        if not path:
            return path
        if "://" in path:
            raise ValueError(f"must be on a disk that every replica sees, got {path!r}")
        here = Path(path).expanduser().absolute()
        return str(here if here.exists() or not (PROJECT / path).exists() else PROJECT / path)

    @property
    def calls_held(self) -> int:
        """Calls that a sampler holds: whole batches of them."""
        return self.calls_per_sampler * max(1, self.frames_at_once // self.chunk_size)

    @property
    def motions_at_once(self) -> int:
        """Stored motions whose poses are read at a time: one for each replica that there may be."""
        return self.extractor_autoscaling.max_replicas

    def limits(self, changes: Mapping[str, Any] | None = None) -> Limits:
        """The limits as set here, with some of them changed.

        Raises:
            ValidationError: no limit has such a name or may have such a value.
        """
        known = {name: getattr(self, name) for name in Limits.model_fields}
        return Limits.model_validate(known | dict(changes or {}))

    @property
    def model_name(self) -> str:
        """What requests call the model: its folder's name."""
        return Path(self.model).name

    def recipe(self, size: tuple[int, int] | None = None) -> Recipe:
        """The model's recipe, read without its weights.

        Args:
            size: height and width of frames that are not of the model's own.

        Raises:
            InputError: the folder holds no model, or its frames cannot be of that size.
        """
        path = Path(self.model, "model_index.json")
        if not path.is_file():
            raise InputError(f"model must be a folder with a model_index.json, got {self.model!r}")
        try:
            recipe = Recipe.from_dict(json.loads(path.read_bytes())["recipe"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"model must be one this package wrote, got {self.model!r}: {error}"
            ) from error
        return recipe.at(*size) if size else recipe

    def served(self) -> tuple[str, str, str]:
        """What tells one application from another: its model as it is now, and its subjects."""
        return self.model, stamp(Path(self.model)), self.subjects

    def subject_id(self, subject: str) -> str:
        """Name under which replicas keep a subject's weights; another when they are finetuned anew.

        Empty for the base model.
        """
        return f"{subject}@{stamp(self.subject_folder(subject))}" if subject else ""

    def subject_folder(self, subject: str) -> Path:
        """The finetuned weights of a subject.

        Raises:
            InputError: there is no such subject.
        """
        folder = Path(self.subjects) / checked_name("subject", subject)
        if not self.subjects or not (folder / "subject.json").is_file():
            where = f"in {self.subjects}" if self.subjects else "since no subjects are served"
            raise InputError(f"subject must have finetuned weights, got {subject!r}, none {where}")
        return folder
