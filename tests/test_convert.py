"""Import of the published checkpoints."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreampose import checkpoints, config, convert, recipes
from dreampose.__main__ import main
from dreampose.diffusion import generation
from dreampose.errors import InputError, PoseKindWarning, SubjectMismatchWarning
from dreampose.models import subject
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses import Motion

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(state, *, convolutions=False):
    """A VAE's state dict as diffusers wrote it until 2023, or with 1x1 convolutions before that."""
    renamed = {}
    for key, value in state.items():
        for new, old in OLD_ATTENTION.items():
            if f"mid_block.attentions.0.{new}." in key:
                key = key.replace(f".{new}.", f".{old}.")
                if convolutions and key.endswith("weight"):
                    value = value[:, :, None, None]
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def trio(sd_folder, sd_recipe):
    """State dicts in the published layout, with random numbers in the paper's shapes at this size.

    The UNet has the base's names and 14 input channels. The adapter is written from the paper:
    5 CLIP tokens of width 16, 4 latent tokens of (80/16) (64/16) cells.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    def random(state):
        return {key: torch.randn_like(value) for key, value in state.items()}

    unet = random(UNet2DConditionModel(**sd_recipe.unet).state_dict())
    width = unet["conv_in.weight"].shape[0]
    unet["conv_in.weight"] = torch.randn(width, 4 + 2 * 5, 3, 3)
    adapter = {
        "vae2clip.weight": torch.randn(16, 20),
        "vae2clip.bias": torch.randn(16),
        "linear1.weight": torch.randn(5, 5 + 4),
        "linear1.bias": torch.randn(5),
    }
    return {
        "unet": unet,
        "adapter": adapter,
        "vae": random(AutoencoderKL(**sd_recipe.vae).state_dict()),
    }


NAMES = {"unet": "unet_epoch_20.pth", "adapter": "adapter_20.pth", "vae": "vae_1499.pth"}


def write(folder: Path, trio, *, prefix="", vae=lambda state: state):
    """The three files, and the flags that name them."""
    files = {}
    for name, state in trio.items():
        state = vae(state) if name == "vae" else state
        torch.save({prefix + key: value for key, value in state.items()}, folder / NAMES[name])
        files[name] = folder / NAMES[name]
    return files


def same(module, state):
    loaded = module.state_dict()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("form", ["new", "old", "oldest"])
def test_every_layout_loads_to_the_same_tensors(sd_folder, trio, tmp_path, prefix, form):
    forms = {
        "new": lambda state: state,
        "old": old_names,
        "oldest": lambda state: old_names(state, convolutions=True),
    }
    files = write(tmp_path, trio, prefix=prefix, vae=forms[form])
    pipe, source = convert.import_model(sd_folder, **files)
    assert "sd" in source
    same(pipe.unet, trio["unet"])
    same(pipe.vae, trio["vae"])
    ours = {"vae2clip.": "project.", "linear1.": "mix."}
    same(
        pipe.adapter,
        {
            ours[key[: key.index(".") + 1]] + key.split(".")[1]: v
            for key, v in trio["adapter"].items()
        },
    )


def test_the_command_writes_a_model_with_the_quirks_of_its_weights(
    sd_folder, trio, tmp_path, capsys
):
    files = write(tmp_path, trio)
    flags = [f"--{name}={path}" for name, path in files.items()]
    out = tmp_path / "model"
    command = ["import", *flags, f"--base={sd_folder}", f"--out={out}"]
    assert main(command) == 0, capsys.readouterr().err
    recipe = checkpoints.load(out).recipe
    assert (recipe.height, recipe.width) == (80, 64), "5:4 and 20 cells are 80x64"
    assert recipe.image_range == recipe.pose_range == (-1.0, 1.0)
    assert recipe.pose_kind == "densepose"
    assert recipe.photo_fit == "crop"
    assert recipe.null_image == "black"
    assert recipe.pose_resize == "nearest"
    assert recipes.recipe(out / "model_index.json") == recipe
    same(checkpoints.load(out).vae, {k: v.half().float() for k, v in trio["vae"].items()})
    assert "unet_epoch_20.pth, sha256 " in (out / "README.md").read_text()
    assert main(command) == 2
    assert "out must be a new folder" in capsys.readouterr().err


def test_the_base_alone_is_the_papers_start(sd_folder, sd_recipe, tmp_path):
    out = tmp_path / "start"
    assert main(["import", f"--base={sd_folder}", f"--out={out}", "--height=80", "--width=64"]) == 0
    pipe = checkpoints.load(out)
    assert pipe.recipe.image_range == (-1.0, 1.0)
    assert pipe.recipe.photo_fit == "letterbox"
    assert not pipe.unet.conv_in.weight[:, 4:].any()
    assert torch.equal(pipe.adapter.mix.weight, torch.eye(5, 9))
    assert pipe.recipe.vae == sd_recipe.vae
    assert {**sd_recipe.unet, **pipe.recipe.unet} == {**pipe.recipe.unet, **sd_recipe.unet}


CORRUPTIONS = {
    "missing": (
        "unet",
        lambda state: state.pop("mid_block.resnets.0.conv1.bias"),
        ["unet must hold", "1 missing: mid_block.resnets.0.conv1.bias in", "unet_epoch_20.pth"],
    ),
    "unknown": (
        "vae",
        lambda state: state.update({"decoder.more.weight": torch.zeros(1)}),
        ["vae must hold", "1 unknown: decoder.more.weight in", "vae_1499.pth"],
    ),
    "shape": (
        "adapter",
        lambda state: state.update({"linear1.weight": torch.zeros(5, 8)}),
        ["adapter must hold the 4 tensors", "1 of another shape: mix.weight 5x8 instead of 5x9"],
    ),
    "all three": (
        "unet",
        lambda state: state.update(
            {"conv_in.weight": torch.zeros(8, 4, 3, 3), "x": state.pop("conv_out.bias")}
        ),
        ["1 missing: conv_out.bias; 1 unknown: x; 1 of another shape: conv_in.weight 8x4x3x3 "
         "instead of 8x14x3x3 in"],
    ),
    "not a number": (
        "vae",
        lambda state: state["decoder.conv_in.bias"].fill_(float("nan")),
        ["vae must hold", "1 not finite: decoder.conv_in.bias in"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_what_is_wrong_is_named_and_nothing_is_written(
    sd_folder, trio, tmp_path, capsys, corruption
):
    name, corrupt, said = CORRUPTIONS[corruption]
    broken = {part: {k: v.clone() for k, v in state.items()} for part, state in trio.items()}
    corrupt(broken[name])
    files = write(tmp_path, broken)
    flags = [f"--{part}={path}" for part, path in files.items()]
    out = tmp_path / "model"
    assert main(["import", *flags, f"--base={sd_folder}", f"--out={out}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for words in said:
        assert words in line
    assert not out.exists()


def test_files_that_are_no_weights(sd_folder, trio, tmp_path):
    files = write(tmp_path, trio)

    def refusal(match, **changed):
        with pytest.raises(InputError, match=match):
            convert.import_model(sd_folder, **{**files, **changed})

    refusal("given together", adapter=None)
    refusal("unet must be an existing file", unet=tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("nothing")
    refusal("vae must be a file of tensors alone", vae=tmp_path / "text.pth")
    files["vae"].write_bytes(files["vae"].read_bytes()[:-1000])
    refusal("vae must be a file of tensors alone")
    torch.save({"x": torch.zeros(1), "y": "text"}, tmp_path / "mixed.pth")
    refusal(
        "vae must hold tensors alone, got a value of type str named 'y'", vae=tmp_path / "mixed.pth"
    )


def test_code_in_a_pickle_is_not_run(sd_folder, trio, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    files = write(tmp_path, trio)
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="vae must be a file of tensors alone"):
        convert.import_model(sd_folder, **{**files, "vae": tmp_path / "evil.pth"})
    assert not (tmp_path / "ran").exists()


def test_an_adapter_of_another_size_asks_for_that_size(sd_folder, trio, tmp_path):
    other = {**trio, "adapter": {**trio["adapter"], "vae2clip.weight": torch.randn(16, 6)}}
    files = write(tmp_path, other)
    with pytest.raises(InputError, match="project.weight 16x6 instead of 16x1280"):
        convert.import_model(sd_folder, **files)
    pipe, _ = convert.import_model(sd_folder, **files, height=48, width=32)
    assert pipe.recipe.latent_size == (6, 4)


def test_older_recipes_load_without_the_new_fields(sd_recipe):
    values = json.loads(json.dumps(sd_recipe.to_dict()))
    new = ("image_range", "pose_range", "pose_resize", "null_image", "lora_rank", "lora_targets",
           "lora_learning_rate")  # fmt: skip
    for name in new:
        values.pop(name)
    assert config.Recipe.from_dict(values) == config.replace(
        sd_recipe, lora_rank=4, lora_learning_rate=1e-4
    )


def test_the_range_is_measured_and_said_in_one_line(sd_folder, trio, tmp_path, capsys):
    files = write(tmp_path, trio)
    flags = [f"--{name}={path}" for name, path in files.items()]
    words = ["import", f"--base={sd_folder}", *flags, f"--out={tmp_path / 'model'}"]
    assert main(words) == 0
    made, measured = capsys.readouterr().out.splitlines()
    assert "image range -1 to 1, pose range -1 to 1" in made
    found = re.fullmatch(
        r"denoising loss on a rendered person: (\S+) in \[-1, 1\], (\S+) in \[0, 1\]; (\[.*?\]) "
        r"fits these weights better(: import them again with --image-range 0 1 --pose-ran.*)?",
        measured,
    )
    released, later = float(found[1]), float(found[2])
    assert found[3] == ("[-1, 1]" if released < later else "[0, 1]")
    assert bool(found[4]) == (later < released)
    words[-1] = f"--out={tmp_path / 'other'}"
    assert main([*words, "--no-measure", "--image-range", "0", "1", "--pose-range", "0", "1"]) == 0
    (made,) = capsys.readouterr().out.splitlines()
    assert "image range 0 to 1, pose range 0 to 1" in made


def test_imports_with_other_conventions_have_other_fingerprints(sd_folder, trio, tmp_path):
    files = write(tmp_path, trio)
    released, _ = convert.import_model(sd_folder, **files)
    later, _ = convert.import_model(sd_folder, **files, image_range=(0.0, 1.0))
    prints = {checkpoints.fingerprint(pipe) for pipe in (released, later)}
    assert len(prints) == 2
    photo = np.zeros((80, 64, 3), np.uint8)
    info = subject.describe_subject(released, "anna", [photo])
    subject.save_subject(tmp_path / "anna", released, info)
    subject.subject_modules(released, tmp_path / "anna")
    with pytest.raises(InputError, match="must be finetuned from this base model"):
        subject.subject_modules(later, tmp_path / "anna")
    old = replace(info, base=subject.fingerprint(released, conventions=()))
    subject.save_subject(tmp_path / "old", released, old)
    with pytest.warns(SubjectMismatchWarning, match="before the range and fit"):
        subject.subject_modules(released, tmp_path / "old")


def test_conventions_of_this_package_leave_fingerprints_as_they_were(tiny_pipeline):
    plain = subject.fingerprint(tiny_pipeline)
    assert plain == subject.fingerprint(tiny_pipeline, conventions=())
    for name, value in {
        "pose_kind": "painted",
        "frame_fit": "stretch",
        "photo_fit": "crop",
    }.items():
        recipe = config.replace(tiny_pipeline.recipe, **{name: value})
        changed = DreamPosePipeline(**tiny_pipeline.components, recipe=recipe.to_dict())
        assert subject.fingerprint(changed) != plain, name


def test_painted_poses_with_weights_of_densepose_are_warned_of(tiny_pipeline):
    recipe = config.replace(tiny_pipeline.recipe, pose_kind="densepose")
    pipe = DreamPosePipeline(**tiny_pipeline.components, recipe=recipe.to_dict())
    maps = np.zeros((5, 2, 64, 48), np.float32)
    motion = Motion(
        maps=maps,
        joints=np.zeros((5, 3, 4), np.float32),
        confidence=np.ones(5, np.float32),
        fps=10.0,
        estimator="blazepose",
        painted=True,
    )
    photo = np.zeros((64, 48, 3), np.uint8)
    with pytest.warns(PoseKindWarning, match="trained with DensePose maps.*blazepose"):
        generation.prepare(pipe, [photo], motion, num_inference_steps=2, align=False)
    exact = replace(motion, painted=False, estimator="densepose")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PoseKindWarning)
        generation.prepare(pipe, [photo], exact, num_inference_steps=2, align=False)
        generation.prepare(tiny_pipeline, [photo], motion, num_inference_steps=2, align=False)
