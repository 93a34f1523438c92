"""A crop moves a frame and its poses alike."""

import numpy as np

from dreampose.data import augmentation


def test_boxes_start_with_the_whole_frame_and_keep_size_and_aspect() -> None:
    boxes = augmentation.random_boxes(
        200, height=160, width=128, smallest=0.8, generator=np.random.default_rng(0)
    )
    assert boxes[0].tolist() == [0, 0, 160, 128]
    top, left, bottom, right = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (bottom <= 160).all()
    assert (right <= 128).all()
    heights, widths = bottom - top, right - left
    assert heights.min() >= 0.8 * 160 - 1
    assert heights[1:].min() < 0.85 * 160
    assert np.abs(heights / 160 - widths / 128).max() < 0.01
    assert len(np.unique(top)) > 10
    assert len(np.unique(left)) > 10


def test_a_crop_moves_frame_and_pose_alike() -> None:
    frames = np.zeros((1, 64, 48, 3), np.uint8)
    maps = np.zeros((1, 2, 64, 48), np.float32)
    frames[:, 20:40, 10:30] = 255
    maps[:, :, 20:40, 10:30] = 1.0
    for box in augmentation.random_boxes(
        20, height=64, width=48, smallest=0.6, generator=np.random.default_rng(1)
    ):
        cut = augmentation.crop(maps, box)
        seen = augmentation.crop_frames(frames, box, cut.shape[2], cut.shape[3])
        assert (seen[..., 0] / 255 == cut[:, 0]).all()


def test_cropped_frames_have_the_requested_size() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, 64, 48, 3), np.uint8)
    box = np.array([8, 4, 56, 40])
    assert augmentation.crop_frames(frames, box, 64, 48).shape == (2, 64, 48, 3)


def test_squares_stay_inside_the_frame() -> None:
    centres = np.array([[0, 0], [63, 47], [30, 20]])
    corners = augmentation.square_boxes(centres, side=16, height=64, width=48)
    assert corners.tolist() == [[0, 0], [48, 32], [22, 12]]
