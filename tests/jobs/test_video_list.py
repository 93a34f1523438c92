"""Lists of videos and their invalid lines."""

import unicodedata

import pyarrow as pa
import pytest

from dreampose import recipes
from dreampose.errors import InputError
from jobs.common import video_list
from jobs.common.encoding import Encoder, Settings


def test_a_folder_with_brackets_is_a_folder(tmp_path):
    folder = tmp_path / "dir [1]"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/Look 12.MOV", "._a.mp4", "notes.txt"):
        (folder / name).touch()
    found = video_list.find(str(folder))
    assert [(video.clip_id, video.subject) for video in found] == [
        ("a.mp4", "a"), ("sub/Look 12.MOV", "Look 12"),
    ]  # fmt: skip
    (video,) = video_list.find(str(folder / "a.mp4"))
    assert (video.clip_id, video.path) == ("a.mp4", str(folder / "a.mp4"))


def test_a_manifest_in_other_forms(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "Größe.mp4")).touch()
    for name, content in {
        "semicolons.csv": "\ufeffPath;Subject\r\nGröße.mp4;anna\r\n;;\r\n".encode(),
        "tabs.tsv": "path\tsubject\nGröße.mp4\tanna\n".encode("utf-16"),
    }.items():
        (tmp_path / name).write_bytes(content)
        (video,) = video_list.find(str(tmp_path / name))
        assert (video.clip_id, video.subject, video.error) == ("Größe.mp4", "anna", "")
        assert video.path == str(tmp_path / unicodedata.normalize("NFD", "Größe.mp4"))


def test_an_invalid_line_becomes_a_row_with_its_error(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text("path,subject\na.mp4,anna\n,bert\na.mp4,again\nA.mp4,other\nb.mp4,x,y\n")
    found = video_list.find(str(path))
    assert [bool(video.error) for video in found] == [False, True, True, False, True]
    assert len({video.clip_id for video in found}) == 5
    settings = Settings(recipe=recipes.catwalk(), pose="blazepose", seed=0)
    encoder = Encoder(settings, num_threads=1)
    rows = [
        {"clip_id": v.clip_id, "path": v.path, "subject": v.subject, "row_file": "",
         "error": v.error} for v in found
    ]  # fmt: skip
    errors = encoder(pa.Table.from_pylist(rows))["error"].to_pylist()
    assert [error.partition(" ")[0] for error in errors] == ["video:", "line", "line", "video:",
                                                             "line"]  # fmt: skip
    assert errors[2] == "line 4: path 'a.mp4' is in line 2 already"


def test_whatever_a_video_raises_is_a_row_that_says_why(tmp_path, monkeypatch, capsys):
    from dreampose.io import video

    def fail(_):
        raise RuntimeError("a fault\nof the program")

    encoder = Encoder(Settings(recipe=recipes.catwalk(), pose="blazepose", seed=0), num_threads=1)
    monkeypatch.setattr(video, "read", fail)
    monkeypatch.setattr(video, "VideoReader", fail)
    row = {"clip_id": "a", "path": str(tmp_path / "a.mp4"), "subject": "a", "row_file": ""}
    (row,) = encoder(pa.Table.from_pylist([row])).to_pylist()
    assert row["error"] == "RuntimeError: a fault of the program"
    assert "Traceback" in capsys.readouterr().err


def test_a_manifest_in_latin_1_is_one_line(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes("path,subject\nclips/Größe.mp4,anna\n".encode("latin-1"))
    with pytest.raises(InputError, match="manifest: .*not in UTF-8 .byte 0xF6 in line 2."):
        video_list.find(str(path))
    with pytest.raises(InputError, match="no such manifest"):
        video_list.find(str(tmp_path / "none.csv"))
