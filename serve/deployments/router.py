"""Which sampler a call goes to. Knows nothing of what is called."""

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

LOOKS = 4
"""How often it is looked for a free replica, the event loop going once around in between, before a
full one is asked: word of a call's end may come just behind its answer."""


class IdleFirst(FIFOMixin, MultiplexMixin, RequestRouter):
    """Finds the free replica, wherever one is, at once.

    Serve's own router looks at two replicas by chance and, where both are full, sleeps up to half a
    second before it looks at two others. Where each replica takes one call of seconds at a time and
    nearly all are busy, those sleeps were a third of the time (benchmarks/scaling.py). This router
    goes by the calls that it has sent and that have not ended, since all pass through it. What
    replicas say of themselves comes later than that: by it alone 96 calls that came together were
    sent to replicas 136 to 174 times, since full ones sent them back. Of equals, the one whose turn
    was longest ago is taken: such calls, before word of the first is out, would all go to one.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Nobody has had a turn yet."""
        super().initialize_state(**kwargs)
        self.numbers = count()
        # By the ids' text, whose hash is known: an id's own is computed anew each time, and a call
        # looks at every replica.
        self.turns: dict[str, int] = {}
        """When a replica was last chosen, as a number that grows."""
        self.sent: Counter[str] = Counter()
        """How many calls a replica has been sent that have not ended."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replica to try, by itself: a free one, or else one that must be asked.

        Where the call names a model, replicas that have it loaded come first, as in Serve's own.
        """
        found = candidate_replicas
        if pending_request is not None and pending_request.metadata.multiplexed_model_id:
            wanted = self.apply_multiplex_routing(pending_request=pending_request)
            found = [replica for replica in candidate_replicas if replica.replica_id in wanted]
        if not found:
            return []
        chosen = min(found, key=self._rank)
        for _ in range(LOOKS):
            if self._is_free(chosen):
                break
            await asyncio.sleep(0)
            chosen = min(found, key=self._rank)
        name = chosen.replica_id.unique_id
        self.turns[name] = next(self.numbers)
        known = self.replica_queue_len_cache
        if self._is_free(chosen) and known.get(chosen.replica_id) is None:
            # Serve forgets after ten seconds, and would ask each replica before its next call.
            known.update(chosen.replica_id, self.sent[name])
        return [[chosen]]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Serve's word that a call goes out."""
        self.sent[replica_id.unique_id] += 1
        super().on_send_request(replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Serve's word that a call has ended, or was sent back."""
        super().on_request_completed(replica_id, internal_request_id)
        name = replica_id.unique_id
        self.sent[name] = max(0, self.sent[name] - 1)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve's word of which replicas there are; what is known of others is forgotten."""
        super().update_replicas(replicas)
        names = {replica.replica_id.unique_id for replica in replicas}
        self.turns = {name: turn for name, turn in self.turns.items() if name in names}
        self.sent = Counter({name: sent for name, sent in self.sent.items() if name in names})

    def _is_free(self, replica: RunningReplica) -> bool:
        return self.sent[replica.replica_id.unique_id] < replica.max_ongoing_requests

    def _rank(self, replica: RunningReplica) -> tuple[int, int]:
        """Those with fewest calls first. Full ones are last, and asked: others may call too."""
        name = replica.replica_id.unique_id
        return self.sent[name], self.turns.get(name, -1)
