"""Recipes: numbers of the paper and validation."""

import json
from typing import Any

import pytest
import torch

from dreampose import config, recipes
from dreampose.errors import InputError


@pytest.mark.parametrize("name", ["catwalk", "sd14"])
def test_recipe_survives_json(name: str) -> None:
    recipe = recipes.recipe(name)
    copy = config.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))
    assert json.dumps(copy.to_dict()) == json.dumps(recipe.to_dict())
    assert copy.base_stage == recipe.base_stage


def test_sd14_is_the_paper() -> None:
    recipe = recipes.sd14()
    assert (recipe.height, recipe.width) == (640, 512)
    assert recipe.latent_size == (80, 64)
    assert recipe.unet_channels == 14
    assert recipe.vae["scaling_factor"] == 0.18215
    assert (recipe.pose_dropout, recipe.image_dropout, recipe.both_dropout) == (0.05, 0.05, 0.05)
    base = recipe.base_stage
    assert (base.learning_rate, base.num_epochs) == (5e-6, 5)
    assert base.batch_size * base.gradient_accumulation == 16


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_poses", 4, "num_poses must be odd and positive, got 4"),
        ("num_poses", 0, "num_poses must be odd and positive, got 0"),
        (
            "pose_detail",
            0,
            "pose_detail must be a divisor of 8, the side of a latent cell",
        ),
        (
            "pose_detail",
            3,
            "pose_detail must be a divisor of 8, the side of a latent cell",
        ),
        ("height", 100, "height must be a multiple of 8, got 100"),
    ],
)
def test_bad_recipe_is_rejected(field: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        config.replace(recipes.catwalk(), **{field: value})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((512, 500),), "width must be a multiple of 8, got 500"),
        (((640, 512),), "sizes must be distinct and differ from height and width, got 640x512"),
    ],
)
def test_bad_sizes_are_rejected(sizes: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        config.replace(recipes.sd14(), sizes=sizes)


def test_a_frame_goes_where_its_aspect_is_nearest() -> None:
    recipe = config.replace(recipes.sd14(), sizes=((512, 640), (320, 256), (576, 576)))
    assert recipe.size_for(1280, 1024) == (640, 512)
    assert recipe.size_for(1920, 1080) == (640, 512)
    assert recipe.size_for(1080, 1920) == (512, 640)
    assert recipe.size_for(700, 720) == (576, 576)
    # Of one aspect, the largest that need not be enlarged to; of a tiny frame, the smallest.
    assert recipe.size_for(400, 320) == (320, 256)
    assert recipe.size_for(100, 80) == (320, 256)
    assert recipe.at(512, 640).frame_sizes == ((512, 640),)


@pytest.mark.parametrize("name", ["catwalk", "sd14"])
def test_aspect_sizes_are_of_one_area_and_step(name: str) -> None:
    recipe = recipes.recipe(name)
    sizes = recipes.aspect_sizes(recipe)
    assert recipe.size_step == {"sd14": 64, "catwalk": 32}[name]
    assert (recipe.width, recipe.height) in sizes and (recipe.height, recipe.width) not in sizes
    for height, width in sizes:
        assert height % recipe.size_step == width % recipe.size_step == 0
        assert 0.5 <= height / width <= 2
        assert height * width == pytest.approx(recipe.height * recipe.width, rel=0.15)
    assert config.replace(recipe, sizes=sizes).frame_sizes[0] == (recipe.height, recipe.width)


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="one of catwalk, sd14 or a .json file, got 'sd15'"):
        recipes.recipe("sd15")


def test_tiny_recipe_is_tiny(tiny_recipe: config.Recipe) -> None:
    assert tiny_recipe.latent_size == (8, 6)
    assert tiny_recipe.num_poses == recipes.catwalk().num_poses


def test_shapes_are_checked_in_tests() -> None:
    """The suite relies on it: a wrong shape must fail at the call, not somewhere behind it."""
    from dreampose.io import video

    with pytest.raises(Exception, match="to_pixels"):
        video.to_pixels(torch.zeros(3, 8, 8))
