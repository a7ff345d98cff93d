(() => {
  "use strict";
  const ALL = "all geometries";
  const CHOICES = ["request", "data", "recipe", "geometry"];
  const NAMES = { request: "Request", data: "Data", recipe: "Training", geometry: "Geometry" };

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const draw = (tag, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  // The half-width gets as many decimals as the mean.
  const amount = (group, m) => {
    const mean = group.mean[m], half = group.half[m];
    if (mean === null) return "–";
    const size = Math.abs(mean), far = mean !== 0 && (size >= 1e5 || size < 1e-3);
    const digits = (v) => (far ? v.toExponential(2) : v.toFixed(size >= 1000 ? 0 : size < 10 ? 2 : 1));
    return digits(mean) + (half === null ? "" : " ± " + digits(half));
  };

  // A scale of the plot: where values lie between `from` and `to` pixels, and its ticks.
  function scale(groups, m, log, from, to) {
    const known = groups.filter((g) => g.mean[m] !== null);
    const means = known.map((g) => g.mean[m]);
    let low = Math.min(...means), high = Math.max(...means);
    log = log && low > 0;
    const reach = high - low;
    for (const g of known) {
      // An interval much wider than all means are apart (two seeds) would leave no room for the points.
      const room = reach > 0 && known.length > 1 ? reach : Infinity;
      const half = g.half[m] ?? 0;
      if (!log) {
        low = Math.min(low, g.mean[m] - Math.min(half, room));
        high = Math.max(high, g.mean[m] + Math.min(half, room));
      }
    }
    if (log) { low = Math.log10(low); high = Math.log10(high); }
    if (!(high > low)) { low -= log ? 0.3 : Math.abs(low) * 0.05 || 1; high += log ? 0.3 : Math.abs(high) * 0.05 || 1; }
    const margin = 0.06 * (high - low);
    low -= margin; high += margin;
    const at = (value) => {
      const v = log ? (value > 0 ? Math.log10(value) : -Infinity) : value;
      return from + (to - from) * Math.min(1, Math.max(0, (v - low) / (high - low)));
    };
    const ticks = [];
    if (log) {
      const factors = high - low < 1.5 ? [1, 2, 5] : [1];
      for (let e = Math.floor(low); e <= Math.ceil(high); e++) for (const f of factors) ticks.push(f * 10 ** e);
    } else {
      const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
      const step = power * [1, 2, 5, 10].find((f) => f * power >= raw);
      for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(Number((k * step).toPrecision(12)));
    }
    const inside = (t) => { const v = log ? Math.log10(t) : t; return v >= low && v <= high; };
    return { at, ticks: ticks.filter(inside) };
  }

  function explore(root) {
    root.dataset.ready = "true";
    const page = JSON.parse(root.querySelector("script").textContent);
    const groups = page.groups.map((g, order) => ({
      order, request: page.request[g[0]], data: page.data[g[1]], recipe: page.recipe[g[2]], geometry: page.geometry[g[3]],
      method: page.methods[g[4]][0], look: page.methods[g[4]], mean: g[5], half: g[6], n: g[7], files: g[8],
    }));
    const count = (group, m) => (Array.isArray(group.n) ? group.n[m] : group.n);
    const chosen = {}, hidden = new Set();
    let x = page.x, y = page.y, sorted = null, downwards = false;

    const selects = {}, controls = root.querySelector(".controls"), legend = root.querySelector(".legend");
    const labelled = (name, select) => controls.append(make("label", {}, name, select));
    for (const key of CHOICES) {
      selects[key] = make("select", { name: key });
      selects[key].onchange = () => { chosen[key] = selects[key].value; update(); };
      labelled(NAMES[key], selects[key]);
    }
    for (const [axis, name] of [["x", "Across"], ["y", "Up"]]) {
      const select = make("select", { name: axis }, ...page.metrics.map((m, i) => make("option", { value: i }, m[0])));
      select.value = axis === "x" ? x : y;
      select.onchange = () => { if (axis === "x") x = Number(select.value); else y = Number(select.value); update(); };
      labelled(name, select);
    }

    // Each choice offers what the choices before it leave.
    function selection() {
      let left = groups;
      for (const key of CHOICES) {
        const offered = page[key].filter((value) => left.some((g) => g[key] === value));
        if (key === "geometry" && offered.length > 1) offered.push(ALL);
        if (!offered.includes(chosen[key])) chosen[key] = offered[0];
        selects[key].replaceChildren(...offered.map((value) => make("option", { value }, value)));
        selects[key].value = chosen[key];
        if (chosen[key] !== ALL) left = left.filter((g) => g[key] === chosen[key]);
      }
      return left;
    }
    const colour = (group) =>
      (chosen.geometry === ALL ? page.colours[page.geometry.indexOf(group.geometry)] : group.look[2]) ?? "var(--ink)";
    const mark = (look, fill, size) =>
      draw("path", { class: "mark", d: look[1], fill, transform: `scale(${size})` });

    function drawLegend(here) {
      const methods = page.methods.filter((look) => here.some((g) => g.method === look[0]));
      const all = chosen.geometry === ALL;
      const entries = methods.map((look) => {
        const box = make("input", { type: "checkbox", checked: !hidden.has(look[0]), value: look[0] });
        box.onchange = () => { if (box.checked) hidden.delete(look[0]); else hidden.add(look[0]); show(here); };
        const fill = all ? "var(--ink)" : look[2] ?? "var(--ink)";
        const symbol = draw("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark(look, fill, 12));
        return make("label", {}, box, symbol, look[0]);
      });
      const button = make("button", { type: "button" }, "all or none");
      button.onclick = () => {
        const none = methods.every((look) => hidden.has(look[0]));
        for (const look of methods) if (none) hidden.delete(look[0]); else hidden.add(look[0]);
        drawLegend(here); show(here);
      };
      const spaces = !all ? [] : page.geometry.filter((s) => here.some((g) => g.geometry === s)).map((space) => {
        const spot = draw("circle", { r: 5, fill: page.colours[page.geometry.indexOf(space)] });
        return make("label", {}, draw("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, spot), space);
      });
      legend.replaceChildren(...entries, button, ...spaces);
    }

    function drawPlot(here) {
      const plot = root.querySelector(".plot");
      const width = Math.min(760, Math.max(300, root.clientWidth || 640)), height = Math.round(Math.max(300, 0.56 * width));
      const left = 62, right = width - 14, top = 12, bottom = height - 46;
      plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
      plot.setAttribute("width", width);
      plot.replaceChildren();
      const points = here.filter((g) => g.mean[x] !== null && g.mean[y] !== null);
      plot.setAttribute("aria-label", `${page.metrics[y][0]} against ${page.metrics[x][0]}: ${points.length} points, listed in the table below`);
      root.querySelector(".status").textContent = points.length ? "" : "No method shown has both measures.";
      if (!points.length) return;
      const across = scale(points, x, page.metrics[x][1], left, right), up = scale(points, y, page.metrics[y][1], bottom, top);
      for (const t of across.ticks) {
        plot.append(draw("line", { class: "grid", x1: across.at(t), x2: across.at(t), y1: top, y2: bottom }));
        plot.append(draw("text", { x: across.at(t), y: bottom + 16, "text-anchor": "middle" }, tick(t)));
      }
      for (const t of up.ticks) {
        plot.append(draw("line", { class: "grid", x1: left, x2: right, y1: up.at(t), y2: up.at(t) }));
        plot.append(draw("text", { x: left - 6, y: up.at(t) + 4, "text-anchor": "end" }, tick(t)));
      }
      plot.append(draw("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, page.metrics[x][0]));
      const middle = (top + bottom) / 2;
      plot.append(draw("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, page.metrics[y][0]));
      for (const g of points) {
        const cx = across.at(g.mean[x]), cy = up.at(g.mean[y]), fill = colour(g);
        const title = `${g.method}, ${g.geometry}\n${page.metrics[x][0]}: ${amount(g, x)}\n${page.metrics[y][0]}: ${amount(g, y)}\nn = ${count(g, y)}`;
        const point = draw("g", { class: "point", "data-method": g.method, "data-geometry": g.geometry }, draw("title", {}, title));
        if (g.half[x] !== null) point.append(draw("line", { stroke: fill, x1: across.at(g.mean[x] - g.half[x]), x2: across.at(g.mean[x] + g.half[x]), y1: cy, y2: cy }));
        if (g.half[y] !== null) point.append(draw("line", { stroke: fill, x1: cx, x2: cx, y1: up.at(g.mean[y] - g.half[y]), y2: up.at(g.mean[y] + g.half[y]) }));
        point.append(draw("g", { transform: `translate(${cx} ${cy})` }, mark(g.look, fill, g.look[0] === "retrain" ? 17 : 12)));
        plot.append(point);
      }
    }
    const tick = (t) => (t !== 0 && (Math.abs(t) >= 1e5 || Math.abs(t) < 1e-3) ? t.toExponential(0) : String(t));

    function drawTable(here) {
      const all = chosen.geometry === ALL;
      const columns = [["Method", (g) => g.method, (g) => g.method]];
      if (all) columns.push(["Geometry", (g) => g.geometry, (g) => g.geometry]);
      for (const m of x === y ? [x] : [x, y]) columns.push([page.metrics[m][0], (g) => amount(g, m), (g) => g.mean[m]]);
      columns.push(["n", (g) => String(count(g, y)), (g) => count(g, y)]);
      const rows = [...here], by = columns.find((column) => column[0] === sorted);
      if (by) rows.sort((a, b) => {
        const p = by[2](a), q = by[2](b);
        if (p === null || q === null) return (p === null) - (q === null);
        return (p < q ? -1 : p > q ? 1 : 0) * (downwards ? -1 : 1) || a.order - b.order;
      });
      const head = make("tr", {}, ...columns.map((column) => {
        const button = make("button", { type: "button" }, column[0]);
        const cell = make("th", { scope: "col" }, button);
        if (by === column) cell.setAttribute("aria-sort", downwards ? "descending" : "ascending");
        button.onclick = () => {
          downwards = sorted === column[0] && !downwards;
          sorted = column[0];
          drawTable(here);
          [...root.querySelectorAll("th button")].find((b) => b.textContent === column[0]).focus();
        };
        return cell;
      }));
      const linked = here.some((g) => g.files);
      if (linked) head.append(make("th", { scope: "col" }, "Records, by seed"));
      const body = rows.map((g) => {
        const row = make("tr", {}, ...columns.map((column) => make("td", {}, column[1](g))));
        if (linked) row.append(make("td", {}, ...(g.files?.[1] ?? []).map(([seed, ending]) => {
          const name = `record of ${g.method}, ${g.geometry}, seed ${seed}`;
          const link = make("a", { href: `${page.folder}/${g.files[0]}${ending}.json`, title: name }, String(seed));
          link.setAttribute("aria-label", name);
          return link;
        })));
        return row;
      });
      root.querySelector("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
    }

    function show(here) {
      const visible = here.filter((g) => !hidden.has(g.method));
      drawPlot(visible);
      drawTable(visible);
    }
    function update() {
      const here = selection();
      drawLegend(here);
      show(here);
    }
    update();
    addEventListener("resize", () => drawPlot(selection().filter((g) => !hidden.has(g.method))));
  }
  document.querySelectorAll(".hacore-explorer:not([data-ready])").forEach(explore);
})();
