"""How configurations write a topology: its JSON schema, and numbers that come as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import number_in, quoted

_FIELDS = frozenset({"order", "ranks", "views"})
_PLACES = frozenset({"first_rank", "world_size"})


def topology_schema(*, takes_text: bool) -> dict[str, Any]:
    """The JSON schema of a topology; of its dumps, or of what makes one, which may also be its text."""
    size: dict[str, Any] = {"type": "integer", "minimum": 1}
    schema: dict[str, Any] = {
        "title": "ParallelTopology",
        "description": "How the ranks of a job are divided over named axes: each further property is an axis' size.",
        "type": "object",
        "properties": {
            "order": {
                "description": "The axes, fastest-varying first, joined by '-', or the name of a system's order.",
                "type": "string",
            },
            "first_rank": {
                "description": "The global rank of position 0.",
                "type": "integer",
                "minimum": 0,
                "default": 0,
            },
            "ranks": {
                "description": "Instead of first_rank, the global rank of every position.",
                "anyOf": [
                    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    {
                        "description": "A first rank and steps from it, as in 0+2x1+512x4.",
                        "type": "string",
                        "pattern": r"^[0-9]+(\+[0-9]+x[0-9]+)+$",
                    },
                    {"type": "null"},
                ],
                "default": None,
            },
            "views": {
                "description": "Further factorizations of the same ranks: name -> axes.",
                "type": "object",
                "additionalProperties": {"type": "string"},
                "default": {},
            },
        },
        "additionalProperties": size,
    }
    if takes_text:
        schema["type"] = ["object", "string"]
        schema["examples"] = ["tp2-pp4", {"tp": 2, "pp": 4}]
        schema["properties"]["order"]["type"] = ["string", "null"]
        schema["properties"]["world_size"] = {
            "description": "The product of the sizes; needed when one size is -1, what is left over.",
            "type": ["integer", "null"],
            "minimum": 1,
        }
        schema["additionalProperties"] = {"type": "integer", "anyOf": [{"minimum": 1}, {"const": -1}]}
    return schema


def numbers_read(value: Any) -> Any:
    """A mapping as it was given, the numbers in it read that the environment had to write as text.

    The sizes of axes always (a variable may override one size of a topology that was given as JSON); `first_rank` and
    `world_size` only where all numbers are text: beside real numbers, text is a mistake.
    """
    if not isinstance(value, Mapping):
        return value
    given = cast("Mapping[object, object]", value)
    for key in given:
        if not isinstance(key, str):
            raise TopologyError(f"{quoted(key)} cannot name an axis: expected lower-case letters and '_'")
    numbers = [value for key, value in given.items() if key not in _FIELDS]
    only_text = all(isinstance(value, str) for value in numbers)

    def read(key: object, value: object) -> object:
        if not isinstance(value, str) or key in _FIELDS or (key in _PLACES and not only_text):
            return value
        number = number_in(value)
        return value if number is None else number

    return {key: read(key, value) for key, value in given.items()}
