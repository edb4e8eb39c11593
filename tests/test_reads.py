"""Which reads are found: by import and name, in their scope; and what to write instead."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

from parallel_topology.reads.systems import SYSTEMS
from parallel_topology.reads.tree import find


def reads(folder: Path, text: str, name: str = "code.py") -> list[tuple[int, str, str]]:
    """(line, function, name) of what a file reads."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(text))
    found = find(folder)
    assert not found.unreadable
    return [(read.line, read.function, read.name) for read in found.reads]


RANK, SIZE = "get_tensor_model_parallel_rank", "get_tensor_model_parallel_world_size"


@pytest.mark.parametrize(
    ("imports", "call"),
    [
        ("from megatron.core import parallel_state", f"parallel_state.{RANK}()"),
        ("from megatron.core import parallel_state as ps", f"ps.{RANK}()"),
        ("from megatron.core import mpu", f"mpu.{RANK}()"),
        ("import megatron.core.parallel_state as ps", f"ps.{RANK}()"),
        ("import megatron.core.parallel_state", f"megatron.core.parallel_state.{RANK}()"),
        ("import megatron.core as core", f"core.parallel_state.{RANK}()"),
        (f"from megatron.core.parallel_state import {RANK}", f"{RANK}()"),
        (f"from megatron.core.parallel_state import {RANK} as rank", "rank()"),
        ("from megatron.core.parallel_state import *", f"{RANK}()"),
        ("from megatron.core import parallel_state; ps = parallel_state", f"ps.{RANK}()"),
        ("from megatron.core import parallel_state", f"getattr(parallel_state, '{RANK}')()"),
        ("from megatron.core import parallel_state", f"map(parallel_state.{RANK}, [])"),
        ("from megatron.core import parallel_state", f"[parallel_state.{RANK}() for _ in range(2)]"),
        ("from megatron.core import parallel_state", f"lambda: parallel_state.{RANK}()"),
    ],
)
def test_a_read_is_found_however_it_was_imported(tmp_path: Path, imports: str, call: str):
    found = reads(tmp_path, f"{imports}\n\n{call}\n")
    assert [(line, name) for line, _, name in found] == [(3, RANK)]


def test_relative_imports_inside_the_library(tmp_path: Path):
    assert reads(
        tmp_path,
        f"""
        from .. import parallel_state
        from ..parallel_state import {SIZE}
        parallel_state.{RANK}(), {SIZE}()
        """,
        "megatron/core/tensor_parallel/layers.py",
    ) == [(4, "<module>", RANK), (4, "<module>", SIZE)]
    assert len(reads(tmp_path, f"from .parallel_state import {RANK}\n{RANK}()", "megatron/core/__init__.py")) == 3


def test_the_module_itself_is_not_read(tmp_path: Path):
    assert reads(tmp_path, f"def {RANK}(): ...\n\n{RANK}()\n", "megatron/core/parallel_state.py") == []


def test_names_of_other_origin_are_not_found(tmp_path: Path):
    text = f"""
        from megatron.core import parallel_state
        import torch.distributed as dist
        from elsewhere import {SIZE}

        dist.is_initialized()
        {SIZE}()
        model.parallel_state.{RANK}()
        # parallel_state.{RANK}()
        "parallel_state.{RANK}()"
        parallel_state.RankGenerator(1, 1, 1, 1, 1, "tp")  # makes lists out of its arguments


        def shadowed(parallel_state):
            return parallel_state.{RANK}()


        def local():
            parallel_state = object()
            return parallel_state.{RANK}(), [{RANK}() for {RANK} in ()]
    """
    assert reads(tmp_path, text) == []


