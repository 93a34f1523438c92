"""Model cards: what a model or subject is, where it comes from, its licence. Knows no training."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dreampose.config import Recipe, StageConfig
from dreampose.models.model_folder import conventions, stated_licence
from dreampose.models.subject import Components, Subject, fingerprint

NOT_STATED = "other"
"""The hub's word for a licence that is none of its list."""

LICENCES = {
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
}
"""Of bases on the hub, as their cards state it."""

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
    """A model's card, in Markdown with the hub's header.

    Args:
        pipe: the model.
        origin: what it was made from, a line each.
        licence: of the weights; `None` where nobody stated it.
        data: fingerprint of the training data; `None` where it is not known.
    """
    recipe = pipe.recipe
    lines = [
        f"fingerprint: `{fingerprint(pipe)}`",
        f"recipe: {recipe.name}, {recipe.height}x{recipe.width} pixels, window of "
        f"{recipe.num_poses} poses",
        *conventions(recipe),
        *origin,
        f"data fingerprint: {data or 'not known'}",
    ]
    return _card("DreamPose model", licence, lines, recipe=recipe)


def of_subject(subject: Subject, *, recipe: Recipe | None, licence: str | None = None) -> str:
    """A subject's card. The photos are named by hashes alone.

    Args:
        subject: whose weights.
        recipe: of the base model, where that is at hand.
        licence: of the weights; `None` where nobody stated it.
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
    """The licence of a base: of a known hub id, or what the card in its folder states."""
    return LICENCES.get(base) or stated_licence(Path(base) / "README.md")


def file_hash(path: Path) -> str:
    """Sha-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_hash(folder: Path) -> str:
    """16 hex digits of a folder of training data: of its Parquet files' names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def photos_hash(photos: Sequence[str]) -> str:
    """16 hex digits of a subject's photos, in any order."""
    return hashlib.sha256(" ".join(sorted(photos)).encode()).hexdigest()[:16]


def _card(title: str, licence: str | None, lines: Sequence[str], *, recipe: Recipe | None) -> str:
    header = [f"license: {licence or NOT_STATED}", "library_name: diffusers",
              "pipeline_tag: image-to-video", "tags: [dreampose, pose, fashion]"]  # fmt: skip
    text = "\n".join(["---", *header, "---", "", f"# {title}", "", METHOD])
    text += "\n" + "".join(f"- {line}\n" for line in lines)
    if licence is None:
        text += "\nNobody stated a licence for these weights: ask whoever made them.\n"
    if recipe is not None:
        values = {
            key: asdict(value) if isinstance(value, StageConfig) else value
            for key, value in vars(recipe).items()
        }
        text += f"\n## Recipe\n\n```json\n{json.dumps(values, indent=1)}\n```\n"
    return text
