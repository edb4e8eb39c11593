"use strict";
{
  const layout = JSON.parse(document.getElementById("layout").textContent);
  const grid = document.getElementById("grid");
  const panel = document.getElementById("panel");
  const spoken = document.getElementById("spoken");
  const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);

  // A position counts the ranks from 0; groups are arithmetic on it, with each axis a list of [size, stride].
  const placed = layout.ranks && new Map(layout.ranks.map((rank, position) => [rank, position]));
  const rankAt = (position) => (layout.ranks ? layout.ranks[position] : layout.first + position);
  const positionOf = (rank) => {
    if (placed) return placed.get(rank);
    return rank >= layout.first && rank < layout.first + layout.size ? rank - layout.first : undefined;
  };
  const digit = (position, [size, stride]) => Math.floor(position / stride) % size;
  const groupOf = (modes, position) => {
    let members = [modes.reduce((start, mode) => start - digit(position, mode) * mode[1], position)];
    for (const [size, stride] of modes) {
      members = Array.from({ length: size }, (_, step) => members.map((member) => member + step * stride)).flat();
    }
    return members;
  };
  const label = (position) => layout.base.map(([axis, mode]) => `${axis}${digit(position, mode)}`).join(" ");

  // The cells, row by row
  const rows = []; // { host, cells: [position] }
  const hosts = []; // { number, element, first: index of its first row }
  const hostOf = new Int32Array(layout.size);
  const rowOf = new Int32Array(layout.size);
  const columnOf = new Int32Array(layout.size);
  const where = (position) => (layout.hosts ? `, host ${hosts[hostOf[position]].number}` : "");
  const note = (position) => layout.marked[rankAt(position)];

  const cellText = (position) => {
    const rank = rankAt(position);
    const marked = note(position) === undefined ? "" : ` marked" title="${escaped(note(position))}`;
    const words = `rank ${rank}${where(position)}, ${label(position)}${marked && `, ${note(position)}`}`;
    const color = layout.colors.reduce((sum, [size, stride, weight]) => sum + digit(position, [size, stride]) * weight, 0);
    const below = layout.lean ? "" : `<span>${escaped(label(position))}</span>`;
    return `<div class="cell s${color}${marked}" role="gridcell" tabindex="-1" data-position="${position}" ` +
      `aria-label="${escaped(words)}"><b>${rank}${marked && "*"}</b>${below}</div>`;
  };
  const build = () => {
    const parts = [];
    const everything = [null, 0, layout.ranks ?? layout.first, layout.size];
    for (const [number, others, ranks, count] of layout.hosts ?? [everything]) {
      const host = hosts.push({ number, first: rows.length }) - 1;
      const listed = Array.isArray(ranks) ? ranks : Array.from({ length: count }, (_, step) => ranks + step);
      const members = listed.map(positionOf);
      const name = number === null ? "" : `host ${number}${others ? ` (+${others} other)` : ""}`;
      parts.push(`<div class="host" role="rowgroup" aria-label="${name || "all ranks"}">`);
      if (name) parts.push(`<div class="name" aria-hidden="true">${name}</div>`);
      for (let start = 0; start < members.length; start += layout.columns) {
        const cells = members.slice(start, start + layout.columns);
        const row = rows.push({ host, cells }) - 1;
        cells.forEach((position, column) => {
          hostOf[position] = host;
          rowOf[position] = row;
          columnOf[position] = column;
        });
        parts.push(`<div class="row" role="row">${cells.map(cellText).join("")}</div>`);
      }
      parts.push("</div>");
    }
    grid.innerHTML = parts.join("");
    grid.querySelectorAll(".host").forEach((element, host) => (hosts[host].element = element));
  };
  build();
  const cellOf = new Array(layout.size);
  for (const cell of grid.querySelectorAll(".cell")) cellOf[cell.dataset.position] = cell;

  // Lighting a rank's groups
  let axes = layout.axes;
  let lit = [];
  let shown; // the position whose groups are lit; null when none are
  let pinned = null;
  let current = null; // the position that Tab leads to

  const list = (ranks) => ranks.slice(0, 16).join(", ") + (ranks.length > 16 ? `, ... ${ranks.at(-1)}` : "");
  const groupsOf = (position) => axes.map(({ name, modes }) => {
    const members = groupOf(modes, position);
    const index = members.indexOf(position);
    return { name, members, index, next: members[(index + 1) % members.length], prev: members.at(index - 1) };
  });
  const light = (position) => {
    if (position === shown) return;
    for (const cell of lit) {
      cell.classList.remove("in", "near", "at");
      delete cell.dataset.near;
    }
    lit = [];
    shown = position;
    grid.classList.toggle("lit", position !== null);
    if (position === null) {
      panel.innerHTML = "<p>Point at a rank, or move to it with the arrow keys, to see its groups.</p>";
      return;
    }
    const groups = groupsOf(position);
    const touch = (member, ...names) => {
      cellOf[member].classList.add(...names);
      lit.push(cellOf[member]);
    };
    touch(position, "in", "at");
    for (const { members, next, prev } of groups) {
      for (const member of members) if (member !== position) touch(member, "in");
      for (const [member, sign] of [[prev, "‹"], [next, "›"]]) {
        if (member === position) continue;
        touch(member, "near");
        const signs = cellOf[member].dataset.near ?? "";
        if (!signs.includes(sign)) cellOf[member].dataset.near = signs + sign;
      }
    }
    describe(position, groups);
  };
  const describe = (position, groups) => {
    const lines = groups.map(({ name, members, index, next, prev }) => {
      const neighbours = members.length > 1 ? `<td>${rankAt(prev)}<td>${rankAt(next)}` : "<td>-<td>-";
      const place = `<td>${index} of ${members.length}`;
      return `<tr><th scope="row">${escaped(name)}${place}${neighbours}<td>${list(members.map(rankAt))}`;
    });
    const remark = note(position) === undefined ? "" : `<p>${escaped(note(position))}</p>`;
    const head = `<h2>rank ${rankAt(position)}${where(position)}</h2><p>${escaped(label(position))}</p>${remark}`;
    panel.innerHTML = `${head}<table><thead>` +
      "<tr><th scope=col class=words>axis<th scope=col>position<th scope=col>prev<th scope=col>next" +
      `<th scope=col class=words>group</thead>${lines.join("")}</table>`;
  };
  const say = (text) => (spoken.textContent = text);
  const sayGroups = (position) => say(groupsOf(position)
    .filter(({ members }) => members.length > 1)
    .map(({ name, members, next, prev }) =>
      `${name} group ${list(members.map(rankAt))}; previous ${rankAt(prev)}, next ${rankAt(next)}`)
    .join(". "));

  // The pointer and the keyboard
  const home = (position) => {
    if (current !== null) cellOf[current].tabIndex = -1;
    current = position;
    if (position !== null) cellOf[position].tabIndex = 0;
  };
  const go = (position, block = "nearest") => {
    cellOf[position].focus({ preventScroll: true });
    cellOf[position].scrollIntoView({ block, inline: "nearest" });
  };
  const pin = (position) => {
    if (pinned !== null) cellOf[pinned].removeAttribute("aria-selected");
    pinned = position;
    if (position !== null) cellOf[position].setAttribute("aria-selected", "true");
  };
  const focused = () => (grid.contains(document.activeElement) ? current : null);
  const positionIn = (event) => {
    const cell = event.target.closest(".cell");
    return cell ? Number(cell.dataset.position) : null;
  };
  const isShown = (row) => row !== undefined && !hosts[row.host].element.hidden;
  const rowFrom = (index, step) => {
    while (rows[index] && !isShown(rows[index])) index += step;
    return rows[index];
  };
  const target = (position, event) => {
    const row = rowOf[position];
    const column = columnOf[position];
    const { host, cells } = rows[row];
    const beside = (line) => line && line.cells[Math.min(column, line.cells.length - 1)];
    switch (event.key) {
      case "ArrowRight": return cells[column + 1] ?? rowFrom(row + 1, 1)?.cells[0];
      case "ArrowLeft": return column > 0 ? cells[column - 1] : rowFrom(row - 1, -1)?.cells.at(-1);
      case "ArrowDown": return beside(rowFrom(row + 1, 1));
      case "ArrowUp": return beside(rowFrom(row - 1, -1));
      case "Home": return event.ctrlKey ? rowFrom(0, 1)?.cells[0] : cells[0];
      case "End": return event.ctrlKey ? rowFrom(rows.length - 1, -1)?.cells.at(-1) : cells.at(-1);
      case "PageDown": return beside(rowFrom(hosts[host + 1]?.first ?? rows.length, 1));
      case "PageUp": {
        const before = rowFrom(hosts[host].first - 1, -1);
        return beside(before && rows[hosts[before.host].first]);
      }
    }
    return null;
  };
  grid.addEventListener("pointerover", (event) => {
    const position = positionIn(event);
    if (position !== null && pinned === null) light(position);
  });
  grid.addEventListener("pointerleave", () => light(pinned ?? focused()));
  grid.addEventListener("focusin", (event) => {
    const position = positionIn(event);
    if (position === null) return;
    home(position);
    if (pinned === null) light(position);
    sayGroups(position);
  });
  grid.addEventListener("focusout", () => light(pinned));
  grid.addEventListener("click", (event) => {
    const position = positionIn(event);
    if (position === null) return;
    if (grid.classList.contains("overview")) return find(position);
    pin(pinned === position ? null : position);
    light(position);
    go(position);
  });
  grid.addEventListener("keydown", (event) => {
    const position = positionIn(event);
    if (position === null) return;
    if (event.key === "Enter" || event.key === " ") {
      pin(pinned === position ? null : position);
      light(position);
      say(pinned === null ? "let go" : `rank ${rankAt(position)} is held`);
    } else if (event.key === "Escape") {
      pin(null);
      light(position);
    } else {
      const to = target(position, event);
      if (to === null) return;
      if (to !== undefined) go(to);
    }
    event.preventDefault();
  });

  // From afar and from near
  const zoom = document.getElementById("zoom");
  const fits = (dot, width, height) => {
    const [tiles, across, down] = layout.hosts
      ? [hosts.length, layout.columns, Math.ceil(rows.length / hosts.length)]
      : [rows.length, layout.columns, 1];
    const abreast = Math.floor((width + 3) / (across * (dot + 1) + 2));
    return abreast > 0 && Math.ceil(tiles / abreast) * (down * (dot + 1) + 3) <= height;
  };
  const look = (afar) => {
    grid.classList.toggle("overview", afar);
    grid.classList.toggle("whole", !layout.hosts);
    zoom.textContent = afar ? "Show ranks" : "Show overview";
    if (!afar) return;
    const height = Math.max(300, window.innerHeight - grid.getBoundingClientRect().top - window.scrollY - 16);
    let dot = 20;
    while (dot > 3 && !fits(dot, grid.clientWidth - 8, height)) dot -= 1;
    grid.style.setProperty("--dot", `${dot}px`);
  };
  const find = (position, held = position) => {  // from near, in the middle of the screen
    if (grid.classList.contains("overview")) look(false);
    pin(held);
    light(position);
    go(position, "center");
  };
  zoom.hidden = layout.size < layout.afar;
  zoom.addEventListener("click", () => {
    const afar = !grid.classList.contains("overview");
    look(afar);
    if (!afar && pinned !== null) cellOf[pinned].scrollIntoView({ block: "center", inline: "nearest" });
    say(afar ? "overview" : "ranks");
  });
  window.addEventListener("resize", () => look(grid.classList.contains("overview")));

  // Axis, hosts, search
  for (const choice of document.querySelectorAll("input[name=axis]")) {
    choice.addEventListener("change", () => {
      axes = choice.value === "" ? layout.axes : [layout.axes[choice.value]];
      const again = shown ?? pinned;
      light(null);
      light(again);
      say(choice.value === "" ? "all axes" : `only ${axes[0].name}`);
    });
  }
  const wanted = (text) => {
    if (!text.trim()) return () => true;
    const spans = text.split(",").map((part) => /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(part));
    if (spans.includes(null)) return null;
    return (number) => spans.some(([, first, last]) => number >= first && number <= (last ?? first));
  };
  const filter = document.getElementById("filter");
  filter?.addEventListener("input", () => {
    const keep = wanted(filter.value);
    filter.setAttribute("aria-invalid", String(keep === null));
    if (keep === null) return say("expected hosts, as in 0-3,8");
    for (const host of hosts) host.element.hidden = !keep(host.number);
    const left = hosts.filter((host) => !host.element.hidden).length;
    if (current === null || !isShown(rows[rowOf[current]])) home(rowFrom(0, 1)?.cells[0] ?? null);
    say(`${left} of ${hosts.length} hosts`);
  });
  const search = document.getElementById("search");
  search.addEventListener("keydown", (event) => {  // not a form: a notebook's sandbox submits none
    if (event.key !== "Enter") return;
    const position = /^\s*\d+\s*$/.test(search.value) ? positionOf(Number(search.value)) : undefined;
    search.setAttribute("aria-invalid", String(position === undefined));
    if (position === undefined) return say(`there is no rank ${search.value}`);
    if (!isShown(rows[rowOf[position]])) return say(`rank ${search.value}${where(position)}, is filtered out`);
    find(position, null);
  });
  look(layout.size >= layout.afar && layout.chosen === null);
  home(rows[0].cells[0]);
  light(null);
  if (layout.chosen !== null) {
    const position = positionOf(layout.chosen);
    home(position);
    pin(position);
    light(position);
    cellOf[position].scrollIntoView({ block: "center", inline: "nearest" });
  }
}
