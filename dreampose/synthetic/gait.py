"""Procedural gait: bone rotations of every frame.

Rotations are about the axes of the rest pose: x to the body's left, y up, z forward. The person
walks in place, as if the camera followed; `scene.pose` puts the lowest sole on the floor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import rotation

MOTIONS = ("walk", "turn", "across")


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Pose of the skeleton in one frame."""

    rotations: Mapping[str, Float[np.ndarray, "3 3"]]
    """Local rotation by bone name; bones that are missing do not rotate."""
    yaw: float
    """Heading in degrees; 0 faces +z."""
    shift: float
    """Sideways shift in dm."""
    phase: float
    """Phase of the gait cycle in radians."""


def poses(
    person: Identity, *, motion: str, num_frames: int, fps: float, arm_lift: float, stance: float
) -> list[Pose]:
    """Poses of the frames of a clip.

    Every motion starts within 30 degrees of the camera. 'walk' veers slightly. 'turn' makes one
    full turn in clips of up to three seconds and uses the person's turn rate in longer ones.
    'across' veers by 90 degrees in the first half and continues across the picture: a brisk walk
    with long steps and a wide arm swing with bent elbows.

    Args:
        person: source of the gait parameters.
        motion: one of `MOTIONS`.
        num_frames: at least 1.
        fps: frames per second, positive.
        arm_lift: degrees by which the arms are lowered from the rest pose.
        stance: degrees by which the legs are closed from the rest pose.
    """
    assert motion in MOTIONS
    seconds = num_frames / fps
    stride = 0.45 if motion == "turn" else 1.0
    bend = 0.0
    if motion == "across":
        # Derived from an existing parameter: a new one would change the random draws of `identity`.
        bend = 10 + 17 * (person.sway - 2)
        person = replace(person, stride=1.25 * person.stride, arm_swing=1.9 * person.arm_swing)
    result = []
    for frame in range(num_frames):
        time = frame / fps
        phase = person.phase + 2 * np.pi * person.cadence * time
        result.append(
            Pose(
                rotations=_rotations(person, phase, stride, arm_lift, stance, bend),
                yaw=float(_yaw(person, motion, time, seconds)),
                shift=float(0.06 * person.sway * np.sin(phase)),
                phase=float(phase),
            )
        )
    return result


def _yaw(person: Identity, motion: str, time: float, seconds: float) -> float:
    """Heading in degrees at `time` seconds of a clip that lasts `seconds`; see `poses`."""
    if motion == "turn":
        rate = person.turn_rate
        if seconds < 3:
            rate = np.sign(rate) * 360 / seconds
        return person.start_yaw + rate * time
    if motion == "across":
        veer, done = 90 * np.sign(person.turn_rate), min(1.0, 2 * time / seconds)
    else:
        veer, done = person.walk_yaw, time / max(seconds, 1.5)
    return person.start_yaw + veer * (1 - np.cos(np.pi * done)) / 2


def _bump(phase: float, centre: float, width: float) -> float:
    """Periodic Gaussian of height 1 at `centre`; `width` is its half width at half height."""
    away = (phase - centre + np.pi) % (2 * np.pi) - np.pi
    return float(np.exp(-np.log(2) * (away / width) ** 2))


def _rotations(
    person: Identity, phase: float, stride: float, arm_lift: float, stance: float, bend: float
) -> dict[str, Float[np.ndarray, "3 3"]]:
    swing = np.sin(phase)
    pelvis = rotation("y", -4 * stride * swing) @ rotation("z", person.sway * 0.6 * np.cos(phase))
    turns = {
        "Hips": pelvis,
        # The trunk cancels most of the pelvis rotation; the shoulders swing against the stride.
        "LowerBack": rotation("z", -person.sway * 0.45 * np.cos(phase)),
        "Spine": rotation("y", 9 * stride * swing) @ rotation("x", 1.5),
        "Neck": rotation("y", -4 * stride * swing),
    }
    for side, sign, own in (("Left", 1.0, phase), ("Right", -1.0, phase + np.pi)):
        hip = -person.stride * stride * np.sin(own) - 2
        knee = 5 + 42 * (0.35 + 0.65 * stride) * _bump(own, 5.35, 0.75)
        knee += 9 * stride * _bump(own, 2.1, 0.5)
        level = 24 * stride * _bump(own, 4.75, 0.55) - 13 * stride * _bump(own, 1.5, 0.45)
        close = -sign * (stance + 1.5 * stride)
        turns[f"{side}UpLeg"] = rotation("x", hip) @ rotation("z", close)
        turns[f"{side}Leg"] = rotation("x", knee)
        # The sole's pitch is absolute: the foot inverts the rotation of the leg.
        leg = turns[f"{side}UpLeg"] @ turns[f"{side}Leg"]
        turns[f"{side}Foot"] = leg.T @ rotation("x", level)
        turns[f"{side}ToeBase"] = rotation("x", -18 * stride * _bump(own, 4.6, 0.4))
        forward = -person.arm_swing * (0.3 + 0.7 * stride) * np.sin(own + np.pi)
        lowered = rotation("z", -sign * 0.8 * arm_lift)
        turns[f"{side}Arm"] = rotation("x", forward) @ lowered
        turns[f"{side}Shoulder"] = rotation("z", -sign * 0.2 * arm_lift)
        if bend:
            # The elbow bends most when the arm is in front, about the axis of the lowered arm.
            elbow = rotation("x", -bend * (0.1 + 0.45 * (1 - np.sin(own))))
            turns[f"{side}ForeArm"] = lowered.T @ elbow @ lowered @ rotation("x", 31)
        else:
            turns[f"{side}ForeArm"] = rotation("x", 31 + 0.5 * forward)
    return turns
