"""The page for people, in Gradio: what stands on it and how it looks. What it does: `handlers`.

Importing this imports Gradio, which takes seconds; whoever needs the page imports it then.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.types import ASGIApp

from dreampose.config import PRESETS
from serve.web.handlers import OWN_MOTION, Handlers, Parts, motion_choices
from serve.web.page import TITLE

DEFAULT_PRESET = "balanced"
PHOTO_TYPES = [".png", ".jpg", ".jpeg", ".webp"]
MOTION_TYPES = [".mp4", ".mov", ".webm", ".mkv", ".avi", ".npz"]
KEEP_SECONDS = 86400
"""How long files that were uploaded to the page, or shown on it, are kept."""
HEIGHT = 440
"""Of motion and result, in pixels."""
SUMMARY = "A photo and a motion become a video of that person in that motion."
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
"""Those of the visitor's machine: nothing is fetched from elsewhere."""
STYLE = f"""
.gradio-container > main {{ max-width: 1160px; margin: 0 auto; }}
#head h1 {{ font-size: 24px; margin: 0; }}
#head p {{ margin: 2px 0 0; color: var(--body-text-color-subdued); }}
.toast-wrap.toast-wrap {{ top: auto; bottom: 20px; }}
.step h2 {{ font-size: 16px; margin: 0; }}
.newest {{ height: {HEIGHT}px; display: grid; grid-template-rows: minmax(0, 1fr);
  place-items: center; border: 1px solid var(--border-color-primary); border-radius: 8px;
  background: var(--background-fill-secondary); color: var(--body-text-color-subdued); }}
.newest img {{ width: 100%; height: 100%; object-fit: contain; }}
#progress .bar {{ height: 6px; border-radius: 3px; background: var(--border-color-primary); }}
#progress .bar div {{ height: 100%; border-radius: 3px; background: var(--color-accent); }}
#progress .line {{ margin: 2px 0 8px; }}
#progress .warnings {{ margin: 0 0 8px; color: var(--body-text-color-subdued); }}
#progress .strip {{ display: flex; flex-wrap: wrap; gap: 6px; }}
#progress .strip img {{ height: 72px; border-radius: 6px; margin: 0; }}
"""


class Page(gr.Blocks):
    """Blocks that take no file from a visitor but what was uploaded to the page.

    Gradio alone would fetch a URL that stands in place of a file, and as a part of another
    application it would read any path.
    """

    folder: Path
    """For what is uploaded and shown."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *rest: Any, **more: Any
    ) -> list[Any]:
        """What handlers get of what a browser sent.

        Raises:
            gr.Error: there is a file among it that was not uploaded.
        """
        if not all(self._was_uploaded(path) for path in paths(inputs)):
            raise gr.Error("files must be uploaded to the page", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *rest, **more)

    def _was_uploaded(self, path: object) -> bool:
        try:
            return isinstance(path, str) and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError):
            return False


def paths(value: object) -> list[object]:
    """Whatever Gradio might take for a file's place in what a browser sent."""
    if isinstance(value, dict):
        here = [value["path"]] if "path" in value else []
        return here + [path for part in value.values() for path in paths(part)]
    if isinstance(value, list):
        return [path for part in value for path in paths(part)]
    return []


def build(api: ASGIApp, folder: Path) -> Page:
    """The page.

    Args:
        api: the interface that it asks.
        folder: for what is uploaded and shown; `GRADIO_TEMP_DIR` must name it.
    """
    # Every hour, what is older than a day.
    keep = (3600, KEEP_SECONDS)
    with Page(title=TITLE, fill_width=True, analytics_enabled=False, delete_cache=keep) as page:
        page.folder = folder.resolve()
        parts = lay_out()
        wire(page, parts, Handlers(api, page.folder, parts))
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def theme() -> gr.themes.Base:
    """Colours, and fonts that need not be fetched."""
    default = gr.themes.Default(
        primary_hue="indigo", neutral_hue="zinc", font=FONTS, font_mono=("monospace",)
    )
    return default.set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
    )


