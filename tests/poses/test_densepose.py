"""DensePose with scripted modules in the exporters' formats."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreampose.errors import InputError, SeveralPeopleWarning
from dreampose.poses import Motion, PoseEstimator, estimator, extract, identify
from dreampose.poses.parts import NAMES
from dreampose.types import Clip

SIDE = 56
FPS = 10.0


class Scripted(nn.Module):
    """Says what it is told; which frame it is, it reads from the red of the first pixel.

    `people[f]` are rows x, y, x, y. The surface of every person is the same in their box: the left
    half is part 2, the right half part 1; U runs from left to right, V from top to bottom, as
    those of the part's own channels; every other channel holds 0.9, so that a value taken from
    the wrong one shows.
    """

    def __init__(self, people: Tensor, counts: Tensor, side: int, empty: bool) -> None:
        super().__init__()
        self.people, self.counts = people, counts
        ramp = (torch.arange(side) + 0.5) / side
        coarse = torch.zeros(2, side, side)
        # The uppermost eighth of the box is background.
        coarse[1, side // 8 :] = 1 if not empty else -1
        coarse[0] = 0.5
        fine = torch.zeros(25, side, side)
        fine[2, :, : side // 2], fine[1, :, side // 2 :] = 4, 4
        fine[0] = 1
        u, v = torch.full((25, side, side), 0.9), torch.full((25, side, side), 0.9)
        u[1:3], v[1:3] = ramp, ramp[:, None]
        self.coarse, self.fine, self.u, self.v = coarse, fine, u, v

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        frame = int(image[0, 0, 0])
        count = int(self.counts[frame])
        return (
            self.people[frame, :count],
            self.coarse.expand(count, -1, -1, -1),
            self.fine.expand(count, -1, -1, -1),
            self.u.expand(count, -1, -1, -1),
            self.v.expand(count, -1, -1, -1),
        )


class Named(nn.Module):
    """The same as a dictionary with scores, as detectron2's scripted predictor gives it."""

    def __init__(self, inner: Scripted, scores: Tensor) -> None:
        super().__init__()
        self.inner, self.scores = inner, scores

    def forward(self, original_image: Tensor, bgr: bool = True) -> dict[str, Tensor]:
        boxes, coarse, fine, u, v = self.inner(original_image.flip(0))
        return {
            "pred_boxes": boxes,
            "scores": self.scores[: len(boxes)],
            "pred_densepose_coarse_segm": coarse,
            "pred_densepose_fine_segm": fine,
            "pred_densepose_u": u,
            "pred_densepose_v": v,
        }


@pytest.fixture
def save(tmp_path):
    """Writes a scripted module for people given frame by frame; gives the estimator's name."""

    def write(people, *, scores=None, empty=False):
        most = max(1, *(len(frame) for frame in people))
        table = torch.zeros(len(people), most, 4)
        for index, boxes in enumerate(people):
            if boxes:
                table[index, : len(boxes)] = torch.tensor(boxes, dtype=torch.float32)
        counts = torch.tensor([len(frame) for frame in people])
        module: nn.Module = Scripted(table, counts, SIDE, empty)
        if scores is not None:
            module = Named(module, torch.tensor(scores))
        return store(module, tmp_path)

    return write


def store(module, folder):
    path = folder / "densepose.torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return f"densepose:{path}"


def clip(num_frames, height=96, width=80):
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(num_frames)
    return Clip(frames=frames, fps=FPS, source="walk.mp4")


def truth(box, height=96, width=80):
    """Part, U and V of the scripted person, from the box alone."""
    left, top, right, bottom = box
    part, uv = np.zeros((height, width), int), np.zeros((2, height, width))
    for row in range(height):
        for column in range(width):
            across, down = (
                (column + 0.5 - left) / (right - left),
                (row + 0.5 - top) / (bottom - top),
            )
            if 0 <= across < 1 and 1 / 8 <= down < 1:
                part[row, column] = 2 if across < 0.5 else 1
                uv[:, row, column] = across, down
    return part, uv


