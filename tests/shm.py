"""What lies in /dev/shm, which all programs of a machine share."""

from __future__ import annotations

import os


def in_shm() -> set[str]:
    """All that others do not make and take away meanwhile: the standard library's blocks are nobody's here."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("psm_")}
