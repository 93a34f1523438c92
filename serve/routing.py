"""Which sampler a call goes to. Knows nothing of what is called."""

import random

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
    goes by what it knows, since all calls and answers pass through it; only replicas of which it
    knows nothing are asked.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas to try, in one rank: the least busy one, or those that must be asked.

        Where the call names a model, replicas that have it loaded come first, as in Serve's own.
        """
        found = candidate_replicas
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            wanted = self.apply_multiplex_routing(pending_request=pending_request)
            found = [replica for replica in candidate_replicas if replica.replica_id in wanted]
        known = {
            replica: length
            for replica in found
            if (length := self.replica_queue_len_cache.get(replica.replica_id)) is not None
        }
        free = [
            replica for replica, length in known.items() if length < replica.max_ongoing_requests
        ]
        if free:
            return [[min(free, key=lambda replica: known[replica])]]
        strange = [replica for replica in found if replica not in known]
        # All are full by what is known. It may be wrong of one that others call as well.
        return [strange or random.sample(found, min(2, len(found)))]
