"""Finetunes on one subject of the service, in a task of its own. Knows nothing of HTTP.

The task may be killed at any time and started again: it goes on from its last checkpoint.
"""

from dataclasses import dataclass

from serve.service.subject_library import JobFolder


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every task does; see `dreampose.training.finetune_subject`."""

    model: str
    num_steps: int | None
    num_vae_steps: int | None
    num_threads: int


def finetune(path: str, order: Order) -> None:
    """Leaves weights in the folder that samplers look into, and progress in the job's.

    Args:
        path: of the job's folder; where it is gone, nobody wants the weights any more.
        order: how.

    Raises:
        InputError: nobody is in a photo.
    """
    # Here and not above: they take seconds, and whoever starts the task does not need them.
    import torch
    from accelerate import Accelerator

    from dreampose import training
    from dreampose.io import video
    from dreampose.options import loading as model

    job = JobFolder(path)
    if not job.exists():
        return
    torch.set_num_threads(order.num_threads)
    steps = training.finetune_subject(
        model.load(order.model),
        [video.read_photo(photo) for photo in job.photos],
        job.weights,
        name=job.job().subject.name or job.id,
        accelerator=Accelerator(),
        num_steps=order.num_steps,
        num_vae_steps=order.num_vae_steps,
        stop=lambda: not job.exists(),
    )
    progress = 0
    for report in steps:
        # 100 is kept for the moment when the weights are there.
        now = min(99, 100 * report.step // max(1, report.total))
        if now > progress and job.exists():
            progress = now
            job.update(progress=now)
