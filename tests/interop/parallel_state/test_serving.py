"""Who is asked where: aliases, nesting, threads, tasks, generators, autograd; and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import copy_context
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_topology import (
    ClosedError,
    GroupArgumentError,
    GroupManager,
    MissingExtraError,
    ParallelTopology,
    TopologyError,
)
from parallel_topology.interop.parallel_state import blocks, serving
from parallel_topology.reads.rows import Table
from parallel_topology.reads.systems import SYSTEMS
from tests.interop.parallel_state import library
from tests.interop.parallel_state.library import get_rank as alias
from tests.waiting import times_slower

Made = Callable[[int], GroupManager]
OWN = AssertionError


def rank() -> int | str:
    """What the library answers here."""
    try:
        return alias()
    except AssertionError:
        return "own"


def test_every_alias_is_served_inside_and_nothing_is_left(manager: Made):
    code, names = alias.__code__, set(vars(library))
    with serving(manager(5), "library"):
        assert alias() == library.get_rank() == 5
        assert library.get_name() == "rank 5"
        assert inspect.unwrap(alias) is alias
    assert alias.__code__ is code
    assert set(vars(library)) == names
    assert rank() == "own"


def test_nested_blocks_see_the_innermost(manager: Made):
    a, b = manager(1), manager(2)
    with serving(a, "library"):
        with serving(b, "library"):
            assert rank() == 2
            with serving(a, "library"):
                assert rank() == 1
            assert rank() == 2
        assert rank() == 1
    assert rank() == "own"


def test_an_error_ends_the_block(manager: Made):
    code = alias.__code__
    with pytest.raises(ZeroDivisionError), serving(manager(1), "library"):
        raise ZeroDivisionError
    assert (rank(), alias.__code__) == ("own", code)


def test_blocks_that_end_in_another_order(manager: Made):
    first, second = ExitStack(), ExitStack()
    first.enter_context(serving(manager(1), "library"))
    second.enter_context(serving(manager(2), "library"))
    first.close()
    assert rank() == 2
    second.close()
    assert rank() == "own"


def test_threads_see_their_own_block_and_the_one_without_none(manager: Made):
    """All are inside at the same time, and after each step."""
    steps, meeting = 50, threading.Barrier(4, timeout=30)

    def served(number: int) -> set[int | str]:
        groups, seen = managers[number], set[int | str]()
        for step in range(steps):
            if (step + number) % 3:
                with serving(groups, "library"):
                    meeting.wait()
                    seen.add(rank())
            else:
                meeting.wait()
                seen.add(f"outside {rank()}")
        return seen

    def outside() -> set[int | str]:
        return {(meeting.wait(), rank())[1] for _ in range(steps)}

    managers = {number: manager(number) for number in (1, 2, 3)}
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(served, number) for number in managers] + [pool.submit(outside)]
        assert [future.result(60) for future in futures] == [
            {1, "outside own"}, {2, "outside own"}, {3, "outside own"}, {"own"},
        ]  # fmt: skip


def test_a_thread_sees_a_block_only_with_its_context(manager: Made):
    with ThreadPoolExecutor(1) as pool, serving(manager(1), "library"):
        assert pool.submit(rank).result(30) == "own"
        assert pool.submit(copy_context().run, rank).result(30) == 1


def test_tasks_have_the_block_they_were_started_in(manager: Made):
    a, b = manager(1), manager(2)

    async def served(groups: GroupManager, turn: asyncio.Event, other: asyncio.Event) -> list[int | str]:
        seen: list[int | str] = []
        with serving(groups, "library"):
            for _ in range(3):
                seen.append(rank())
                other.set()
                await turn.wait()
                turn.clear()
                seen.append(rank())
                seen.append(await asyncio.create_task(child()))
                seen.append(await asyncio.to_thread(rank))
        other.set()
        return seen

    async def child() -> int | str:
        return rank()

    async def main() -> None:
        ping, pong = asyncio.Event(), asyncio.Event()
        found = await asyncio.gather(served(a, ping, pong), served(b, pong, ping), child())
        assert [set(seen) if isinstance(seen, list) else seen for seen in found] == [{1}, {2}, "own"]
        with serving(a, "library"):
            late = asyncio.create_task(child())
        assert await late == "own", "the block has ended"

    asyncio.run(asyncio.wait_for(main(), 30))


# Generators


def steps(groups: GroupManager, count: int = 4) -> Generator[int | str]:
    with serving(groups, "library"):
        for _ in range(count):
            yield rank()


def test_generators_have_their_own_block_and_their_consumer_does_not(manager: Made):
    a, b = steps(manager(1)), steps(manager(2))
    seen: list[int | str] = []
    for one in (a, b, b, a, b, a):
        seen += [next(one), rank()]
    assert seen == [1, "own", 2, "own", 2, "own", 1, "own", 2, "own", 1, "own"]
    a.close()
    assert (next(b), rank()) == (2, "own")
    b.close()
    assert not blocks._in_generators


def test_a_generator_in_a_block_and_a_block_in_a_generator(manager: Made):
    a, b, c = manager(1), manager(2), manager(3)

    def inner() -> int | str:
        with serving(c, "library"):
            return rank()

    def generator() -> Generator[int | str]:
        yield rank()
        with serving(b, "library"):
            yield rank()
            yield inner()
            with serving(a, "library"):
                yield rank()
            yield rank()
            yield from steps(c, 1)
        yield rank()

    with serving(a, "library"):
        seen = [(one, rank()) for one in generator()]
    assert seen == [(1, 1), (2, 1), (3, 1), (1, 1), (2, 1), (3, 1), (1, 1)]


def test_a_generator_that_is_resumed_in_other_threads(manager: Made):
    """As web servers do with a stream: each step in whichever thread is free, in a context of its own."""
    generator = steps(manager(1), 6)
    with ThreadPoolExecutor(3) as pool:
        assert [pool.submit(copy_context().run, next, generator).result(30) for _ in range(6)] == [1] * 6
        assert [pool.submit(rank).result(30) for _ in range(3)] == ["own"] * 3
    assert list(generator) == []


def test_a_generator_that_nobody_finishes(manager: Made):
    code, generator = alias.__code__, steps(manager(1))
    assert next(generator) == 1
    del generator
    gc.collect()
    assert alias.__code__ is code


def test_an_async_generator(manager: Made):
    async def stream(groups: GroupManager) -> AsyncGenerator[int | str]:
        with serving(groups, "library"):
            for _ in range(3):
                await asyncio.sleep(0)
                yield rank()

    async def main() -> list[Any]:
        a, b = stream(manager(1)), stream(manager(2))
        return [(await anext(a), await anext(b), rank()) for _ in range(3)] + [[one async for one in b]]

    assert asyncio.run(asyncio.wait_for(main(), 30)) == [(1, 2, "own")] * 3 + [[]]


def test_a_context_manager_made_of_a_generator_is_for_the_code_in_it(manager: Made):
    @contextmanager
    def engine(groups: GroupManager) -> Generator[None]:
        with ExitStack() as stack:
            stack.enter_context(serving(groups, "library"))
            yield

    @asynccontextmanager
    async def async_engine(groups: GroupManager) -> AsyncGenerator[None]:
        with engine(groups):
            yield

    def generator() -> Generator[int | str]:
        with engine(manager(2)):
            yield rank()
            yield rank()

    async def main() -> int | str:
        async with async_engine(manager(3)):
            return rank()

    with engine(manager(1)):
        assert rank() == 1
        assert [(one, rank()) for one in generator()] == [(2, 1), (2, 1)]
    assert rank() == "own"
    assert asyncio.run(main()) == 3


@pytest.fixture
def served_by_4(manager: Made) -> Generator[None]:
    with serving(manager(4), "library"):
        yield


@pytest.mark.usefixtures("served_by_4")
def test_a_fixture_is_for_its_test():
    assert rank() == 4


STEPS = st.tuples(st.sampled_from(["open", "close", "generator", "resume", "ask"]), st.integers(0, 3))


@given(st.lists(STEPS, max_size=30))
def test_any_interleaving_of_blocks_and_generators(program: list[tuple[str, int]]):
    """Against a stack of what should be seen: generators of up to four managers, resumed inside of any blocks."""
    SYSTEMS["library"] = library.TABLE
    managers = [GroupManager(ParallelTopology(tp=1, dp=1, first_rank=number), rank=number) for number in range(4)]
    generators: list[tuple[int, Generator[int | str]]] = []
    opened: list[int] = []
    with ExitStack() as stack:

        def run(position: int) -> None:
            while position < len(program):
                what, number = program[position]
                position += 1
                if what == "open":
                    stack.enter_context(serving(managers[number], "library"))
                    opened.append(number)
                elif what == "generator":
                    generators.append((number, steps(managers[number], 99)))
                elif what == "resume" and generators:
                    expected, generator = generators[number % len(generators)]
                    assert next(generator) == expected
                elif what == "close" and generators:
                    generators.pop(number % len(generators))[1].close()
                assert rank() == (opened[-1] if opened else "own")

        run(0)
        for _, generator in generators:
            generator.close()
        assert rank() == (opened[-1] if opened else "own")
    assert rank() == "own"


# Autograd


class Asking(torch.autograd.Function):
    """Its backward asks, and runs a backward of its own, `depth` times: deeper than 60 torch uses other threads."""

    seen: set[tuple[bool, int | str]]
    thread: int

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, depth: int) -> torch.Tensor:
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        Asking.seen.add((threading.get_ident() == Asking.thread, rank()))
        if ctx.depth:
            Asking.run(ctx.depth - 1)
        Asking.seen.add((threading.get_ident() == Asking.thread, rank()))
        return gradients[0], None

    @classmethod
    def run(cls, depth: int) -> None:
        with torch.enable_grad():
            cls.apply(torch.ones(1, requires_grad=True), depth).sum().backward()

    @classmethod
    def asked(cls) -> set[tuple[bool, int | str]]:
        """(whether it was this thread, what the library answered)"""
        cls.seen, cls.thread = set(), threading.get_ident()
        cls.run(70)
        return cls.seen


def test_autograds_own_threads_see_the_block_around_backward(manager: Made):
    with serving(manager(1), "library"):
        assert Asking.asked() == {(True, 1), (False, 1)}
        with serving(manager(2), "library"):
            assert Asking.asked() == {(True, 2), (False, 2)}
    assert Asking.asked() == {(True, "own"), (False, "own")}


def test_autograds_own_threads_see_a_generators_block(manager: Made):
    def generator() -> Generator[set[tuple[bool, int | str]]]:
        with serving(manager(1), "library"):
            yield Asking.asked()

    with serving(manager(2), "library"):
        assert next(generator()) == {(True, 1), (False, 1)}


def test_checkpoints_recompute_in_the_block_around_backward(manager: Made):
    from torch.utils.checkpoint import checkpoint

    seen: list[int | str] = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        seen.append(rank())
        return x * x

    for reentrant in (True, False):
        with serving(manager(1), "library"):
            output: Any = checkpoint(layer, torch.ones(1, requires_grad=True), use_reentrant=reentrant)
            output.sum().backward()
    assert seen == [1] * 4


# Compiled code


def test_compiled_code_asks_who_serves_it_now(manager: Made):
    @torch.compile(backend="eager")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * library.get_size()

    x = torch.ones(1)
    assert double(x).item() == -1
    with serving(manager(1), "library"):
        assert double(x).item() == 1
    assert double(x).item() == -1
    library_rank = torch.compile(lambda x: x * alias(), backend="eager")
    for number in (3, 4, 3):
        with serving(manager(number), "library"):
            assert library_rank(x).item() == number


# What is refused


def test_a_function_without_meaning_says_why(manager: Made):
    with serving(manager(1), "library"):
        with pytest.raises(GroupArgumentError, match=r"destroy\(\) has no meaning for a manager: it is the manager's"):
            library.destroy()
        with pytest.raises(GroupArgumentError, match=r"no_row\(\) .* the table knows library 1, where"):
            library.no_row()
        assert library._private() == "own"
        with library.captured() as found:
            assert found == 1
        assert library.is_there()
    assert library.no_row() == "own"


def test_arguments_choose_and_are_those_of_the_function(manager: Made):
    groups = manager(1)
    with serving(groups, "library"):
        assert library.get_group().size() == library.get_group(True, wide=True).size() == 1
        assert library.get_size() == 1
        with pytest.raises(TypeError, match="unexpected keyword argument 'narrow'"):
            library.get_group(narrow=True)  # pyright: ignore[reportCallIssue]
        with pytest.raises(GroupArgumentError, match=r"get_size\(default=3\): served by a manager it takes no default"):
            library.get_size(3)
    assert library.get_size(3) == 3


def test_initialize_requires_the_managers_topology(manager: Made):
    with serving(manager(0), "library"):
        library.initialize()
        library.initialize(tp=1)
        with pytest.raises(TopologyError, match=r"initialize: .* tp 2"):
            library.initialize(2)
    assert library._rank is None, "nothing was initialized"


def test_a_value_that_is_set_is_the_managers(manager: Made):
    a, b = manager(1), manager(2)
    with serving(a, "library"):
        library.set_stage(7)
    with serving(b, "library"):
        assert library.get_stage() is None
    with serving(a, "library"):
        assert library.get_stage() == 7
    assert library.get_stage() is None


def test_a_manager_that_was_closed(manager: Made):
    groups = manager(1)
    with serving(groups, "library"):
        assert library.get_group().size() == 1
        groups.close()
        assert rank() == 1
        with pytest.raises(ClosedError, match=r"get_group\(\): engine, which serves it, was closed"):
            library.get_group()
    with pytest.raises(ClosedError, match="serving: engine was closed"), serving(groups, "library"):
        pass


def test_unknown_and_missing_systems(manager: Made, monkeypatch: pytest.MonkeyPatch):
    groups = manager(1)
    expected = r"'megatorn'\): expected one of 'megatron'"
    with pytest.raises(GroupArgumentError, match=expected), serving(groups, "megatorn"):
        pass
    monkeypatch.setitem(SYSTEMS, "none", Table("none", "no-package", "", {"no_such_library": {}}))
    for _ in range(2):
        with pytest.raises(MissingExtraError, match="pip install no-package"), serving(manager(1), "none"):
            pass


def test_nothing_holds_a_manager_that_is_gone():
    groups = GroupManager(ParallelTopology(tp=1, dp=1), rank=0)
    with serving(groups, "library"):
        assert library.get_group().size() == 1
        context = copy_context()
    groups.close()
    gone = weakref.ref(groups)
    del groups
    gc.collect()
    assert gone() is None
    assert context.run(rank) == "own"


@pytest.mark.slow  # a close promise: see tests/waiting.py
def test_a_served_getter_takes_less_than_two_microseconds(manager: Made):
    with serving(manager(1), "library"):
        for call in (alias, library.get_group, lambda: library.get_group(wide=True)):
            call()
            # What is beside it takes 40 ns on an idle machine.
            assert 0.04 * times_slower(call, lambda: len("a"), rounds=50, number=1000) < 2
