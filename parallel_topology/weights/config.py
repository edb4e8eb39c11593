"""Config: the fields of a config.json, checked when they are asked for; what it leaves out, its family says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from parallel_topology.errors import TopologyError
from parallel_topology.topology.whole import quoted, require


@dataclass(frozen=True)
class Config:
    """A configuration, and what stands for fields that it leaves out (or that are null).

    Attributes:
        fields: of the configuration.
        defaults: field -> what is taken where it is left out; a text is made of other fields, as in `value`.
    """

    fields: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def value(self, expression: str) -> int:
        """A sum of products of fields and numbers, as in `"kv_lora_rank+2*head_dim"`.

        Raises:
            TopologyError: a field is not there, or is no size.
        """
        return sum(prod(map(self._factor, term.split("*"))) for term in expression.split("+"))

    def size(self, name: str, least: int = 1) -> int:
        """A field that is a whole number of at least so many.

        Raises:
            TopologyError: it is not there, or is no such number.
        """
        given, default = self.fields.get(name), self.defaults.get(name)
        if given is not None or isinstance(default, int):
            return require(least, name, default if given is None else given)
        if default is not None:
            return self.value(default)
        if name == "head_dim":
            return self._head_dim()
        raise TopologyError(
            f"the configuration of model_type {self.fields.get('model_type')!r} has no {name!r}: expected it there"
        )

    def says(self, name: str) -> bool:
        """Whether a field says true, or a size; not where it is nowhere, null, false or 0.

        Raises:
            TopologyError: it is something else.
        """
        given, default = self.fields.get(name), self.defaults.get(name)
        if given is None and isinstance(default, str):
            return self.says(default)
        found = default if given is None else given
        return bool(found is not None and (found if isinstance(found, bool) else require(0, name, found)))

    def numbers(self, name: str) -> list[int]:
        """A field that is a list of whole numbers; an empty one where it is not there."""
        found = self.fields.get(name) or ()
        if not isinstance(found, Iterable) or isinstance(found, str):
            raise TopologyError(f"{name}={quoted(found)}: expected a list of layers")
        return [require(0, name, one) for one in cast("Iterable[object]", found)]

    def texts(self, name: str) -> list[str]:
        """A field that is a list of words, as `layer_types`; an empty one where it is not there."""
        found = self.fields.get(name) or ()
        if not isinstance(found, Iterable) or isinstance(found, str):
            raise TopologyError(f"{name}={quoted(found)}: expected a list of words, one a layer")
        return [str(one) for one in cast("Iterable[object]", found)]

    def _factor(self, text: str) -> int:
        return int(text) if text.isdigit() else self.size(text)

    def _head_dim(self) -> int:
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        if hidden % heads:
            raise TopologyError(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and there is no 'head_dim'"
            )
        return hidden // heads
