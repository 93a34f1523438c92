"""Least-loaded request router for samplers."""

import asyncio
from collections import Counter
from itertools import count
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

MAX_POLLS = 4
"""Event-loop iterations to wait for a free replica before a full one is chosen: the completion of a
call may be processed just after its result."""


class LeastLoadedRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Sends each call to the replica with the fewest unfinished calls.

    Serve's default router samples two replicas and, if both are full, sleeps up to half a second.
    With calls of seconds and nearly all replicas busy those sleeps took a third of the time
    (benchmarks/scaling.py). All calls pass through this router, so it counts the ones it has sent
    and that have not ended; the queue lengths that replicas report lag behind (by them alone, 96
    simultaneous calls were routed 136 to 174 times, since full replicas rejected them). Ties go to
    the least recently chosen replica.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Starts without history."""
        super().initialize_state(**kwargs)
        self.numbers = count()
        # Keyed by text, whose hash is cached: that of a ReplicaID is computed on every look-up, and
        # each call looks at every replica.
        self.turns: dict[str, int] = {}
        """Sequence number of the last time a replica was chosen."""
        self.sent: Counter[str] = Counter()
        """Unfinished calls of each replica."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica to try next; replicas that have the requested model loaded come first."""
        found = candidate_replicas
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            wanted = self.apply_multiplex_routing(pending_request=pending_request)
            found = [replica for replica in candidate_replicas if replica.replica_id in wanted]
        if not found:
            return []
        chosen = min(found, key=self._rank)
        for _ in range(MAX_POLLS):
            if self._is_free(chosen):
                break
            await asyncio.sleep(0)
            chosen = min(found, key=self._rank)
        name = chosen.replica_id.unique_id
        self.turns[name] = next(self.numbers)
        known = self.replica_queue_len_cache
        if self._is_free(chosen) and known.get(chosen.replica_id) is None:
            # Serve's cache expires after ten seconds; refilling it saves a probe per replica.
            known.update(chosen.replica_id, self.sent[name])
        return [[chosen]]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Counts a call that is sent."""
        self.sent[replica_id.unique_id] += 1
        super().on_send_request(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Counts a call that has ended or was rejected."""
        super().on_request_completed(replica_id, internal_request_id)
        name = replica_id.unique_id
        self.sent[name] = max(0, self.sent[name] - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Drops the history of replicas that no longer exist."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        self.turns = {name: turn for name, turn in self.turns.items() if name in names}
        self.sent = Counter({name: sent for name, sent in self.sent.items() if name in names})

    def _is_free(self, replica: RunningReplica) -> bool:
        return self.sent[replica.replica_id.unique_id] < replica.max_ongoing_requests

    def _rank(self, replica: RunningReplica) -> tuple[int, int]:
        """Sort key: fewest unfinished calls first, then least recently chosen."""
        name = replica.replica_id.unique_id
        return self.sent[name], self.turns.get(name, -1)
