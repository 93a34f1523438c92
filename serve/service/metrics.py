"""What the service counts and how it logs. Knows nothing of HTTP; Ray carries the numbers.

Ray exports every metric to Prometheus as `ray_` and its name, counters with `_total` behind it.
Log lines name the video they are about; with Serve's JSON encoding each fact is a field.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Buckets of histograms."""

METRICS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "dreampose_queue_depth": ("gauge", "Videos that wait for their turn", ()),
    "dreampose_videos_in_progress": ("gauge", "Videos that are being rendered", ()),
    "dreampose_videos": ("counter", "Videos that ended, by status", ("status",)),
    "dreampose_frames": ("counter", "Frames rendered; its rate is frames per second", ()),
    "dreampose_seconds_per_frame": (
        "histogram",
        "Seconds for a frame, by stage (extract, prepare, render, encode)",
        ("stage",),
    ),
    "dreampose_cache": ("counter", "Poses found (hit) or read from a video (miss)", ("result",)),
    "dreampose_retries": ("counter", "Calls that a dead or full replica lost", ("fault",)),
    "dreampose_refused": ("counter", "Requests answered with an error, by its code", ("code",)),
    "dreampose_finetunes": ("counter", "Finetunings that ended, by status", ("status",)),
}
"""Kind, description and tags of each metric."""

logger = logging.getLogger("ray.serve")


class Measures(Protocol):
    """Where numbers go."""

    def count(self, name: str, value: float = 1, **tags: str) -> None:
        """Adds to a counter."""
        ...

    def gauge(self, name: str, value: float) -> None:
        """Sets what may go up and down."""
        ...

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Adds a value to a histogram."""
        ...


class NoMeasures:
    """Forgets every number; for callers that nobody watches."""

    def count(self, name: str, value: float = 1, **tags: str) -> None:
        """Forgets."""

    def gauge(self, name: str, value: float) -> None:
        """Forgets."""

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Forgets."""


class RayMeasures:
    """Numbers that Ray's agents collect from every process and export to Prometheus."""

    def __init__(self) -> None:
        # Here and not above: the catalogue and its tests know this module, but need no Ray.
        from ray.util import metrics

        make: dict[str, Callable[..., Any]] = {
            "counter": metrics.Counter,
            "gauge": metrics.Gauge,
            "histogram": lambda *args, **kwargs: metrics.Histogram(
                *args, boundaries=list(SECONDS), **kwargs
            ),
        }
        self._metrics = {
            name: make[kind](name, description=text, tag_keys=tags)
            for name, (kind, text, tags) in METRICS.items()
        }

    def count(self, name: str, value: float = 1, **tags: str) -> None:
        """Adds to a counter; nothing where there is nothing to add, which Ray refuses."""
        if value > 0:
            self._metrics[name].inc(value, tags=tags)

    def gauge(self, name: str, value: float) -> None:
        """Sets what may go up and down."""
        self._metrics[name].set(value)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Adds a value to a histogram."""
        self._metrics[name].observe(value, tags=tags)


def log(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """One line about something that happened, its facts as text and as fields.

    Args:
        event: what happened, such as 'video finished'.
        level: of `logging`.
        facts: such as `video_id`; `None` leaves a fact out.
    """
    told = {name: value for name, value in facts.items() if value is not None}
    text = " ".join(f"{name}={value}" for name, value in told.items())
    logger.log(level, "%s %s", event, text, extra={"event": event, **told})
