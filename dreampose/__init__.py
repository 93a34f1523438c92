"""Pose-driven fashion video: one photo of a person and a motion become a video."""

__version__ = "0.1.0"
