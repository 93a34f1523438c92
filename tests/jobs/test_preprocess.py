"""Preprocessing job: validation, output and resuming."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dreampose import checkpoints, poses
from dreampose import data as dataset
from dreampose.config import replace
from dreampose.data import ARRAYS, Dataset, encode_clip
from dreampose.io import video
from jobs import preprocess
from jobs.common.encoding import Encoder, Settings


def rows_of(out):
    rows = [row for file in (out / "clips").glob("*") for row in pq.read_table(file).to_pylist()]
    return {row["clip_id"]: row for row in rows}, len(rows)


def expected_row(path, recipe, **options):
    """The row that the library makes of a clip, without Ray."""
    clip = video.read(path)
    height, width = dataset.working_size(clip, recipe)
    motion = poses.extract(clip, poses.estimator("catwalk"), height=height, width=width)
    return encode_clip(clip, motion, recipe=recipe, seed=0, **options)


@pytest.mark.ray
def test_a_killed_run_continues_and_writes_the_data_of_an_undisturbed_one(
    driver, capsys, clips, draw_clip, tiny_json, tiny_recipe, tmp_path
):
    (clips / "a" / "broken.mp4").write_text("not a video")
    # The last clip in the order of names takes seconds: the first run is killed within it.
    draw_clip(clips / "z.mp4", seed=9, num_frames=300, height=256, width=192)
    out = tmp_path / "data"
    flags = [
        "--videos", clips, "--out", out, "--pose", "catwalk",
        "--recipe", tiny_json, "--workers", "1",
    ]  # fmt: skip

    def committed():
        return [f for f in (out / "_done").glob("*.parquet") if ".pending" not in f.name]

    driver.kill_when(lambda: len(committed()) >= 2, "preprocess", *flags)
    kept = {path.name: path.stat().st_mtime_ns for path in committed()}
    assert len(kept) < 7, "the kill came too late to show anything"
    code = driver.again("preprocess", *flags)
    text, err = capsys.readouterr()
    assert code == 0, err
    assert "6 clips, 1 rejected videos" in text
    assert f"{len(kept)} of them were done before" in text
    after = {path.name: path.stat().st_mtime_ns for path in committed()}
    assert kept.items() <= after.items(), "what was done has been done again"

    rows, num_rows = rows_of(out)
    assert num_rows == len(rows) == 7, "a clip is missing or there twice"
    assert "video: cannot decode" in rows["a/broken.mp4"]["error"]
    assert rows["a/broken.mp4"]["frames"] is None
    for name in ("a/clip0.mp4", "b/clip4.mp4", "z.mp4"):
        wanted = expected_row(
            clips / name, tiny_recipe, clip_id=name, subject=rows[name]["subject"]
        )
        assert rows[name] == wanted
    data = Dataset(out, recipe=tiny_recipe)
    assert (len(data.clips), data.num_errors) == (6, 1)

    # All done: nothing to do, not even to start Ray.
    assert preprocess.main([str(part) for part in flags]) == 0


@pytest.mark.ray
def test_earlier_poses_are_taken_over_when_a_model_encodes(
    ray_cluster, tmp_path, draw_clip, tiny_recipe, tiny_json, tiny_model, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    draw_clip(tmp_path / "clip.mp4", seed=1)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,subject\nclip.mp4,anna\n")
    plain = ["--videos", "manifest.csv", "--pose", "catwalk", "--recipe", "tiny.json"]
    assert preprocess.main([*plain, "--out", "frames"]) == 0
    assert preprocess.main(["--data", "frames", "--model", str(tiny_model), "--out", "full"]) == 0
    rows, _ = rows_of(tmp_path / "full")
    wanted = expected_row(
        tmp_path / "clip.mp4", tiny_recipe, pipe=checkpoints.load(tiny_model), clip_id="clip.mp4",
        subject="anna",
    )  # fmt: skip
    got = rows["clip.mp4"]
    for name, dtype in ARRAYS.items():
        if wanted[name] is not None:
            # Latents may differ by what another number of threads rounds differently.
            tolerance = 2e-3 if name == "latents" else 0
            arrays = (np.frombuffer(row[name], dtype).astype(np.float64) for row in (got, wanted))
            np.testing.assert_allclose(*arrays, atol=tolerance, err_msg=name)
    assert got["model_fingerprint"] == wanted["model_fingerprint"] is not None
    assert got["subject"] == "anna"


def refusal(capsys, *flags):
    """What is said of bad flags: one line, exit code 2."""
    try:
        code = preprocess.main([str(flag) for flag in flags])
    except SystemExit as leaving:
        code = leaving.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.fixture
def no_ray(monkeypatch):
    """Fails the test where Ray is started: a refusal comes before."""

    def start(*_, **__):
        pytest.fail("Ray was started")

    monkeypatch.setattr(preprocess.driver, "ray_session", start)


@pytest.mark.usefixtures("no_ray")
class TestRefusals:
    def test_no_videos(self, capsys, tmp_path):
        line = refusal(capsys, "--videos", tmp_path / "none", "--out", tmp_path / "out")
        assert "videos must be" in line
        assert not (tmp_path / "out").exists()

    def test_empty_folder(self, capsys, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "videos must be" in refusal(
            capsys, "--videos", tmp_path / "empty", "--out", tmp_path / "out"
        )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("file,subject\na.mp4,x\n", "must have the columns path, got no path"),
            ("path\n", "names no video"),
        ],
    )
    def test_manifests(self, capsys, tmp_path, text, said):
        (tmp_path / "manifest.csv").write_text(text)
        line = refusal(capsys, "--videos", tmp_path / "manifest.csv", "--out", tmp_path / "out")
        assert said in line

    @pytest.mark.parametrize(
        ("flag", "value", "said"),
        [
            ("--pose", "openpose", "estimator must be one of blazepose, catwalk, densepose"),
            ("--recipe", "sd99", "recipe must be one of catwalk, sd14"),
            ("--model", "nowhere", "model must be a folder"),
            ("--workers", "0", "workers must be at least 1"),
        ],
    )
    def test_flags(self, capsys, clips, tmp_path, flag, value, said):
        line = refusal(capsys, "--videos", clips, "--out", tmp_path / "out", flag, value)
        assert said in line
        assert not (tmp_path / "out").exists()

    def test_two_sources(self, capsys, clips, tmp_path):
        line = refusal(capsys, "--videos", clips, "--data", clips, "--out", tmp_path / "out")
        assert "not allowed with" in line

    def test_a_folder_made_with_other_settings(
        self, capsys, clips, tmp_path, tiny_json, tiny_recipe
    ):
        settings = preprocess.Settings(recipe=tiny_recipe, pose="blazepose", seed=0)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "_settings.json").write_text(settings.to_json())
        flags = ["--videos", clips, "--out", tmp_path / "out", "--recipe", tiny_json]
        assert "same pose" in refusal(capsys, *flags, "--pose", "catwalk")
        other = tmp_path / "other.json"
        other.write_text(json.dumps(replace(tiny_recipe, num_crops=3).to_dict()))
        assert "same recipe" in refusal(capsys, *flags, "--recipe", other)

    def test_sizes_other_than_those_of_the_data(self, capsys, tmp_path, tiny_json, tiny_recipe):
        settings = preprocess.Settings(
            recipe=replace(tiny_recipe, sizes=((48, 64),)), pose="catwalk", seed=0
        )
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "_settings.json").write_text(settings.to_json())
        flags = ["--data", tmp_path / "data", "--recipe", tiny_json, "--out", tmp_path / "out"]
        line = refusal(capsys, *flags, "--sizes", "56x56")
        assert "sizes must be those of --data, 48x64, got 56x56" in line


def test_each_video_is_fitted_into_the_size_of_its_aspect(draw_clip, tiny_recipe, tmp_path):
    recipe = replace(tiny_recipe, sizes=((48, 64),))
    actor = Encoder(Settings(recipe=recipe, pose="catwalk", seed=0), num_threads=1)
    draw_clip(tmp_path / "upright.mp4", seed=1)
    draw_clip(tmp_path / "lying.mp4", seed=2, height=96, width=128)
    videos = [
        {"clip_id": name, "path": str(tmp_path / name), "subject": "ada", "row_file": ""}
        for name in ("upright.mp4", "lying.mp4")
    ]
    upright, lying = actor(pa.Table.from_pylist(videos)).to_pylist()
    assert (upright["frames_shape"], lying["frames_shape"]) == ([6, 64, 48, 3], [6, 48, 64, 3])
    assert (upright["poses_shape"][-2:], lying["poses_shape"][-2:]) == ([8, 6], [6, 8])
    # What a folder without further sizes says of itself is what it always said.
    plain = json.loads(Settings(recipe=tiny_recipe, pose="catwalk", seed=0).to_json())
    assert "sizes" not in plain["recipe"]
