"""Varied prints, backgrounds and lights for training data."""

from dataclasses import replace

import numpy as np

from dreampose.synthetic import backgrounds, render, scene, textures
from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import Surface


def vary_identity(person: Identity, random: np.random.Generator) -> Identity:
    """The same person in another light, stronger and more coloured than a studio's."""
    return replace(
        person,
        light_yaw=float(random.uniform(-75, 75)),
        light_height=float(random.uniform(20, 70)),
        light_strength=float(random.uniform(0.7, 1.2)),
        warmth=float(random.uniform(-2.5, 2.5)),
    )


def vary_stage(
    stage: render.RenderSetup,
    random: np.random.Generator,
    *,
    print_share: float = 0.6,
    background_share: float = 0.6,
) -> render.RenderSetup:
    """The same clip with prints in full colour and another background.

    Args:
        stage: of the clip.
        random: of what is changed and how.
        print_share: probability that a garment has a print of `textures`.
        background_share: probability of a background of `backgrounds`.
    """
    prints = dict(stage.prints)
    top, bottom = (
        textures.make(random) if random.random() < print_share else None for _ in range(2)
    )
    if top is not None:
        prints |= {Surface.TOP: top, Surface.DRESS: top}
    if bottom is not None:
        prints |= {Surface.BOTTOM: bottom}
    backdrop = stage.backdrop
    if random.random() < background_share:
        backdrop = backgrounds.make(random, *backdrop.shape[:2])
    return replace(stage, prints=prints, backdrop=backdrop)


def prepare(
    person: Identity, random: np.random.Generator, *, height: int, width: int
) -> tuple[scene.Scene, render.RenderSetup]:
    """A varied person, dressed, with what stays the same of a clip."""
    dressed = scene.build(vary_identity(person, random))
    return dressed, vary_stage(render.prepare(dressed, height=height, width=width), random)
