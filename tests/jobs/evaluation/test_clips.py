"""Discovery and pairing of clips to score."""

import numpy as np
import pytest
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import video
from jobs.evaluation import clips


@pytest.fixture
def frames():
    """Noise, so that each frame is another."""
    return np.random.default_rng(0).integers(0, 256, (18, 36, 32, 3), dtype=np.uint8)


def test_folders_as_they_lie_about_are_read(tmp_path, turn, frames, save_pngs):
    """A Mac's shadow files, links to elsewhere, names with an equals sign, Excel's CSV."""
    save_pngs(tmp_path / "elsewhere" / "a", frames[:3])
    (tmp_path / "elsewhere" / "a" / "._frame0.png").write_bytes(b"no picture")
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "elsewhere" / "a")
    assert clips.methods([str(folder), f"x={folder}"]) == {
        "lr=0.1": str(folder), "x": str(folder)
    }  # fmt: skip
    ((name, path),) = clips.find(str(folder), "pred").items()
    assert (name, clips.measure(path)) == ("a", (3, 36, 32))
    video.write(tmp_path / "phone.mp4", frames, 30)
    turn(tmp_path / "phone.mp4", 1)
    assert clips.measure(tmp_path / "phone.mp4") == (18, 32, 36)
    (folder / "manifest.csv").write_text("path,subject\na,anna\n", "utf-8-sig")
    assert clips.identities(["a"], str(folder), None) == {"a": "anna"}


def test_clips_are_videos_and_folders_of_pngs_at_any_depth(tmp_path, frames, save_pngs):
    video.write(tmp_path / "a.mp4", frames, 30)
    video.write(tmp_path / "deep" / "b.mp4", frames, 30)
    save_pngs(tmp_path / "deep" / "c", frames[:12])
    Image.fromarray(frames[0]).save(tmp_path / "deep" / "preview.png")  # beside a video: no clip
    save_pngs(tmp_path / ".cache" / "d", frames[:1])
    found = clips.find(str(tmp_path), "pred")
    assert list(found) == ["a", "deep/b", "deep/c"]
    assert [clips.measure(path)[0] for path in found.values()] == [18, 18, 12]
    read, _ = clips.read(found["deep/c"])
    assert (read == frames[:12]).all(), "frame10 must come after frame9"
    assert list(clips.find(str(tmp_path / "deep" / "c"), "pred")) == ["."]
    save_pngs(tmp_path / "a", frames[:2])
    with pytest.raises(InputError, match="pred must hold each clip once, got 'a' twice"):
        clips.find(str(tmp_path), "pred")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="pred must hold videos or folders of PNGs, got neither"):
        clips.find(str(tmp_path / "empty"), "pred")


def test_people_come_from_the_manifest_or_the_name(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,subject,town\na.mp4,anna,Oslo\nb/c.mp4,bea,Oslo\n")
    truth, names = str(tmp_path), ["a", "b/c"]
    assert clips.identities(names, truth, None) == {"a": "anna", "b/c": "bea"}
    assert clips.identities(names, truth, "column:town") == {"a": "Oslo", "b/c": "Oslo"}
    assert clips.identities(names, truth, "[^/]+$") == {"a": "a", "b/c": "c"}
    with pytest.raises(InputError, match="columns 'path' and 'age', got path, subject, town"):
        clips.identities(names, truth, "column:age")
    with pytest.raises(InputError, match="must name a subject for every clip, not for 'z'"):
        clips.identities([*names, "z"], truth, None)
    (tmp_path / "manifest.csv").unlink()
    assert clips.identities(names, truth, None) == {"a": "a", "b/c": "b/c"}


def test_frame_rates_that_differ_from_the_truth_are_reported(tmp_path, frames, save_pngs):
    """Rates are those of players; 29.97 and 30 are one, and PNGs have none."""
    for name, fps in (("truth", 30), ("same", 29.97), ("slow", 12.5)):
        video.write(tmp_path / name / "a.mp4", frames, fps)
    save_pngs(tmp_path / "pictures" / "a", frames)
    preds = {name: str(tmp_path / name) for name in ("same", "slow", "pictures")}
    pairs = clips.pair(preds, str(tmp_path / "truth"))
    assert clips.other_rates(pairs) == ["slow/a (12.5 instead of 30)"]
