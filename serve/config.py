"""Settings of the Serve application, typed. Knows nothing of Ray or models."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dreampose.config import Recipe
from dreampose.errors import InputError
from serve.store import checked_name, stamp

PROJECT = Path(__file__).resolve().parent.parent


class Settings(BaseModel):
    """What `serve run serve.app KEY=VALUE …` or `args:` of a deploy file may set.

    Relative paths are looked up in the current folder, then beside the package `serve`.

    Attributes:
        model: folder of the model.
        subjects: folder with one folder of finetuned weights per subject; empty: none.
        storage: folder for requests, finished frames and results; every replica must see it.
        replicas: sampler replicas; 0 means one a GPU, or without GPUs one a core, 8 at most.
        chunk_size: frames a sampler renders at once; bounds what a dead replica can lose.
        threads: torch threads per sampler; 0 gives each its share of the cores.
        subjects_in_memory: subjects whose weights one replica keeps, least recently used out first.
        videos_at_once: videos one renderer works on.
        max_tries: how often a chunk is tried when replicas die or are full.
        first_delay: seconds before the second try; doubles with each further one, up to 8 s.
        max_upload_mb: largest request body in megabytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "models/catwalk"
    subjects: str = ""
    storage: str = ".dreampose/videos"
    replicas: int = Field(default=0, ge=0)
    chunk_size: int = Field(default=8, ge=1)
    threads: int = Field(default=0, ge=0)
    subjects_in_memory: int = Field(default=4, ge=1)
    videos_at_once: int = Field(default=4, ge=1)
    max_tries: int = Field(default=10, ge=1)
    first_delay: float = Field(default=0.5, gt=0)
    max_upload_mb: int = Field(default=200, ge=1)

    @field_validator("model", "subjects", "storage")
    @classmethod
    def absolute(cls, path: str) -> str:
        """The path as replicas, whose current folder is another, will find it."""
        if not path:
            return path
        here = Path(path).expanduser().absolute()
        return str(here if here.exists() or not (PROJECT / path).exists() else PROJECT / path)

    @property
    def model_name(self) -> str:
        """What requests call the model: its folder's name."""
        return Path(self.model).name

    def recipe(self) -> Recipe:
        """The model's recipe, read without its weights.

        Raises:
            InputError: the folder holds no model.
        """
        path = Path(self.model, "model_index.json")
        if not path.is_file():
            raise InputError(f"model must be a folder with a model_index.json, got {self.model!r}")
        try:
            return Recipe.from_dict(json.loads(path.read_bytes())["recipe"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"model must be one this package wrote, got {self.model!r}: {error}"
            ) from error

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