def test_where_a_read_stands(tmp_path: Path):
    text = f"""
        class Layer(Base[{RANK}]):
            from megatron.core.parallel_state import {SIZE}

            size = {SIZE}()

            def forward(self, rank=None):
                from megatron.core import parallel_state as ps

                def inner():
                    return ps.{RANK}()

                return {SIZE}(), ps._TENSOR_MODEL_PARALLEL_GROUP

            @decorated(lambda: __import__("megatron"))
            async def backward(self):
                try:
                    from megatron.core.parallel_state import {RANK}
                except ImportError:
                    {RANK} = None
                return {RANK} and {RANK}()
    """
    assert reads(tmp_path, text) == [
        (5, "Layer", SIZE),
        (11, "Layer.forward.inner", RANK),
        (13, "Layer.forward", "_TENSOR_MODEL_PARALLEL_GROUP"),
        (21, "Layer.backward", RANK),
        (21, "Layer.backward", RANK),
    ]


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        ("get_tensor_model_parallel_world_size()", "groups.tp.size"),
        ("get_tensor_model_parallel_group(check_initialized=False)", "groups.tp.device_group"),
        ("get_context_parallel_global_ranks()", "list(groups.cp.ranks)"),
        ("get_data_parallel_group()", "groups.dp.device_group"),
        ("get_data_parallel_group(with_context_parallel=True)", 'groups["cp", "dp"].device_group'),
        ("get_data_parallel_group(with_context_parallel=False)", "groups.dp.device_group"),
        (
            "get_data_parallel_group(with_context_parallel=not self.local)",
            'groups["cp", "dp"].device_group if not self.local else groups.dp.device_group',
        ),
        (
            "partial(parallel_state.get_data_parallel_group, with_context_parallel=True)",
            'groups["cp", "dp"].device_group',
        ),
        ("get_data_parallel_rank(True)", 'groups.dp.rank or groups["cp", "dp"].rank'),
        ("get_data_parallel_rank", "groups.dp.rank"),
        ("is_rank_in_embedding_group()", "groups.pp.is_first or groups.pp.is_last"),
        ("destroy_model_parallel()", "# the groups end with their manager: groups.close()"),
    ],
)
def test_what_to_write_instead(tmp_path: Path, call: str, instead: str):
    prefix = "" if call.startswith("partial") else "parallel_state."
    (tmp_path / "code.py").write_text(
        f"from functools import partial\nfrom megatron.core import parallel_state\n{prefix}{call}\n"
    )
    (read,) = find(tmp_path).reads
    assert read.instead == instead


def test_files_that_cannot_be_read_are_named_and_others_are_left_out(tmp_path: Path):
    good = f"from megatron.core import mpu\nmpu.{RANK}()\n"
    for name in ("a.py", "b/c.py", ".hidden/d.py", "venv/pyvenv.cfg", "venv/lib/e.py", "__pycache__/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(good)
    (tmp_path / "broken.py").write_text(f"{good}def\n")
    (tmp_path / "nested.py").write_text(f"{RANK}\n{'(' * 500}{')' * 500}\n")
    (tmp_path / "zero.py").write_text(f"{RANK}\0")
    found = find(tmp_path)
    assert [Path(read.file).name for read in found.reads] == ["a.py", "c.py"]
    assert {Path(file).name for file in found.unreadable} == {"broken.py", "nested.py", "zero.py"}
    assert found.files == 5


def test_no_torch_is_needed():
    code = "import sys, parallel_topology.reads.tree; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_line_to_write_instead_is_python():
    for table in SYSTEMS.values():
        for rows in table.modules.values():
            for name, row in rows.items():
                compile(row.line, name, "exec")


@pytest.mark.peers
def test_megatrons_own_reads_are_those_counted_by_hand():
    """megatron-core 0.16.1, `grep -n` and a look at each line."""
    spec = find_spec("megatron.core") or pytest.skip("megatron-core is not installed")
    if (found := version("megatron-core")) != "0.16.1":
        pytest.skip(f"counted in megatron-core 0.16.1, not in {found}")
    core = Path((spec.submodule_search_locations or [])[0])
    counted = {
        "fp8_utils.py": [622, 623],
        "models/common/language_module/language_module.py": [352],
        "transformer/pipeline_parallel_layer_layout.py": [160, 161, 178, 179],
        "transformer/moe/moe_utils.py": [927, 928, 1070, *range(1288, 1296)],
        "tensor_parallel/mappings.py": [139, 146, 179, 188],
    }
    for name, lines in counted.items():
        assert [read.line for read in find(core / name).reads] == lines, name
