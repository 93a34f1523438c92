"""What a job will take, told before it is paid for. Knows nothing of Ray.

Nothing is guessed about models: the real ones run, without contents, on `trace`'s tensors.
"""

from dreampose.planning.cost import Cost
from dreampose.planning.passes import encoding, rendering, subject_encoding
from dreampose.planning.plan import Plan, lines
from dreampose.planning.prices import Instance, Prices, read_prices
from dreampose.planning.steps import subject_decoder_step, subject_step, training_step

__all__ = [
    "Cost",
    "Instance",
    "Plan",
    "Prices",
    "encoding",
    "lines",
    "read_prices",
    "rendering",
    "subject_decoder_step",
    "subject_encoding",
    "subject_step",
    "training_step",
]
