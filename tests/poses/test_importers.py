"""Import of poses from other programs."""

import json

import numpy as np
import pytest
from PIL import Image

from dreampose.__main__ import main
from dreampose.errors import InputError, PartsOnlyWarning, PointsOutsideWarning
from dreampose.io import video
from dreampose.poses import Motion, paint
from dreampose.poses.extract import complete
from dreampose.poses.importers import read
from dreampose.poses.landmarks import INDEX
from dreampose.poses.parts import palette

HEIGHT, WIDTH = 64, 48


def person(shift=0):
    """Part, U and V of a figure with a head (23), a torso (2) and legs (9 and 10)."""
    part = np.zeros((HEIGHT, WIDTH), np.uint8)
    part[6:16, 20 + shift : 28 + shift] = 23
    part[16:36, 16 + shift : 32 + shift] = 2
    part[36:60, 16 + shift : 23 + shift] = 9
    part[36:60, 25 + shift : 32 + shift] = 10
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    uv = np.stack([columns / WIDTH, rows / HEIGHT]) * (part > 0)
    return part, uv


def run(tmp_path, *words):
    """The motion that the command writes."""
    out = tmp_path / "motion.npz"
    assert main(["pose", *map(str, words), "--out", str(out), "--size", f"{HEIGHT}x{WIDTH}"]) == 0
    return Motion.load(out)


