"""The page in a real browser: pointer, keyboard, filter, search, and how long a hover takes.

Run with `-m peers`; needs the package `playwright` and a Chromium of the system's (CHROMIUM, or the one on PATH).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from parallel_topology import Hosts, ParallelTopology
from parallel_topology.render.html import frame, html

pytestmark = pytest.mark.peers
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

TOPOLOGY = ParallelTopology.parse("tp4-dp2-pp2/expert:ep8-pp2/decode:dcp4-replicas4~dp-tp-pp")
HOSTS = Hosts.parse("4x4")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on PATH, nor does CHROMIUM name one")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page of the topology; at the end, nothing may have gone wrong in it nor been asked of the network."""
    faults: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(20_000)

    def open_page(topology: ParallelTopology = TOPOLOGY, *, text: str | None = None, **seen: Any) -> Any:
        file = tmp_path / "layout.html"
        file.write_text(html(topology, **seen) if text is None else text, encoding="utf-8")
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        ours = (file.as_uri(), "about:srcdoc")
        page.on("request", lambda request: None if request.url in ours else faults.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_page
    context.close()
    assert faults == []


def cell(page: Any, rank: int) -> Any:
    return page.locator(f'.cell[aria-label^="rank {rank},"]')


def lit(page: Any) -> set[int]:
    return set(page.evaluate("[...document.querySelectorAll('.cell.in b')].map((cell) => parseInt(cell.textContent))"))


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label')")


def together(topology: ParallelTopology, rank: int, axes: tuple[str, ...]) -> set[int]:
    return {member for axis in axes for member in topology.group(axis, rank=rank)}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        (str(TOPOLOGY), "4x4"),
        ("tp2-dp3@5", "2x4@4"),
        ("tp2-pp2@0,4,1,5", "0,4/1,5"),
        ("tp2-pp2@6,4,1,5", None),
        ("tp2-pcp2-pp2/decode:dcp4-pp2~pcp-tp-pp", "2x4"),
    ],
)
def test_every_rank_lights_the_groups_of_the_topology(opened: Any, text: str, hosts: str | None):
    topology = ParallelTopology.parse(text)
    page = opened(topology, hosts=None if hosts is None else Hosts.parse(hosts))
    assert page.locator(".cell").count() == topology.world_size
    for rank in topology.world:
        cell(page, rank).hover()
        assert lit(page) == together(topology, rank, topology.all_axes)
        view = topology.at(rank)
        signs = page.evaluate(
            "[...document.querySelectorAll('.near')].map((e) => [parseInt(e.innerText), e.dataset.near])"
        )
        groups = [view[axis] for axis in topology.all_axes]
        expected: dict[int, set[str]] = {}
        for group in groups:
            expected.setdefault(group.prev_rank, set()).add("\u2039")
            expected.setdefault(group.next_rank, set()).add("\u203a")
        expected.pop(rank, None)
        assert {member: set(shown) for member, shown in signs} == expected
        for axis in topology.all_axes:
            row = page.locator("#panel tr", has=page.locator(f"th:text-is('{axis}')"))
            position, prev, following, members = row.locator("td").all_inner_texts()
            group = view[axis]
            assert position == f"{group.rank} of {group.size}"
            assert members == ", ".join(map(str, group.ranks))
            if group.size > 1:
                assert (int(prev), int(following)) == (group.prev_rank, group.next_rank)


def test_leaving_puts_the_light_out_unless_a_rank_is_held(opened: Any):
    page = opened(hosts=HOSTS)
    cell(page, 3).hover()
    page.mouse.move(5, 5)
    assert lit(page) == set()
    cell(page, 3).click()
    cell(page, 12).hover()
    assert lit(page) == together(TOPOLOGY, 3, TOPOLOGY.all_axes)
    assert cell(page, 3).get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert page.locator("[aria-selected]").count() == 0


def test_one_axis(opened: Any):
    page = opened(hosts=HOSTS)
    page.get_by_role("radio", name="dcp").check()
    cell(page, 5).hover()
    assert lit(page) == set(TOPOLOGY.group("dcp", rank=5))
    page.get_by_role("radio", name="all").check()
    cell(page, 6).hover()
    assert lit(page) == together(TOPOLOGY, 6, TOPOLOGY.all_axes)


