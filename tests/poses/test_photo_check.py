"""Photos of whole people in studios pass the check; others are named for what is wrong."""

import numpy as np
import pytest
from PIL import Image

from dreampose.__main__ import main
from dreampose.io import video
from dreampose.poses import check_photo
from dreampose.synthetic.clip import render_clip
from dreampose.synthetic.identity import identity

skimage = pytest.importorskip("skimage.data", reason="real photos come with scikit-image")


@pytest.fixture(scope="module")
def studio():
    """A rendered person before a plain wall, as a photo of 320x256 pixels."""
    clip = render_clip(
        identity(11, "test"), motion="turn", num_frames=1, height=320, width=256, fps=8
    )
    return clip.frames[0]


def names(photo):
    return {finding.name for finding in check_photo(photo).findings if not finding.is_good}


@pytest.mark.parametrize("path", ["dress-front", "skirt", "trousers"])
def test_whole_people_in_plain_studios_pass(path, request):
    folder = request.config.rootpath / "examples" / "photos"
    check = check_photo(video.read_photo(folder / f"{path}.png"))
    assert check.problems == ()
    assert check.score == 1.0


def test_views_from_the_back_and_side_are_reported_but_usable(request):
    folder = request.config.rootpath / "examples" / "photos"
    for path, word in (("dress-back", "the back"), ("dress-side", "the side")):
        check = check_photo(video.read_photo(folder / f"{path}.png"))
        assert check.is_usable
        assert len(check.problems) == 1
        assert word in check.problems[0]


def test_each_problem_is_found_by_itself(studio):
    height, width = studio.shape[:2]
    assert names(studio) == set()
    # Cut below the hips.
    assert "whole" in names(studio[: height * 55 // 100])
    two = np.concatenate([studio, studio[:, ::-1]], axis=1)
    assert names(two) == {"alone"}
    far = np.full((3 * height, 3 * width, 3), studio[0, 0], np.uint8)
    far[2 * height :, width : 2 * width] = studio
    assert "large" in names(far)
    assert "upright" in names(np.rot90(studio).copy())
    noise = np.random.default_rng(0).integers(0, 255, (20, 16, 3), dtype=np.uint8)
    busy = np.kron(noise, np.ones((16, 16, 1), np.uint8))
    plain = np.abs(studio.astype(int) - studio[0, 0]).max(axis=-1) < 30
    assert "background" in names(np.where(plain[..., None], busy, studio))


REAL = (
    *("astronaut", "camera", "cat", "coffee", "coins", "rocket", "moon", "page", "grass", "gravel"),
    *("brick", "text", "clock", "horse", "colorwheel", "logo", "immunohistochemistry", "retina"),
)


@pytest.mark.parametrize("name", REAL)
def test_real_photos_that_cannot_be_rendered_say_why(name):
    try:
        photo = getattr(skimage, name)()
    except (OSError, ModuleNotFoundError) as error:
        pytest.skip(f"scikit-image does not carry {name} ({error})")
    photo = np.asarray(photo)
    if photo.dtype != np.uint8:
        photo = (photo > 0).astype(np.uint8) * 255
    if photo.ndim == 2:
        photo = np.repeat(photo[..., None], 3, axis=-1)
    check = check_photo(np.ascontiguousarray(photo[..., :3]))
    assert not check.is_usable
    assert check.problems


def test_animate_refuses_such_a_photo_before_the_model_is_loaded(tmp_path, capsys):
    photo = tmp_path / "cat.png"
    Image.fromarray(skimage.cat()).save(photo)
    words = ["--photo", str(photo), "--motion", "none.npz", "--out", str(tmp_path / "v.mp4")]
    assert main(["animate", *words, "--model", "none"]) == 2
    error = capsys.readouterr().err
    assert "no whole person is found in the photo" in error
    assert "--force renders it all the same" in error
    assert main(["animate", *words, "--model", "none", "--force"]) == 2
    assert "--force" not in capsys.readouterr().err.splitlines()[-1]
