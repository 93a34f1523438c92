"""Camera, key light, backdrop and floor shadow of a clip."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32

from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import unit


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A static pinhole camera; lengths are in decimetres."""

    turn: Float[np.ndarray, "3 3"]
    """World-to-camera rotation; rows are right, up and backwards (towards the camera)."""
    place: Float[np.ndarray, "3"]
    """Position in world coordinates."""
    focal: float
    """Focal length in pixels."""
    centre: tuple[float, float]
    """Principal point (x, y) in pixels."""

    def project(self, points: Float[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
        """Projects world points (dm) to x and y in pixels and depth in dm."""
        seen = (points - self.place) @ self.turn.T
        ahead = -seen[:, 2]
        x = self.centre[0] + self.focal * seen[:, 0] / ahead
        y = self.centre[1] - self.focal * seen[:, 1] / ahead
        return np.stack([x, y, ahead], 1).astype(np.float32)


def make_camera(person: Identity, *, stature: float, height: int, width: int) -> Camera:
    """Camera that shows a person of `stature` dm completely in a picture of `height` x `width`."""
    aim = np.array([0.0, stature * 0.49, 0.0])
    side = np.deg2rad(person.camera_yaw)
    place = np.array(
        [
            person.camera_distance * np.sin(side),
            person.camera_height,
            person.camera_distance * np.cos(side),
        ]
    )
    distance = math.dist(place, aim)
    back = (place - aim) / distance
    right = unit(np.cross([0.0, 1.0, 0.0], back))
    turn = np.stack([right, np.cross(back, right), back])
    # The framing follows the stature only in part, so that tall people look taller; the second
    # term keeps the tallest inside the picture, including the foot nearer to the camera.
    shown = max(0.55 * stature / 0.87 + 0.45 * 19.6, stature / 0.917)
    focal = min(height / shown, width / (shown * 0.62)) * distance
    return Camera(turn=turn, place=place, focal=focal, centre=(width / 2, height / 2))


def backdrop(
    person: Identity, view: Camera, height: int, width: int
) -> Float32[np.ndarray, "H W 3"]:
    """Seamless paper backdrop in [0, 255], brightest in the middle, darker at floor and corners."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x / width - 0.5, y / height
    floor = float(view.project(np.array([[0.0, 0.0, -12.0]]))[0, 1]) / height
    bright = 0.1 * np.sin(np.deg2rad(person.light_yaw))
    glow = np.exp(-(((x - bright) / 0.75) ** 2 + ((y - 0.4) / 0.8) ** 2))
    light = 0.86 + 0.14 * glow
    edge = 1 / (1 + np.exp(-(y - floor) / 0.03))
    light = light * (1 - 0.045 * edge) - 0.03 * edge * (y - floor)
    colour = np.array(person.backdrop, np.float32)
    return (light[..., None] * colour * np.float32(1.02)).astype(np.float32)


def light_colour(person: Identity) -> Float[np.ndarray, "3"]:
    """RGB intensity of the key light."""
    warm = np.array([1.0, 1.0, 1.0]) + person.warmth * np.array([0.035, 0.0, -0.045])
    return warm * person.light_strength


def light_direction(person: Identity) -> Float[np.ndarray, "3"]:
    """Unit vector towards the key light in world coordinates."""
    yaw, up = np.deg2rad(person.light_yaw), np.deg2rad(person.light_height)
    return np.array([np.cos(up) * np.sin(yaw), np.sin(up), np.cos(up) * np.cos(yaw)])


def shadow(
    person: Identity, view: Camera, points: Float[np.ndarray, "n 3"], height: int, width: int
) -> Float32[np.ndarray, "H W"]:
    """Share of light that the floor loses, in [0, 1]: a soft cast shadow and a contact shadow."""
    step = max(1, height // 160)
    rows, columns = height // step + 1, width // step + 1
    light = light_direction(person)
    result = np.zeros((rows, columns), np.float32)
    for chosen, blur, amount in (
        (points[points[:, 1] < 0.9], 0.016, 0.42),
        (points[points[:, 1] > 0.5], 0.05, 0.16),
    ):
        if not len(chosen):
            continue
        fall = 0.55 * chosen[:, 1:2] / max(light[1], 0.3)
        ground = chosen - fall * light
        ground[:, 1] = 0
        seen = view.project(ground)
        x = np.round(seen[:, 0] / step).astype(int)
        y = np.round(seen[:, 1] / step).astype(int)
        inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        mask = np.zeros((rows, columns), np.float32)
        mask[y[inside], x[inside]] = 1
        wide = max(1, round(0.012 * rows)) * 2 + 1
        mask = cv2.dilate(mask, np.ones((wide, wide), np.uint8))
        soft = cv2.GaussianBlur(mask, (0, 0), blur * rows)
        result = 1 - (1 - result) * (1 - amount * soft)
    big = cv2.resize(result, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
    return big[:height, :width]
