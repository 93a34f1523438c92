"""Settings of the service and its limits."""

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
    """Limits of the service, which `user_config` may change while it runs.

    Attributes:
        queue: videos that may wait; one more is answered with 429.
        videos_per_key: unfinished videos of one API key.
        posts_per_minute: uploads of one key.
        requests_per_minute: requests of one key, uploads included.
        streams_per_key: event streams that one key holds open.
        streams: event streams of all keys together, per ingress replica.
        uploads_per_key: uploads that one key sends at a time.
        uploads: uploads of all keys together at a time, per ingress replica.
        stored_mb_per_key: megabytes of inputs that one key may keep in storage.
        subjects_waiting: subjects that may wait for finetuning.
        motions_waiting: uploaded motions that may wait for pose extraction.
        max_upload_mb: largest request body in megabytes.
        upload_timeout_s: seconds that sending a request's body may take.
        max_photos: photos in one request.
        photo_megapixels: largest photo.
        frame_megapixels: largest frame of a motion's video.
        video_megapixels: all frames of a motion video together; pose extraction needs 3 MB of
            memory per megapixel.
        max_frames: frames of a motion.
        max_seconds: length of a motion.
        max_fps: frames per second of a motion.
        max_scale: pixels of a rendered frame, as a multiple of those of the model's own size.
        probe_timeout_s: seconds that checking an upload may take.
        render_timeout_s: seconds that rendering a video, or extracting the poses of a motion, may
            take from its start.
        finetune_timeout_s: seconds that one finetuning may take.
        keep_hours: hours after which finished videos and cached poses are deleted.
        keep_motions_hours: hours after the last use of a stored motion until it is deleted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue: int = Field(default=20, ge=0)
    videos_per_key: int = Field(default=10, ge=1)
    posts_per_minute: int = Field(default=60, ge=1)
    requests_per_minute: int = Field(default=1200, ge=1)
    streams_per_key: int = Field(default=16, ge=1)
    streams: int = Field(default=400, ge=1)
    uploads_per_key: int = Field(default=4, ge=1)
    uploads: int = Field(default=32, ge=1)
    stored_mb_per_key: int = Field(default=4000, ge=1)
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
    keep_motions_hours: float = Field(default=2160, gt=0)


class Autoscaling(BaseModel):
    """Autoscaling of a deployment.

    Attributes:
        min_replicas: 0 scales to zero when idle; the next call waits for a replica.
        max_replicas: upper bound.
        target_ongoing_requests: calls per replica to aim at.
        upscale_delay_s: seconds of overload before replicas are added.
        downscale_delay_s: seconds of low load before replicas are removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=1.0, gt=0)
    upscale_delay_s: float = Field(default=5.0, ge=0)
    downscale_delay_s: float = Field(default=300.0, ge=0)

    @model_validator(mode="after")
    def check_order(self) -> "Autoscaling":
        """Checks that the bounds are in order."""
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas must be at least min_replicas = {self.min_replicas}, "
                f"got {self.max_replicas}"
            )
        return self


