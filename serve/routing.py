"""Which sampler a call goes to. Knows nothing of what is called."""

from itertools import count
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    MultiplexMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)


class IdleFirst(FIFOMixin, MultiplexMixin, RequestRouter):
    """Finds the free replica, wherever one is, at once.

    Serve's own router looks at two replicas by chance and, where both are full, sleeps up to half a
    second before it looks at two others. Where each replica takes one call of seconds at a time and
    nearly all are busy, those sleeps were a third of the time (benchmarks/scaling.py). This router
    goes by what it knows, since all calls and answers pass through it; only a replica of which it
    knows nothing is asked. Of equals, the one whose turn was longest ago is taken: calls that come
    together, before word of the first is out, would otherwise all go to one, and all but one of
    them be sent back.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Nobody has had a turn yet."""
        super().initialize_state(**kwargs)
        self.numbers = count()
        self.turns: dict[Any, int] = {}
        """When a replica was last chosen, as a number that grows."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica to try, by itself: a free one, or one that must be asked.

        Where the call names a model, replicas that have it loaded come first, as in Serve's own.
        """
        found = candidate_replicas
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            wanted = self.apply_multiplex_routing(pending_request=pending_request)
            found = [replica for replica in candidate_replicas if replica.replica_id in wanted]
        if not found:
            return []
        chosen = min(found, key=self._rank)
        self.turns[chosen.replica_id] = next(self.numbers)
        return [[chosen]]

    def _rank(self, replica: RunningReplica) -> tuple[int, int, int]:
        """Free ones first, then those of which nothing is known, then full ones.

        Those are asked as well, since it may be wrong of a replica that others call too.
        """
        turn = self.turns.get(replica.replica_id, -1)
        length = self.replica_queue_len_cache.get(replica.replica_id)
        if length is None:
            return 1, 0, turn
        return (0 if length < replica.max_ongoing_requests else 2), length, turn
