"""Image tokens, null conditions, dropout."""

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from dreampose import checkpoints
from dreampose.config import replace
from dreampose.errors import InputError
from dreampose.models.adapter import (
    ImageAdapter,
    clip_tokens,
    drop_conditions,
    null_conditions,
    patch_means,
    pose_condition,
)
from dreampose.types import Conditions


@pytest.fixture
def conditions():
    return Conditions(tokens=torch.rand(4, 5, 16) + 1, poses=torch.rand(4, 10, 8, 6) + 1)


@pytest.fixture(scope="module")
def encoder():
    """A small encoder that sees CLIP's own 224 pixels."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return CLIPVisionModel(CLIPVisionConfig(image_size=224, num_hidden_layers=1, **sizes)).eval()


def seen(encoder, photo, **options):
    """The pixels that the encoder is given for a photo."""
    inputs = []
    handle = encoder.register_forward_pre_hook(lambda _, args: inputs.extend(args))
    with torch.no_grad():
        clip_tokens(encoder, photo, **options)
    handle.remove()
    return inputs[0]


def test_square_photo_is_preprocessed_as_clip_does(encoder):
    array = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    array = array.repeat_interleave(40, 1).repeat_interleave(40, 2)
    expected = CLIPImageProcessor()(array.permute(1, 2, 0).numpy(), return_tensors="pt")
    actual = seen(encoder, array[None].float() / 127.5 - 1)
    # PIL rounds to 8 bits after each resampling pass.
    assert (actual - expected["pixel_values"]).abs().max() < 0.05


def test_letterbox_keeps_head_and_feet_and_crop_does_not(encoder):
    photo = torch.zeros(1, 3, 320, 256)
    photo[..., :8, :], photo[..., -8:, :] = 1, -1
    column = seen(encoder, photo, fit="letterbox")[0, 0, :, 112]
    assert column[0] > column[112] + 1 > column[-1] + 2
    assert seen(encoder, photo, fit="crop")[0, 0].std() < 1e-5


@pytest.mark.parametrize("size", [(8, 6), (16, 12), (6, 8), (9, 13), (4, 20)])
def test_each_weight_of_the_adapter_keeps_its_place_in_frames_of_any_size(size):
    adapter = ImageAdapter(
        num_tokens=1, token_width=1, latent_channels=1, latent_height=8, latent_width=6
    )
    with torch.no_grad():
        adapter.project.bias.zero_()
        adapter.mix.weight.copy_(torch.tensor([[0.0, 1.0]]))
        # Reads the mean of the grid's left column alone, of 4x3 cells.
        adapter.project.weight.zero_()
        adapter.project.weight[0, [0, 3, 6, 9]] = 0.25
    tokens = torch.zeros(1, 1, 1)
    assert adapter(tokens, torch.full((1, 1, *size), 0.7)).item() == pytest.approx(0.7)
    left = torch.zeros(1, 1, *size)
    left[..., : size[1] // 2] = 1.0
    assert adapter(tokens, left).item() > 0.99
    assert adapter(tokens, left.flip(-1)).item() < 0.01


def test_letterbox_bars_continue_the_border(encoder):
    assert seen(encoder, torch.full((1, 3, 320, 256), 0.5))[0, 0].std() < 1e-5


def test_maps_are_averaged_over_the_patch_of_each_token():
    maps = torch.arange(48.0).reshape(1, 1, 8, 6)
    means, share = patch_means(maps, "letterbox", 16)
    # Eight by eight cells with one of margin on either side, two by two cells a token.
    assert share.tolist() == [0.5, 1, 1, 0.5] * 4
    grid = maps[0, 0]
    assert means[0, 0, 0] == grid[0:2, 0].mean()
    assert means[0, 5, 0] == grid[2:4, 1:3].mean()
    assert means[0, 15, 0] == grid[6:8, 5].mean()
    means, share = patch_means(maps, "crop", 9)
    assert share.tolist() == [1.0] * 9
    assert means[0, 0, 0] == grid[1:3, 0:2].mean()


def test_tokens_are_differentiable(tiny_pipeline):
    photo = torch.zeros(1, 3, 64, 48, requires_grad=True)
    clip_tokens(tiny_pipeline.image_encoder, photo).sum().backward()
    assert photo.grad.abs().sum() > 0


def test_unknown_fit_is_rejected(tiny_pipeline):
    with pytest.raises(InputError, match=r"photo_fit must be .* got 'stretch'"):
        clip_tokens(tiny_pipeline.image_encoder, torch.zeros(1, 3, 64, 48), fit="stretch")


def test_pose_window_becomes_channels_in_order():
    windows = torch.arange(5)[None, :, None, None, None] * 10.0 + torch.arange(2)[:, None, None]
    joined = pose_condition(windows.expand(1, 5, 2, 8, 6))
    assert joined[0, :, 0, 0].tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]


@pytest.mark.parametrize("photo_latents", [True, False])
def test_photo_latents_have_an_effect_if_the_recipe_uses_them(tiny_recipe, photo_latents, tmp_path):
    recipe = replace(tiny_recipe, photo_latents=photo_latents)
    pipe = checkpoints.build(recipe)
    tokens, latents = torch.rand(1, 5, 16), torch.rand(2, 1, 8, 8, 6)
    assert torch.equal(pipe.adapter(tokens, latents[0]), tokens), "training starts at CLIP alone"
    torch.nn.init.normal_(pipe.adapter.mix.weight)
    checkpoints.save(pipe, tmp_path / "model", dtype=None)
    loaded = checkpoints.load(tmp_path / "model")
    first, second = (loaded.adapter(tokens, each) for each in latents)
    assert torch.equal(first, second) != photo_latents
    assert loaded.recipe.photo_latents == photo_latents


def test_null_conditions_are_zeros(conditions):
    both, image = null_conditions(conditions), null_conditions(conditions, pose=False)
    assert both.tokens.abs().sum() + both.poses.abs().sum() == 0
    assert torch.equal(image.poses, conditions.poses)
    assert image.tokens.abs().sum() == 0


def test_dropout_is_drawn_for_each_sample():
    many = Conditions(tokens=torch.ones(20_000, 1, 1), poses=torch.ones(20_000, 2, 1, 1))
    generator = torch.Generator().manual_seed(0)
    dropped = drop_conditions(many, generator, pose=0.05, image=0.10, both=0.15)
    image, pose = dropped.tokens[:, 0, 0] == 0, dropped.poses[:, 0, 0, 0] == 0
    assert abs((pose & ~image).float().mean() - 0.05) < 0.01
    assert abs((image & ~pose).float().mean() - 0.10) < 0.01
    assert abs((image & pose).float().mean() - 0.15) < 0.01
    assert torch.equal(dropped.poses[:, 0], dropped.poses[:, 1])


def test_dropout_repeats_with_its_generator_and_can_be_off(conditions):
    def drop(seed, rate):
        generator = torch.Generator().manual_seed(seed)
        return drop_conditions(conditions, generator, pose=rate, image=rate, both=rate)

    assert torch.equal(drop(1, 0.3).tokens, drop(1, 0.3).tokens)
    assert torch.equal(drop(1, 0.0).tokens, conditions.tokens)
