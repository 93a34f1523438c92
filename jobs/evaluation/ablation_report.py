"""Tables and verdicts of an ablation study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dreampose import metrics
from dreampose.metrics import Interval, Metric, bootstrap_grid, bootstrap_ratio
from dreampose.metrics.published_scores import ABLATION_COLUMNS, ABLATIONS
from jobs.common import storage
from jobs.evaluation import ablation, report
from jobs.evaluation.ablation import (
    FULL,
    NUM_PAIRS,
    REACH,
    ROWS,
    SMOOTHING,
    AblationOptions,
    HeldOutSubject,
    Row,
)

Grid = Float[np.ndarray, "people seeds"]
"""A score of a row: of each person with each seed."""

COUNTERPARTS = {"l1": "L1", "ssim": "SSIM", "lpips-lite": "LPIPS"}
"""Our scores, and the paper's that say the same; LPIPS is on another network."""
WORSE, ALIKE, BETTER = "worse", "alike", "better"
HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "is within noise"
WANTED_FLICKER = 0.5


def write(
    plan: AblationOptions, people: Sequence[HeldOutSubject], seeds: Sequence[int], out: Path
) -> str:
    """Writes `report.md`, `report.csv` and `people.csv`; returns the report."""
    grids = collect(people, seeds, out)
    text = markdown(plan, grids)
    storage.write_text(out / "report.md", text + "\n")
    storage.write_text(out / "report.csv", rows_csv(grids))
    storage.write_text(out / "people.csv", people_csv(people, seeds, grids))
    return text


def collect(
    people: Sequence[HeldOutSubject], seeds: Sequence[int], out: Path
) -> dict[str, dict[str, Grid]]:
    """Every score of every row."""
    found: dict[tuple[str, str, int], Mapping[str, float]] = {}
    for cell in ablation.cells(seeds, people):
        scores = json.loads(cell.result(out).read_text())["scores"]
        for row, values in scores.items():
            found[row, cell.subject.name, cell.base.seed] = values
    return {
        row: {
            metric: np.array(
                [[found[row, one.name, seed][metric] for seed in seeds] for one in people]
            )
            for metric in ablation.METRICS
        }
        for row in ROWS
    }


