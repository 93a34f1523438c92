"""Synthetic fashion data set ("catwalk") with exact ground truth."""

from dreampose.synthetic.clip import CatwalkClip, render_clip, skin_through_cloth, write_clip
from dreampose.synthetic.generate import generate, tasks
from dreampose.synthetic.identity import Identity, identity

__all__ = [
    "CatwalkClip",
    "Identity",
    "generate",
    "identity",
    "render_clip",
    "skin_through_cloth",
    "tasks",
    "write_clip",
]