def said(capsys, tmp_path, *words):
    """What the command says when it refuses."""
    assert main(["pose", *map(str, words), "--out", str(tmp_path / "no.npz")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not (tmp_path / "no.npz").exists()
    return line


class TestArrays:
    """`frame_N_densepose.npy`, floats (2, H, W), beside each frame: the published layout."""

    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "poses"
        folder.mkdir()
        # Names without leading zeros: 10 comes after 9, and 8 was not found by that tool.
        for number in (7, 9, 10, 11):
            np.save(folder / f"frame_{number}_densepose.npy", person(number - 7)[1])
        return folder

    def test_every_pixel_and_frame_is_where_it_was(self, folder, tmp_path):
        motion = run(tmp_path, folder, "--from", "npy", "--fps", 30)
        assert (motion.num_frames, motion.fps, motion.estimator) == (5, 30, "npy")
        assert motion.num_filled == 1 and motion.confidence[1] == 0
        for frame, number in ((0, 7), (2, 9), (3, 10), (4, 11)):
            part, uv = person(number - 7)
            np.testing.assert_allclose(motion.maps[frame], uv, atol=1 / 255)
            np.testing.assert_array_equal(motion.maps[frame].all(axis=0), part > 0)
        preview = video.read(tmp_path / "motion.preview.mp4")
        assert len(preview.frames) == 5

    def test_a_range_and_another_size(self, folder, tmp_path):
        out = tmp_path / "m.npz"
        words = ["pose", str(folder), "--from", "npy", "--fps", "10", "--out", str(out)]
        assert main([*words, "--size", "128x128", "--frames", "2:4", "--no-preview"]) == 0
        motion = Motion.load(out)
        assert motion.maps.shape == (2, 2, 128, 128)
        # 64x48 fills the height, and 16 columns are left at each side.
        columns = np.flatnonzero(motion.maps[0].any(axis=(0, 1)))
        assert (columns.min(), columns.max()) == (16 + 2 * 18, 16 + 2 * 34 - 1)

    def test_numbers_with_a_stride_are_frames_in_a_row(self, folder, tmp_path):
        for path in folder.iterdir():
            path.unlink()
        for number in (0, 2, 4, 6):
            np.save(folder / f"frame_{number}.npy", person()[1].astype(np.float32))
        assert read(folder, "npy", height=64, width=48, fps=5).track.found.tolist() == [True] * 4

    def test_parts_come_along_as_a_third_channel(self, folder, tmp_path):
        for path in folder.iterdir():
            path.unlink()
        part, uv = person()
        whole = np.concatenate([part[None], np.round(uv * 255)]).astype(np.uint8)
        np.save(folder / "0.npy", whole)
        motion = run(tmp_path, folder, "--from", "npy", "--fps", 30, "--channels", 3)
        np.testing.assert_array_equal(np.round(motion.maps[0, 0] * 24), part)
        np.testing.assert_allclose(motion.maps[0, 1:], uv, atol=1 / 200)
        head = motion.joints[0, motion.joint_names.index("head_right")]
        np.testing.assert_allclose(head, (24, 11, 0, 1))

    def test_what_cannot_be_used_is_rejected(self, folder, tmp_path, capsys):
        words = (folder, "--from", "npy")
        assert "fps must be a positive number, got None" in said(capsys, tmp_path, *words)
        words = (*words, "--fps", 30)
        assert "channels must be 2" in said(capsys, tmp_path, *words, "--channels", 3)
        np.save(folder / "frame_12_densepose.npy", np.zeros((2, 8, 8)))
        assert "of one size, got 64x48 and 8x8" in said(capsys, tmp_path, *words)
        np.save(folder / "frame_12_densepose.npy", person()[1] * 255)
        assert "U and V in [0, 1]" in said(capsys, tmp_path, *words)
        np.save(folder / "frame_12_densepose.npy", np.array([{}], object), allow_pickle=True)
        assert "plain .npy arrays" in said(capsys, tmp_path, *words)
        np.save(folder / "frame_12_densepose.npy", np.zeros((HEIGHT, WIDTH)))
        assert "shape (2, height, width)" in said(capsys, tmp_path, *words)
        (folder / "frame_12_densepose.npy").unlink()
        np.save(folder / "again_11.npy", person()[1])
        assert "one file a frame" in said(capsys, tmp_path, *words)
        (folder / "again_11.npy").unlink()
        np.save(folder / "mean.npy", person()[1])
        assert "the frame's number" in said(capsys, tmp_path, *words)
        (folder / "mean.npy").unlink()
        # 13 frames of nobody are longer than 0.4 s at 30 frames a second.
        np.save(folder / "frame_25_densepose.npy", person()[1])
        line = said(capsys, tmp_path, *words)
        assert "13 frames without a pose, 5 to 17" in line
        assert "existing folder" in said(capsys, tmp_path, "nowhere", *words[1:])


class TestPictures:
    def test_a_painted_video_gives_the_parts(self, tmp_path):
        """As MagicAnimate takes them: viridis, background 68, 1, 84, lossy."""
        scale = 6
        frames = [np.kron(palette()[person(s)[0]].transpose(2, 0, 1),
                          np.ones((scale, scale), np.uint8)).transpose(1, 2, 0)
                  for s in (0, 2, 4)]  # fmt: skip
        path = tmp_path / "densepose.mp4"
        video.write(path, frames, 25)
        with pytest.warns(PartsOnlyWarning, match="set to 0.5"):
            imported = read(path, "iuv", height=HEIGHT, width=WIDTH, channels=3)
        motion = complete(imported.track, height=HEIGHT, width=WIDTH, fps=imported.clip.fps,
                          source="d.mp4", estimator="iuv")  # fmt: skip
        assert motion.fps == 25
        for index, shift in enumerate((0, 2, 4)):
            part = person(shift)[0]
            assert (np.round(motion.maps[index, 0] * 24) == part).mean() > 0.99
            body = motion.maps[index].all(axis=0)
            assert np.unique(np.round(motion.maps[index, 1:][:, body] * 255)).tolist() == [128]

    def test_pictures_with_part_u_and_v_as_blue_green_red(self, tmp_path):
        folder = tmp_path / "iuv"
        folder.mkdir()
        part, uv = person()
        rgb = np.stack([np.round(uv[1] * 255), np.round(uv[0] * 255), part], axis=-1)
        Image.fromarray(rgb.astype(np.uint8)).save(folder / "frame_3_IUV.png")
        motion = run(tmp_path, folder, "--from", "iuv", "--fps", 30)
        np.testing.assert_allclose(motion.maps[0], uv, atol=1 / 200)
        assert (motion.maps[0].all(axis=0) == (part > 0)).all()

    def test_other_pictures_are_rejected(self, tmp_path, capsys):
        path = tmp_path / "walk.mp4"
        video.write(path, np.full((2, 64, 48, 3), 200, np.uint8), 10)
        line = said(capsys, tmp_path, path, "--from", "iuv")
        assert "background 0, 0, 0" in line and "got 200, 200, 200" in line
        assert "left to the video" in said(capsys, tmp_path, path, "--from", "iuv", "--fps", 10)


COCO = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle", "right_eye_middle", "left_eye_middle"),
    *("right_ear", "left_ear"),
)
BODY_25 = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "middle_hip", "right_hip", "right_knee"),
    *("right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye_middle"),
    *("left_eye_middle", "right_ear", "left_ear", "left_foot", "left_small_toe", "left_heel"),
    *("right_foot", "right_small_toe", "right_heel"),
)
"""OpenPose's own order, from its documentation."""


