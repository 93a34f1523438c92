"""`dreampose pose` writes track and preview, and refuses bad input in one line."""

import numpy as np
import pytest

from dreampose.__main__ import main
from dreampose.io import video
from dreampose.poses import Motion


def test_track_and_preview_are_written(rendered, tmp_path, capsys):
    out = tmp_path / "new" / "turn.npz"
    assert main(["pose", str(rendered), "--out", str(out), "--frames", "1:4"]) == 0
    motion = Motion.load(out)
    assert (motion.num_frames, motion.height, motion.width) == (3, 160, 128)
    assert (motion.fps, motion.source, motion.estimator) == (8.0, "turn.mp4", "blazepose")
    preview = video.read(out.with_suffix(".preview.mp4"))
    assert preview.frames.shape == (3, 480, 384, 3)
    assert preview.fps == 8.0
    # The pose is drawn where the person is, and nowhere else.
    original = video.fit(video.read(rendered).frames[1:4], 480, 384)
    changed = np.abs(preview.frames.astype(int) - original).max(axis=-1)
    body = np.repeat(np.repeat(motion.maps[:, 0] > 0, 3, axis=1), 3, axis=2)
    assert changed[body].mean() > 30
    assert np.median(changed[~body]) < 6
    assert capsys.readouterr().out.split() == [str(out)]


def test_exact_poses_of_a_time_range_at_another_size(rendered, tmp_path):
    out = tmp_path / "turn.npz"
    command = ["pose", str(rendered), "--out", str(out), "--estimator", "catwalk", "--no-preview"]
    assert main([*command, "--size", "80x64", "--start", "0.5", "--end", "0.75"]) == 0
    motion = Motion.load(out)
    assert (motion.num_frames, motion.height, motion.width) == (2, 80, 64)
    assert [file.name for file in tmp_path.iterdir()] == ["turn.npz"]
    assert main([*command, "--framed"]) == 0
    rows = np.flatnonzero((Motion.load(out).maps > 0).any(axis=(0, 1, 3)))
    assert len(rows) == pytest.approx(0.8 * 160, abs=8)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--size", "160"], "size must be HEIGHTxWIDTH"),
        (["--size", "8x8"], "size must be at least 16x16"),
        (["--frames", "3:2"], "frames must be a range A:B with 0 <= A < B <= 8, got 3:2"),
        (["--frames", "all"], "frames must be a range A:B of frame numbers, got 'all'"),
        (["--frames", "0:2", "--start", "1"], "got both"),
        (["--start", "9"], "start must be between 0 and the video's end at 1.00 s, got 9 s"),
        (["--start", "0.5", "--end", "0.2"], "end must be after the start at 0.5 s, got 0.2 s"),
        (["--person", "12"], "person must be a pixel X,Y"),
        (["--estimator", "catwalk", "--person", "1,1"], "got catwalk"),
        (["--out", "walk.mp4"], "out must end in .npz, got 'walk.mp4'"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(flags, said, rendered, tmp_path, capsys):
    out = tmp_path / "turn.npz"
    assert main(["pose", str(rendered), "--out", str(out), *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "frame/s" not in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_video_of_nobody_is_refused(tmp_path, capsys):
    path, out = tmp_path / "empty.mp4", tmp_path / "empty.npz"
    video.write(path, np.full((3, 64, 64, 3), 200, np.uint8), 10)
    assert main(["pose", str(path), "--out", str(out)]) == 2
    assert "video must show a person, got nobody in any of the 3 frames" in capsys.readouterr().err
    assert not out.exists()
