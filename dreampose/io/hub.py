"""Downloads from and uploads to the Hugging Face hub."""

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
"""Default revision of each hub id; the first one is pinned by the paper's code as well."""

_ID = r"[\w-][\w.-]*/[\w.-]+"


def folder(
    name: str, source: str | Path, revision: str | None, patterns: Sequence[str], needed: str
) -> tuple[Path, str]:
    """Local folder of a source: the folder itself, or the downloaded files of a hub id.

    Args:
        name: name of the argument, for error messages.
        source: folder or hub id.
        revision: revision on the hub; default: the pinned one.
        patterns: glob patterns of the files to download.
        needed: description of the files that the folder must contain, for error messages.

    Returns:
        The folder, and a name for it: that of the folder, or the hub id with its revision.

    Raises:
        InputError: the source is neither a folder nor a hub id, or the hub cannot be reached.
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
            f"{name} must be a folder or a hub id that can be downloaded, got {text!r}; without "
            f"network access, pass a folder with {needed}"
        ) from error
    return found, f"{text}@{revision or found.name}"


def check_id(repo: str) -> None:
    """Checks the syntax of a hub id.

    Raises:
        InputError: `repo` is not of the form owner/name.
    """
    if not re.fullmatch(_ID, repo):
        raise InputError(f"push_to_hub must be a hub id like owner/name, got {repo!r}")


def push(path: str | Path, repo: str, *, private: bool) -> str:
    """Uploads a folder to the hub; a missing repository is created.

    Args:
        path: folder to upload.
        repo: hub id, owner/name.
        private: whether a new repository is private.

    Returns:
        URL of the commit.

    Raises:
        InputError: `repo` is not a hub id, or the hub refuses the upload or cannot be reached.
    """
    check_id(repo)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=str(path)).commit_url)
    except (OSError, ValueError) as error:
        raise InputError(f"push_to_hub must name a repository that can be written, got {repo!r}: "
                         f"{error}") from error  # fmt: skip
