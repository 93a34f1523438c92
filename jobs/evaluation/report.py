"""Tables of an evaluation: means, intervals, Markdown, CSV."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dreampose.metrics import GROUPS, Interval, Metric, bootstrap_mean, bootstrap_statistic
from dreampose.metrics import distance as set_distance
from dreampose.metrics.published_scores import COLUMNS, NOTE, ROWS
from jobs.common import storage
from jobs.evaluation.clips import Pair
from jobs.evaluation.scoring import CURVE, PRED, TRUTH, Work, code_fingerprint

RANKED_BY = ("lpips-lite", "lpips", "ssim", "l1", "vgg", "psnr")
"""Scores that rank clips, in order of preference."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Score of a method: value, interval, and number of people and clips."""

    interval: Interval
    num_people: int
    num_clips: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of a report.

    Attributes:
        metrics: scores, in the order of tables.
        pairs: clips by method and name.
        people: person in each clip.
        cells: by method and score.
        clips: mean of every curve, by method, clip and score.
        curves: mean over clips at every frame, by score and method.
        resamples: numbers of resamples of means and of sets.
        seed: seed of the bootstrap.
        notes: sentences on what was compared.
    """

    metrics: Sequence[Metric]
    pairs: Mapping[tuple[str, str], Pair]
    people: Mapping[str, str]
    cells: Mapping[tuple[str, str], Cell]
    clips: Mapping[tuple[str, str, str], float]
    curves: Mapping[str, Mapping[str, Float[np.ndarray, " t"]]]
    resamples: tuple[int, int]
    seed: int
    notes: Sequence[str] = ()

    @property
    def methods(self) -> list[str]:
        """Names of methods, as they were given."""
        return list(dict.fromkeys(method for method, _ in self.pairs))


def collect(
    work: Sequence[Work],
    chosen: Sequence[Metric],
    people: Mapping[str, str],
    folder: Path,
    *,
    resamples: int,
    set_resamples: int,
    seed: int,
    notes: Sequence[str] = (),
) -> Report:
    """Collects the measurements of a report.

    People have equal weight, and so have the clips of a person. A clip for
    which a score does not exist (no static pixels) is left out and not counted.

    Args:
        work: pairs of clips, all of them measured.
        chosen: scores.
        people: person in each clip.
        folder: folder of the measurements.
        resamples: number of resamples of means.
        set_resamples: number of resamples of distances between sets.
        seed: seed of both.
        notes: sentences on the comparison.
    """
    by_method: dict[str, list[Work]] = {}
    for one in work:
        by_method.setdefault(one.pair.method, []).append(one)
    cells: dict[tuple[str, str], Cell] = {}
    values: dict[tuple[str, str, str], float] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for metric in chosen:
        for method, works in by_method.items():
            if metric.is_set:
                cells[method, metric.name] = _set_cell(
                    metric, works, people, folder, resamples=set_resamples, seed=seed
                )
                continue
            along = {one.pair.clip: np.load(folder / one.file(metric, CURVE)) for one in works}
            means = {clip: float(curve.mean()) for clip, curve in along.items()}
            values |= {(method, clip, metric.name): mean for clip, mean in means.items()}
            cells[method, metric.name] = _mean_cell(means, people, resamples=resamples, seed=seed)
            curves.setdefault(metric.name, {})[method] = _mean_curve(list(along.values()))
    return Report(
        metrics=chosen,
        pairs={(one.pair.method, one.pair.clip): one.pair for one in work},
        people=people,
        cells=cells,
        clips=values,
        curves=curves,
        resamples=(resamples, set_resamples),
        seed=seed,
        notes=notes,
    )


def groups(report: Report) -> list[str]:
    """Groups of scores in the report; each has separate tables."""
    return [group for group in GROUPS if any(m.group == group for m in report.metrics)]


def table(report: Report, group: str) -> str:
    """Markdown table of one group of scores, with its heading."""
    chosen = [metric for metric in report.metrics if metric.group == group]
    head = ["method", *(f"{m.title} {'↑' if m.higher_is_better else '↓'}" for m in chosen)]
    rows = [
        [method, *(text(report.cells[method, metric.name], metric) for metric in chosen)]
        for method in report.methods
    ]
    return f"## {GROUPS[group]}\n\n" + markdown_table(head, rows)


def text(cell: Cell, metric: Metric) -> str:
    """Text of a value and its interval; a dash without a value."""
    interval, digits = cell.interval, metric.digits
    if np.isnan(interval.value):
        return "–"
    value = f"{interval.value:.{digits}f}"
    if np.isnan(interval.low):
        return value
    return f"{value} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def summary(report: Report) -> str:
    """Sentences on data and method of the comparison."""
    clips = {pair.clip: pair for pair in report.pairs.values()}
    sizes = sorted({f"{pair.height}x{pair.width}" for pair in clips.values()})
    lengths = sorted({pair.num_frames for pair in clips.values()})
    frames = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    num_people = len({report.people[clip] for clip in clips})
    means, sets = report.resamples
    lines = [
        f"{len(clips)} clips of {num_people} people, {frames} frames each, "
        f"{', '.join(sizes)} pixels. Means are over people, each person's over their clips.",
        f"In brackets 95% bootstrap intervals over people (seed {report.seed}): percentiles of "
        f"{means} resamples; for FID and its kin ± 1.96 standard deviations of {sets} resamples.",
    ]
    for metric in report.metrics:
        counts = {report.cells[method, metric.name].num_clips for method in report.methods}
        if counts != {len(clips)}:
            lines.append(f"{metric.title} exists for {min(counts)} of {len(clips)} clips.")
    if num_people == len(clips) > 1:
        lines.append("Every clip counts as another person's.")
    return " ".join([*lines, *report.notes])


def paper_table() -> str:
    """The paper's table 1 and why it cannot be compared."""
    rows = [[method, *cells] for method, cells in ROWS.items()]
    return f"## The paper's table 1 (another data set)\n\n{NOTE}\n\n" + markdown_table(
        ["method", *COLUMNS], rows
    )


