"""`dreampose animate` and `info` with a tiny model, and their errors."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dreampose import __main__ as cli
from dreampose import poses
from dreampose.io import video

NUM_FRAMES, FPS = 7, 12.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid photo and motion, and an invalid file of each kind."""
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    noise = random.integers(0, 255, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:2000])
    (folder / "text.mp4").write_text("not a video")
    (folder / "text.npz").write_text("not a motion")
    (folder / "folder.mp4").mkdir()
    write_motion(folder / "motion.npz", NUM_FRAMES)
    write_motion(folder / "short.npz", 4)
    grey = np.full((160, 128, 3), 128, np.uint8)
    video.write(folder / "nobody.mp4", [grey] * 8, FPS)
    with av.open(str(folder / "empty.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height = 48, 64
        container.mux(stream.encode(None))
    return folder


def write_motion(path: Path, num_frames: int) -> None:
    maps = np.zeros((num_frames, 2, 64, 48), np.float32)
    for index in range(num_frames):
        maps[index, :, 10:50, 10 + index : 30 + index] = 0.6
    poses.Motion(
        maps=maps,
        joints=np.zeros((num_frames, 3, 4), np.float32),
        confidence=np.ones(num_frames, np.float32),
        fps=FPS,
    ).save(path)


@pytest.fixture
def animate(inputs: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command with two steps; arguments replace the valid ones."""

    def run(**flags: object) -> int:
        values = {
            "--photo": inputs / "photo.png",
            "--motion": inputs / "motion.npz",
            "--out": tmp_path / "out" / "video.mp4",
            "--model": tiny_model,
            "--preset": "fast",
            "--steps": 2,
            **{f"--{name.replace('_', '-')}": value for name, value in flags.items()},
        }
        words = [str(word) for pair in values.items() for word in pair]
        return cli.main(["animate", "--no-align", "--force", *words])

    return run


def test_video_has_the_frames_and_rate_of_the_motion(
    animate: Callable[..., int], tmp_path: Path
) -> None:
    assert animate() == 0
    clip = video.read(tmp_path / "out" / "video.mp4")
    assert clip.frames.shape == (NUM_FRAMES, 64, 48, 3)
    assert clip.fps == FPS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["video.mp4"]


def test_the_video_depends_on_the_seed_but_not_on_the_chunk_size(
    animate: Callable[..., int], tmp_path: Path
) -> None:
    for name, flags in {
        "a": {"seed": 1},
        "b": {"seed": 1, "chunk_size": 2},
        "c": {"seed": 2},
    }.items():
        assert animate(out=tmp_path / f"{name}.mp4", **flags) == 0
    a, b, c = (video.read(tmp_path / f"{name}.mp4").frames.astype(int) for name in "abc")
    assert np.abs(a - b).max() <= 1
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"photo": "INPUTS/none.png"}, "photo: no such file"),
        ({"photo": "INPUTS/cut.png"}, "photo: cannot decode"),
        ({"photo": "INPUTS/text.mp4"}, "photo: cannot decode"),
        ({"motion": "INPUTS/none.mp4"}, "video: no such file"),
        ({"motion": "INPUTS/text.mp4"}, "video: cannot decode"),
        ({"motion": "INPUTS/text.npz"}, "motion must be"),
        ({"motion": "INPUTS/empty.mp4"}, "video: "),
        ({"motion": "INPUTS/nobody.mp4"}, "video must show a person"),
        ({"motion": "INPUTS/short.npz"}, "motion must have at least num_poses = 5 frames, got 4"),
        ({"estimator": "openpose", "motion": "INPUTS/nobody.mp4"}, "estimator must be one of"),
        ({"model": "INPUTS"}, "model must be a folder with a model_index.json"),
        ({"subject": "INPUTS"}, "subject must be a folder with a subject.json"),
        ({"steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"image_scale": -1}, "image_scale must be"),
        ({"out": "INPUTS/video.avi"}, "out must end in .mp4"),
        ({"out": "INPUTS/folder.mp4"}, "out must be a file, got the folder"),
        ({"out": "INPUTS/photo.png/video.mp4"}, "out must lie in a folder"),
    ],
)
def test_invalid_input_prints_one_line_and_writes_no_file(
    animate: Callable[..., int],
    inputs: Path,
    tmp_path: Path,
    flags: dict[str, object],
    expected: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = sorted(inputs.rglob("*"))
    given = {key: str(value).replace("INPUTS", str(inputs)) for key, value in flags.items()}
    assert animate(**given) == 2
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if "warning: photo" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("dreampose: error: ")
    assert expected in lines[0]
    assert captured.out == ""
    assert sorted(inputs.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_info_lists_components_and_prediction_type(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    for word in ("UNet2DConditionModel", "ImageAdapter", "v_prediction", "PNDMScheduler, 100"):
        assert word in text
    assert "licence       not stated" in text


def test_info_reads_the_licence_from_the_model_card(tmp_path: Path) -> None:
    from dreampose.cli.info import licence

    card = tmp_path / "README.md"
    for text in (
        "---\nlicense: Apache-2.0\n---\n",
        "A model.\nLicence: Apache-2.0, like the code.",
    ):
        card.write_text(text)
        assert licence(tmp_path) == "Apache-2.0"


def test_invalid_argument_is_reported_before_files_are_read(
    animate: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        animate(chunk_size=0, photo="nowhere.png")
    assert stop.value.code == 2
    assert capfd.readouterr().err == (
        "dreampose animate: error: argument --chunk-size: must be an integer of at least 1, "
        "got '0'\n"
    )