def lay_out() -> Parts:
    """Puts everything in its place."""
    html(f"<h1>{TITLE}</h1><p>{SUMMARY}</p>", name="head")
    parts: dict[str, Any] = {
        "video_id": gr.BrowserState("", storage_key="dreampose_video", secret="none of any worth")
    }
    with gr.Row(equal_height=False):
        with gr.Column(min_width=260, elem_classes="step"):
            html("<h2>1 · Photos of one person</h2>")
            parts["photos"] = gr.Gallery(
                label="Photos",
                show_label=False,
                file_types=PHOTO_TYPES,
                sources=["upload"],
                interactive=True,
                columns=3,
                fit_columns=False,
                height=268,
                object_fit="contain",
                elem_id="photos",
            )
        with gr.Column(min_width=260, elem_classes="step"):
            html("<h2>2 · Motion</h2>")
            parts["motion"] = choice("Stored motions", motion_choices([]), OWN_MOTION, "motion")
            parts["motion_file"] = gr.File(
                label="Or upload a video or a motion file",
                file_types=MOTION_TYPES,
                height=150,
                elem_id="motion-file",
            )
            parts["motion_state"] = gr.Markdown(elem_id="motion-state", latex_delimiters=[])
        with gr.Column(min_width=260, elem_classes="step"):
            html("<h2>3 · Render</h2>")
            presets = [(f"{name} · {one.num_steps} steps", name) for name, one in PRESETS.items()]
            parts["preset"] = choice("Preset", presets, DEFAULT_PRESET, "preset")
            parts["seed"] = gr.Number(
                0,
                label="Seed",
                info="The same seed gives the same video.",
                precision=0,
                interactive=True,
                elem_id="seed",
            )
            parts["render"] = gr.Button("Render", variant="primary", elem_id="render")
            parts["cancel"] = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
    with gr.Row(equal_height=False):
        with gr.Column():
            parts["preview"] = video_player("Poses read from the motion", "preview")
        with gr.Column():
            parts["newest"] = html(visible=False, name="newest")
            parts["result"] = video_player("Result", "result")
            parts["download"] = gr.DownloadButton(
                "Download the MP4", visible=False, elem_id="download"
            )
    parts["progress"] = html(name="progress")
    return Parts(**parts)


def html(value: str = "", *, name: str | None = None, visible: bool = True) -> gr.Markdown:
    """HTML of our own; `gr.HTML` takes it for a script, which the page's policy forbids."""
    return gr.Markdown(
        value, elem_id=name, visible=visible, sanitize_html=False, latex_delimiters=[]
    )


def choice(label: str, choices: list[tuple[str, str]], value: str, name: str) -> gr.Dropdown:
    """One of a few things, each with what is shown of it."""
    return gr.Dropdown(
        choices, value=value, label=label, filterable=False, interactive=True, elem_id=name
    )


def video_player(label: str, name: str) -> gr.Video:
    """A place for a video that plays over and over."""
    return gr.Video(
        label=label,
        height=HEIGHT,
        autoplay=True,
        loop=True,
        interactive=False,
        buttons=[],
        elem_id=name,
    )


def wire(page: Page, parts: Parts, handlers: Handlers) -> None:
    """Says what happens when something on the page is used."""
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    motion = [parts.motion, parts.motion_file, parts.motion_state, parts.preview, parts.render]
    video = [
        parts.video_id,
        parts.render,
        parts.cancel,
        parts.newest,
        parts.result,
        parts.download,
        parts.progress,
    ]
    asked = [parts.photos, parts.motion, parts.preset, parts.seed]
    page.load(handlers.begin, None, motion, **hidden)
    page.load(handlers.resume, [parts.video_id], video, **hidden)
    parts.motion.input(
        handlers.choose_motion, [parts.motion], motion, trigger_mode="always_last", **hidden
    )
    parts.motion_file.upload(handlers.take_motion, [parts.motion_file], motion, **hidden)
    parts.render.click(handlers.render, asked, video, **hidden)
    parts.cancel.click(handlers.cancel, [parts.video_id], video, **hidden)
