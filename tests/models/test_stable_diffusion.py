"""Stable Diffusion in all supported formats, and errors."""

import shutil

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from dreampose.errors import InputError
from dreampose.io import hub
from dreampose.models import stable_diffusion as bases
from tests.test_convert import old_names, same

STEM = "diffusion_pytorch_model"
PARTS = ("unet", "vae")


@pytest.fixture(scope="module")
def states(sd_folder):
    return {part: load_file(sd_folder / part / f"{STEM}.safetensors") for part in PARTS}


@pytest.fixture
def folder(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "sd")


def rewritten(folder, write):
    for part in PARTS:
        path = folder / part / f"{STEM}.safetensors"
        state = load_file(path)
        path.unlink()
        write(part, folder / part, state)


def as_bin(part, folder, state):
    torch.save(state, folder / f"{STEM}.bin")


def as_half(part, folder, state):
    save_file(
        {key: value.half() for key, value in state.items()}, folder / f"{STEM}.fp16.safetensors"
    )


def as_shards(part, folder, state):
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    module = kind.from_config(kind.load_config(folder))
    module.load_state_dict(state)
    module.save_pretrained(folder, max_shard_size="20KB")
    assert len([*folder.glob("*-of-*.safetensors")]) > 1


def as_first_release(part, folder, state):
    torch.save(old_names(state) if part == "vae" else state, folder / f"{STEM}.bin")


@pytest.mark.parametrize("write", [as_bin, as_half, as_shards, as_first_release])
def test_every_folder_gives_the_same_tensors(folder, states, write):
    rewritten(folder, write)
    found = bases.read(folder)
    for part, state in states.items():
        if write is as_half:
            state = {key: value.half().float() for key, value in state.items()}
        same(getattr(found, part), state)
    assert found.scheduler["beta_end"] == 0.012


def test_full_precision_comes_before_half(folder, states):
    as_half("unet", folder / "unet", {k: v + 1 for k, v in states["unet"].items()})
    same(bases.read(folder).unet, states["unet"])


def ldm_unet(key, layers=1):
    """The original code's name of a tensor of a diffusers UNet."""
    head, _, rest = key.partition(".")
    resnet = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    plain = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    if head == "time_embedding":
        return rest.replace("linear_1", "time_embed.0").replace("linear_2", "time_embed.2")
    if head in plain:
        return f"{plain[head]}.{rest}"
    if head == "mid_block":
        kind, index, rest = rest.split(".", 2)
        index, kind_is_resnet = int(index), kind == "resnets"
        place = f"middle_block.{2 * index if kind_is_resnet else 2 * index + 1}"
    else:
        block, kind, index, rest = rest.split(".", 3)
        block, index, kind_is_resnet = int(block), int(index), kind == "resnets"
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            after_attention = 1 if block == 0 else 2
            return f"output_blocks.{(layers + 1) * block + layers}.{after_attention}.{rest}"
        number = (layers + 1) * block + index
        place = f"output_blocks.{number}"
        if head == "down_blocks":
            place = f"input_blocks.{number + 1}"
        place += ".0" if kind_is_resnet else ".1"
    if kind_is_resnet:
        first, _, last = rest.partition(".")
        rest = f"{resnet[first]}.{last}"
    return f"{place}.{rest}"


def ldm_vae(key, levels=4):
    """The same of a VAE."""
    words = [("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
             ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("resnets", "block"),
             ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"),
             ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("down_blocks", "down"),
             ("mid_block.block.0", "mid.block_1"),
             ("mid_block.block.1", "mid.block_2")]  # fmt: skip
    for level in range(levels):
        key = key.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
    for ours, theirs in words:
        key = key.replace(ours, theirs)
    return key


def original(states):
    """One dict in the original code's layout, as Stable Diffusion was released."""
    values = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in states["unet"].items()}
    for key, value in states["vae"].items():
        if "attentions" in key and value.ndim == 2:
            value = value[:, :, None, None]
        values[f"first_stage_model.{ldm_vae(key)}"] = value
    return {**values, "cond_stage_model.transformer.text_model.x": torch.zeros(1)}


@pytest.mark.parametrize("end", [".safetensors", ".ckpt"])
def test_single_files(sd_folder, states, tmp_path, end):
    path = tmp_path / f"v1-5-pruned{end}"
    if end == ".ckpt":
        torch.save({"state_dict": original(states), "global_step": 7}, path)
    else:
        save_file({k: v.half().contiguous() for k, v in original(states).items()}, path)
    found = bases.read(path, sd_folder / "image_encoder", config=sd_folder)
    for part, state in states.items():
        if end != ".ckpt":
            state = {key: value.half().float() for key, value in state.items()}
        same(getattr(found, part), state)
    with pytest.raises(InputError, match="base vae must hold the"):
        bases.read(path, sd_folder / "image_encoder")  # at the sizes of Stable Diffusion 1.x


