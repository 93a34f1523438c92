"""Metrics and structured log lines of the service.

Ray exports every metric to Prometheus as `ray_` and its name, counters with `_total` behind it.
With Serve's JSON encoding each value of a log line is a field.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Buckets of histograms."""

METRICS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "dreampose_queue_depth": ("gauge", "Videos waiting in the queue", ()),
    "dreampose_videos_in_progress": ("gauge", "Videos being rendered", ()),
    "dreampose_videos": ("counter", "Finished videos by status", ("status",)),
    "dreampose_frames": ("counter", "Rendered frames; the rate is frames per second", ()),
    "dreampose_seconds_per_frame": (
        "histogram",
        "Seconds per frame by stage (extract, prepare, render, encode)",
        ("stage",),
    ),
    "dreampose_cache": ("counter", "Pose cache: found (hit) or extracted (miss)", ("result",)),
    "dreampose_retries": ("counter", "Retried calls by error", ("fault",)),
    "dreampose_refused": ("counter", "Requests answered with an error, by code", ("code",)),
    "dreampose_finetunes": ("counter", "Finished finetunings by status", ("status",)),
}
"""Kind, description and tags of each metric."""

logger = logging.getLogger("ray.serve")


class Metrics(Protocol):
    """Sink for metrics."""

    def count(self, name: str, value: float = 1, **tags: str) -> None:
        """Adds to a counter."""
        ...

    def gauge(self, name: str, value: float) -> None:
        """Sets a gauge."""
        ...

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Records a value in a histogram."""
        ...


class NullMetrics:
    """Discards all metrics."""

    def count(self, name: str, value: float = 1, **tags: str) -> None:
        """Discards the value."""

    def gauge(self, name: str, value: float) -> None:
        """Discards the value."""

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Discards the value."""


class RayMetrics:
    """Metrics that Ray's agents export to Prometheus."""

    def __init__(self) -> None:
        # Imported late: code without Ray imports this module too.
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
        """Adds to a counter; zero, which Ray rejects, is skipped."""
        if value > 0:
            self._metrics[name].inc(value, tags=tags)

    def gauge(self, name: str, value: float) -> None:
        """Sets a gauge."""
        self._metrics[name].set(value)

    def observe(self, name: str, value: float, **tags: str) -> None:
        """Records a value in a histogram."""
        self._metrics[name].observe(value, tags=tags)


def log(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Logs an event, its values both in the text and as fields.

    Args:
        event: such as 'video completed'.
        level: of `logging`.
        facts: values such as `video_id`; `None` is left out.
    """
    values = {name: value for name, value in facts.items() if value is not None}
    text = " ".join(f"{name}={value}" for name, value in values.items())
    logger.log(level, "%s %s", event, text, extra={"event": event, **values})
