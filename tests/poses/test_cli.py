"""The command `dreampose pose`."""

import numpy as np
import pytest

from dreampose.__main__ import main
from dreampose.io import video
from dreampose.poses import Motion
from dreampose.poses.landmarks import INDEX, point


def test_track_and_preview_are_written(rendered, tmp_path, capsys):
    out = tmp_path / "new" / "turn.npz"
    assert main(["pose", str(rendered), "--out", str(out), "--frames", "1:4"]) == 0
    motion = Motion.load(out)
    assert (motion.num_frames, motion.height, motion.width) == (3, 160, 128)
    assert (motion.fps, motion.source, motion.estimator) == (8.0, "turn.mp4", "blazepose")
    preview = video.read(out.with_suffix(".preview.mp4"))
    assert preview.frames.shape == (3, 480, 384, 3)
    assert preview.fps == 8.0
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
        (["--person", "1;2"], "person must be a number that --people shows, or a pixel X,Y"),
        (["--person", "7"], "person must be between 1 and 1, the people in the first frame, got 7"),
        (["--canvas", "9x9"], "canvas needs --from"),
        (["--smooth", "-1"], "smooth: must be at least 0 seconds, got -1"),
        (["--speed", "0"], "speed: must be positive, got 0"),
        (["--loop", "2"], "loop: seconds must be between 0.12 and half of the motion's 1.00 s"),
        (["--join", "none.npz"], "none.npz"),
        (["--estimator", "catwalk", "--person", "1,1"], "got catwalk"),
        (["--out", "walk.mp4"], "out must end in .npz, got 'walk.mp4'"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(flags, said, rendered, tmp_path, capsys):
    out = tmp_path / "turn.npz"
    assert main(["pose", str(rendered), "--out", str(out), *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::dreampose.errors.SeveralPeopleWarning")
def test_everybody_is_numbered_to_be_chosen(rendered, tmp_path, capsys):
    frame = video.read(rendered).frames[0]
    wide = np.concatenate([frame[:, ::-1], np.full_like(frame, 235), frame], axis=1)
    path, out = tmp_path / "two.mp4", tmp_path / "two.npz"
    video.write(path, np.stack([wide] * 4), 8)
    assert main(["pose", str(path), "--out", str(out), "--people"]) == 0
    output = capsys.readouterr()
    picture = video.read_photo(out.with_suffix(".people.png"))
    assert picture.shape == wide.shape
    assert output.out.split() == [str(out.with_suffix(".people.png"))]
    places = [int(line.split("x=")[1].split(",")[0]) for line in output.err.splitlines()]
    assert len(places) == 2
    for number, x in enumerate(places, 1):
        command = ["pose", str(path), "--out", str(out), "--no-preview", "--size", "160x384"]
        assert main([*command, "--person", str(number)]) == 0
        hips = point(Motion.load(out).joints, "middle_hip")[:, 0]
        assert hips == pytest.approx([x] * 4, abs=8)


def test_a_motion_file_is_edited(rendered, tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    command = ["--no-preview", "--estimator", "blazepose"]
    assert main(["pose", str(rendered), "--out", str(first), *command]) == 0
    motion = Motion.load(first)
    edits = ["--mirror", "--speed", "2", "--frames", "0:6", "--join", str(first)]
    assert main(["pose", str(first), "--out", str(second), "--no-preview", *edits]) == 0
    edited = Motion.load(second)
    assert (edited.num_frames, edited.fps) == (7, motion.fps)
    turned = motion.width - edited.joints[0, INDEX["left_hip"], 0]
    assert turned == pytest.approx(motion.joints[0, INDEX["right_hip"], 0], abs=1e-3)


def test_strict_rejects_what_is_flagged_and_writes_nothing(rendered, tmp_path, capsys):
    frames = video.read(rendered).frames[:1].repeat(12, axis=0).copy()
    frames[5] = 235
    path, out = tmp_path / "gap.mp4", tmp_path / "gap.npz"
    video.write(path, frames, 12)
    command = ["pose", str(path), "--out", str(out), "--no-preview"]
    assert main([*command, "--strict"]) == 2
    assert "strict: filled: 1 of 12 frames (5)" in capsys.readouterr().err
    assert not out.exists()
    assert main(command) == 0
    error = capsys.readouterr().err
    assert "filled: 1 of 12 frames (5)" in error
    assert "usable: the longest stretch without flags is 6:12 (6 of 12 frames)" in error
    assert Motion.load(out).quality.frames == {"filled": (5,)}


def test_a_video_without_a_person_is_rejected(tmp_path, capsys):
    path, out = tmp_path / "empty.mp4", tmp_path / "empty.npz"
    video.write(path, np.full((3, 64, 64, 3), 200, np.uint8), 10)
    assert main(["pose", str(path), "--out", str(out)]) == 2
    assert "video must show a person, got nobody in any of the 3 frames" in capsys.readouterr().err
    assert not out.exists()
