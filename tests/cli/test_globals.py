"""`globals`: its exit status and what it prints; what is found is tested in interop/parallel_state/test_reads."""

from __future__ import annotations

import json

import pytest

from tests.cli.running import cpu_seconds

CODE = """from megatron.core import parallel_state


class Layer:
    def forward(self):
        return parallel_state.get_tensor_model_parallel_world_size()


first = parallel_state.is_pipeline_first_stage()
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "layer.py").write_text(CODE)
    (tmp_path / "clean.py").write_text("print(1)\n")
    return tmp_path


def test_a_list_by_file_and_function(run, tree):
    done = run("globals", str(tree))
    assert done.status == 1
    assert done.out.splitlines() == [
        f"{tree}/layer.py:6: get_tensor_model_parallel_world_size in Layer.forward: groups.tp.size",
        f"{tree}/layer.py:9: is_pipeline_first_stage in <module>: groups.pp.is_first",
        "2 reads of globals in 1 of 2 files",
    ]


@pytest.mark.parametrize(("most", "status"), [(0, 1), (1, 1), (2, 0), (9, 0)])
def test_the_ratchet(run, tree, most, status):
    done = run("globals", str(tree), "--at-most", str(most))
    assert done.status == status
    assert ("lower it to 2" in done.out) == (most > 2)


def test_none_is_status_0(run, tree):
    done = run("globals", str(tree / "clean.py"))
    assert (done.status, done.out) == (0, "0 reads of globals in 0 of 1 files\n")


def test_json(run, tree):
    (tree / "broken.py").write_text("is_initialized(")
    done = run("globals", str(tree), "--at-most", "2", "--json")
    assert done.status == 0
    found = json.loads(done.out)
    assert (found["count"], found["at_most"], found["files"]) == (2, 2, 3)
    assert found["reads"][0] == {
        "file": f"{tree}/layer.py",
        "line": 6,
        "function": "Layer.forward",
        "name": "get_tensor_model_parallel_world_size",
        "system": "megatron",
        "instead": "groups.tp.size",
    }
    assert list(found["unreadable"]) == [f"{tree}/broken.py"]


@pytest.mark.parametrize("path", ["missing", "empty"])
def test_what_is_not_there_is_status_2(run, tmp_path, path):
    (tmp_path / "empty").mkdir()
    done = run("globals", str(tmp_path / path))
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert path in done.err


@pytest.mark.parametrize(("files", "seconds"), [(40, 10), pytest.param(400, 5, marks=pytest.mark.slow)])
def test_many_files_take_seconds(tmp_path, files, seconds):
    read = "def read{0}(x):\n    return parallel_state.get_data_parallel_rank(with_context_parallel=True)\n\n\n"
    other = "def other{0}(self, x):\n    for i in range({0}):\n        x = self.layer[i](x, key=[i, {0}])\n\n\n"
    body = "".join(read.format(number) for number in range(5)) + "".join(other.format(number) for number in range(60))
    for number in range(files):
        (tmp_path / f"m{number}.py").write_text(f"from megatron.core import parallel_state\n\n\n{body}")
    assert cpu_seconds(f"globals {tmp_path} --at-most 2000") < seconds