def test_the_keyboard_reaches_every_rank(opened: Any):
    page = opened(hosts=HOSTS)
    page.locator("input[name=axis]").first.focus()
    page.keyboard.press("Tab")
    assert focused(page) == "rank 0, host 0, tp0 dp0 pp0"
    for rank in range(1, 16):
        page.keyboard.press("ArrowRight")
        assert focused(page).startswith(f"rank {rank},")
        assert lit(page) == together(TOPOLOGY, rank, TOPOLOGY.all_axes)
    page.keyboard.press("ArrowRight")  # there is nothing after the last
    assert focused(page).startswith("rank 15,")
    for rank in reversed(range(15)):
        page.keyboard.press("ArrowLeft")
        assert focused(page).startswith(f"rank {rank},")
    page.keyboard.press("ArrowLeft")
    assert focused(page).startswith("rank 0,")
    page.keyboard.press("Control+End")
    steps = {
        "ArrowUp": 11, "Home": 8, "PageUp": 4, "ArrowLeft": 3, "ArrowDown": 7,
        "Control+Home": 0, "PageDown": 4, "End": 7, "Control+End": 15,
    }  # fmt: skip
    for key, rank in steps.items():
        page.keyboard.press(key)
        assert focused(page).startswith(f"rank {rank},"), key
    assert page.locator(".cell[tabindex='0']").count() == 1
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.classList.contains('cell')")
    page.keyboard.press("Shift+Tab")
    assert focused(page).startswith("rank 15,")
    page.keyboard.press("Enter")
    assert cell(page, 15).get_attribute("aria-selected") == "true"


def test_what_a_screen_reader_is_told(opened: Any):
    page = opened(hosts=HOSTS, marked={5: "moved <b>"})
    grid = page.get_by_role("grid", name="ranks on hosts")
    assert grid.get_by_role("rowgroup").count() == 4
    assert grid.get_by_role("row").count() == 4
    assert grid.get_by_role("gridcell").count() == 16
    assert grid.get_by_role("gridcell", name="rank 5, host 1, tp1 dp1 pp0, moved <b>").inner_text().startswith("5*")
    cell(page, 5).focus()
    assert "tp group 4, 5, 6, 7; previous 4, next 6" in page.get_by_role("status").inner_text()
    page.get_by_role("searchbox", name="Hosts").fill("1")
    assert page.get_by_role("status").inner_text() == "1 of 4 hosts"


def test_hosts_are_filtered(opened: Any):
    page = opened(hosts=HOSTS)
    field = page.get_by_role("searchbox", name="Hosts")
    field.fill("1, 3")
    assert [host.get_attribute("aria-label") for host in page.locator(".host:visible").all()] == ["host 1", "host 3"]
    page.locator(".cell[tabindex='0']").focus()
    assert focused(page).startswith("rank 4,")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith("rank 12,")
    page.keyboard.press("ArrowUp")
    assert focused(page).startswith("rank 4,")
    field.fill("1-")
    assert field.get_attribute("aria-invalid") == "true"
    field.fill("0-2")
    assert page.locator(".host:visible").count() == 3
    field.fill("")
    assert page.locator(".host:visible").count() == 4


def test_a_rank_is_found(opened: Any):
    page = opened(hosts=HOSTS)
    field = page.get_by_role("searchbox", name="Rank")
    field.fill("13")
    field.press("Enter")
    assert focused(page).startswith("rank 13,")
    assert lit(page) == together(TOPOLOGY, 13, TOPOLOGY.all_axes)
    field.fill("99")
    field.press("Enter")
    assert field.get_attribute("aria-invalid") == "true"
    assert page.get_by_role("status").inner_text() == "there is no rank 99"
    page.get_by_role("searchbox", name="Hosts").fill("0")
    field.fill("13")
    field.press("Enter")
    assert page.get_by_role("status").inner_text() == "rank 13, host 3, is filtered out"


def test_a_page_may_open_at_a_rank(opened: Any):
    page = opened(hosts=HOSTS, rank=6)
    assert lit(page) == together(TOPOLOGY, 6, TOPOLOGY.all_axes)


