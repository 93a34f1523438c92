"""Request routing to samplers."""

import asyncio
import time
from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.request_router.common import ReplicaQueueLengthCache

from serve.deployments.router import LeastLoadedRouter

ROOM = 2


class Router(LeastLoadedRouter):
    """Hears what a router hears, and stands in no cluster."""

    def __init__(self):
        self.initialize_state()
        self.now = time.time()
        self.lengths = ReplicaQueueLengthCache(get_curr_time_s=lambda: self.now)
        self._use_replica_queue_len_cache = True

    @property
    def replica_queue_len_cache(self):
        return self.lengths

    _replica_queue_len_cache = replica_queue_len_cache

    def _update_router_queue_len_gauge(self, *args, **kwargs):
        pass


@pytest.fixture
def replicas():
    deployment = DeploymentID(name="Sampler", app_name="app")
    return [
        SimpleNamespace(
            replica_id=ReplicaID(unique_id=str(i), deployment_id=deployment),
            max_ongoing_requests=ROOM,
        )
        for i in range(6)
    ]


@pytest.fixture
def router():
    return Router()


def choose(router, replicas):
    [[replica]] = asyncio.run(router.choose_replicas(replicas))
    return replica


def send(router, replicas):
    """Chooses a replica and sends it a call; gives its name."""
    replica = choose(router, replicas)
    router.on_send_request(replica.replica_id)
    return replica.replica_id.unique_id


def end(router, replicas, name):
    router.on_request_completed(replicas[int(name)].replica_id, "call")


def test_simultaneous_calls_go_to_different_replicas(router, replicas):
    chosen = [choose(router, replicas).replica_id.unique_id for _ in replicas]
    assert sorted(chosen) == list("012345")


def test_free_slots_are_filled_before_full_replicas(router, replicas):
    """Word that a replica took a first call, with one call in it, comes when it has two already."""
    for _ in range(ROOM):
        assert sorted(send(router, replicas) for _ in replicas) == list("012345")
        for replica in replicas:
            router.on_new_queue_len_info(replica.replica_id, 1)
    assert set(router.sent.values()) == {ROOM}


def test_free_replica_is_found_among_full_ones(router, replicas):
    for _ in range(ROOM * len(replicas)):
        send(router, replicas)
    for name in "431":
        end(router, replicas, name)
        assert send(router, replicas) == name


def test_late_completion_is_awaited(router, replicas):
    for _ in range(ROOM * len(replicas)):
        send(router, replicas)

    async def answered():
        asyncio.get_running_loop().call_soon(end, router, replicas, "5")
        [[replica]] = await router.choose_replicas(replicas)
        return replica.replica_id.unique_id

    assert asyncio.run(answered()) == "5"


def test_idle_replica_is_not_probed(router, replicas):
    router.lengths.update(replicas[0].replica_id, 0)
    router.now += 3600
    assert router.lengths.get(replicas[0].replica_id) is None
    replica = choose(router, replicas)
    assert router.lengths.get(replica.replica_id) == 0


def test_full_replicas_are_tried_in_turn(router, replicas):
    for _ in range(ROOM * len(replicas)):
        send(router, replicas)
    router.now += 3600
    first = [choose(router, replicas) for _ in replicas]
    assert len({replica.replica_id.unique_id for replica in first}) == len(replicas)
    assert [choose(router, replicas) for _ in replicas] == first
    assert router.lengths.get(first[0].replica_id) is None, "others may call it too: it is asked"


def test_unknown_completion_frees_no_slot(router, replicas):
    end(router, replicas, "2")
    send(router, replicas[2:3])
    send(router, replicas[2:3])
    assert router.sent["2"] == ROOM


def test_no_replicas_gives_no_candidates(router):
    assert asyncio.run(router.choose_replicas([])) == []
