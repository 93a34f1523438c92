"""A request that is ready to be rendered, as a file: written once, read by parts.

Each frame's pose map is kept once, as rows of one tensor, so that a sampler reads those of its own
frames and of their neighbours alone. Knows the values of
`dreampose.diffusion.generation`, but no model.
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
"""Name in the file's metadata of what is no tensor."""


def write(path: Place, request: Request, num_poses: int) -> None:
    """Writes a request; the file appears whole or not at all.

    Args:
        path: of the file; its folder must be there, since a video that was deleted meanwhile must
            not come back.
        request: from `dreampose.diffusion.generation.prepare`.
        num_poses: of the model's recipe.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(str(path.parent))
    tensors = {name: value for name, value in vars(request).items() if isinstance(value, Tensor)}
    facts = {name: value for name, value in vars(request).items() if name not in tensors}
    each = rearrange(request.poses, "t (p c) h w -> t p c h w", p=num_poses)[:, num_poses // 2]
    tensors = {name: value.contiguous() for name, value in (tensors | {"poses": each}).items()}
    metadata = {FACTS: json.dumps(facts | {"num_poses": num_poses})}
    # Straight to the file: a copy of some megabytes in memory would take longer than all else.
    with new_file(path) as part:
        safetensors.torch.save_file(tensors, part, metadata)


def read(path: Place, indices: range) -> Request:
    """The request for some of its frames: in what is given they are all that there is.

    Args:
        path: of the file.
        indices: of the frames wanted.
    """
    with safetensors.safe_open(on_disk(path), framework="pt") as file:
        facts = json.loads(file.metadata()[FACTS])
        rows = file.get_slice("poses")
        frames = windows(rows.get_shape()[0], facts.pop("num_poses"))[indices.start : indices.stop]
        first = int(frames.min())
        each = rows[first : int(frames.max()) + 1][frames - first]
        tensors = {name: file.get_tensor(name) for name in {*file.keys()} - {"poses"}}
    return Request(poses=rearrange(each, "t p c h w -> t (p c) h w"), **tensors, **facts)
