"""The paper of images that are drawn once: an SVG with its words, in light and dark, and a page around one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape

MARGIN, LINE = 12, 18
"""Pixels around an image, and of a line of text."""


def image(kind: str, title: str, words: str, size: tuple[int, int], body: Sequence[str], styles: Sequence[str]) -> str:
    """An SVG.

    Args:
        kind: what its name in a page begins with.
        title: what is shown.
        words: what is said to those who do not see it.
        size: pixels, width and height.
        body: what is drawn.
        styles: a rule each, for parts of this image only; `&` stands for it. The last one is for dark pages.
    """
    name = f"{kind}-" + hashlib.sha256("".join([title, *body]).encode()).hexdigest()[:12]
    width, height = size
    *light, dark = (one.replace("&", f"#{name}") for one in styles)
    drawn, rules = "\n".join(body), "\n".join(light)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" id="{name}" role="img" aria-labelledby="{name}-title {name}-desc"
 width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<title id="{name}-title">{escape(title)}</title>
<desc id="{name}-desc">{escape(words)}</desc>
<style>
#{name} {{ font: 13px ui-monospace, monospace; }}
#{name} text {{ fill: #1a1a1a; }} #{name} .paper {{ fill: #ffffff; }}
{rules}
@media (prefers-color-scheme: dark) {{
#{name} text {{ fill: #eeeeee; }} #{name} .paper {{ fill: #161616; }} {dark}
}}
</style>
<rect class="paper" width="100%" height="100%"/>
<text x="{MARGIN}" y="{MARGIN + LINE}">{escape(title)}</text>
{drawn}
</svg>
"""


def page(title: str, body: str) -> str:
    """A page, which loads nothing."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
:root {{ color-scheme: light dark; font: 14px system-ui, sans-serif; }}
svg {{ max-width: 100%; height: auto; }}
h1 {{ font-size: 1.2rem; }}
td, th {{ padding: 0.2rem 0.8rem; text-align: right; white-space: nowrap; }}
td:last-child {{ text-align: left; white-space: normal; }}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
