"""Random crops and colour permutations of frames and pose maps."""

import cv2
import numpy as np
from jaxtyping import Int, Int32, Shaped, UInt8


def random_boxes(
    num_crops: int, *, height: int, width: int, smallest: float, generator: np.random.Generator
) -> Int32[np.ndarray, "k 4"]:
    """Samples crop boxes with the aspect ratio of the frame.

    Args:
        num_crops: number of boxes, at least 1.
        height: of the frame in pixels.
        width: of the frame in pixels.
        smallest: minimum side of a box as a fraction of the frame's, in (0, 1].
        generator: source of randomness.

    Returns:
        Boxes (top, left, bottom, right) in pixels; the first is the whole frame.
    """
    boxes = [(0, 0, height, width)]
    for _ in range(num_crops - 1):
        scale = generator.uniform(smallest, 1.0)
        box_height, box_width = round(height * scale), round(width * scale)
        top = int(generator.integers(0, height - box_height + 1))
        left = int(generator.integers(0, width - box_width + 1))
        boxes.append((top, left, top + box_height, left + box_width))
    return np.array(boxes, np.int32)


def random_channel_orders(num: int, *, generator: np.random.Generator) -> Int32[np.ndarray, "n 3"]:
    """Samples permutations of the colour channels, without the identity.

    Args:
        num: number of permutations; they are distinct up to 5.
        generator: source of randomness.
    """
    others = np.array([(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], np.int32)
    return np.resize(generator.permutation(others), (num, 3))


def crop(
    values: Shaped[np.ndarray, "... H W"], box: Int[np.ndarray, " 4"]
) -> Shaped[np.ndarray, "... h w"]:
    """Crops maps, whose last two dimensions are rows and columns, to a box."""
    top, left, bottom, right = (int(edge) for edge in box)
    return values[..., top:bottom, left:right]


def crop_frames(
    frames: UInt8[np.ndarray, "t H W 3"], box: Int[np.ndarray, " 4"], height: int, width: int
) -> UInt8[np.ndarray, "t h w 3"]:
    """Crops frames to a box and resizes them to `height x width` pixels."""
    top, left, bottom, right = (int(edge) for edge in box)
    part = frames[:, top:bottom, left:right]
    if part.shape[1:3] == (height, width):
        return part
    smaller = height < part.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.stack(
        [
            cv2.resize(np.ascontiguousarray(frame), (width, height), interpolation=method)
            for frame in part
        ]
    )


def square_boxes(
    centres: Int[np.ndarray, "b 2"], *, side: int, height: int, width: int
) -> Int32[np.ndarray, "b 2"]:
    """Top left corners of squares around `centres` (row, column), shifted into the frame."""
    corners = centres - side // 2
    return np.clip(corners, 0, [height - side, width - side]).astype(np.int32)
