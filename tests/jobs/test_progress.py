"""Progress and stop requests while the progress actor dies and comes back."""

import os
import signal
import time

import pytest

from jobs.common import progress

pytestmark = pytest.mark.ray
PATIENCE = 120


def wait_until(reached, why):
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


@pytest.fixture
def channel(ray_cluster):
    found = progress.start_channel()
    yield found
    ray_cluster.kill(found._actor)


def test_a_restarted_actor_costs_no_value_and_no_error(ray_cluster, channel):
    channel.put({"step": 7})
    wait_until(lambda: channel.read() == {"step": 7}, "the value did not arrive")
    ray_cluster.kill(channel._actor, no_restart=False)
    assert channel.read() == {"step": 7}
    assert channel.should_stop() is False

    def arrives():
        channel.put({"step": 8})
        return channel.read() == {"step": 8}

    wait_until(arrives, "the actor did not come back")


def test_a_stop_request_survives_a_restart_of_the_actor(ray_cluster, channel):
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append("ended at once"))
    try:
        with progress.stop_on_sigterm(channel) as stopped:
            signal_of_worker = progress.StopSignal(channel)
            assert not stopped.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(channel.should_stop, "the request did not arrive")
            assert stopped.is_set()
            ray_cluster.kill(channel._actor, no_restart=False)
            wait_until(channel.should_stop, "the request was forgotten")
            wait_until(signal_of_worker, "the worker was not asked")
        assert received == []
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_an_actor_that_is_gone_for_good_fails_nothing(ray_cluster):
    lost = progress.start_channel()
    lost.put({"step": 1})
    wait_until(lambda: lost.read() == {"step": 1}, "the value did not arrive")
    ray_cluster.kill(lost._actor)
    lost.put({"step": 2})
    lost.ask_to_stop()
    assert lost.should_stop() is False
    assert lost.read() == {"step": 1}
