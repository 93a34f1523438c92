"""Stop signal for training on nodes that the cloud reclaims."""

import time
from collections.abc import Callable

import ray.train

STEPS_BETWEEN = 10
"""Steps between two looks at the notice, each a round trip between all ranks."""
POLL_SECONDS = 1.0


class PreemptionSignal:
    """Stops a training on request, or when one of its nodes is about to be reclaimed.

    Called once a step by every rank alike, as Ray Train requires. After a notice the training
    saves a checkpoint and ends; `wait_for_restart` keeps the process until Ray Train starts the
    workers again elsewhere.

    Args:
        stop: whether a stop was requested.
    """

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop
        self._calls = 0
        self.preempted = False

    def __call__(self) -> bool:
        """Whether to save a checkpoint and end."""
        self._calls += 1
        if not self.preempted and self._calls % STEPS_BETWEEN == 0:
            self.preempted = ray.train.get_preemption_info() is not None
        return self.preempted or self._stop()

    def wait_for_restart(self) -> None:
        """Does not return: a worker that returns has finished, and Ray Train would not restart."""
        while True:
            time.sleep(POLL_SECONDS)
