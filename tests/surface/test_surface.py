"""Warps against pictures with known colours."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dreampose.errors import InputError
from dreampose.poses import paint
from dreampose.surface import painted
from dreampose.surface.background import background
from dreampose.surface.maps import SurfaceMap, from_pose_maps
from dreampose.surface.texture import build
from dreampose.surface.warp import Layer, warp

HEIGHT, WIDTH = 80, 64
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
NOTHING = Layer(picture=GREY, confidence=np.ones((HEIGHT, WIDTH), np.float32))


def plane(transform, kind="atlas", chart=1):
    """A flat body part: place = transform @ (x, y, 1) where that lies in [0.1, 0.9]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    uv = np.stack([x, y, np.ones_like(x)], -1) @ np.asarray(transform, np.float32).T
    inside = ((uv > 0.1) & (uv < 0.9)).all(-1)
    uv = np.where(inside[..., None], uv, 0).astype(np.float32)
    return SurfaceMap(charts=(inside * chart).astype(np.uint8), uv=uv, kind=kind)


def coloured(surface):
    """Colours that change smoothly with the place, on grey."""
    u, v = np.moveaxis(surface.uv, -1, 0)
    waves = np.stack([np.sin(7 * u + 2 * v), np.cos(5 * v), np.sin(6 * (u - v))], -1)
    picture = 128 + 90 * waves
    return np.where(surface.body[..., None], np.rint(picture), 128).astype(np.uint8)


FRONT = [[0.014, 0, 0.05], [0, 0.012, 0.02]]


def test_a_photo_warped_onto_itself_is_unchanged():
    surface = plane(FRONT)
    photo = coloured(surface)
    found = warp([build(photo, surface)], surface, NOTHING)
    sure = found.body & (found.confidence > 0.9)
    assert sure.sum() > 0.7 * found.body.sum()
    assert np.abs(found.picture.astype(int) - photo)[sure].max() <= 1


@pytest.mark.parametrize("kind", ["atlas", "parts"])
def test_a_turned_and_scaled_body_shows_the_colours_of_its_places(kind):
    photo_map = plane(FRONT, kind=kind, chart=1)
    turned = [[0.011, 0.005, -0.04], [-0.004, 0.013, 0.11]]
    target = plane(turned, kind=kind, chart=1)
    found = warp([build(coloured(photo_map), photo_map)], target, NOTHING)
    truth = coloured(target)
    sure = found.confidence > 0.8
    sure &= found.body
    assert sure.sum() > 0.5 * found.body.sum()
    # Sub-pixel places: rounding to whole pixels would be off by up to six levels here.
    assert np.abs(found.picture.astype(int) - truth)[sure].mean() < 1.0


def test_the_index_finds_nearest_pixels_as_a_search_tree_does():
    random = np.random.default_rng(0)
    surface = plane([[0.013, 0.003, 0.02], [-0.002, 0.011, 0.04]])
    texture = build(coloured(surface), surface)
    tree = cKDTree(texture.places[surface.body.ravel()])
    places = random.uniform(0.2, 0.8, (500, 2)).astype(np.float32)
    exact, _ = tree.query(places)
    cells = (places * texture.index.shape[-1]).astype(int)
    pixels = texture.index[0, cells[:, 0], cells[:, 1]]
    away = np.linalg.norm(texture.places[pixels] - places, axis=1)
    # A cell is 1/512 wide, and pixels at the rim are not used.
    assert np.quantile(away - exact, 0.9) < 2.5 / 512


def test_what_no_photo_shows_has_no_confidence():
    surface = plane(FRONT)
    half = SurfaceMap(
        charts=np.where(surface.uv[..., 0] < 0.5, surface.charts, 0).astype(np.uint8),
        uv=np.where(surface.uv[..., :1] < 0.5, surface.uv, 0).astype(np.float32),
        kind="atlas",
    )
    found = warp([build(coloured(half), half)], surface, NOTHING)
    u = surface.uv[..., 0]
    assert found.confidence[surface.body & (u > 0.62)].max() < 0.05
    assert found.confidence[surface.body & (u > 0.2) & (u < 0.45)].mean() > 0.85


def test_the_background_never_gets_onto_the_body():
    surface = plane(FRONT)
    body = np.repeat(np.where(surface.body[..., None], 250, 0), 3, axis=-1).astype(np.uint8)
    wide = SurfaceMap(
        charts=np.ones_like(surface.charts),
        uv=np.clip(
            np.stack(np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT)), -1), 0, 1
        ).astype(np.float32),
        kind="atlas",
    )
    found = warp([build(body, surface)], wide, NOTHING)
    assert found.picture.min() >= 245


