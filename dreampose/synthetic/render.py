"""Rendering of one frame with its ground truth.

The result is bit-identical on every x86 processor with AVX2 (LOG.md). Colours are sums and
products in float32, which round identically everywhere. Sines and exponentials are computed in
float64, and rounding to float32 removes the last bit, which differs between processors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dreampose.synthetic import camera, patterns, rasterizer, textures
from dreampose.synthetic.mesh import GARMENTS, Surface, unit
from dreampose.synthetic.scene import PosedScene, Scene

SUPERSAMPLING = 2
"""Samples per pixel along each axis."""
GLOSS = np.zeros(len(Surface))
"""Strength of the specular highlight of each surface."""
GLOSS[[Surface.SKIN, Surface.EYES, Surface.HAIR, Surface.SHOES]] = 0.16, 0.5, 0.22, 0.25


@dataclass(frozen=True, kw_only=True)
class RenderedFrame:
    """A picture and its ground truth; `clip` explains the arrays."""

    image: UInt8[np.ndarray, "H W 3"]
    parts: UInt8[np.ndarray, "H W"]
    atlas: Float32[np.ndarray, "H W 2"]
    surface: UInt8[np.ndarray, "H W"]
    garment: UInt8[np.ndarray, "H W"]
    """Garment whose outer side is visible when skin is removed; 0 where there is none."""
    garment_parts: UInt8[np.ndarray, "H W"]
    """DensePose part under that garment."""
    joints: Float32[np.ndarray, "33 3"]


@dataclass(frozen=True, kw_only=True)
class RenderSetup:
    """Data that all frames of a clip share."""

    scene: Scene
    view: camera.Camera
    backdrop: Float32[np.ndarray, "H W 3"]
    prints: Mapping[int, patterns.Pattern | textures.Texture]


def prepare(scene: Scene, *, height: int, width: int) -> RenderSetup:
    """Creates the camera, backdrop and cloth patterns for pictures of `height` x `width`."""
    person = scene.person
    stature = float(scene.points[:, 1].max() - scene.measures.floor)
    big = SUPERSAMPLING
    view = camera.make_camera(person, stature=stature, height=height * big, width=width * big)
    bottom = scene.clothes.cloth_bottom
    first = patterns.make(person.pattern, person.pattern_seed, bottom=bottom)
    second = patterns.make(person.second_pattern, person.pattern_seed + 3, bottom=bottom)
    return RenderSetup(
        scene=scene,
        view=view,
        backdrop=camera.backdrop(person, view, height * big, width * big),
        prints={Surface.TOP: first, Surface.DRESS: first, Surface.BOTTOM: second},
    )


def draw(setup: RenderSetup, posed: PosedScene) -> RenderedFrame:
    """Renders one frame."""
    scene, view = setup.scene, setup.view
    height, width, _ = setup.backdrop.shape
    seen = view.project(posed.points)
    first, second, third = (seen[scene.faces[:, corner], :2] for corner in range(3))
    edge1, edge2 = second - first, third - first
    front = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0] < 0
    keeps = [posed.keep[scene.faces[:, corner]] for corner in range(3)]
    shown = front | scene.two_sided
    shown &= np.maximum(np.maximum(keeps[0], keeps[1]), keeps[2]) >= 0
    chosen = np.flatnonzero(shown)
    found = rasterizer.fragments(seen, scene.faces[chosen], height, width)
    edges = [values[chosen].astype(np.float32)[found.face] for values in keeps]
    keep = found.bary[:, 0] * edges[0] + found.bary[:, 1] * edges[1] + found.bary[:, 2] * edges[2]
    found = found.take(keep >= 0)
    found = rasterizer.Fragments(
        pixel=found.pixel, face=chosen[found.face], bary=found.bary, depth=found.depth
    )
    hits = found.take(rasterizer.nearest(found, height * width))
    colour = _shade(setup, posed, hits, front)
    ground = camera.shadow(scene.person, view, posed.points[::3], height, width)
    picture = setup.backdrop * (1 - ground)[..., None]
    flat = picture.reshape(-1, 3)
    depth = np.full(height * width, np.nan, np.float32)
    depth[hits.pixel] = hits.depth
    flat[hits.pixel] = colour * _occlusion(depth.reshape(height, width))[hits.pixel][:, None]
    small = cv2.resize(
        picture, (width // SUPERSAMPLING, height // SUPERSAMPLING), interpolation=cv2.INTER_AREA
    )
    image = np.clip(np.rint(small), 0, 255).astype(np.uint8)
    return _with_truth(setup, posed, image, found, hits, front)


def _with_truth(
    setup: RenderSetup,
    posed: PosedScene,
    image: UInt8[np.ndarray, "H W 3"],
    found: rasterizer.Fragments,
    hits: rasterizer.Fragments,
    front: np.ndarray,
) -> RenderedFrame:
    scene = setup.scene
    height, width, _ = setup.backdrop.shape
    rows = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)

    def grid(pixel: np.ndarray, values: np.ndarray, kind: type) -> np.ndarray:
        full = np.zeros((height * width, *values.shape[1:]), kind)
        full[pixel] = values
        return full.reshape(height, width, *values.shape[1:])[rows, rows].copy()

    atlas = np.einsum("nk,nkc->nc", hits.bary, scene.atlas[hits.face].astype(np.float32))
    worn = np.isin(scene.surface[found.face], GARMENTS) & front[found.face]
    outer = found.take(worn)
    outer = outer.take(rasterizer.nearest(outer, height * width))
    joints = setup.view.project(posed.landmarks)
    hips = joints[[23, 24], 2].mean()
    pixels_per_dm = setup.view.focal / hips / SUPERSAMPLING
    joints = np.stack(
        [
            joints[:, 0] / SUPERSAMPLING - 0.5,
            joints[:, 1] / SUPERSAMPLING - 0.5,
            (joints[:, 2] - hips) * pixels_per_dm,
        ],
        1,
    )
    return RenderedFrame(
        image=image,
        parts=grid(hits.pixel, scene.parts[hits.face], np.uint8),
        atlas=grid(hits.pixel, atlas, np.float32),
        surface=grid(hits.pixel, scene.surface[hits.face], np.uint8),
        garment=grid(outer.pixel, scene.surface[outer.face], np.uint8),
        garment_parts=grid(outer.pixel, scene.parts[outer.face], np.uint8),
        joints=joints.astype(np.float32),
    )


def _shade(
    setup: RenderSetup, posed: PosedScene, hits: rasterizer.Fragments, front: np.ndarray
) -> Float32[np.ndarray, "n 3"]:
    scene, person = setup.scene, setup.scene.person
    corners = scene.faces[hits.face]
    bary = hits.bary
    normal = np.einsum("nk,nkc->nc", bary, posed.normals.astype(np.float32)[corners])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    surface = scene.surface[hits.face]
    outside = front[hits.face]
    normal = np.where(outside[:, None], normal, -normal)
    colour = np.empty((len(surface), 3), np.float32)
    cloth = np.einsum("nk,nkc->nc", bary, scene.cloth[hits.face].astype(np.float32))
    first, second = (np.array(c, np.float32) for c in person.colours)
    for kind, print_on in setup.prints.items():
        own = np.flatnonzero(surface == kind)
        base, accent = (second, first) if kind == Surface.BOTTOM else (first, second)
        found = print_on(cloth[own, 0], cloth[own, 1]).astype(np.float32)
        # A print is the accent's share, or colours of its own.
        colour[own] = found if found.ndim == 2 else base + found[:, None] * (accent - base)
    colour[surface == Surface.SHOES] = person.shoes
    hair = np.flatnonzero(surface == Surface.HAIR)
    along = cloth[hair, 0].astype(np.float64)
    strand = 1 + 0.05 * np.sin(along * 31) + 0.04 * np.sin(along * 13 + 1)
    colour[hair] = np.array(person.hair, np.float32) * strand[:, None].astype(np.float32)
    bare = np.flatnonzero((surface == Surface.SKIN) | (surface == Surface.EYES))
    rest = np.einsum("nk,nkc->nc", bary[bare], scene.points.astype(np.float32)[corners[bare]])
    lips = np.einsum("nk,nk->n", bary[bare], scene.lips.astype(np.float32)[corners[bare]])
    colour[bare] = _face(scene, surface[bare], rest, lips)
    light = camera.light_direction(person).astype(np.float32)
    key = _along(normal, light)
    # Wrapped diffuse key light, fill light from the camera, and light from above.
    wrapped = np.clip((key + 0.35) / 1.35, 0, 1)
    towards = setup.view.turn[2].astype(np.float32)
    facing = np.clip(_along(normal, towards), 0, 1)
    amount = 0.36 + 0.5 * wrapped + 0.16 * facing + 0.06 * normal[:, 1]
    rough = GLOSS[surface]
    squared = np.square(np.clip(_along(normal, unit(light + towards)), 0, 1))
    gloss = rough * squared * np.square(np.square(np.square(squared)))
    amount = np.where(outside, amount, amount * 0.45).astype(np.float32)
    tint = camera.light_colour(person).astype(np.float32)
    return colour * amount[:, None] * tint + 255 * gloss[:, None].astype(np.float32) * 0.35


def _along(
    vectors: Float32[np.ndarray, "n 3"], direction: Float32[np.ndarray, "3"]
) -> Float32[np.ndarray, " n"]:
    """Dot products with `direction`.

    BLAS is avoided: its last bit depends on the processor and can change a colour by one level.
    """
    x, y, z = (vectors[:, axis] * direction[axis] for axis in range(3))
    return x + y + z


def _face(
    scene: Scene,
    surface: np.ndarray,
    rest: Float32[np.ndarray, "n 3"],
    lips: Float32[np.ndarray, " n"],
) -> Float32[np.ndarray, "n 3"]:
    """Colours of skin and eyes in [0, 255], from positions on the body in its rest pose."""
    person = scene.person
    marks = scene.anchors[len(scene.mesh.bone_names) :]
    skin = np.array(person.skin, np.float32)
    colour = np.tile(skin, (len(rest), 1))
    rosy = skin * np.array([1.0, 0.72, 0.72], np.float32)
    mouth = skin * np.array([0.86, 0.52, 0.55], np.float32)
    eye = (marks[2] * [1, 1, 1] + marks[5] * [-1, 1, 1]) / 2
    x, y, z = (rest - np.array([0, eye[1], eye[2]], np.float32)).T
    x = np.abs(x) - np.float32(eye[0])
    ahead = z > -0.35

    def blend(share: np.ndarray, to: np.ndarray) -> None:
        colour[:] = colour + np.clip(share, 0, 1).astype(np.float32)[:, None] * (to - colour)

    aside = ((x - 0.12) ** 2 + (y + 0.42) ** 2).astype(np.float64)
    cheek = np.exp(-aside / 0.06) * ahead
    blend(0.35 * cheek, rosy)
    blend(0.75 * lips, mouth)
    arch = 0.26 - 0.9 * (x - 0.02) ** 2
    brow = np.clip((0.055 - np.abs(y - arch)) / 0.025, 0, 1)
    brow = brow * np.clip((0.2 - np.abs(x - 0.03)) / 0.06, 0, 1)
    blend(0.8 * brow * ahead, np.array(person.hair, np.float32) * 0.75)
    lid = np.clip((0.25 - np.hypot(x, 1.6 * (y - 0.03))) / 0.08, 0, 1) * ahead
    blend(0.45 * lid, skin * np.float32(0.45))
    away = np.hypot(x, y)
    white = np.array([236, 232, 228], np.float32)
    iris = np.array(person.eyes, np.float32)
    ball = np.where((away < 0.085)[:, None], iris, white)
    ball = np.where((away < 0.04)[:, None], np.array([14, 12, 12], np.float32), ball)
    return np.where((surface == Surface.EYES)[:, None], ball, colour)


def _occlusion(depth: Float32[np.ndarray, "H W"]) -> Float[np.ndarray, " n"]:
    """Screen-space ambient occlusion: light kept, from the depth relative to the local mean."""
    covered = np.isfinite(depth)
    filled = np.where(covered, depth, 0)
    size = max(3, depth.shape[0] // 28)
    weight = cv2.blur(covered.astype(np.float32), (size, size))
    mean = cv2.blur(filled, (size, size)) / np.maximum(weight, 1e-6)
    behind = np.clip((filled - mean) * 0.55, 0, 0.35)
    return (1 - behind).reshape(-1)
