"""Watermark: robustness and false positives."""

import cv2
import numpy as np
import pytest

from dreampose.io import video, watermark

CODE = "3fa09c"


def walk(height=160, width=128, num_frames=8, seed=0):
    """A textured figure that walks through a bright studio with a little sensor noise."""
    random = np.random.default_rng(seed)
    rows = np.linspace(250, 215, height)[:, None, None]
    cloth = random.integers(20, 200, (height // 2, width // 4, 3))
    frames = np.repeat(np.broadcast_to(rows, (height, width, 3))[None], num_frames, axis=0).copy()
    for index in range(num_frames):
        left = width // 8 + index * width // 32
        frames[index, height // 4 : height // 4 + len(cloth), left : left + width // 4] = cloth
    return np.clip(frames + random.normal(0, 1, frames.shape), 0, 255).astype(np.uint8)


def marked(frames, code=CODE):
    return np.stack(list(watermark.embed(frames, code)))


def test_it_is_invisible():
    frames = walk()
    difference = marked(frames).astype(int) - frames
    assert np.abs(difference).max() == 1
    is_free = (frames >= 1).all(axis=-1) & (frames <= 254).all(axis=-1)
    assert np.ptp(difference, axis=-1)[is_free].max() == 0, "brightness alone"


@pytest.mark.parametrize("size", [(160, 128), (320, 256)])
def test_it_is_read_in_the_files_that_we_write(size, tmp_path):
    video.write(tmp_path / "a.mp4", marked(walk(*size)), 24)
    mark = watermark.detect(video.read(tmp_path / "a.mp4").frames)
    assert mark.found
    assert mark.code == CODE


def test_it_is_found_where_a_cell_is_hardly_a_pixel(tmp_path):
    video.write(tmp_path / "a.mp4", marked(walk(64, 48)), 24)
    assert watermark.detect(video.read(tmp_path / "a.mp4").frames).found


def encode_again(frames, path, crf):
    """As a web shop would: another run of H.264, at a fraction of the bits."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": str(crf)})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return video.read(path).frames


def test_it_survives_coding_again_scaling_and_trimming(tmp_path):
    video.write(tmp_path / "a.mp4", marked(walk()), 24)
    frames = video.read(tmp_path / "a.mp4").frames
    assert watermark.detect(encode_again(frames, tmp_path / "b.mp4", 18)).code == CODE
    assert watermark.detect(encode_again(frames, tmp_path / "b.mp4", 23)).found
    assert watermark.detect(frames[3:4]).code == CODE
    for height, width in ((128, 102), (480, 384)):
        scaled = np.stack([cv2.resize(frame, (width, height)) for frame in frames])
        assert watermark.detect(encode_again(scaled, tmp_path / "c.mp4", 18)).found


def test_no_mark_is_found_where_there_is_none():
    random = np.random.default_rng(0)
    scores = [watermark.detect(walk(seed=seed, num_frames=2)).score for seed in range(12)]
    scores += [
        watermark.detect(random.integers(0, 256, (1, 64, 48, 3), dtype=np.uint8)).score
        for _ in range(12)
    ]
    scores.append(watermark.detect(np.zeros((2, 64, 48, 3), np.uint8)).score)
    assert np.abs(scores).max() < 4.5, "scores of unmarked frames are those of a normal number"


def test_a_mark_too_weak_to_read_names_no_video():
    for seed in range(8):
        frames = walk(seed=seed, num_frames=1).astype(float)
        weak = (marked(frames.astype(np.uint8)).astype(float) - frames) * 0.7 + frames
        noisy = weak + np.random.default_rng(seed).normal(0, 4, frames.shape)
        mark = watermark.detect(np.clip(noisy, 0, 255).astype(np.uint8))
        assert mark.code in (None, CODE)
