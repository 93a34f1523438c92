"""Finetuned weights of subjects."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreampose import checkpoints
from dreampose.errors import InputError, SubjectMismatchWarning
from dreampose.models import subject


def person(top, bottom, *, shift=0, background=(225, 225, 228)):
    """A drawn figure: head, upper and lower garment, shoes."""
    photo = np.empty((160, 128, 3), np.uint8)
    photo[:] = background
    photo[15:35, 55 + shift : 73 + shift] = (200, 160, 130)
    photo[35:85, 45 + shift : 83 + shift] = top
    photo[85:140, 48 + shift : 80 + shift] = bottom
    photo[140:148, 46 + shift : 82 + shift] = (30, 30, 30)
    return photo


ANNA = person((180, 30, 40), (30, 40, 120))


@pytest.fixture
def anna(tiny_pipeline, tmp_path):
    """A folder of weights that differ from the base model's in all that finetuning changes."""
    info = subject.describe_subject(tiny_pipeline, "anna", [ANNA])
    tuned = copy.deepcopy(tiny_pipeline)
    with torch.no_grad():
        for module in (tuned.unet, tuned.adapter, tuned.vae.decoder):
            for parameter in module.parameters():
                parameter.add_(0.01)
    subject.save_subject(tmp_path / "anna", tuned, info)
    return tmp_path / "anna"


def test_only_weights_changed_by_finetuning_are_saved(anna):
    assert sorted(path.name for path in anna.iterdir()) == [
        "adapter",
        "subject.json",
        "unet",
        "vae",
    ]
    names = load_file(anna / "vae" / subject.WEIGHTS)
    assert {name.split(".")[0] for name in names} <= {"decoder", "post_quant_conv"}


def test_loading_and_unloading(tiny_pipeline, anna):
    base = {name: getattr(tiny_pipeline, name) for name in checkpoints.MODELS}
    before = checkpoints.fingerprint(tiny_pipeline)
    tiny_pipeline.load_subject(anna)
    assert tiny_pipeline.subject.name == "anna"
    assert checkpoints.fingerprint(tiny_pipeline) != before
    changed = tiny_pipeline.unet.conv_out.bias - base["unet"].conv_out.bias
    torch.testing.assert_close(changed, torch.full_like(changed, 0.01), rtol=0, atol=1e-3)
    tiny_pipeline.load_subject(anna)
    tiny_pipeline.unload_subject()
    assert tiny_pipeline.subject is None
    for name, module in base.items():
        assert getattr(tiny_pipeline, name) is module
    assert checkpoints.fingerprint(tiny_pipeline) == before


def test_several_subjects_share_the_parts_that_do_not_change(tiny_pipeline, anna):
    one, two = tiny_pipeline.with_subject(anna), tiny_pipeline.with_subject(anna)
    assert tiny_pipeline.subject is None
    assert one.image_encoder is two.image_encoder is tiny_pipeline.image_encoder
    assert one.unet is not two.unet
    assert one.subject == two.subject


def test_weights_of_another_base_model_are_rejected(tiny_recipe, anna):
    other = checkpoints.build(tiny_recipe, seed=1)
    with pytest.raises(InputError, match="'anna' must be finetuned from this base model"):
        other.load_subject(anna)
    assert other.subject is None


def test_weights_of_another_recipe_are_rejected(tiny_pipeline, anna):
    path = anna / "subject.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": "sd14"}))
    with pytest.raises(InputError, match="recipe 'catwalk', got 'sd14'"):
        tiny_pipeline.load_subject(anna)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"looks": [], "photos": [], "x": 1}'])
def test_broken_folders_are_rejected(tiny_pipeline, anna, text):
    (anna / "subject.json").write_text(text)
    with pytest.raises(InputError, match=r"subject.json"):
        tiny_pipeline.load_subject(anna)


def test_damaged_weights_are_rejected_and_the_base_model_stays(tiny_pipeline, anna):
    before = tiny_pipeline.unet
    path = anna / "unet" / subject.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="unet weights of subject 'anna'"):
        tiny_pipeline.load_subject(anna)
    assert tiny_pipeline.unet is before
    with pytest.raises(InputError, match=r"subject must be a folder with a subject\.json"):
        tiny_pipeline.load_subject(anna.parent)


def subject_of(photos):
    looks = tuple(tuple(subject.outfit_colours(photo).tolist()) for photo in photos)
    hashes = tuple(subject.photo_hash(photo) for photo in photos)
    return subject.Subject(name="anna", recipe="catwalk", base="0", photos=hashes, looks=looks)


@pytest.mark.parametrize(
    "photo",
    [
        ANNA,
        person((180, 30, 40), (30, 40, 120), shift=20),
        person((165, 25, 35), (25, 35, 105), background=(200, 205, 210)),
        np.repeat(np.repeat(ANNA, 3, 0), 3, 1),
    ],
    ids=["same file", "moved", "darker light, other wall", "larger"],
)
def test_the_subjects_own_photos_do_not_warn(photo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject.warn_on_mismatch(subject_of([ANNA]), [photo])


@pytest.mark.parametrize(
    "photo",
    [person((40, 160, 60), (30, 40, 120)), person((180, 30, 40), (235, 215, 60))],
    ids=["other top", "other skirt"],
)
def test_another_person_warns_with_name_and_way_out(photo):
    with pytest.warns(SubjectMismatchWarning, match=r"'anna'.*check_subject=False.*--force"):
        subject.warn_on_mismatch(subject_of([ANNA]), [photo])


def test_any_of_the_subjects_photos_will_do():
    other = person((40, 160, 60), (235, 215, 60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject.warn_on_mismatch(subject_of([ANNA, other]), [other.copy()])
