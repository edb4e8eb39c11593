"""README.md as the text of an index page: what it links to in the repository is not there, and becomes its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class IndexPage(MetadataHookInterface):
    """Named by pyproject.toml, called by hatchling."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\[([^]]+)\]\((?!https://)([^)]+)\)", r"\1 (`\2`)", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
