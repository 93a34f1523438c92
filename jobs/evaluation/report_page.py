"""Files of an evaluation report, with its HTML page."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Float

from dreampose.io import video
from dreampose.metrics import GROUPS, Metric
from dreampose.metrics.published_scores import COLUMNS, NOTE, ROWS
from jobs.common import storage
from jobs.common.html import document
from jobs.evaluation import clips, report
from jobs.evaluation.report import Report

COLOURS = ("#3366cc", "#d1622b", "#3a8a4d", "#a0479b", "#8a6d1b", "#c03a4e", "#2a8c93", "#666")
"""Of methods, in their order."""
MAX_HEIGHT = 320
"""Videos hold no more rows than this, so that the page stays small; small ones are blown up."""
STYLE = """
h2 { margin: 0 0 12px; }
.note { color: var(--soft); margin: 4px 0 20px; max-width: 80ch; }
section { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 18px 5px 0; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; }
td small { display: block; color: var(--soft); }
.legend span { margin-right: 18px; white-space: nowrap; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 6px;
  vertical-align: middle; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 18px; }
figcaption { font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 10px; }
svg .axis { stroke: var(--line); }
.clip { margin: 0 0 22px; }
.clip video { height: auto; max-width: 100%; display: block; border-radius: 8px; }
.names { display: flex; max-width: 100%; font-size: 13px; }
.names span { flex: 1; text-align: center; overflow-wrap: anywhere; }
.clip h3 { font-size: 14px; font-weight: 600; margin: 0; }
dt { font-weight: 600; margin-top: 10px; }
dd { margin: 0; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
"""


def write(found: Report, out: Path, *, weights: Mapping[str, str]) -> str:
    """Writes the report as Markdown, CSV and HTML; returns its tables as text."""
    tables = "\n\n".join(report.table(found, group) for group in report.groups(found))
    storage.write_text(out / "report.md", report.markdown(found, weights))
    storage.write_text(out / "report.csv", report.cells_csv(found))
    storage.write_text(out / "clips.csv", report.clips_csv(found))
    storage.write_text(out / "index.html", page(found, weights))
    return tables


def page(found: Report, weights: Mapping[str, str]) -> str:
    """The page's HTML.

    Args:
        found: content of the report.
        weights: SHA-256 of the weights files used, by name.
    """
    sections = [_table_section(found, group) for group in report.groups(found)]
    sections.append(_paper_section())
    if found.curves:
        plots = "".join(
            _plot(metric, found.curves[metric.name], found.methods)
            for metric in found.metrics
            if metric.name in found.curves
        )
        sections.append(
            f'<section><h2>Along the clip</h2><p class="note">Mean over clips at every frame.</p>'
            f'{_legend(found.methods)}<div class="plots">{plots}</div></section>'
        )
    if shown := report.extremes(found):
        clips_shown = "".join(_clip(found, clip, why) for clip, why in shown.items())
        sections.append(f"<section><h2>Best and worst clips</h2>{clips_shown}</section>")
    notes = "".join(
        f"<dt>{escape(title)}</dt><dd>{escape(about)}</dd>"
        for title, about in report.explanations(found, weights)
    )
    sections.append(f"<section><h2>How to read the scores</h2><dl>{notes}</dl></section>")
    return document("\n".join(sections), title="Scores", summary=report.summary(found), style=STYLE)


def _table_section(found: Report, group: str) -> str:
    chosen = [metric for metric in found.metrics if metric.group == group]
    head = ["method", *(f"{m.title} {'↑' if m.higher_is_better else '↓'}" for m in chosen)]
    rows = [
        [method, *(report.text(found.cells[method, metric.name], metric) for metric in chosen)]
        for method in found.methods
    ]
    return f"<section><h2>{escape(GROUPS[group])}</h2>{_table(head, rows)}</section>"


def _paper_section() -> str:
    rows = [[method, *cells] for method, cells in ROWS.items()]
    return (
        f"<section><h2>The paper's table 1 (another data set)</h2>"
        f'<p class="note">{escape(NOTE)}</p>'
        f"{_table(['method', *COLUMNS], rows)}</section>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        value, bracket, interval = text.partition(" [")
        return escape(value) + (f"<small>{escape('[' + interval)}</small>" if bracket else "")

    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = "".join(
        "<tr>"
        + f"<td>{escape(row[0])}</td>"
        + "".join(f"<td>{cell(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{titles}</tr>{lines}</table>"


def _legend(methods: Sequence[str]) -> str:
    entries = "".join(
        f'<span><i style="background: {_colour(index)}"></i>{escape(method)}</span>'
        for index, method in enumerate(methods)
    )
    return f'<p class="legend">{entries}</p>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _plot(
    metric: Metric, curves: Mapping[str, Float[np.ndarray, " _"]], methods: Sequence[str]
) -> str:
    """Curves of all methods as SVG, with gaps where a score does not exist."""
    width, height, left, bottom, top = 340, 180, 44, 20, 8
    finite = np.concatenate([curve[np.isfinite(curve)] for curve in curves.values()])
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    # A distance's scale starts at 0, which is the truth.
    low = low if metric.higher_is_better else 0.0
    high = high if high > low else low + 1
    last = max(1, max(map(len, curves.values())) - 1)

    def place(frame: int, value: float) -> str:
        x = left + frame / last * (width - left - 6)
        y = height - bottom - (value - low) / (high - low) * (height - bottom - top)
        return f"{x:.1f},{y:.1f}"

    lines: list[str] = []
    for index, method in enumerate(methods):
        run: list[str] = []
        runs = [run]
        for frame, value in enumerate(curves[method]):
            if np.isfinite(value):
                run.append(place(frame, float(value)))
            elif run:
                run = []
                runs.append(run)
        lines += [
            f'<polyline fill="none" stroke="{_colour(index)}" stroke-width="1.6" '
            f'points="{" ".join(points)}"/>'
            for points in runs
            if points
        ]
    floor, right = height - bottom, width - 6
    axes = (
        f'<line class="axis" x1="{left}" y1="{floor}" x2="{right}" y2="{floor}"/>'
        f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{floor}"/>'
        f'<text x="{left - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{left - 4}" y="{top + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left}" y="{height - 6}">0</text>'
        f'<text x="{right}" y="{height - 6}" text-anchor="end">frame {last}</text>'
    )
    better = "higher is better" if metric.higher_is_better else "lower is better"
    return (
        f"<figure><figcaption>{escape(metric.title)} ({better})</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img">{axes}{"".join(lines)}</svg></figure>'
    )


def _clip(found: Report, clip: str, why: Sequence[str]) -> str:
    """One video with the truth and all methods side by side."""
    pairs = [found.pairs[method, clip] for method in found.methods if (method, clip) in found.pairs]
    truth, fps = clips.read(pairs[0].truth, pairs[0].size)
    columns = [truth, *(clips.read(pair.pred, pair.size)[0] for pair in pairs)]
    height = min(MAX_HEIGHT, pairs[0].height)
    width = max(1, round(pairs[0].width * height / pairs[0].height))
    frames = np.concatenate([video.fit(column, height, width) for column in columns], axis=2)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        video.write(path, frames, fps)
        content = base64.b64encode(path.read_bytes()).decode()
    names = "".join(
        f"<span>{escape(name)}</span>" for name in ["truth", *(pair.method for pair in pairs)]
    )
    pixels = frames.shape[2] * max(1, MAX_HEIGHT // height)
    return (
        f'<div class="clip"><h3>{escape(clip)}</h3>'
        f'<p class="note">{escape("; ".join(why))}</p>'
        f'<div class="names" style="width: {pixels}px">{names}</div>'
        f'<video src="data:video/mp4;base64,{content}" style="width: {pixels}px" '
        f"controls autoplay loop muted playsinline></video></div>"
    )
