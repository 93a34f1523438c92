"""Model cards of models and subjects."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dreampose.config import Recipe, StageConfig
from dreampose.models.model_folder import conventions, stated_licence
from dreampose.models.subject import Components, Subject, fingerprint

NOT_STATED = "other"
"""The hub's identifier of licences that are not in its list."""

LICENCES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}
"""Licences of bases on the hub, as stated in their cards."""

METHOD = """\
Pose-driven fashion video after DreamPose (arXiv 2304.06025): one photo of a person and a motion
become a video of that person in that motion.
"""


def of_model(
    pipe: Components,
    *,
    origin: Sequence[str] = (),
    licence: str | None = None,
    data: str | None = None,
) -> str:
    """Card of a model in Markdown, with the hub's metadata header.

    Args:
        pipe: the model.
        origin: sources of the model, one line each.
        licence: licence of the weights; `None` if unknown.
        data: fingerprint of the training data; `None` if unknown.
    """
    recipe = pipe.recipe
    lines = [
        f"fingerprint: `{fingerprint(pipe)}`",
        f"recipe: {recipe.name}, {recipe.height}x{recipe.width} pixels, window of "
        f"{recipe.num_poses} poses",
        *conventions(recipe),
        *origin,
        f"data fingerprint: {data or 'unknown'}",
    ]
    return _card("DreamPose model", licence, lines, recipe=recipe)


def of_subject(subject: Subject, *, recipe: Recipe | None, licence: str | None = None) -> str:
    """Card of a subject in Markdown. Photos appear only as a hash.

    Args:
        subject: the subject.
        recipe: recipe of the base model; `None` leaves it out.
        licence: licence of the weights; `None` if unknown.
    """
    lines = [
        f"subject: {subject.name}, from {len(subject.photos)} photos",
        f"method: {subject.method}",
        f"recipe of the base model: {subject.recipe}",
        f"fingerprint of the base model: `{subject.base}`",
        f"data fingerprint: `{photos_hash(subject.photos)}`",
    ]
    return _card(f"DreamPose subject {subject.name}", licence, lines, recipe=recipe)


def licence_of(base: str) -> str | None:
    """Licence of a base: that of a known hub id, or the one stated in the card of its folder."""
    return LICENCES.get(base) or stated_licence(Path(base) / "README.md")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_hash(folder: Path) -> str:
    """Hashes names and contents of the Parquet files of a folder to 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def photos_hash(photos: Sequence[str]) -> str:
    """Hashes the photo hashes of a subject to 16 hex digits, independent of their order."""
    return hashlib.sha256(" ".join(sorted(photos)).encode()).hexdigest()[:16]


def _card(title: str, licence: str | None, lines: Sequence[str], *, recipe: Recipe | None) -> str:
    header = [f"license: {licence or NOT_STATED}", "library_name: diffusers",
              "pipeline_tag: image-to-video", "tags: [dreampose, pose, fashion]"]  # fmt: skip
    text = "\n".join(["---", *header, "---", "", f"# {title}", "", METHOD])
    text += "\n" + "".join(f"- {line}\n" for line in lines)
    if licence is None:
        text += "\nThe licence of these weights is unknown; ask their authors.\n"
    if recipe is not None:
        values = {
            key: asdict(value) if isinstance(value, StageConfig) else value
            for key, value in vars(recipe).items()
        }
        text += f"\n## Recipe\n\n```json\n{json.dumps(values, indent=1)}\n```\n"
    return text
