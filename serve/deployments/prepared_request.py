"""File format of a prepared request, read in slices.

The pose map of each frame is stored once, as a row of one tensor: a sampler reads only the rows of
its frames and their neighbours.
"""

import json

import safetensors
import safetensors.torch
from einops import rearrange
from torch import Tensor

from dreampose.data.windows import windows
from dreampose.diffusion.generation import Request
from dreampose.io.paths import Place, new_file, on_disk

FACTS = "request"
"""Metadata key of the fields that are not tensors."""


def write(path: Place, request: Request, num_poses: int) -> None:
    """Writes a request atomically.

    Args:
        path: of the file; its folder must exist, so that a deleted video is not recreated.
        request: from `dreampose.diffusion.generation.prepare`.
        num_poses: pose window of the model's recipe.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(str(path.parent))
    tensors = {name: value for name, value in vars(request).items() if isinstance(value, Tensor)}
    facts = {name: value for name, value in vars(request).items() if name not in tensors}
    each = rearrange(request.poses, "t (p c) h w -> t p c h w", p=num_poses)[:, num_poses // 2]
    tensors = {name: value.contiguous() for name, value in (tensors | {"poses": each}).items()}
    metadata = {FACTS: json.dumps(facts | {"num_poses": num_poses})}
    # Straight to the file: an extra copy in memory would take longer than the rest.
    with new_file(path) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def read(path: Place, indices: range) -> Request:
    """Reads the part of a request that some of its frames need.

    Args:
        path: of the file.
        indices: of the frames.
    """
    with safetensors.safe_open(on_disk(path), framework="pt") as file:
        facts = json.loads(file.metadata()[FACTS])
        rows = file.get_slice("poses")
        frames = windows(rows.get_shape()[0], facts.pop("num_poses"))[indices.start : indices.stop]
        first = int(frames.min())
        each = rows[first : int(frames.max()) + 1][frames - first]
        tensors = {name: file.get_tensor(name) for name in {*file.keys()} - {"poses", "warps"}}
        if "warps" in {*file.keys()}:
            tensors["warps"] = file.get_slice("warps")[indices.start : indices.stop]
    return Request(poses=rearrange(each, "t p c h w -> t (p c) h w"), **tensors, **facts)
