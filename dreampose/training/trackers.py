"""Experiment trackers through accelerate's `log_with`.

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
"""Names of the trackers, which are also the names of their packages."""


def check(names: Sequence[str]) -> None:
    """Checks that trackers can be used.

    Raises:
        InputError: a tracker is unknown, or its package is not installed.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"track must be one of {', '.join(TRACKERS)}, got {name!r}")
        if name not in available:
            raise InputError(
                f"track {name!r} needs the package {name}, which is not installed: "
                f"pip install {name}"
            )


def start(
    accelerator: Accelerator, *, project: str, run: str, facts: Mapping[str, str | float]
) -> None:
    """Starts the accelerator's trackers on the main process.

    Args:
        accelerator: made with `log_with`.
        project: name of the project.
        run: name of the run; a resumed run keeps its name where the tracker supports it.
        facts: settings to record.
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
    """Values to log for a step, by name."""
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
