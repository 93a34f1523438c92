"""The model hub: files of a hub id at a pinned revision, a folder sent there. Knows no model."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from dreampose.errors import InputError

PINNED = {
    "CompVis/stable-diffusion-v1-4": "ebb811dd71cdc38a204ecbdd6ac5d580f529fd8c",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
}
"""Revision of each hub id where none is asked for; the first is the one the paper's code pins."""

_ID = r"[\w-][\w.-]*/[\w.-]+"


def folder(
    name: str, source: str | Path, revision: str | None, patterns: Sequence[str], needed: str
) -> tuple[Path, str]:
    """A local folder: the one named, or the downloaded files of a hub id; and how to call it.

    Args:
        name: of the field, for the message.
        source: folder or hub id.
        revision: on the hub; by default the pinned one.
        patterns: of the files wanted from the hub.
        needed: files that a folder must hold, for the message.

    Raises:
        InputError: it is neither a folder nor a hub id, or the hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source), Path(source).resolve().name
    text = str(source)
    if not re.fullmatch(_ID, text):
        raise InputError(
            f"{name} must be an existing folder or file, or a hub id like {next(iter(PINNED))}, "
            f"got {text!r}"
        )
    revision = revision or PINNED.get(text)
    try:
        found = Path(snapshot_download(text, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name} must be here or reachable as a hub id, got {text!r} and no such files: on a "
            f"connected machine download them, then name their folder, which must hold {needed}"
        ) from error
    return found, f"{text}@{revision or found.name}"


def check_id(repo: str) -> None:
    """Checks that a name can be a repository's.

    Raises:
        InputError: it cannot.
    """
    if not re.fullmatch(_ID, repo):
        raise InputError(f"push_to_hub must be a hub id like owner/name, got {repo!r}")


def push(path: str | Path, repo: str, *, private: bool) -> str:
    """Sends a folder's files to the hub and returns where they are; the repository is made.

    Raises:
        InputError: `repo` is no hub id, or the hub refuses or cannot be reached.
    """
    check_id(repo)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=str(path)).commit_url)
    except (OSError, ValueError) as error:
        raise InputError(f"push_to_hub must name a repository that can be written, got {repo!r}: "
                         f"{error}") from error  # fmt: skip