def openpose(joints, names, *, lost=(), scale=(1.0, 1.0)):
    """A person of OpenPose's JSON: what a camera sees of a skeleton, without its depth."""
    flat = []
    for name in names:
        if name in INDEX and name not in lost:
            x, y = joints[INDEX[name], :2]
            flat += [float(x) * scale[0], float(y) * scale[1], 0.9]
        else:
            flat += [0.0, 0.0, 0.0]
    return {"pose_keypoints_2d": flat}


def write_frames(folder, frames, **more):
    folder.mkdir()
    for index, people in enumerate(frames):
        text = json.dumps({"version": 1.3, "people": people} | more)
        (folder / f"walk_{index:012d}_keypoints.json").write_text(text)
    return folder


class TestPoints:
    @pytest.mark.parametrize("names", [COCO, BODY_25], ids=["COCO", "BODY_25"])
    def test_a_turning_person_is_painted_as_with_the_true_depth(self, names, skeleton, tmp_path):
        yaws = np.arange(0, 360, 10)
        joints = np.concatenate([skeleton(yaw=float(yaw), height=128) for yaw in yaws])
        # From behind, OpenPose sees no nose and no eyes.
        frames = [
            [openpose(j, names, lost=("nose", "left_eye_middle", "right_eye_middle")
                      if 100 < yaw < 260 else ())]
            for j, yaw in zip(joints, yaws, strict=True)
        ]  # fmt: skip
        folder = write_frames(tmp_path / "json", frames)
        imported = read(folder, "openpose", height=160, width=128, fps=30, canvas=(160, 128))
        track = imported.track
        wanted = paint(joints, 160, 128)
        got = paint(track.joints, 160, 128)
        both = (wanted > 0).all(axis=1) & (got > 0).all(axis=1)
        either = (wanted > 0).all(axis=1) | (got > 0).all(axis=1)
        overlap = both.sum(axis=(1, 2)) / either.sum(axis=(1, 2))
        assert overlap.min() > 0.8
        for index, yaw in enumerate(yaws):
            error = np.abs(wanted[index] - got[index])[:, both[index]].mean()
            # The same person seen the other way round is the alternative to be ruled out.
            turned = paint(skeleton(yaw=float(yaw) + 180), 160, 128)[0]
            shared = both[index] & (turned > 0).all(axis=0)
            other = np.abs(turned - got[index])[:, shared].mean()
            assert error < 0.06
            assert error < 0.6 * other
        left, right = INDEX["left_shoulder"], INDEX["right_shoulder"]
        true_depth = joints[:, left, 2] - joints[:, right, 2]
        depth = track.joints[:, left, 2] - track.joints[:, right, 2]
        large = np.abs(true_depth) > 8
        assert (np.sign(depth[large]) == np.sign(true_depth[large])).all()

    def test_fingers_and_feet_are_taken_where_they_are_given(self, skeleton, tmp_path):
        joints = skeleton(left_foot=(0.2, 0.5, -0.1))[0]
        person = openpose(joints, BODY_25)
        hand = np.zeros((21, 3))
        hand[5] = (70, 90, 0.8)
        person["hand_left_keypoints_2d"] = hand.ravel().tolist()
        folder = write_frames(tmp_path / "json", [[person]] * 3)
        track = read(folder, "openpose", height=160, width=128, fps=30, canvas=(160, 128)).track
        np.testing.assert_allclose(track.joints[0, INDEX["left_index"], :2], (70, 90), atol=1e-3)
        foot = INDEX["left_foot"]
        np.testing.assert_allclose(track.joints[0, foot, :2], joints[foot, :2], atol=1e-3)

    def test_one_list_of_frames_in_shares_of_a_stated_canvas(self, skeleton, tmp_path):
        """DWPose as the tools around diffusion models save it."""
        joints = skeleton()[0]
        frames = [
            {
                "people": [openpose(joints, COCO, scale=(1 / 128, 1 / 160))],
                "canvas_height": 160,
                "canvas_width": 128,
            }
        ] * 4
        path = tmp_path / "dwpose.json"
        path.write_text(json.dumps(frames))
        out = tmp_path / "motion.npz"
        words = ["pose", str(path), "--from", "openpose", "--fps", "12", "--out", str(out)]
        assert main(words) == 0
        motion = Motion.load(out)
        assert (motion.num_frames, motion.fps, motion.painted) == (4, 12, True)
        for name in ("left_wrist", "right_ankle", "nose"):
            got = motion.joints[0, INDEX[name], :2]
            np.testing.assert_allclose(got, joints[INDEX[name], :2], atol=0.01)

    def test_the_largest_of_several_people_is_followed_through_gaps(self, skeleton, tmp_path):
        frames = []
        for index in range(6):
            large = openpose(skeleton(x=40 + index, height=110)[0], COCO)
            small = openpose(skeleton(x=110, height=50)[0], COCO)
            frames.append([small, large] if index % 2 else [large, small])
        frames[3] = frames[3][:1]
        folder = write_frames(tmp_path / "json", frames, canvas_height=160, canvas_width=128)
        motion = run_points(folder)
        hips = (
            motion.joints[:, INDEX["left_hip"], 0] + motion.joints[:, INDEX["right_hip"], 0]
        ) / 2
        np.testing.assert_allclose(hips, 40 + np.arange(6), atol=0.5)
        assert np.flatnonzero(motion.confidence == 0).tolist() == [3]

    def test_a_hidden_wrist_is_interpolated_and_marked(self, skeleton, tmp_path):
        frames = [
            [openpose(skeleton(x=40 + 2 * i)[0], COCO, lost=("left_wrist",) * (i == 2))]
            for i in range(5)
        ]
        folder = write_frames(tmp_path / "json", frames, canvas_height=160, canvas_width=128)
        motion = run_points(folder)
        wrist = motion.joints[:, INDEX["left_wrist"]]
        np.testing.assert_allclose(np.diff(wrist[:, 0]), 2, atol=0.01)
        assert wrist[:, 3].tolist()[2] == 0 and motion.num_filled == 0

    @pytest.mark.parametrize(
        ("people", "more", "words", "message"),
        [
            ([{"pose_keypoints_2d": [1.0] * 51}], {}, ["--canvas", "9x9"], "18 (COCO) or 25"),
            ([{"pose_keypoints_2d": [1.0] * 50}], {}, ["--canvas", "9x9"], "flat lists of x, y"),
            ([], {}, [], "canvas must be the height and width"),
            ([], {}, ["--canvas", "9"], "canvas must be HEIGHTxWIDTH"),
            ([], {}, ["--canvas", "9x9"], "nobody in any of the 1 frames"),
            ([], {"people": None}, ["--canvas", "9x9"], "a list 'people'"),
            ([], {}, ["--canvas", "9x9", "--channels", "3"], "channels must be 2"),
        ],
    )
    def test_what_cannot_be_used_is_rejected(self, people, more, words, message, tmp_path, capsys):
        folder = write_frames(tmp_path / "json", [people], **more)
        line = said(capsys, tmp_path, folder, "--from", "openpose", "--fps", 30, *words)
        assert message in line

    def test_a_partial_body_is_rejected(self, skeleton, tmp_path):
        lost = ("left_ankle", "right_ankle")
        folder = write_frames(tmp_path / "json", [[openpose(skeleton()[0], COCO, lost=lost)]])
        with pytest.raises(
            InputError, match="no left_ankle, no right_ankle in any of the 1 frames"
        ):
            read(folder, "openpose", height=160, width=128, fps=30, canvas=(160, 128))


