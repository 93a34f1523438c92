"""HTML page of a rendered catalogue.

One HTML file with relative links to the files beside it, so that the folder may be moved, zipped
or put on any web server. It holds thousands of items: pictures and videos are loaded as they come
into view, and a search finds items by whatever is written about them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from jobs.common.html import document

STYLE = """
.search { display: flex; align-items: center; gap: 12px; margin: 0 0 24px; }
.search input { flex: 1; max-width: 420px; padding: 9px 13px; font: inherit; color: inherit;
  background: var(--paper); border: 1px solid var(--line); border-radius: 9px; }
.search output { color: var(--soft); font-size: 13px; }
article { content-visibility: auto; contain-intrinsic-size: auto 420px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px;
  margin-bottom: 14px; }
h2 { margin: 0; overflow-wrap: anywhere; }
.settings { color: var(--soft); font-size: 13px; }
.settings a { color: inherit; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px;
  max-width: calc(var(--columns) * 272px); }
figure { min-width: 0; }
figcaption { font-size: 12px; margin-top: 6px; }
figure img, figure video { width: 100%; aspect-ratio: var(--ratio); object-fit: contain;
  display: block; background: var(--ground); border-radius: 8px; }
.result figcaption { color: var(--ink); font-weight: 600; }
.photos { display: grid; grid-template-columns: repeat(4, 1fr); gap: 6px; }
.photos img:first-child { grid-column: 1 / -1; }
.failed { border-left: 4px solid #c4453c; }
.note, .failed p { margin: 10px 0 0; font-size: 13px; overflow-wrap: anywhere; }
"""

SCRIPT = """
const articles = [...document.querySelectorAll("article")];
const texts = articles.map(article =>
  [...article.querySelectorAll("h2, .settings, p")].map(part => part.textContent).join(" ")
    .toLowerCase());
const box = document.querySelector(".search input");
const count = document.querySelector(".search output");
function search() {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let found = 0;
  articles.forEach((article, index) => {
    article.hidden = !words.every(word => texts[index].includes(word));
    found += !article.hidden;
  });
  count.textContent = words.length ? `${found} of ${articles.length}` : "";
  const here = words.length ? "#" + encodeURIComponent(box.value) : "#";
  if (location.hash !== here && (words.length || location.hash)) location.replace(here);
}
box.value = decodeURIComponent(location.hash.slice(1));
box.addEventListener("input", search);
search();
const watch = new IntersectionObserver(changes => changes.forEach(({ target, isIntersecting }) => {
  if (!isIntersecting) return target.pause();
  if (!target.src) {
    if (target.dataset.poster) target.poster = target.dataset.poster;
    target.src = target.dataset.src;
  }
  target.play().catch(() => {});
}), { rootMargin: "300px" });
document.querySelectorAll("video").forEach(video => watch.observe(video));
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One rendered item; every file is a path relative to the page.

    Attributes:
        name: name of the item.
        photos: pictures of the photos.
        motion: video of the poses.
        result: the rendered video.
        poster: its first frame.
        sheet: frames of it side by side.
        truth: the true video, or `None`.
        manifest: the item's JSON file.
        settings: short descriptions of the render settings.
        warnings: sentences for the reader.
        width: width of the result in pixels.
        height: height of the result in pixels.
    """

    name: str
    photos: Sequence[str]
    motion: str
    result: str
    poster: str
    sheet: str
    truth: str | None
    manifest: str
    settings: Sequence[str]
    warnings: Sequence[str]
    width: int
    height: int


def page(entries: Sequence[Entry], failures: Mapping[str, str], *, title: str) -> str:
    """The page's HTML.

    Args:
        entries: finished items, in the order of the catalogue.
        failures: reasons of failed items by name.
        title: title of the page.
    """
    summary = f"{len(entries)} rendered" + (f", {len(failures)} failed" if failures else "")
    articles = [_article(entry) for entry in entries]
    articles += [
        f'<article class="failed"><header><h2>{escape(name)}</h2>'
        f'<span class="settings">failed</span></header><p>{escape(reason)}</p></article>'
        for name, reason in failures.items()
    ]
    body = (
        '<p class="search"><input type="search" aria-label="search" '
        'placeholder="Search: item, subject, preset, seed, failed …"><output></output></p>\n'
        + "\n".join(articles)
        + f"\n<script>{SCRIPT}</script>"
    )
    return document(body, title=title, summary=summary, style=STYLE)


def _article(entry: Entry) -> str:
    photos = "".join(
        f'<img src="{quote(photo)}" alt="photo" loading="lazy">' for photo in entry.photos
    )
    many = f"Photos ({len(entry.photos)})" if len(entry.photos) > 1 else "Photo"
    figures = [
        f'<figure><div class="photos">{photos}</div><figcaption>{many}</figcaption></figure>',
        _video("Motion", entry.motion),
        _video("Result", entry.result, poster=entry.poster, kind="result"),
    ]
    if entry.truth:
        figures.append(_video("Ground truth", entry.truth))
    settings = " · ".join(escape(setting) for setting in entry.settings)
    notes = "".join(f'<p class="note">{escape(text)}</p>' for text in entry.warnings)
    return (
        f'<article style="--columns: {len(figures)}; --ratio: {entry.width} / {entry.height}">'
        f'<header><h2>{escape(entry.name)}</h2><span class="settings">{settings} · '
        f'<a href="{quote(entry.sheet)}">frames</a> · '
        f'<a href="{quote(entry.manifest)}">manifest</a></span></header>'
        f'<div class="row">{"".join(figures)}</div>{notes}</article>'
    )


def _video(caption: str, source: str, *, poster: str = "", kind: str = "") -> str:
    poster = f' data-poster="{quote(poster)}"' if poster else ""
    return (
        f'<figure class="{kind}"><video data-src="{quote(source)}"{poster} loop muted '
        f"playsinline></video><figcaption>{escape(caption)}</figcaption></figure>"
    )
