"""HTML frame and style shared by all pages."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #6b6b74; --line: #e4e4e8; --paper: #fff;
  --ground: #f6f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --soft: #9d9da8; --line: #33333a; --paper: #1d1d22; --ground: #131317; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 24px; font-weight: 600; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 16px; font-weight: 600; }
.summary { color: var(--soft); margin: 4px 0 24px; max-width: 80ch; }
article, section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px 20px; margin-bottom: 18px; }
figure { margin: 0; }
figcaption { color: var(--soft); }
"""
"""Colours, light and dark, and type; a page's own style comes after it."""


def document(body: str, *, title: str, summary: str, style: str) -> str:
    """A whole page.

    Args:
        body: HTML below the title.
        title: plain text.
        summary: plain text, one sentence below the title.
        style: CSS of this page alone.
    """
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
<main>
<h1>{escape(title)}</h1>
<p class="summary">{escape(summary)}</p>
{body}
</main>
</html>
"""