def test_of_two_photos_each_place_comes_from_the_one_that_shows_it():
    surface = plane(FRONT)
    photo = coloured(surface)
    textures = []
    for left in (True, False):
        seen = surface.uv[..., 0] < 0.55 if left else surface.uv[..., 0] > 0.45
        part = SurfaceMap(
            charts=np.where(seen, surface.charts, 0).astype(np.uint8),
            uv=np.where(seen[..., None], surface.uv, 0).astype(np.float32),
            kind="atlas",
        )
        textures.append(build(np.where(part.body[..., None], photo, 0).astype(np.uint8), part))
    found = warp(textures, surface, NOTHING)
    sure = found.body & (found.confidence > 0.8)
    assert sure.sum() > 0.7 * found.body.sum()
    assert np.abs(found.picture.astype(int) - photo)[sure].mean() < 1.5


def test_outside_of_the_body_the_warp_is_the_background():
    surface = plane(FRONT)
    layer = Layer(picture=GREY, confidence=np.full((HEIGHT, WIDTH), 0.3, np.float32))
    found = warp([build(coloured(surface), surface)], surface, layer)
    assert np.array_equal(found.picture[~surface.body], GREY[~surface.body])
    assert np.allclose(found.confidence[~surface.body], 0.3)


def test_an_empty_target_is_the_background():
    surface = plane(FRONT)
    nobody = SurfaceMap(
        charts=np.zeros((HEIGHT, WIDTH), np.uint8),
        uv=np.zeros((HEIGHT, WIDTH, 2), np.float32),
        kind="atlas",
    )
    found = warp([build(coloured(surface), surface)], nobody, NOTHING)
    assert np.array_equal(found.picture, GREY)


def test_the_person_is_taken_out_of_the_background():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ramp = np.stack([40 + 2 * y, 60 + x, np.full_like(x, 90)], -1).astype(np.uint8)
    body = np.zeros((HEIGHT, WIDTH), bool)
    body[20:70, 24:40] = True
    photo = np.where(body[..., None], np.array([255, 0, 0], np.uint8), ramp)
    found = background(photo, body)
    error = np.abs(found.picture.astype(int) - ramp)
    assert error[~body].mean() < 1
    assert error.mean() < 5
    assert found.confidence[body].max() < 0.35
    assert found.confidence[:10].min() == 1


def test_places_of_parts_need_the_parts():
    maps = np.zeros((2, 8, 8), np.float32)
    with pytest.raises(InputError, match="U and V alone"):
        from_pose_maps(maps)
    maps = np.zeros((3, 8, 8), np.float32)
    maps[:, 2:5, 2:5] = np.array([15 / 24, 0.3, 0.6], np.float32)[:, None, None]
    found = from_pose_maps(maps)
    assert set(np.unique(found.charts)) == {0, 15}
    assert np.allclose(found.uv[3, 3], [0.3, 0.6])


def test_painted_limbs_cover_what_the_pose_maps_cover(walker):
    maps = paint(walker, 160, 128)
    for index in range(len(walker)):
        size = float(painted.body_sizes(walker)[index])
        found = painted.paint(walker[index], size, 160, 128)
        limbs = found.body & ~found.margin
        assert np.array_equal(limbs, (maps[index] > 0).any(0))
        assert found.margin.sum() > 0.1 * limbs.sum()
        assert found.uv.min() >= 0
        assert found.uv.max() <= 1


def test_a_painted_limb_comes_back_from_its_own_photo(walker):
    surface = painted.paint(walker[0], float(painted.body_sizes(walker)[0]), 160, 128)
    random = np.random.default_rng(1)
    photo = np.kron(random.integers(0, 255, (20, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    layer = Layer(picture=np.zeros_like(photo), confidence=np.ones((160, 128), np.float32))
    found = warp([build(photo, surface)], surface, layer)
    sure = found.body & (found.confidence > 0.7)
    assert sure.sum() > 0.5 * (found.body & ~surface.margin).sum()
    assert np.abs(found.picture.astype(int) - photo)[sure].mean() < 3


def test_cloth_beyond_a_limb_comes_along_where_the_photo_shows_it(walker):
    surface = painted.paint(walker[0], float(painted.body_sizes(walker)[0]), 160, 128)
    photo = np.full((160, 128, 3), 10, np.uint8)
    mask = surface.body & ~surface.margin
    wide = mask | (surface.margin & (surface.uv[..., 1] < 0.18))
    photo[wide] = 200
    layer = Layer(picture=np.full_like(photo, 10), confidence=np.ones((160, 128), np.float32))
    narrow_warp = warp([build(photo, surface, mask)], surface, layer)
    wide_warp = warp([build(photo, surface, wide)], surface, layer)
    assert not (narrow_warp.body & surface.margin).any()
    kept = wide_warp.body & surface.margin
    assert (kept & wide).sum() > 0.6 * (wide & surface.margin).sum()
    assert (kept & ~wide).sum() < 0.35 * kept.sum()