def markdown(plan: AblationOptions, grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """Table, verdicts and protocol in Markdown."""
    lines = [sentence(ROWS[name], grids) for name in ROWS if claims(ROWS[name])]
    return "\n\n".join(
        [
            "# Ablations",
            table(grids),
            "\\* The paper's own figures, on another data set (UBC Fashion) and of other networks: "
            "they compare with each other alone. lpips-lite stands where the paper has LPIPS.",
            "## Does the paper's ordering hold here?",
            "\n".join(f"- {line}" for line in [*lines, flicker(grids)]),
            "## How it was measured",
            "\n".join(f"- {line}" for line in protocol(plan, grids)),
        ]
    )


def table(grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """Scores with intervals, beside those of the paper."""
    chosen = [metrics.METRICS[name] for name in ablation.METRICS]
    head = [
        "variant",
        *(f"{metric.title} {_arrow(metric)}" for metric in chosen),
        *(f"{column} \\*" for column in ABLATION_COLUMNS),
    ]
    rows: list[list[str]] = []
    for name, row in ROWS.items():
        scores = grids[name]
        num_people, _ = scores[chosen[0].name].shape
        ours = [
            report.Cell(
                interval=bootstrap_grid(scores[metric.name]),
                num_people=num_people,
                num_clips=2 * num_people,
            )
            for metric in chosen
        ]
        theirs = ABLATIONS.get(row.title, ("–",) * len(ABLATION_COLUMNS))
        texts = [report.text(cell, metric) for cell, metric in zip(ours, chosen, strict=True)]
        rows.append([row.title + (" (3 photos)" if name == FULL else ""), *texts, *theirs])
    return report.markdown_table(head, rows)


def claims(row: Row) -> dict[str, str]:
    """Claim of the paper about a row against the full model, per score.

    Of its table, which is better; of photos it says in words that three help and that more than
    five add little.
    """
    if row.name == "one_photo":
        return dict.fromkeys(COUNTERPARTS, WORSE)
    if row.name == "five_photos":
        return dict.fromkeys(COUNTERPARTS, ALIKE)
    if row.name == FULL or row.title not in ABLATIONS:
        return {}
    found: dict[str, str] = {}
    for name, column in COUNTERPARTS.items():
        at = ABLATION_COLUMNS.index(column)
        theirs, full = float(ABLATIONS[row.title][at]), float(ABLATIONS[FULL][at])
        if theirs == full:
            found[name] = ALIKE
        else:
            found[name] = BETTER if (theirs > full) == _higher(name) else WORSE
    return found


def verdict(claim: str, difference: Interval, *, higher_is_better: bool) -> str:
    """Verdict on a claim from the interval of a row's score minus the full model's.

    An interval that contains 0 supports equality and decides no ordering.
    """
    if not (difference.low > 0 or difference.high < 0):
        return HOLDS if claim == ALIKE and not np.isnan(difference.low) else UNCLEAR
    found = BETTER if (difference.low > 0) == higher_is_better else WORSE
    return HOLDS if found == claim else FAILS


def sentence(row: Row, grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """Sentence on the paper's ordering of a row and the full model."""
    parts: list[str] = []
    for name, claim in claims(row).items():
        metric = metrics.METRICS[name]
        away = difference(grids, row.name, name)
        says = verdict(claim, away, higher_is_better=metric.higher_is_better)
        parts.append(
            f"{says} in {metric.title} ({_between(away, f'+.{metric.digits}f')}, in the paper "
            f"{claim})"
        )
    return f"{row.title} against full: the paper's ordering {', '.join(parts)}."


def difference(grids: Mapping[str, Mapping[str, Grid]], row: str, metric: str) -> Interval:
    """A row's score minus the full model's, paired by person and seed."""
    return bootstrap_grid(grids[row][metric] - grids[FULL][metric])


def flicker(grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """Ratio of the flicker of the full model to that with one pose and no shared noise."""
    ratio = bootstrap_ratio(grids[FULL]["tde"], grids["own_noise"]["tde"])
    met = "met" if ratio.value <= WANTED_FLICKER else "NOT met"
    return (
        f"Flicker: the temporal difference error of full is "
        f"{_between(ratio, '.3f')} of that of {ROWS['own_noise'].title}, wanted at most "
        f"{WANTED_FLICKER:g}: {met}."
    )


def protocol(plan: AblationOptions, grids: Mapping[str, Mapping[str, Grid]]) -> list[str]:
    """Sentences on the protocol."""
    num_people, num_seeds = grids[FULL]["l1"].shape
    return [
        f"Means are of {num_people} test people with {num_seeds} seed(s); a person's score is that "
        f"of {2 * NUM_PAIRS} frames, {NUM_PAIRS} pairs of neighbours, of a walk and as many of a "
        f"turn. In brackets are 95% bootstrap intervals: people are drawn and, independently, "
        f"seeds. Differences from full are paired by person and seed.",
        f"Budgets are equal: {plan.base_steps} steps of every base training, {plan.num_steps} of "
        f"UNet and adapter and {plan.num_vae_steps} of the VAE's decoder on every person, preset "
        f"{plan.preset}. A seed is that of weights, data order, finetuning and start noise.",
        f"VAE and image encoder of every base training start as {Path(plan.model).name} "
        f"({plan.fingerprint}) has them, UNet and adapter anew.",
        "CLIP only: trained without the photo's VAE latents among the adapter's tokens. One pose: "
        "trained with one pose map instead of five. No VAE-decoder finetune: full with the base "
        "model's decoder. Each frame its own noise: rendered without the start noise that frames "
        "otherwise share.",
        f"Smoothed poses: full, rendered from pose maps ({plan.estimator}) smoothed over time by a "
        f"Gaussian of {SMOOTHING:g} frames' deviation, cut off at {SMOOTHING * REACH:g} frames, "
        "first and last map repeated.",
        "Photos: the first frame of the walk; then the turn at a quarter and a half; then at three "
        "quarters, and the walk at a half. None is scored. All of them are finetuned on, and at "
        "every step of a render one is picked at random.",
    ]


def rows_csv(grids: Mapping[str, Mapping[str, Grid]]) -> str:
    """CSV with one line per row and score: value and difference from full, with intervals."""
    rows: list[list[object]] = []
    for row, scores in grids.items():
        for metric, grid in scores.items():
            value, away = bootstrap_grid(grid), difference(grids, row, metric)
            numbers = [value.value, value.low, value.high, away.value, away.low, away.high]
            rows.append([row, metric, *numbers, *grid.shape])
    head = ["row", "metric", "value", "low", "high"]
    head += ["difference", "difference_low", "difference_high", "people", "seeds"]
    return report.csv_text(head, rows)


def people_csv(
    people: Sequence[HeldOutSubject], seeds: Sequence[int], grids: Mapping[str, Mapping[str, Grid]]
) -> str:
    """CSV with one line per row, person, seed and score."""
    rows: list[list[object]] = [
        [row, person.name, seed, metric, float(grid[i, j])]
        for row, scores in grids.items()
        for i, person in enumerate(people)
        for j, seed in enumerate(seeds)
        for metric, grid in scores.items()
    ]
    return report.csv_text(["row", "identity", "seed", "metric", "value"], rows)


def _between(interval: Interval, form: str) -> str:
    """Text of a value and its interval, without the interval for one person."""
    value = f"{interval.value:{form}}"
    if np.isnan(interval.low):
        return value
    return f"{value} [{interval.low:{form}}, {interval.high:{form}}]"


def _higher(metric: str) -> bool:
    return metrics.METRICS[metric].higher_is_better


def _arrow(metric: Metric) -> str:
    return "↑" if metric.higher_is_better else "↓"