def explanations(report: Report, weights: Mapping[str, str]) -> list[tuple[str, str]]:
    """Title and documentation of each score, with the SHA-256 of its weights."""
    found: list[tuple[str, str]] = []
    for metric in report.metrics:
        used = [f"{b.title}, SHA-256 {weights[b.file]}" for b in metric.backbones]
        about = " ".join(metric.about.removeprefix(f"{metric.title}: ").split())
        found.append((metric.title, " ".join([about, *(f"Weights used: {u}." for u in used)])))
    return found


def markdown(report: Report, weights: Mapping[str, str]) -> str:
    """The whole report as Markdown."""
    parts = ["# Scores", summary(report)]
    parts += [table(report, group) for group in groups(report)]
    parts.append(paper_table())
    notes = [f"- **{title}**: {about}" for title, about in explanations(report, weights)]
    parts.append("## How to read the scores\n\n" + "\n".join(notes))
    return "\n\n".join(parts) + "\n"


def cells_csv(report: Report) -> str:
    """CSV with one line per method and score."""
    rows = [
        [
            method, metric.name, metric.group, cell.interval.value, cell.interval.low,
            cell.interval.high, cell.num_people, cell.num_clips,
        ]
        for method in report.methods
        for metric in report.metrics
        for cell in [report.cells[method, metric.name]]
    ]  # fmt: skip
    return csv_text(["method", "metric", "group", "value", "low", "high", "people", "clips"], rows)


def clips_csv(report: Report) -> str:
    """CSV with one line per method, clip and score."""
    rows = [
        [method, clip, report.people[clip], metric, value]
        for (method, clip, metric), value in report.clips.items()
    ]
    return csv_text(["method", "clip", "identity", "metric", "value"], rows)


def extremes(report: Report) -> dict[str, list[str]]:
    """Best and worst clips of each method."""
    metric = next((m for name in RANKED_BY for m in report.metrics if m.name == name), None)
    if metric is None:
        return {}
    found: dict[str, list[str]] = {}
    for method in report.methods:
        scored = {
            clip: value
            for (who, clip, name), value in report.clips.items()
            if who == method and name == metric.name and not np.isnan(value)
        }
        ranked = sorted(scored, key=lambda clip: scored[clip], reverse=metric.higher_is_better)
        for kind, clip in (("best", ranked[0]), ("worst", ranked[-1])):
            value = f"{scored[clip]:.{metric.digits}f}"
            found.setdefault(clip, []).append(f"{kind} of {method} ({metric.title} {value})")
    return found


def _mean_cell(
    means: Mapping[str, float], people: Mapping[str, str], *, resamples: int, seed: int
) -> Cell:
    by_person: dict[str, list[float]] = {}
    for clip, mean in means.items():
        if not np.isnan(mean):
            by_person.setdefault(people[clip], []).append(mean)
    if not by_person:
        nothing = Interval(value=float("nan"), low=float("nan"), high=float("nan"))
        return Cell(interval=nothing, num_people=0, num_clips=0)
    averages = np.array([np.mean(by_person[person]) for person in sorted(by_person)])
    return Cell(
        interval=bootstrap_mean(averages, resamples=resamples, seed=seed),
        num_people=len(by_person),
        num_clips=sum(map(len, by_person.values())),
    )


def _set_cell(
    metric: Metric,
    works: Sequence[Work],
    people: Mapping[str, str],
    folder: Path,
    *,
    resamples: int,
    seed: int,
) -> Cell:
    by_person: dict[str, list[Work]] = {}
    for one in works:
        by_person.setdefault(people[one.pair.clip], []).append(one)
    groups = [by_person[person] for person in sorted(by_person)]
    cell = Cell(
        interval=Interval(value=0.0, low=0.0, high=0.0),
        num_people=len(groups),
        num_clips=len(works),
    )
    files = [[(w.file(metric, PRED), w.file(metric, TRUTH)) for w in group] for group in groups]
    # Distances of resamples take seconds each; they depend on nothing but what is named here.
    key = json.dumps([code_fingerprint(), metric.name, files, resamples, seed])
    kept = folder / f"interval-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if kept.is_file():
        return replace(cell, interval=Interval(**json.loads(kept.read_text())))
    loaded = [[(np.load(folder / a), np.load(folder / b)) for a, b in group] for group in files]

    def statistic(chosen: Sequence[int]) -> float:
        drawn = [both for person in chosen for both in loaded[person]]
        return set_distance(metric, [pred for pred, _ in drawn], [truth for _, truth in drawn])

    interval = bootstrap_statistic(statistic, len(groups), resamples=resamples, seed=seed)
    # No distance is below 0; NaN, where one person gives no interval, stays.
    interval = replace(interval, low=float(np.maximum(interval.low, 0)))
    storage.write_text(kept, json.dumps(asdict(interval)))
    return replace(cell, interval=interval)


def _mean_curve(curves: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " t"]:
    """Mean per frame over the clips that have this frame and this score."""
    longest = max(map(len, curves))
    padded = np.full((len(curves), longest), np.nan)
    for row, curve in zip(padded, curves, strict=True):
        row[: len(curve)] = curve
    count = np.isfinite(padded).sum(axis=0)
    total = np.nansum(padded, axis=0)
    return np.divide(total, count, out=np.full(longest, np.nan), where=count > 0)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table with all columns but the first one right-aligned."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
    return "\n".join(lines)


def csv_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue()
