"""Experiment trackers by name, through accelerate's `log_with`. Knows nothing of training.

trackers.check(["wandb"])
accelerator = Accelerator(log_with=["wandb"])
trackers.start(accelerator, project="dreampose", run="base-7", facts={"seed": 7})
for report in train(…):
    accelerator.log(trackers.scalars(report), step=report.step)
accelerator.end_training()
"""

from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from dreampose.errors import InputError
from dreampose.training.stage import StepReport

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names, which are also those of the packages that they need."""


def check(names: Sequence[str]) -> None:
    """Refuses trackers that cannot be used, before anything is started.

    Raises:
        InputError: a name is unknown, or its package is missing.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"track must be one of {', '.join(TRACKERS)}, got {name!r}")
        if name not in available:
            raise InputError(
                f"track {name!r} must have the package {name}, which is not installed: "
                f"pip install {name}"
            )


def start(
    accelerator: Accelerator, *, project: str, run: str, facts: Mapping[str, str | float]
) -> None:
    """Opens the accelerator's trackers on the main process.

    Args:
        accelerator: made with `log_with`.
        project: what runs are collected under.
        run: name of this one; one that was stopped goes on under it where the tracker can.
        facts: settings to keep with it.
    """
    accelerator.init_trackers(
        project,
        config=dict(facts),
        init_kwargs={
            "wandb": {"id": run, "name": run, "resume": "allow"},
            "mlflow": {"run_name": run},
        },
    )


def scalars(report: StepReport) -> dict[str, float]:
    """The curves' values at a step."""
    values = {
        "loss/train": report.loss,
        "learning_rate": report.lr,
        "grad_norm": report.grad_norm,
        "skipped_steps": float(report.skipped),
        "samples_per_second": report.samples_per_second,
    }
    if report.validation_loss is not None:
        values["loss/validation"] = report.validation_loss
    return values
