"""`parallel-topology check`: will a model divide over a topology, and what of it crosses hosts?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from parallel_topology.cli.errors import fail, one_line_errors
from parallel_topology.cli.options import JsonOption, OptionalHostsOption, SpecArgument
from parallel_topology.cli.output import print_json, print_table, table
from parallel_topology.weights.checks import Finding, ModelSizes, fits
from parallel_topology.weights.checks import check as find

STYLES = {"fits": "green", "note": "yellow", "fails": "bold red"}


def _size(*flags: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*flags, min=1, help=help, show_default=False, metavar="N")
    return option


def check(
    spec: SpecArgument,
    hosts: OptionalHostsOption = None,
    heads: Annotated[int | None, _size("--heads", "--model-heads", help="Attention heads.")] = None,
    kv_heads: Annotated[int | None, _size("--kv-heads", help="Heads of keys and values.")] = None,
    layers: Annotated[int | None, _size("--layers", help="Layers, of all stages together.")] = None,
    hidden: Annotated[int | None, _size("--hidden", help="Width of the model.")] = None,
    ffn: Annotated[int | None, _size("--ffn", help="Width inside the feed-forward layers.")] = None,
    vocab: Annotated[int | None, _size("--vocab", help="Tokens in the vocabulary.")] = None,
    experts: Annotated[int | None, _size("--experts", help="Routed experts in a layer.")] = None,
    batch: Annotated[int | None, _size("--batch", "--global-batch", help="Samples in a step, of all ranks.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a model divides over a topology, and what of it crosses hosts.

    Exit status: 0 when it fits, 1 when it does not, 2 when the input is wrong.

    Example: parallel-topology check tp8-dp2-pp4 --hosts 8x8 --heads 64 --kv-heads 8 --layers 80 --batch 512
    """
    sizes = ModelSizes(
        heads=heads, kv_heads=kv_heads, layers=layers, hidden=hidden, ffn=ffn, vocab=vocab, experts=experts, batch=batch
    )
    if hosts is None and not sizes.given:
        fail("nothing to check: expected --hosts, or a size such as --layers 80")
    with one_line_errors():
        findings = find(spec, sizes, hosts)
    if as_json:
        document = {"topology": str(spec), "hosts": str(hosts) if hosts else None, "fits": fits(findings)}
        print_json({**document, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    if not fits(findings):
        sys.exit(1)


def _show(findings: list[Finding]) -> None:
    from rich.text import Text

    rows = table()
    for finding in findings:
        rows.add_row(Text(finding.level, STYLES[finding.level]), finding.what, finding.said)
    print_table(rows)
