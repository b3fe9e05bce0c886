"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Figures come without colours of their own for text and grid, so that they follow the page's.
  const themed = (layout) => {
    const grid = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid") };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
    return {
      ...layout,
      ...Object.fromEntries(axes.map((key) => [key, { ...layout[key], ...grid }])),
      font: { ...layout.font, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      // A finger that scrolls the page must not zoom the plot.
      dragmode: coarse.matches ? false : "zoom",
    };
  };
  // KL by position: numbers once, and a trace for each role of each panel.
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const byRole = ({ looks, runs, curves, limits, limit_colour }) => {
    return curves.flatMap((text, panel) => {
      const roles = runs[panel].flatMap(([role, count]) => Array(count).fill(role));
      const kl = floats(text);
      const yaxis = panel ? `y${panel + 1}` : "y";
      const points = looks.map(([words, color, symbol], role) => {
        const x = roles.flatMap((other, position) => (other === role ? [position] : []));
        const marker = { color, symbol, size: 5, line: { width: 1.5, color } };
        return { type: "scatter", mode: "markers", x, y: x.map((position) => kl[position]), marker, yaxis, hovertemplate: `position %{x}, ${words}<br>%{y:.3g} nats<extra></extra>` };
      });
      const limit = limits[panel];
      if (limit === null) return points;
      const line = { color: limit_colour, width: 1.5, dash: "dash" };
      return [...points, { type: "scatter", mode: "lines", x: [0, kl.length - 1], y: [limit, limit], line, yaxis, hovertemplate: "limit<extra></extra>" }];
    });
  };
  const draw = (element) => {
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    if (figure.positions) figure.data = byRole(figure.positions);
    Plotly.react(element, figure.data, themed(figure.layout), { responsive: true, displayModeBar: false });
  };
  const plots = all(".plot");
  if (plots.length && typeof Plotly === "undefined") {
    plots.forEach((element) => { element.textContent = "assets/plotly.min.js is not beside this page, so there is no plot."; });
  } else if (plots.length) {
    // Drawn when it comes into view, and again when the colours change.
    const watch = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      watch.unobserve(entry.target);
      draw(entry.target);
    }), { rootMargin: "400px" });
    plots.forEach((element) => watch.observe(element));
    dark.addEventListener("change", () => plots.filter((element) => element.childElementCount).forEach(draw));
    addEventListener("beforeprint", () => plots.filter((element) => !element.childElementCount).forEach(draw));
  }

  const say = (button, words) => {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  const copy = async (button, text, fallback) => {
    try {
      await navigator.clipboard.writeText(text);
      say(button, "Copied");
    } catch {
      getSelection().selectAllChildren(fallback);
      say(button, "Selected");
    }
  };
  all("button[data-copy]").forEach((button) => button.addEventListener("click", () => copy(button, button.dataset.copy, button.previousElementSibling)));

  // Tables: a head sorts, a button copies what is shown as tab-separated text.
  const words = (cell) => (cell?.textContent ?? "").trim().replace(/\s+/g, " ");
  const number = (text) => (/^[-+\d.,e]+( ?%)?$/i.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN);
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return a.localeCompare(b);
  };
  const sort = (table, column, sign) => {
    const keyed = (row) => [row, words(row.cells[column])];
    const bodies = all("tbody", table).map((body) => {
      const rows = all("tr:not(.head, .foot)", body).map(keyed).sort((a, b) => sign * compare(a[1], b[1]));
      body.append(...rows.map(([row]) => row), ...all("tr.foot", body));
      return [body, rows[0]?.[1] ?? ""];
    });
    bodies.sort((a, b) => sign * compare(a[1], b[1])).forEach(([body]) => table.append(body));
  };
  all("table.sortable").forEach((table) => all("thead th:not([data-fixed])", table).forEach((head) => {
    const turn = () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table, head.cellIndex, descending ? -1 : 1);
    };
    head.tabIndex = 0;
    head.addEventListener("click", turn);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); turn(); } });
  }));
  all(".scroll > table").forEach((table) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy table";
    const rows = () => all("tr", table).filter((row) => !row.hidden && !row.parentElement.hidden);
    button.addEventListener("click", () => copy(button, rows().map((row) => [...row.cells].map(words).join("\t")).join("\n"), table));
    table.before(button);
  });

  // Findings: search and filters, both kept in the address so that a view can be linked.
  const search = document.getElementById("search");
  const table = document.getElementById("findings-table");
  const form = document.getElementById("filters");
  if (table) {
    const rows = all("tbody tr:not(.head)", table);
    const groups = all("tbody", table);
    const text = new Map(rows.map((row) => [row, `${words(row)} ${words(row.parentElement.querySelector(".head"))} ${Object.values(row.dataset).join(" ")} ${row.id}`.toLowerCase()]));
    const selects = all("select", form);
    const values = (row, name) => (name === "subject" ? row.dataset.subject.split(" ") : [row.dataset[name]]);
    selects.forEach((select) => [...new Set(rows.flatMap((row) => values(row, select.name)))].sort().forEach((value) => select.add(new Option(value, value))));
    const apply = () => {
      const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = selects.filter((select) => select.value);
      rows.forEach((row) => {
        row.hidden = !(wanted.every((word) => text.get(row).includes(word)) && chosen.every((select) => values(row, select.name).includes(select.value)));
      });
      groups.forEach((group) => { group.hidden = all("tr:not(.head)", group).every((row) => row.hidden); });
      const shown = rows.filter((row) => !row.hidden).length;
      document.getElementById("shown").textContent = shown === rows.length ? `${shown} findings` : `${shown} of ${rows.length} findings`;
      document.getElementById("nothing").hidden = shown > 0;
      const kept = new URLSearchParams([["q", search.value], ...selects.map((select) => [select.name, select.value])].filter(([, value]) => value));
      history.replaceState(null, "", `${location.pathname}${kept.size ? `?${kept}` : ""}${location.hash}`);
    };
    const asked = new URLSearchParams(location.search);
    search.value = asked.get("q") ?? "";
    selects.forEach((select) => { select.value = asked.get(select.name) ?? ""; if (select.selectedIndex < 0) select.value = ""; });
    search.addEventListener("input", apply);
    const first = () => rows.find((row) => !row.hidden)?.querySelector("a").focus();
    search.form.addEventListener("submit", (event) => { event.preventDefault(); first(); });
    form.addEventListener("change", apply);
    form.addEventListener("reset", () => { search.value = ""; setTimeout(apply); });
    apply();
    if (search.value) first();
  }
  if (search) addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      search.dispatchEvent(new Event("input"));
      search.blur();
    }
  });
})();
