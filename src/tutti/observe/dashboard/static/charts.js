// Line charts in SVG: crisp at every width, read by pointer, by arrow keys, and as a table.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 210;
const MARGIN = { left: 54, right: 14, top: 12, bottom: 28 };
const TABLE_ROWS = 40;

/** An element: `h("p", {class: "note"}, "text", other)`. Functions become listeners, null is left out. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function s(name, attributes = {}) {
  const element = document.createElementNS(SVG, name);
  set(element, attributes);
  return element;
}

function set(element, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(key, value === true ? "" : String(value));
    }
  }
}

/** Round numbers that lie between two others, about so many. */
export function niceTicks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) {
    ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  }
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const factor of [1, 2, 5]) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks.length > 1 ? ticks : niceTicks(low, high, 4);
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/**
 * One chart. `series`: [{label, style, xs, ys, dots, faint, band: [lows, highs]}]; of a stacked one all share `xs`.
 * `format`: of values; `stacked`: series stand on each other; `floor`: the axis begins there at the latest.
 */
export class Chart {
  constructor({ id, title, note, format, stacked = false, floor = null }) {
    this.title = title;
    this.format = format;
    this.stacked = stacked;
    this.floor = floor;
    this.series = [];
    this.log = false;
    this.index = null;
    this.axis = { label: "step", format: String };
    this.value = h("p", { class: "value" });
    this.legend = h("ul", { class: "legend", "aria-hidden": "true" });
    this.svg = s("svg", { "aria-hidden": "true", focusable: "false" });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.plot = h("div", {
      class: "plot",
      tabindex: 0,
      role: "slider",
      "aria-label": `${title}; arrow keys read it point by point`,
      "aria-valuemin": 0,
      "aria-valuemax": 0,
      "aria-valuenow": 0,
      "aria-valuetext": "no figures yet",
      keydown: (event) => this.key(event),
      pointermove: (event) => this.point(event),
      pointerleave: () => document.activeElement !== this.plot && this.read(null),
      blur: () => this.read(null),
    }, this.svg, this.tip);
    this.table = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${title}, table` });
    this.details = h("details", { toggle: () => this.fill() }, h("summary", {}, "Table", h("span", { class: "visually-hidden" }, ` of ${title.toLowerCase()}`)), this.table);
    this.element = h("section", { class: "card chart", "aria-labelledby": `${id}-title`, id },
      h("div", { class: "head" }, h("h2", { id: `${id}-title` }, title), this.value),
      note ? h("p", { class: "note" }, note) : null, this.legend, this.plot, this.details);
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  /** Show `series` over `axis` ({label, format}); hidden where there is nothing. `value`: said beside the title. */
  show(series, axis, value = "") {
    this.series = series.filter((one) => one.ys.some(known));
    this.axis = axis;
    this.element.hidden = !this.series.length;
    if (this.value.textContent !== value) this.value.textContent = value;
    const legend = this.series.filter((one) => one.label && !one.faint);
    const labels = legend.map((one) => one.label).join("|");
    if (this.labels !== labels) {
      this.labels = labels;
      this.legend.replaceChildren(...(legend.length > 1 ? legend.map((one) => h("li", { class: one.style }, one.label)) : []));
    }
    this.draw();
    if (this.details.open) this.fill();
  }

  get xs() {
    return this.series.reduce((longest, one) => (one.xs.length > longest.length ? one.xs : longest), []);
  }

  draw() {
    const width = this.plot.clientWidth;
    if (!this.series.length || width < 40) return;
    const all = this.series.flatMap((one) => one.xs);
    const [x0, x1] = [Math.min(...all), Math.max(...all)];
    const tops = this.stacked ? this.stack() : null;
    let values = tops ? tops.flat() : this.series.flatMap((one) => [...one.ys, ...(one.band ? one.band.flat() : [])]);
    values = values.filter((value) => known(value) && (!this.log || value > 0));
    let [y0, y1] = [Math.min(...values), Math.max(...values)];
    if (this.floor !== null && !this.log) y0 = Math.min(y0, this.floor);
    if (y1 === y0) [y0, y1] = this.floor === null ? [y0 - Math.abs(y0 || 1) * 0.1, y1 + Math.abs(y1 || 1) * 0.1] : [y0, y1 || 1];
    else if (!this.log) [y0, y1] = [y0 === this.floor ? y0 : y0 - (y1 - y0) * 0.04, y1 + (y1 - y0) * 0.06];
    if (y1 === y0) y1 = y0 + 1;
    const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    const scale = this.log ? Math.log10 : (value) => value;
    const [s0, s1] = [scale(y0), scale(y1)];
    this.x = (value) => MARGIN.left + (x1 > x0 ? (value - x0) / (x1 - x0) : 0.5) * inner.width;
    this.y = (value) => MARGIN.top + (1 - (scale(value) - s0) / (s1 - s0 || 1)) * inner.height;
    const parts = [];
    for (const tick of this.log ? logTicks(y0, y1) : niceTicks(y0, y1, 4)) {
      parts.push(s("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(tick), y2: this.y(tick) }));
      parts.push(text(this.format(tick), MARGIN.left - 8, this.y(tick) + 4, "end"));
    }
    for (const tick of this.axis.ticks ? this.axis.ticks(x0, x1, inner.width / 90) : niceTicks(x0, x1, inner.width / 90)) {
      const said = this.axis.format(tick);
      const over = this.x(tick) + said.length * 3.4 > width - 2;
      parts.push(text(said, over ? width - 2 : this.x(tick), HEIGHT - 8, over ? "end" : "middle"));
    }
    if (tops) this.series.forEach((one, i) => parts.push(s("path", { class: `area ${one.style}`, d: this.area(one.xs, tops[i], tops[i - 1]) })));
    else {
      for (const one of this.series) {
        if (one.band) parts.push(s("path", { class: `band ${one.style}`, d: this.area(one.xs, one.band[1], one.band[0]) }));
        parts.push(s("path", { class: `line ${one.style}${one.faint ? " faint" : ""}`, d: this.line(one.xs, one.ys) }));
        if (one.dots || one.ys.length < 3) {
          one.xs.forEach((x, i) => known(one.ys[i]) && parts.push(s("circle", { class: `mark ${one.style}`, cx: this.x(x), cy: this.y(one.ys[i]), r: one.xs.length > 60 ? 1.5 : 3 })));
        }
      }
    }
    this.cursor = s("g", { class: "cursor" });
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...parts, this.cursor);
    const last = this.xs.length - 1;
    this.plot.setAttribute("aria-valuemax", Math.max(0, last));
    if (this.index === null) {
      this.plot.setAttribute("aria-valuenow", Math.max(0, last));
      this.plot.setAttribute("aria-valuetext", `now ${this.words(last)}`);
    } else this.read(Math.min(this.index, last), false);
  }

  stack() {
    const sums = this.series[0].xs.map(() => 0);
    return this.series.map((one) => one.ys.map((value, i) => (sums[i] += value ?? 0)));
  }

  visible(value) {
    return known(value) && (!this.log || value > 0);
  }

  line(xs, ys) {
    let path = "";
    let drawing = false;
    for (let i = 0; i < xs.length; i += 1) {
      if (this.visible(ys[i])) path += `${drawing ? "L" : "M"}${this.x(xs[i]).toFixed(1)} ${this.y(ys[i]).toFixed(1)}`;
      drawing = this.visible(ys[i]);
    }
    return path;
  }

  area(xs, highs, lows) {
    const floor = MARGIN.top + HEIGHT - MARGIN.top - MARGIN.bottom;
    const forth = [];
    const back = [];
    xs.forEach((x, i) => {
      if (!this.visible(highs[i])) return;
      forth.push(`${this.x(x).toFixed(1)} ${this.y(highs[i]).toFixed(1)}`);
      back.unshift(`${this.x(x).toFixed(1)} ${(lows && this.visible(lows[i]) ? this.y(lows[i]) : floor).toFixed(1)}`);
    });
    return forth.length ? `M${forth.join("L")}L${back.join("L")}Z` : "";
  }

  /** Every series at the place of number `index`: [series, value]; of a coarser one the last value before it. */
  at(index) {
    const x = this.xs[index];
    return this.series.filter((one) => !one.faint).map((one) => {
      if (one.xs === this.xs) return [one, one.ys[index]];
      let found = -1;
      for (let i = 0; i < one.xs.length && one.xs[i] <= x; i += 1) found = i;
      return [one, found < 0 ? null : one.ys[found]];
    });
  }

  words(index) {
    const said = this.at(index).filter(([, value]) => known(value)).map(([one, value]) => `${one.label || this.title} ${this.format(value)}`);
    return `${this.axis.label} ${this.axis.format(this.xs[index])}: ${said.join(", ") || "nothing"}`;
  }

  point(event) {
    const xs = this.xs;
    if (!xs.length || !this.x) return;
    const at = event.clientX - this.plot.getBoundingClientRect().left;
    let best = 0;
    for (let i = 1; i < xs.length; i += 1) if (Math.abs(this.x(xs[i]) - at) < Math.abs(this.x(xs[best]) - at)) best = i;
    this.read(best);
  }

  key(event) {
    const last = this.xs.length - 1;
    const now = this.index ?? last;
    const by = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: now - by, ArrowDown: now - by, ArrowRight: now + by, ArrowUp: now + by, Home: 0, End: last, PageUp: now + 10, PageDown: now - 10 };
    if (event.key === "Escape") this.read(null);
    else if (event.key in moves && last >= 0) {
      this.read(Math.max(0, Math.min(last, moves[event.key])));
      event.preventDefault();
    }
  }

  read(index) {
    this.index = index;
    this.cursor?.replaceChildren();
    this.tip.hidden = index === null || !this.x;
    if (this.tip.hidden) return;
    const x = this.x(this.xs[index]);
    const rows = this.at(index).filter(([, value]) => known(value));
    this.cursor.append(s("line", { x1: x, x2: x, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }));
    if (!this.stacked) for (const [one, value] of rows) if (this.visible(value)) this.cursor.append(s("circle", { class: one.style, cx: x, cy: this.y(value), r: 4 }));
    this.tip.replaceChildren(h("strong", {}, `${this.axis.label} ${this.axis.format(this.xs[index])}`),
      ...rows.map(([one, value]) => h("span", { class: one.style }, `${one.label || this.title}: ${this.format(value)}`)));
    const width = this.plot.clientWidth;
    const own = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(width - own, x > width / 2 ? x - own - 12 : x + 12))}px`;
    this.plot.setAttribute("aria-valuenow", index);
    this.plot.setAttribute("aria-valuetext", this.words(index));
  }

  /** The table, if it is open: some of the points, evenly, the last among them. */
  fill() {
    if (!this.details.open) return;
    const xs = this.xs;
    const shown = this.series.filter((one) => !one.faint);
    const every = Math.max(1, Math.ceil(xs.length / TABLE_ROWS));
    const rows = [];
    for (let i = xs.length - 1; i >= 0; i -= every) {
      rows.push(h("tr", {}, h("th", { scope: "row" }, this.axis.format(xs[i])), ...this.at(i).map(([, value]) => h("td", {}, known(value) ? this.format(value) : "–"))));
    }
    const note = every > 1 ? `, every ${every}th point` : "";
    this.table.replaceChildren(h("table", {}, h("caption", {}, `${this.title}, newest first${note}`),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, this.axis.label), ...shown.map((one) => h("th", { scope: "col" }, one.label || this.title)))), h("tbody", {}, ...rows)));
  }
}

function text(content, x, y, anchor) {
  const element = s("text", { x, y, "text-anchor": anchor });
  element.textContent = content;
  return element;
}
