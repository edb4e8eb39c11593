"""How many examples hypothesis draws where one profile's number is not right for all laws."""

from __future__ import annotations

from hypothesis import settings


def examples(times: float) -> int:
    """So many times what the profile that is in use draws; `.ci/run --all` uses a larger one."""
    return max(round((settings.default or settings()).max_examples * times), 1)
