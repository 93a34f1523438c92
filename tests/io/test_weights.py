"""Weight files: reading and errors."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dreampose.errors import InputError
from dreampose.io import weights


@pytest.mark.parametrize("end", [".safetensors", ".ckpt", ".bin"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 42\n",
         "is a Git LFS pointer instead of the file; fetch it with `git lfs pull`"),
        (b"<!doctype html>\n<html>", "is a web page"),
        (b"", "is an empty file"),
        (bytes(3000), "is zeros alone"),
        (np.random.default_rng(0).bytes(3000), "file of tensors alone"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_weights_is_one_line(tmp_path, end, content, reason):
    path = tmp_path / f"base{end}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        weights.read(path, "base")
    assert len(str(caught.value)) < 400 and "\x1b" not in str(caught.value)


def test_a_rejected_class_is_named(tmp_path):
    torch.save({"a": torch.ones(2), "args": argparse.Namespace(x=1)}, tmp_path / "base.ckpt")
    with pytest.raises(InputError, match=r"it refers to argparse\.Namespace") as caught:
        weights.read(tmp_path / "base.ckpt", "base")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_narrow_floats_are_read(tmp_path, dtype):
    module = torch.nn.Linear(3, 2)
    narrow = {name: value.detach().to(dtype) for name, value in module.state_dict().items()}
    save_file(narrow, tmp_path / "a.safetensors")
    weights.fit(module, weights.read(tmp_path / "a.safetensors", "unet"), "unet", "a.safetensors")
    for name, value in module.state_dict().items():
        assert torch.equal(value, narrow[name].float()), name
    narrow["bias"] = torch.tensor([1.0, float("nan")]).to(dtype)
    with pytest.raises(InputError, match="1 not finite: bias"):
        weights.fit(module, narrow, "unet", "a.safetensors")


@pytest.mark.parametrize("end", [".safetensors", ".pth"])
def test_damaged_files_give_tensors_or_an_input_error(tmp_path, end):
    """Bounded fuzzing: nothing but InputError leaves the reader."""
    path = tmp_path / f"a{end}"
    tensors = {f"layer.{number}": torch.randn(3, 4) for number in range(4)}
    save_file(tensors, path) if end == ".safetensors" else torch.save(tensors, path)
    content = path.read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(80):
        damaged = bytearray(content)
        for place in rng.integers(0, min(len(content), 600), rng.integers(1, 10)):
            damaged[place] = rng.integers(256)
        if rng.random() < 0.3:
            damaged = damaged[: rng.integers(0, len(damaged))]
        path.write_bytes(damaged)
        try:
            found = weights.read(path, "unet")
        except InputError:
            refused += 1
        else:
            assert all(isinstance(value, torch.Tensor) for value in found.values())
    assert refused > 20