def test_a_single_files_sizes_from_the_yaml_beside_it(sd_folder, tmp_path):
    """The original code's configuration, for 32 and 64 channels."""
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32), layers_per_block=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    values = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in unet.state_dict().items()}
    values |= {f"first_stage_model.{ldm_vae(k, levels=2)}": v for k, v in vae.state_dict().items()}
    torch.save(values, tmp_path / "small.ckpt")
    network = {"model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1, "num_heads": 2,
               "attention_resolutions": [1], "transformer_depth": 1, "context_dim": 16,
               "in_channels": 4, "out_channels": 4}  # fmt: skip
    pictures = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 4,
                "in_channels": 3, "out_ch": 3}  # fmt: skip
    params = {"unet_config": {"params": network}, "scale_factor": 0.2,
              "first_stage_config": {"params": {"ddconfig": pictures}}}  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    found = bases.read(tmp_path / "small.ckpt", sd_folder / "image_encoder")
    same(found.unet, unet.state_dict())
    same(found.vae, vae.state_dict())
    assert found.vae.config.scaling_factor == 0.2
    assert bases.recipe_of(found).vae["scaling_factor"] == 0.2


@pytest.mark.parametrize("safe", [True, False])
def test_clip_with_its_text_half(folder, tmp_path, safe):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    text = {**sizes, "vocab_size": 10, "max_position_embeddings": 4}
    both = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**text).to_dict(),
                                vision_config=CLIPVisionConfig(**vision).to_dict()))  # fmt: skip
    both.save_pretrained(tmp_path / "clip")
    if not safe:
        state = load_file(tmp_path / "clip" / "model.safetensors")
        torch.save(state, tmp_path / "clip" / "pytorch_model.bin")
        (tmp_path / "clip" / "model.safetensors").unlink()
    found = bases.read(folder, tmp_path / "clip").image_encoder
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = both.eval().vision_model(pixels).last_hidden_state
        assert torch.equal(found(pixels).last_hidden_state, expected)


def test_a_hub_id_is_fetched_at_its_pinned_revision(sd_folder, monkeypatch):
    asked = []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision))
        return str(sd_folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    name = "CompVis/stable-diffusion-v1-4"
    found = bases.read(name)
    assert found.source.startswith(f"{name}@ebb811dd")
    bases.read(name, revision="abc")
    assert asked == [(name, hub.PINNED[name]), (name, "abc")]


def test_what_is_missing_is_named(folder, tmp_path, sd_folder):
    def refusal(match, *args, **options):
        with pytest.raises(InputError, match=match) as error:
            bases.read(*args, **options)
        assert "\n" not in str(error.value)

    refusal(
        "pass a folder with unet/config.json, unet/diffusion_pytorch_model.safetensors",
        "CompVis/stable-diffusion-v1-4",
    )
    refusal("base must be an existing folder or file, or a hub id", tmp_path / "no such thing")
    shutil.rmtree(folder / "image_encoder")
    refusal(
        "image_encoder must be a folder .*, pass a folder with config.json and model.safet", folder
    )
    encoder = sd_folder / "image_encoder"
    (folder / "vae" / "config.json").rename(folder / "vae" / "old.json")
    refusal("base vae must have a readable config.json", folder, encoder)
    (folder / "vae" / "old.json").rename(folder / "vae" / "config.json")
    (folder / "unet" / f"{STEM}.safetensors").rename(folder / "unet" / "other.safetensors")
    refusal("base unet must be weights in .*, got none in", folder, encoder)
    file = folder / "unet" / "other.safetensors"
    refusal("Stable Diffusion file with tensors named model.diffusion_model", file, encoder)
    broken = {k: v for k, v in load_file(encoder / "model.safetensors").items() if "fc1" not in k}
    shutil.copytree(encoder, tmp_path / "clip")
    save_file(broken, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    refusal(
        "image_encoder must hold every tensor .* got 2 missing: .*fc1", sd_folder, tmp_path / "clip"
    )


def test_parts_that_do_not_belong_together(sd_folder, sd_recipe, folder, tmp_path):
    from transformers import CLIPVisionModel

    wide = {**sd_recipe.image_encoder, "hidden_size": 24}
    CLIPVisionModel(CLIPVisionConfig(**wide)).save_pretrained(tmp_path / "wide")
    with pytest.raises(
        InputError, match="image_encoder must have the width 16, .*, got 24 of wide"
    ):
        bases.read(sd_folder, tmp_path / "wide")
    UNet2DConditionModel(**{**sd_recipe.unet, "in_channels": 9}).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match="unet has 4 input channels, got 9"):
        bases.read(folder)