class Settings(Limits):
    """Settings that `serve run serve.app KEY=VALUE …` or `args:` of a deploy file may set.

    Relative paths are resolved in the current folder, then beside the package `serve`. The limits
    can be set here too; `user_config` changes them without a restart.

    Attributes:
        model: folder of the model.
        subjects: folder with one folder of finetuned weights per subject; empty disables subjects.
        storage: folder for requests, finished frames and results, on a disk shared by all replicas
            or on any pyarrow filesystem (`s3://bucket/videos`).
        motions: folder for stored motions and cached poses, likewise.
        default_motion: motion file for requests without a motion; empty requires one.
        keys: file of API keys, see `python -m serve.keys`; empty disables keys.
        nsfw_model: ONNX file of a classifier of unsafe images, see
            `serve.service.moderation`; empty disables the check.
        nsfw_threshold: score in (0, 1] from which a photo is rejected.
        open: serve other machines without keys, behind some other access control.
        profile: local or cluster, the resource requests of the deployments
            (`cluster.worker_requests`); empty: local if this command started Ray, else cluster.
        replicas: sampler replicas; 0 means, on one machine, one per GPU, or without GPUs one per
            core, 8 at most; on a cluster, autoscaling up to what its nodes can hold, 64 at most.
        sampler_autoscaling: autoscaling of the samplers instead of a fixed number.
        extractor_autoscaling: autoscaling of the pose extractors.
        chunk_size: frames that a sampler renders per call; at most these are lost with a replica.
        frames_at_once: largest batch, in frames, into which a sampler joins waiting chunks, also of
            several videos with equal size, preset, scales and weights. Batching changes frames by
            a grey level or two. 0 disables it.
        calls_per_sampler: batches that a sampler holds: one in work, the others waiting, so that it
            is never idle between calls.
        threads: torch threads per sampler; 0 divides the cores of one machine evenly, and on a
            cluster takes the CPUs of a sampler's request.
        subjects_in_memory: subjects whose weights one sampler keeps (least recently used evicted).
        videos_at_once: videos that one renderer works on.
        samplers_per_cell: largest number of samplers of one renderer; with more samplers there are
            several renderers, each with its own.
        cells: renderers; 0 derives the number from that of the samplers.
        ingress_replicas: HTTP replicas. Rate limits count per replica.
        max_tries: attempts per chunk when replicas die or are full.
        first_delay: seconds before the second attempt; doubles up to 8 s.
        ready_timeout_s: seconds within which renderer and sampler must answer to count as ready.
        finetunes_at_once: parallel finetunings.
        finetune_gpus: GPUs per finetuning; `None` requests one if the cluster has or may add any,
            and fails if none is free and none can be added; a number waits for that many.
        finetune_steps: steps of UNet and adapter; `None` takes the recipe's.
        finetune_vae_steps: steps of the VAE decoder; `None` takes the recipe's.
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
    profile: str = ""
    replicas: int = Field(default=0, ge=0)
    sampler_autoscaling: Autoscaling | None = None
    extractor_autoscaling: Autoscaling = Autoscaling(min_replicas=0, max_replicas=2)
    chunk_size: int = Field(default=8, ge=1)
    frames_at_once: int = Field(default=0, ge=0)
    calls_per_sampler: int = Field(default=2, ge=1)
    threads: int = Field(default=0, ge=0)
    subjects_in_memory: int = Field(default=4, ge=1)
    videos_at_once: int = Field(default=4, ge=1)
    samplers_per_cell: int = Field(default=64, ge=1)
    cells: int = Field(default=0, ge=0)
    ingress_replicas: int = Field(default=1, ge=1)
    max_tries: int = Field(default=10, ge=1)
    first_delay: float = Field(default=0.5, gt=0)
    ready_timeout_s: float = Field(default=1.5, gt=0)
    finetunes_at_once: int = Field(default=1, ge=1)
    finetune_gpus: float | None = Field(default=None, ge=0)
    finetune_steps: int | None = Field(default=None, ge=1)
    finetune_vae_steps: int | None = Field(default=None, ge=0)

    @field_validator("sampler_autoscaling", "extractor_autoscaling", mode="before")
    @classmethod
    def from_text(cls, value: Any) -> Any:
        """Parses JSON from the command line: `'sampler_autoscaling={"max_replicas": 4}'`."""
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("default_motion")
    @classmethod
    def read_poses(cls, path: str) -> str:
        """Checks that the file holds poses: a video would need extraction per frame size."""
        if path and not path.endswith(".npz"):
            raise ValueError(f"must be a motion file (.npz), got {path!r}")
        return path

    @field_validator("storage", "motions")
    @classmethod
    def reachable(cls, path: str) -> str:
        """Resolves the path or URI for replicas, whose working directory differs."""
        if "://" not in path:
            return cls.absolute(path)
        where = place(path)
        if isinstance(where, RemotePath):
            # Raises for an unknown scheme.
            _ = where.filesystem
        return str(where)

    @field_validator("model", "subjects", "default_motion", "keys", "nsfw_model")
    @classmethod
    def absolute(cls, path: str) -> str:
        """Resolves the path for replicas, whose working directory differs."""
        if not path:
            return path
        if "://" in path:
            raise ValueError(f"must be a path on a disk shared by all replicas, got {path!r}")
        here = Path(path).expanduser().absolute()
        return str(here if here.exists() or not (PROJECT / path).exists() else PROJECT / path)

    @property
    def max_held_calls(self) -> int:
        """Calls that a sampler holds, in whole batches."""
        return self.calls_per_sampler * max(1, self.frames_at_once // self.chunk_size)

    @property
    def videos_in_progress(self) -> int:
        """Videos that all renderers together work on."""
        return self.videos_at_once * max(1, self.cells)

    @property
    def motions_at_once(self) -> int:
        """Parallel pose extractions of stored motions: one per possible extractor replica."""
        return self.extractor_autoscaling.max_replicas

    def limits(self, changes: Mapping[str, Any] | None = None) -> Limits:
        """The limits of these settings, with some of them changed.

        Raises:
            ValidationError: a limit has an unknown name or an invalid value.
        """
        known = {name: getattr(self, name) for name in Limits.model_fields}
        return Limits.model_validate(known | dict(changes or {}))

    @property
    def model_name(self) -> str:
        """Name of the model in requests: that of its folder."""
        return Path(self.model).name

    def recipe(self, size: tuple[int, int] | None = None) -> Recipe:
        """The model's recipe, read without its weights.

        Args:
            size: height and width in pixels; by default the model's own.

        Raises:
            InputError: the folder holds no model, or the size is not one it can render.
        """
        path = Path(self.model, "model_index.json")
        if not path.is_file():
            raise InputError(f"model must be a folder with model_index.json, got {self.model!r}")
        try:
            recipe = Recipe.from_dict(json.loads(path.read_bytes())["recipe"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"model: cannot read the recipe in {self.model!r} ({error}); import or train "
                "the model with dreampose"
            ) from error
        return recipe.at(*size) if size else recipe

    def served(self) -> tuple[str, str, str]:
        """Identity of the application: model, its files' stamp, and subjects."""
        return self.model, stamp(Path(self.model)), self.subjects

    def subject_id(self, subject: str) -> str:
        """Cache key of a subject's weights, which changes when they are finetuned again.

        Empty for the base model.
        """
        return f"{subject}@{stamp(self.subject_folder(subject))}" if subject else ""

    def subject_folder(self, subject: str) -> Path:
        """The finetuned weights of a subject.

        Raises:
            InputError: the subject has no weights.
        """
        folder = Path(self.subjects) / checked_name("subject", subject)
        if not self.subjects or not (folder / "subject.json").is_file():
            where = f"in {self.subjects}" if self.subjects else "since no subjects are served"
            raise InputError(f"subject must have finetuned weights, got {subject!r}, none {where}")
        return folder