def test_in_a_notebook(opened: Any):
    """The sandboxed frame: scripts run, forms would not."""
    page = opened(text=f"<!doctype html><title>notebook</title>{frame(TOPOLOGY)}").frame_locator("iframe")
    page.get_by_role("searchbox", name="Rank").fill("9")
    page.get_by_role("searchbox", name="Rank").press("Enter")
    assert page.locator(".cell.at").inner_text().startswith("9")


# From the event to the frame after it
HOVER = """async (positions) => {
  const taken = [];
  for (const position of positions) {
    const cell = document.querySelector(`[data-position="${position}"]`);
    const start = performance.now();
    cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = done;
      channel.port2.postMessage(0);
    }));
    taken.push(performance.now() - start);
  }
  return taken;
}"""


@pytest.mark.parametrize(("text", "most"), [("tp8-dp16-pp8", 100), ("tp8-dp64-pp32", 500)])
def test_a_hover_is_quick(opened: Any, text: str, most: float):
    topology = ParallelTopology.parse(text)
    page = opened(topology, hosts=Hosts.uniform(count=topology.world_size // 8, ranks_per_host=8))
    taken = page.evaluate(HOVER, [position * 7919 % topology.world_size for position in range(15)])
    assert median(taken) < most, taken


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader(opened: Any, scheme: str):
    page = opened(hosts=HOSTS)
    page.emulate_media(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]


# What stands wider than its place: nothing may be cut off at its right edge
CLIPPED = """() => [...document.querySelectorAll("html, aside, #grid, .host, #panel, .legend, .cell b")]
  .filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
  .map((e) => `${e.tagName}#${e.id}.${e.className}: ${e.scrollWidth} in ${e.clientWidth}`)"""


@pytest.mark.parametrize("width", [1280, 1024, 900, 390])
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("tp8-dp4-pp4", "16x8"),
        ("tp8-dp128-pp4", "512x8"),
        ("tp4-dp2-pp2/expert:ep8-pp2", "4x4"),
        ("tp8-dp9-pp4", "4x72"),
    ],
)
def test_nothing_is_clipped(opened: Any, width: int, text: str, hosts: str):
    page = opened(ParallelTopology.parse(text), hosts=Hosts.parse(hosts), marked={1: "was tp0 dp1"})
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate(CLIPPED) == []
    cell(page, 1).hover()
    assert lit(page) != set()
    assert page.evaluate(CLIPPED) == []
    if page.locator("#zoom").is_visible():
        page.locator("#zoom").click()
        assert page.evaluate(CLIPPED) == []


@pytest.mark.parametrize(("text", "hosts"), [("tp8-dp128-pp4", "512x8"), ("tp8-dp32-pp4", None)])
def test_many_ranks_are_seen_from_afar_first(opened: Any, text: str, hosts: str | None):
    topology = ParallelTopology.parse(text)
    page = opened(topology, hosts=None if hosts is None else Hosts.parse(hosts))
    seen = page.evaluate("[document.documentElement.scrollHeight, document.getElementById('grid').clientHeight]")
    assert seen[0] <= 900  # all of it is in the window
    assert seen[1] >= 400  # and fills it
    cell(page, 700).hover()
    assert lit(page) >= together(topology, 700, ("tp",))
    cell(page, 700).click()  # brings it near, to the middle
    assert page.locator("#zoom").inner_text() == "Show overview"
    box = cell(page, 700).bounding_box()
    assert 300 < box["y"] < 600
    assert cell(page, 700).get_attribute("aria-selected") == "true"
    page.locator("#zoom").click()
    assert page.locator("#grid.overview").count() == 1
    field = page.get_by_role("searchbox", name="Rank")
    field.fill("500")
    field.press("Enter")
    assert 300 < cell(page, 500).bounding_box()["y"] < 600


def test_few_ranks_are_seen_from_near(opened: Any):
    page = opened(hosts=HOSTS)
    assert page.locator("#zoom").is_hidden()
    assert page.locator("#panel").inner_text().startswith("Point at a rank")
