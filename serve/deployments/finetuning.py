"""Finetuning of one subject as a resumable Ray task."""

from dataclasses import dataclass

from serve.service.subject_library import SubjectFolder


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """Settings of a finetuning; see `dreampose.training.finetune_subject`."""

    model: str
    num_steps: int | None
    num_vae_steps: int | None
    num_threads: int


def finetune(path: str, request: FinetuneRequest) -> None:
    """Writes the subject's weights and its progress; resumes from the last checkpoint.

    Args:
        path: folder of the subject; deleting it cancels the finetuning.
        request: settings.

    Raises:
        InputError: a photo shows no person.
    """
    # Imported late: they take seconds, and the process that submits the task needs none of them.
    import torch
    from accelerate import Accelerator

    from dreampose import training
    from dreampose.io import video
    from dreampose.options import loading as model

    job = SubjectFolder(path)
    if not job.exists():
        return
    torch.set_num_threads(request.num_threads)
    steps = training.finetune_subject(
        model.load(request.model),
        [video.read_photo(photo) for photo in job.photos],
        job.weights,
        name=job.record().subject.name or job.id,
        accelerator=Accelerator(),
        num_steps=request.num_steps,
        num_vae_steps=request.num_vae_steps,
        stop=lambda: not job.exists(),
    )
    progress = 0
    for report in steps:
        # 100 is reported only once the weights exist.
        now = min(99, 100 * report.step // max(1, report.total))
        if now > progress and job.exists():
            progress = now
            job.update(progress=now)