def run_points(folder):
    imported = read(folder, "openpose", height=160, width=128, fps=30)
    return complete(
        imported.track, height=160, width=128, fps=30, source="json", estimator="openpose"
    )


class TestForms:
    """Files as other programs leave them."""

    @pytest.fixture
    def joints(self, skeleton):
        return np.concatenate([skeleton(x=60 + index) for index in range(6)])

    def read(self, folder, **options):
        return read(
            folder, "openpose", height=160, width=128, fps=24, canvas=(160, 128), **options
        ).track

    def test_a_byte_order_mark_is_read(self, joints, tmp_path):
        folder = tmp_path / "json"
        folder.mkdir()
        for index, frame in enumerate(joints):
            text = json.dumps({"people": [openpose(frame, COCO)]})
            (folder / f"f{index}.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert self.read(folder).found.all()

    @pytest.mark.parametrize("name", ["frame{}_keypoints_2d", "{:04d}_walk_1080p", "v2_{}_30fps"])
    def test_constant_numbers_in_names_and_hidden_files_are_ignored(self, name, joints, tmp_path):
        folder = tmp_path / "json"
        folder.mkdir()
        for index, frame in enumerate(joints):
            text = json.dumps({"people": [openpose(frame, COCO)]})
            (folder / f"{name.format(index)}.json").write_text(text)
            (folder / f"._{name.format(index)}.json").write_bytes(b"\x00\x05\x16\x07")
        track = self.read(folder)
        assert track.found.tolist() == [True] * 6
        left = track.joints[:, INDEX["left_hip"], 0]
        assert np.diff(left) == pytest.approx([1.0] * 5, abs=1e-3)

    @pytest.mark.parametrize("other", [{"face_keypoints_2d": [1.0] * 210}, {}, None])
    def test_entries_without_body_points_are_skipped(self, other, joints, tmp_path):
        frames = [[other, openpose(frame, COCO)] for frame in joints]
        frames[3] = [{"pose_keypoints_2d": None}, other]
        track = self.read(write_frames(tmp_path / "json", frames))
        assert track.found.tolist() == [True, True, True, False, True, True]

    def test_points_in_minus_one_to_one_are_read(self, joints, tmp_path):
        scaled = joints.copy()
        scaled[..., 0] = joints[..., 0] / 128 * 2 - 1
        scaled[..., 1] = joints[..., 1] / 160 * 2 - 1
        plain = write_frames(tmp_path / "a", [[openpose(frame, BODY_25)] for frame in joints])
        other = write_frames(tmp_path / "b", [[openpose(frame, BODY_25)] for frame in scaled])
        np.testing.assert_allclose(self.read(other).joints, self.read(plain).joints, atol=1e-3)

    def test_a_canvas_with_its_sides_exchanged_is_rejected(self, skeleton, tmp_path, capsys):
        joints = np.concatenate([skeleton(x=900 + index, hip_y=300) for index in range(4)])
        folder = write_frames(tmp_path / "json", [[openpose(frame, COCO)] for frame in joints])
        words = (folder, "--from", "openpose", "--fps", "24", "--canvas", "1280x720")
        line = said(capsys, tmp_path, *words)
        assert "canvas must hold the points, got 1280x720 (height first; is it 720x1280?)" in line

    def test_a_person_who_reaches_out_of_the_canvas_is_reported(self, skeleton, tmp_path):
        joints = np.concatenate([skeleton(x=60 + 16 * index) for index in range(6)])
        folder = write_frames(tmp_path / "json", [[openpose(frame, COCO)] for frame in joints])
        with pytest.warns(PointsOutsideWarning, match=r"outside the canvas.*in frames 4 to 5"):
            self.read(folder)

    def test_parts_painted_on_black_are_read(self, tmp_path):
        part, _ = person()
        picture = np.where((part > 0)[..., None], palette()[part], 0).astype(np.uint8)
        folder = tmp_path / "png"
        folder.mkdir()
        for index in range(2):
            Image.fromarray(picture).save(folder / f"{index}.png")
        with pytest.warns(PartsOnlyWarning):
            imported = read(folder, "iuv", height=HEIGHT, width=WIDTH, fps=10, channels=3)
        labels = np.round(imported.track.maps[0, 0] * 24)
        assert (labels == part).mean() > 0.97