@pytest.mark.parametrize("scores", [None, [0.97]])
@pytest.mark.parametrize(
    "box",
    [
        pytest.param((12, 8, 68, 88), id="inside"),
        pytest.param((0, 0, 80, 96), id="whole picture"),
        pytest.param((-24, 40, 32, 120), id="beyond left and bottom"),
        pytest.param((50, -16, 106, 64), id="beyond right and top"),
    ],
)
def test_surface_lands_on_the_pixels_of_the_box(box, scores, save):
    motion = extract(clip(1), estimator(save([[box]], scores=scores)), height=96, width=80)
    part, uv = truth(box)
    # Between rows of the network's 56x56 the border of the body may fall to either side.
    edge = np.zeros_like(part, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= np.roll(part, step, axis) != part
    body = (motion.maps > 0).all(axis=1)[0]
    np.testing.assert_array_equal(body[~edge], part[~edge] > 0)
    sure = ~edge & (part > 0)
    np.testing.assert_allclose(motion.maps[0][:, sure], uv[:, sure], atol=0.012)
    assert not motion.maps[0][:, ~body].any()
    assert motion.joint_names == NAMES
    for number, name in ((1, "torso_back"), (2, "torso_front")):
        place = motion.joints[0, NAMES.index(name)]
        if (part == number).any():
            rows, columns = np.nonzero(part == number)
            np.testing.assert_allclose(place[:2], (columns.mean() + 0.5, rows.mean() + 0.5), atol=1)
        assert place[3] == (part == number).any()
    if scores:
        assert motion.confidence[0] == pytest.approx(0.97)
    else:
        assert 0.5 < motion.confidence[0] < 1


def test_the_third_channel_tells_the_part(save):
    box = (12, 8, 68, 88)
    reader = estimator(save([[box]]), channels=3)
    maps = extract(clip(1), reader, height=96, width=80).maps[0]
    part, _ = truth(box)
    labels = np.round(maps[0] * 24)
    assert (labels == part).mean() > 0.97
    plain = extract(clip(1), estimator(save([[box]])), height=96, width=80).maps[0]
    np.testing.assert_array_equal(maps[1:], plain)


def test_maps_are_placed_as_the_frames_are(save):
    # A picture of 96x80 in maps of 48x48: 4 columns are left over at each side.
    motion = extract(clip(1), estimator(save([[(0, 0, 80, 96)]])), height=48, width=48)
    columns = np.flatnonzero(motion.maps[0].any(axis=(0, 1)))
    assert columns.min() == 4 and columns.max() == 43
    middle = motion.maps[0, :, 30]
    np.testing.assert_allclose(middle[0, 4:44], (np.arange(40) + 0.5) / 40, atol=0.02)


def test_the_largest_person_is_followed_and_the_others_leave_no_trace(save):
    small = [(2, 30, 22, 80)] * 4
    large = [(30 + 3 * index, 10, 66 + 3 * index, 90) for index in range(4)]
    # The order changes from frame to frame, as the detector's does.
    people = [
        [a, b] if index % 2 else [b, a]
        for index, (a, b) in enumerate(zip(small, large, strict=True))
    ]
    with pytest.warns(SeveralPeopleWarning, match=r"two people.*x=48, y=50.*the largest"):
        motion = extract(clip(4), estimator(save(people)), height=96, width=80)
    assert motion.num_filled == 0
    for index, box in enumerate(large):
        columns = np.flatnonzero(motion.maps[index].any(axis=(0, 1)))
        assert (columns.min(), columns.max()) == (box[0], min(box[2], 80) - 1)


def test_a_person_can_be_chosen_by_place(save):
    people = [[(30, 10, 66, 90), (2, 30, 22, 80)]]
    with pytest.warns(SeveralPeopleWarning, match="nearest to the place given"):
        motion = extract(clip(1), estimator(save(people), person=(10.0, 50.0)), height=96, width=80)
    columns = np.flatnonzero(motion.maps[0].any(axis=(0, 1)))
    assert (columns.min(), columns.max()) == (2, 21)


def test_a_person_at_another_place_is_not_the_same_track(save):
    # The one who is followed leaves; another stands at the far side, as large.
    people = [[(0, 20, 30, 90)]] * 3 + [[(50, 20, 80, 90)]] + [[(2, 20, 32, 90)]]
    motion = extract(clip(5), estimator(save(people)), height=96, width=80)
    assert np.flatnonzero(motion.confidence == 0).tolist() == [3]
    assert not motion.maps[:, :, :, 40:].any()


def test_pictures_without_people_above_the_threshold_are_rejected(save):
    for name in (
        save([[], [], []]),
        save([[], [], []], scores=[0.9]),
        save([[(5, 5, 60, 90)]] * 3, scores=[0.3]),
        save([[(5, 5, 60, 90)]] * 3, empty=True),
        save([[(-90, 5, -10, 90)]] * 3),
        save([[(float("nan"), 5, 60, 90)]] * 3),
    ):
        with pytest.raises(InputError, match="nobody in any of the 3 frames"):
            extract(clip(3), estimator(name), height=96, width=80)


def test_frames_without_a_person_are_filled_and_counted(save):
    people = [[(10, 5, 60, 90)], [], [(10, 5, 60, 90)], [], []]
    motion = extract(clip(5), estimator(save(people)), height=96, width=80)
    assert motion.num_filled == 3
    np.testing.assert_array_equal(motion.maps[1], motion.maps[0])


class OneTensor(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


class Picky(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[2] == 3, "channels come last"
        return image


class Plain(nn.Module):
    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = torch.zeros(1, 25, 8, 8)
        answer = {
            "pred_boxes": torch.zeros(1, 4),
            "pred_densepose_coarse_segm": torch.zeros(1, 2, 8, 8),
            "pred_densepose_fine_segm": torch.zeros(1, self.answer, 8, 8),
            "pred_densepose_u": maps,
        }
        if self.answer != 25:
            answer["pred_densepose_v"] = maps
        return answer


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Plain(25), "must return .*got no pred_densepose_v"),
        (Plain(15), r"fine_segm of shape \(1, 25, height, width\), got \(1, 15, 8, 8\)"),
        (OneTensor(), "a dictionary or a tuple of .*got a Tensor"),
        (Picky(), r"one 8-bit image \(3, height, width\).*channels come last"),
    ],
)
def test_models_with_other_outputs_are_rejected(module, said, tmp_path):
    with pytest.raises(InputError, match=said):
        extract(clip(1), estimator(store(module, tmp_path)), height=96, width=80)


def test_files_other_than_models_are_rejected(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a module")
    with pytest.raises(InputError, match=r"TorchScript file, got .*weights\.pt"):
        extract(clip(1), estimator(f"densepose:{path}"), height=96, width=80)


def test_the_name_tells_the_weights_and_the_estimator_travels(save, tmp_path):
    import pickle

    name = save([[(10, 5, 60, 90)]])
    identity = identify(name)
    assert identity.startswith("densepose-") and "/" not in identity
    (tmp_path / "other").mkdir()
    other = store(OneTensor(), tmp_path / "other")
    assert identify(other) != identity
    assert identify("blazepose") == "blazepose"
    reader = estimator(name)
    assert isinstance(reader, PoseEstimator)
    first: Motion = extract(clip(1), reader, height=96, width=80)
    again = extract(clip(1), pickle.loads(pickle.dumps(reader)), height=96, width=80)
    np.testing.assert_array_equal(first.maps, again.maps)
