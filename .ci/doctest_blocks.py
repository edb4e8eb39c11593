"""For the site: examples and drawings in docstrings, which stand there without a fence, become blocks of code."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class DoctestBlocks(Extension):
    """Loaded by griffe, as .zensical.toml says."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(_fenced, paragraphs))


def _fenced(paragraph: str) -> str:
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    return f"```text\n{paragraph}\n```" if "\n├── " in paragraph else paragraph
