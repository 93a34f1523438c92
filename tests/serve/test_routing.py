"""Which replica a call goes to, by what is known of them."""

import asyncio
from types import SimpleNamespace

import pytest

from serve.routing import IdleFirst


class Router(IdleFirst):
    """Knows what it is told, and stands in no cluster."""

    def __init__(self, lengths):
        self.initialize_state()
        self.lengths = lengths

    @property
    def replica_queue_len_cache(self):
        return self.lengths


@pytest.fixture
def replicas():
    return [SimpleNamespace(replica_id=str(i), max_ongoing_requests=1) for i in range(6)]


def choose(router, replicas):
    [[replica]] = asyncio.run(router.choose_replicas(replicas))
    return replica.replica_id


def test_calls_that_come_together_go_to_different_replicas(replicas):
    router = Router({replica.replica_id: 0 for replica in replicas})
    assert sorted(choose(router, replicas) for _ in replicas) == list("012345")


def test_a_free_replica_is_found_among_full_ones_whenever_it_had_its_turn(replicas):
    router = Router({replica.replica_id: 1 for replica in replicas} | {"4": 0})
    assert [choose(router, replicas) for _ in range(3)] == ["4", "4", "4"]


def test_one_that_nobody_knows_is_asked_before_full_ones_and_after_free_ones(replicas):
    router = Router({"0": 1, "1": 1, "2": 0, "3": 1, "5": 1})
    assert choose(router, replicas) == "2"
    router.lengths["2"] = 1
    assert choose(router, replicas) == "4"


def test_full_ones_are_asked_in_turn(replicas):
    router = Router({replica.replica_id: 1 for replica in replicas})
    first = [choose(router, replicas) for _ in replicas]
    assert sorted(first) == list("012345")
    assert [choose(router, replicas) for _ in replicas] == first


def test_no_replica_is_no_answer():
    assert asyncio.run(Router({}).choose_replicas([])) == []
