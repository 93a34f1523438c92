"""Export: diffusers folders, LoRA files, model cards, hub."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from dreampose import checkpoints, export
from dreampose.__main__ import main
from dreampose.io import hub
from dreampose.models import card, lora, subject
from tests.models.test_lora import make_subject, predict, same
from tests.models.test_subject import ANNA


@pytest.fixture
def model(tiny_pipeline, tmp_path):
    checkpoints.save(tiny_pipeline, tmp_path / "model", dtype=None)
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the hub was called")

    monkeypatch.setattr(hub, "HfApi", refuse)


def run(capsys, *words):
    code = main(["export", *map(str, words)])
    output = capsys.readouterr()
    return code, output.out + output.err


def test_a_model_becomes_a_diffusers_folder_with_a_card(model, tmp_path, capsys):
    (model / "README.md").write_text("---\nlicense: cc0-1.0\n---\n- made from base: somewhere\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"rows")
    out = tmp_path / "out"
    code, text = run(capsys, model, "--out", out, "--data", tmp_path / "data")
    assert code == 0, text
    unet = UNet2DConditionModel.from_pretrained(out, subfolder="unet")
    assert unet.config.in_channels == 18
    assert {value.dtype for value in load_file(out / "unet" / subject.WEIGHTS).values()} == {
        torch.float16
    }
    written = (out / "README.md").read_text()
    fingerprint = checkpoints.fingerprint(checkpoints.load(model))
    assert written.startswith("---\nlicense: cc0-1.0\n")
    for words in (
        fingerprint,
        "made from base: somewhere",
        f"data fingerprint: {card.data_hash(tmp_path / 'data')}",
        '"name": "catwalk"',
        '"learning_rate"',
    ):
        assert words in written
    (tmp_path / "data" / "a.parquet").write_bytes(b"other rows")
    assert card.data_hash(tmp_path / "data") not in written


def test_kohyas_file_is_read_by_diffusers_as_the_same_update(tiny_pipeline, tmp_path, capsys):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    code, text = run(capsys, tmp_path / "anna", "--out", tmp_path / "out")
    assert code == 0, text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        export.KOHYA_FILE,
        lora.FILE,
        "subject.json",
    ]
    tensors = load_file(tmp_path / "out" / export.KOHYA_FILE)
    assert all(key.startswith("lora_unet_") for key in tensors)
    state, alphas, *_ = StableDiffusionPipeline.lora_state_dict(tensors)
    theirs = copy.copy(tiny_pipeline)
    theirs.unet, theirs.adapter = copy.deepcopy(tiny_pipeline.unet), anna.adapter
    theirs.unet.load_lora_adapter(state, network_alphas=alphas, prefix="unet")
    same(predict(theirs), predict(anna))

    tiny_pipeline.load_subject(tmp_path / "out")
    same(predict(tiny_pipeline), predict(anna))
    written = (tmp_path / "out" / "README.md").read_text()
    assert "method: lora" in written
    assert f"`{card.photos_hash([subject.photo_hash(ANNA)])}`" in written
    assert "The licence of these weights is unknown" in written


def test_alpha_scales_the_update():
    weight = torch.ones(2, 3)
    update = lora.LoraWeights(
        tensors={"a.to_q.lora_A.weight": weight, "a.to_q.lora_B.weight": weight.T},
        settings={"r": 2, "lora_alpha": 8},
    )
    assert update.scale == 4
    assert export.kohya(update)["lora_unet_a_to_q.alpha"] == 8


def test_a_subject_is_merged_into_its_base(tiny_pipeline, model, tmp_path, capsys):
    anna = make_subject(tmp_path / "anna", tiny_pipeline, "anna", 1)
    out = tmp_path / "out"
    words = (tmp_path / "anna", "--model", model, "--out", out, "--dtype", "float32")
    code, text = run(capsys, *words)
    assert code == 0, text
    torch.testing.assert_close(predict(checkpoints.load(out)), predict(anna), rtol=1e-4, atol=1e-5)
    assert "subject: anna, merged" in (out / "README.md").read_text()


def test_only_the_flag_sends_anything(model, tmp_path, capsys, monkeypatch):
    sent = []

    class Api:
        def create_repo(self, repo, **options):
            sent.append((repo, options))

        def upload_folder(self, *, repo_id, folder_path):
            sent.append((repo_id, folder_path))
            return type("Commit", (), {"commit_url": "https://hub/commit"})

    code, _ = run(capsys, model, "--out", tmp_path / "kept")
    assert code == 0
    monkeypatch.setattr(hub, "HfApi", Api)
    words = (model, "--out", tmp_path / "out", "--push-to-hub", "me/mine", "--private")
    code, text = run(capsys, *words)
    assert code == 0
    assert "https://hub/commit" in text
    assert sent == [
        ("me/mine", {"private": True, "exist_ok": True}),
        ("me/mine", str(tmp_path / "out")),
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "x"], "model must be used with the folder of a subject"),
        (["--private"], "private must be used together with push_to_hub"),
        (["--data", "nowhere"], "data must be a folder of Parquet files"),
        (["--push-to-hub", "no id"], "push_to_hub must be a hub id like owner/name"),
    ],
)
def test_invalid_input_is_rejected(model, tmp_path, capsys, flags, said):
    code, text = run(capsys, model, "--out", tmp_path / "out", *flags)
    assert code == 2
    assert said in text


def test_nothing_is_replaced(model, tmp_path, capsys):
    code, text = run(capsys, model, "--out", model)
    assert code == 2
    assert "out must be a new folder" in text
    code, text = run(capsys, tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "model must be a folder with a model_index.json" in text
