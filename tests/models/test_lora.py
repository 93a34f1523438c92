"""LoRA weights: injection, merging, and files."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreampose import checkpoints, recipes
from dreampose.errors import InputError
from dreampose.models import lora, subject
from dreampose.models.unet import Denoiser
from dreampose.types import Conditions
from tests.models.test_subject import ANNA

TARGETS = recipes.catwalk().lora_targets


def predict(pipe):
    """What UNet and adapter make of fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 8, 6, generator=generator)
    tokens, poses = (torch.randn(*s, generator=generator) for s in ((2, 5, 16), (2, 10, 8, 6)))
    with torch.no_grad():
        tokens = pipe.adapter(tokens.to(pipe.adapter.dtype), x)
        conditions = Conditions(tokens=tokens, poses=poses)
        return Denoiser(unet=pipe.unet)(x, torch.tensor(500), conditions)


def same(actual, expected):
    """Equal but for the rounding of kernels, which depends on where in memory their inputs lie."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


def updated(pipe, *, seed, rank=2, targets=TARGETS):
    """Copies of UNet and adapter with updates that change much."""
    modules = {name: lora.copy_sharing_weights(getattr(pipe, name)) for name in ("unet", "adapter")}
    lora.add_lora(modules, rank=rank, targets=targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3, generator=generator)
    return modules


def make_subject(folder, pipe, name, seed, **options):
    info = subject.describe_subject(pipe, name, [ANNA], method="lora", rank=2)
    tuned = copy.copy(pipe)
    tuned.unet, tuned.adapter = updated(pipe, seed=seed, **options).values()
    subject.save_subject(folder, tuned, info, components=("unet", "adapter"))
    return tuned


def test_new_lora_layers_keep_outputs_and_are_the_only_ones_trained(tiny_pipeline):
    before = predict(tiny_pipeline)
    modules = {
        name: lora.copy_sharing_weights(getattr(tiny_pipeline, name))
        for name in ("unet", "adapter")
    }
    lora.add_lora(modules, rank=3, targets=TARGETS)
    fresh = copy.copy(tiny_pipeline)
    fresh.unet, fresh.adapter = modules.values()
    same(predict(fresh), before)
    for module in modules.values():
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        assert trained == {name for name, _ in module.named_parameters() if ".lora_" in name}
    assert {"mix", "project"} == {
        name.split(".")[0] for name, p in modules["adapter"].named_parameters() if p.requires_grad
    }
    assert all(p.requires_grad for p in tiny_pipeline.unet.parameters()), "the base's flags"


def test_w_plus_b_a_written_out(tiny_pipeline):
    """The update of one layer against the paper's own formula (arXiv 2106.09685)."""
    modules = updated(tiny_pipeline, seed=3)
    base, layer = tiny_pipeline.adapter.project, modules["adapter"].project
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(7, base.in_features)
    expected = x @ (base.weight + b @ a).T + base.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    merged = lora.merge(modules["adapter"])
    assert not lora.has_lora(merged)
    torch.testing.assert_close(merged.project.weight, base.weight + b @ a, rtol=1e-5, atol=1e-6)


def test_loading_switching_and_unloading_on_a_running_pipeline(tiny_pipeline, tmp_path):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    bert = make_subject(tmp_path / "bert", tiny_pipeline, "bert", 2)
    base, base_unet = predict(tiny_pipeline), tiny_pipeline.unet
    fingerprint = checkpoints.fingerprint(tiny_pipeline)
    assert sorted(path.name for path in (tmp_path / "anna").iterdir()) == [
        "pytorch_lora_weights.safetensors",
        "subject.json",
    ]
    tiny_pipeline.load_subject(tmp_path / "anna")
    same(predict(tiny_pipeline), predict(anna))
    assert (predict(anna) - base).abs().max() > 0.01
    shared = tiny_pipeline.unet.conv_in.weight
    assert shared.data_ptr() == base_unet.conv_in.weight.data_ptr(), "weights are not copied"
    tiny_pipeline.load_subject(tmp_path / "bert")
    same(predict(tiny_pipeline), predict(bert))
    assert (predict(bert) - predict(anna)).abs().max() > 0.01
    tiny_pipeline.unload_subject()
    assert tiny_pipeline.unet is base_unet
    same(predict(tiny_pipeline), base)
    assert checkpoints.fingerprint(tiny_pipeline) == fingerprint


def test_pipelines_of_two_subjects_do_not_disturb_each_other(tiny_pipeline, tmp_path):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    bert = make_subject(tmp_path / "bert", tiny_pipeline, "bert", 2, rank=1)
    base = predict(tiny_pipeline)
    one = tiny_pipeline.with_subject(tmp_path / "anna")
    two = tiny_pipeline.with_subject(tmp_path / "bert")
    for _ in range(2):
        same(predict(two), predict(bert))
        same(predict(one), predict(anna))
        same(predict(tiny_pipeline), base)
    # Moving or retyping one of them leaves the memory of the others alone.
    two.unet.to(torch.bfloat16)
    same(predict(one), predict(anna))
    same(predict(tiny_pipeline), base)


