"""A training's stop signal under a notice of preemption."""

import ray.train

from jobs.common.preemption import STEPS_BETWEEN, PreemptionSignal


def test_a_notice_stops_all_ranks_at_the_same_step(monkeypatch):
    notices = iter([None, object()])
    asked = []

    def info():
        asked.append(1)
        return next(notices)

    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    signal = PreemptionSignal(lambda: False)
    steps = [signal() for _ in range(3 * STEPS_BETWEEN)]
    # Every rank asks at the same calls, and no more once it knows.
    assert len(asked) == 2
    assert steps.index(True) == 2 * STEPS_BETWEEN - 1
    assert all(steps[2 * STEPS_BETWEEN - 1 :])
    assert signal.preempted


def test_a_request_to_stop_is_no_preemption(monkeypatch):
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    signal = PreemptionSignal(lambda: True)
    assert signal()
    assert not signal.preempted
