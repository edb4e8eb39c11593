"""The runnable examples. Their files are in `docs/examples` of a checkout; a wheel has them in this folder."""

from pathlib import Path

_checkout = Path(__file__).parents[2] / "docs" / "examples"
if _checkout.is_dir():
    __path__.append(str(_checkout))