def test_half_precision_pipelines_load_lora(tiny_pipeline, tmp_path):
    make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    half = tiny_pipeline.to(torch.float16)
    half.load_subject(tmp_path / "anna")
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert predict(half).isfinite().all()


def test_diffusers_itself_reads_the_file(tiny_pipeline, tmp_path):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    theirs = copy.copy(tiny_pipeline)
    theirs.unet = copy.deepcopy(tiny_pipeline.unet)
    theirs.unet.load_lora_adapter(str(tmp_path / "anna"), weight_name=lora.FILE, prefix="unet")
    theirs.adapter = anna.adapter
    torch.testing.assert_close(predict(theirs), predict(anna), rtol=1e-5, atol=1e-6)


def test_a_saved_pipeline_has_the_updates_in_its_weights(tiny_pipeline, tmp_path):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    tiny_pipeline.load_subject(tmp_path / "anna")
    checkpoints.save(tiny_pipeline, tmp_path / "merged", dtype=None)
    loaded = checkpoints.load(tmp_path / "merged")
    torch.testing.assert_close(predict(loaded), predict(anna), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "targets", "said"),
    [
        (0, ("to_q",), "rank must be at least 1, got 0"),
        (2, ("to_q", "to_z"), "suffixes of layer names such as .*to_out.0.*, got 'to_z'"),
        (2, ("attn1",), "got 'attn1'"),
        (2, (), "at least one"),
    ],
)
def test_impossible_updates_are_rejected(tiny_pipeline, rank, targets, said):
    with pytest.raises(InputError, match=said):
        lora.check_targets({"unet": tiny_pipeline.unet}, rank=rank, targets=targets)


def test_updates_of_another_base_are_rejected(tiny_pipeline, tiny_recipe, tmp_path):
    make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    other = checkpoints.build(tiny_recipe, seed=5)
    with pytest.raises(InputError, match="'anna' must be finetuned from this base model"):
        other.load_subject(tmp_path / "anna")


def test_damaged_files_are_rejected_and_the_base_stays(tiny_pipeline, tmp_path):
    make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    path = tmp_path / "anna" / lora.FILE
    whole, tensors = path.read_bytes(), load_file(path)
    with lora.safe_open(path, "pt") as file:
        metadata = file.metadata()
    base = tiny_pipeline.unet

    def refusal(said):
        with pytest.raises(InputError, match=said):
            tiny_pipeline.load_subject(tmp_path / "anna")
        assert tiny_pipeline.unet is base
        assert tiny_pipeline.subject is None

    path.write_bytes(whole[:-10])
    refusal("lora must be a file written by this package or diffusers")
    save_file(tensors, path)
    refusal("lora must be a file written by this package or diffusers")
    key = "adapter.mix.lora_B.weight"
    save_file({**tensors, key: torch.zeros(4, 2)}, path, metadata)
    refusal(r"mix.lora_B.weight with shape \(5, 2\), got \(4, 2\)")
    save_file({k: v for k, v in tensors.items() if k != key}, path, metadata)
    refusal("must have A and B of each layer")
    save_file({**tensors, "unet.nowhere.lora_A.weight": torch.zeros(2, 2)}, path, metadata)
    refusal("must fit the base model, got unknown tensor nowhere.lora_A.weight")
    path.unlink()
    refusal("lora must be a file")


@pytest.mark.parametrize("recipe", [recipes.catwalk(), recipes.sd14()], ids=["catwalk", "sd14"])
def test_a_subject_is_at_most_two_percent_of_the_unet(recipe):
    with torch.device("meta"):
        pipe = checkpoints.build(recipe)
        modules = {"unet": pipe.unet, "adapter": pipe.adapter}
        total = checkpoints.num_parameters(pipe)["unet"]
        lora.add_lora(modules, rank=recipe.lora_rank, targets=recipe.lora_targets)
    share = lora.num_parameters(modules.values()) / total
    assert 0.0005 < share <= 0.02


def test_metadata_is_pefts_configuration(tiny_pipeline, tmp_path):
    make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    with lora.safe_open(tmp_path / "anna" / lora.FILE, "pt") as file:
        settings = json.loads(file.metadata()[lora.METADATA])
    assert settings["unet.r"] == settings["adapter.r"] == 2
    assert settings["unet.target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_rslora", True), ("use_dora", True), ("rank_pattern", {"to_q": 8}), ("bias", "all"),
     ("alpha_pattern", {"to_q": 1}), ("modules_to_save", ["conv_in"]),
     ("init_lora_weights", "pissa")],
)  # fmt: skip
def test_settings_that_are_not_applied_are_rejected(tiny_pipeline, tmp_path, name, value):
    make_subject(tmp_path / "anna", tiny_pipeline, "anna", seed=1)
    path = tmp_path / "anna" / lora.FILE
    lora.read(path)
    settings = lora.read(path)["unet"].settings
    changed = {f"unet.{key}": content for key, content in settings.items()}
    text = json.dumps(changed | {f"unet.{name}": value})
    tensors = {k: v for k, v in load_file(path).items() if k.startswith("unet.")}
    save_file(tensors, path, metadata={lora.METADATA: text})
    with pytest.raises(InputError, match=f"not applied here, unet.{name}="):
        tiny_pipeline.load_subject(tmp_path / "anna")
