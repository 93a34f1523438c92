"""Prepared requests on disk."""

import dataclasses

import pytest
import torch

from dreampose.diffusion import generation
from dreampose.io import video
from dreampose.poses.motion import Motion
from serve.deployments import prepared_request


@pytest.fixture
def request_(tiny_pipeline, photo_file, motion_file):
    return generation.prepare(
        tiny_pipeline, [video.read_photo(photo_file)], Motion.load(motion_file), align=False
    )


@pytest.mark.parametrize("num_poses", [1, 5])
@pytest.mark.parametrize("indices", [range(10), range(1), range(4, 8), range(9, 10)])
def test_slice_contains_the_poses_of_neighbouring_frames(request_, tmp_path, num_poses, indices):
    poses = request_.poses
    if num_poses == 1:
        poses = poses[:, : poses.shape[1] // 5]
    whole = dataclasses.replace(request_, poses=poses)
    path = tmp_path / "prepared.safetensors"
    prepared_request.write(path, whole, num_poses)
    part = prepared_request.read(path, indices)
    torch.testing.assert_close(part.poses, poses[list(indices)], rtol=0, atol=0)
    for field in dataclasses.fields(generation.Request):
        if field.name == "poses":
            continue
        got, expected = getattr(part, field.name), getattr(whole, field.name)
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
        else:
            assert got == expected, field.name


def test_each_pose_is_stored_once(request_, tmp_path):
    path = tmp_path / "prepared.safetensors"
    prepared_request.write(path, request_, 5)
    others = request_.photo_tokens.nbytes + request_.noise.nbytes
    assert path.stat().st_size < request_.poses.nbytes / 5 + others + 4096


def test_deleted_video_folder_is_not_recreated(request_, tmp_path):
    with pytest.raises(FileNotFoundError):
        prepared_request.write(tmp_path / "gone" / "prepared.safetensors", request_, 5)
    assert not (tmp_path / "gone").exists()
