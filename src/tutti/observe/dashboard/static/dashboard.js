// One page for all: which run or service it shows stands in its address, what it shows comes from its stream.

import { Chart, h } from "./charts.js";
import * as words from "./words.js";

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const MOST_ROWS = 2000;

let skew = 0; // of this machine's clock to the server's, in seconds
const now = () => Date.now() / 1000 + skew;

// What is said aloud: seldom, and what matters ---------------------------------------------------------------

const told = {};
function announce(topic, text) {
  const before = told[topic];
  told[topic] = text;
  if (before !== undefined && before !== text && text) $("said").textContent = text;
}

// The stream --------------------------------------------------------------------------------------------------

function follow(address, take) {
  let last = "";
  let late = 0;
  let source = null;
  let away = 0;
  // A browser has few connections to one place: a tab that nobody sees leaves its own to others.
  document.addEventListener("visibilitychange", () => {
    clearTimeout(away);
    if (document.hidden) {
      away = setTimeout(() => {
        source?.close();
        source = null;
      }, 20_000);
    } else if (source === null) open();
  });
  const here = () => {
    clearTimeout(late);
    late = 0;
    connected(true);
  };
  const open = () => {
    source = new EventSource(last ? `${address}${address.includes("?") ? "&" : "?"}after=${encodeURIComponent(last)}` : address);
    source.onopen = () => here();
    source.onmessage = (message) => {
      if (message.lastEventId) last = message.lastEventId;
      const { now: theirs, parts } = JSON.parse(message.data);
      skew = theirs - Date.now() / 1000;
      here();
      if ("problem" in parts) {
        $("link").className = "link off";
        write($("link-text"), `cannot be read: ${parts.problem}`);
      } else take(parts);
    };
    source.onerror = () => {
      late ||= setTimeout(() => connected(false), 3000); // a short break is no news
      if (source?.readyState === EventSource.CLOSED) setTimeout(open, 2000); // it was refused: the browser gives up
    };
  };
  open();
}

function connected(is) {
  $("link").className = is ? "link on" : "link off";
  const text = is ? "live" : "no connection; trying again";
  if ($("link-text").textContent !== text) $("link-text").textContent = text;
  announce("link", is ? "The dashboard is connected." : "The connection to the dashboard is lost; the page tries again.");
}

// Small parts ---------------------------------------------------------------------------------------------------

const ages = new Map(); // element → unix time: written anew every second
function showAge(element, unix) {
  if (unix) ages.set(element, unix);
  else ages.delete(element);
  write(element, unix ? words.age(now() - unix) : "–");
}
setInterval(() => {
  for (const [element, unix] of ages) {
    if (!element.isConnected) ages.delete(element);
    else write(element, words.age(now() - unix));
  }
}, 1000);

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const STATES = {
  running: "running", finished: "finished", interrupted: "interrupted", failed: "failed",
  unreadable: "unreadable", up: "up", down: "down", unreachable: "unreachable", unknown: "asking",
};

const pill = (state) => h("span", { class: `pill ${state}` }, STATES[state] ?? state);

function card(label) {
  const value = h("dd", {}, "–");
  const more = h("dd", { class: "more" });
  return { element: h("div", { class: "fact" }, h("dt", {}, label), value, more), value, more };
}

function fill(fact, value, more = "") {
  fact.element.hidden = value === null;
  if (value !== null) write(fact.value, value);
  write(fact.more, more);
}

function command(text, purpose) {
  const button = h("button", {
    type: "button",
    "aria-label": `Copy: ${text}`,
    click: async () => {
      try {
        await navigator.clipboard.writeText(text);
        write(button, "copied");
        $("said").textContent = "Copied.";
      } catch {
        write(button, "select it and copy");
      }
      setTimeout(() => write(button, "copy"), 2000);
    },
  }, "copy");
  return h("li", { class: "command" }, h("code", { tabindex: 0 }, text), button, h("span", { class: "note" }, purpose));
}

function section(id, title, ...content) {
  return h("section", { class: "card", id, "aria-labelledby": `${id}-title` }, h("div", { class: "head" }, h("h2", { id: `${id}-title` }, title)), ...content);
}

function empty(title, text, ...commands) {
  return h("div", { class: "empty" }, h("h1", {}, title), h("p", {}, text), commands.length ? h("ul", { class: "commands" }, ...commands) : null);
}

function placed(title, ...content) {
  document.title = `${title} · Tutti`;
  $("content").replaceChildren(...content);
}

function missing({ what, name }) {
  placed(name, empty(`There is no ${what} ${name}`, what === "run" ? "It was deleted or has another name now, or the dashboard looks into other directories. If it comes back, so does this page." : "The dashboard was started without it: name it with --service URL.", h("li", {}, h("a", { href: "/" }, "All runs and services"))));
}

function plainTable(caption, head, rows) {
  return h("table", {}, h("caption", { class: "visually-hidden" }, caption), h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, ...rows.map(([first, ...rest]) => h("tr", {}, h("th", { scope: "row" }, first), ...rest.map((one) => h("td", {}, one))))));
}

function table(caption, head, rows) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${caption}, table` }, plainTable(caption, head, rows));
}

function showAlerts(place, found) {
  place.replaceChildren(...(found.length ? [h("section", { class: "card ending failed", "aria-labelledby": "alerts-title" }, h("h2", { id: "alerts-title" }, found.length === 1 ? "Alert" : `${found.length} alerts`), h("ul", {}, ...found.map((one) => h("li", {}, one.said))))] : []));
  announce("alerts", found.map((one) => one.said).join(" "));
}

/** Rows of figures, as the stream sends them: all, from one on, or more of them. */
class Columns {
  constructor() {
    this.columns = {};
    this.length = 0;
  }

  take({ from, columns }) {
    const more = Math.max(0, ...Object.values(columns).map((column) => column.length));
    const start = from === null ? this.length : Math.min(from, this.length);
    for (const name of new Set([...Object.keys(this.columns), ...Object.keys(columns)])) {
      const column = (this.columns[name] ?? []).slice(0, start);
      while (column.length < start) column.push(null);
      this.columns[name] = [...column, ...(columns[name] ?? new Array(more).fill(null))].slice(-MOST_ROWS);
    }
    this.length = Math.min(start + more, MOST_ROWS);
  }

  get(name) {
    return this.columns[name] ?? new Array(this.length).fill(null);
  }

  last(name) {
    const column = this.columns[name] ?? [];
    for (let i = column.length - 1; i >= 0; i -= 1) if (column[i] !== null) return column[i];
    return null;
  }
}

// All runs and services -------------------------------------------------------------------------------------------

function showAll() {
  const shown = new Map(); // by address: what is on the page
  const runs = h("ul", { class: "list" });
  const services = h("ul", { class: "list" });
  const note = h("p", { class: "note" });
  const servicesPart = section("services", "Services", services);
  const page = [h("h1", { class: "visually-hidden" }, "Runs and services"), section("runs", "Runs", runs, note), servicesPart];
  let state = "";

  function line(key, make) {
    if (!shown.has(key)) shown.set(key, make());
    return shown.get(key);
  }

  function arrange(list, elements) {
    elements.forEach((element, i) => list.children[i] !== element && list.insertBefore(element, list.children[i] ?? null));
    while (list.children.length > elements.length) list.lastChild.remove();
  }

  follow("/stream", ({ all }) => {
    if (!all) return;
    const nothing = !all.runs.length && !all.services.length;
    if (nothing) {
      if (state !== "nothing") {
        placed("No runs yet", empty("No runs yet", `There is no run in ${all.directories.join(", ")}. Start one, and it shows up here by itself; or look into another directory.`,
          command("tutti train examples/demo.yaml", "trains a small model"), command("tutti dashboard DIRECTORY", "looks for runs there")));
      }
      state = "nothing";
      return;
    }
    if (state !== "some") {
      placed("Runs", ...page);
      write($("here"), "");
    }
    state = "some";
    arrange(runs, all.runs.map((run) => {
      const one = line(`run ${run.name}`, () => runLine(run.name));
      one.show(run);
      return one.element;
    }));
    const where = all.directories.join(", ");
    write(note, all.runs.length ? `in ${where}${all.left_out ? `; ${words.whole(all.left_out)} older ones are not shown` : ""}` : `There is no run in ${where} yet; one that starts there shows up by itself.`);
    servicesPart.hidden = !all.services.length;
    arrange(services, all.services.map((service) => {
      const one = line(`service ${service.name}`, () => serviceLine(service.name));
      one.show(service);
      return one.element;
    }));
    const going = all.runs.filter((run) => run.state === "running").length;
    announce("all", `${going} of ${all.runs.length} runs are running.`);
  });
}

function cell(label) {
  const value = h("span", {});
  return { element: h("span", { class: "cell" }, h("span", { class: "label" }, label), value), value };
}

function runLine(name) {
  const cells = { loss: cell("loss"), validation: cell("validation loss"), speed: cell("tokens/s"), left: cell("left"), last: cell("last event") };
  const bar = h("progress", { max: 1, value: 0, "aria-label": `progress of ${name}` });
  const steps = h("span", { class: "steps" });
  const state = h("span", {});
  const element = h("li", {}, h("a", { class: "name", href: `/run?name=${encodeURIComponent(name)}` }, name), state,
    h("span", { class: "progress" }, bar, steps), ...Object.values(cells).map((one) => one.element));
  let before = "";
  return {
    element,
    show(run) {
      if (before !== run.state) state.replaceChildren(pill(run.state));
      before = run.state;
      bar.hidden = !run.steps;
      bar.value = run.steps ? Math.min(1, run.step / run.steps) : 0;
      write(steps, run.steps ? `${words.whole(run.step)} of ${words.whole(run.steps)} steps` : "no step yet");
      write(cells.loss.value, words.figure(run.loss, 3));
      write(cells.validation.value, words.figure(run.validation_loss, 3));
      cells.speed.element.classList.toggle("off", run.tokens_per_second === null);
      write(cells.speed.value, words.rate(run.tokens_per_second));
      cells.left.element.classList.toggle("off", run.eta_seconds === null);
      write(cells.left.value, words.seconds(run.eta_seconds));
      showAge(cells.last.value, run.last_event);
    },
  };
}

function serviceLine(name) {
  const cells = { requests: cell("requests/s"), p99: cell("p99"), waiting: cell("waiting"), failed: cell("failed"), last: cell("last heard") };
  const state = h("span", {});
  const models = h("span", { class: "progress note" });
  const element = h("li", {}, h("a", { class: "name", href: `/service?name=${encodeURIComponent(name)}` }, name), state, models, ...Object.values(cells).map((one) => one.element));
  let before = "";
  return {
    element,
    show(service) {
      const minute = service.last_minute;
      if (before !== service.state) state.replaceChildren(pill(service.state));
      before = service.state;
      write(models, service.problem || service.models.join(", "));
      write(cells.requests.value, words.rate(minute.requests));
      write(cells.p99.value, words.seconds(minute.seconds_p99));
      write(cells.waiting.value, words.whole(minute.waiting));
      write(cells.failed.value, words.percent(minute.error_rate));
      showAge(cells.last.value, service.last_reached);
    },
  };
}

// One run ---------------------------------------------------------------------------------------------------------

/** The mean of each figure and its neighbours: what a loss that jumps about does in the long run. */
function smooth(ys) {
  const reach = Math.max(1, Math.round(ys.length / 60));
  return ys.map((y, i) => {
    const near = Math.min(reach, i, ys.length - 1 - i); // the ends are not drawn towards the middle
    const known = ys.slice(i - near, i + near + 1).filter((one) => one !== null);
    return y === null ? null : known.reduce((sum, one) => sum + one, 0) / known.length;
  });
}

/** Means of neighbours, so that there are at most `most`: what is seldom, and long, is spread over the steps. */
function gather(ys, most) {
  const size = Math.max(1, Math.ceil(ys.length / most));
  const found = [];
  for (let begin = 0; begin < ys.length; begin += size) {
    const known = ys.slice(begin, begin + size).filter((one) => one !== null);
    found.push(known.length ? known.reduce((sum, one) => sum + one, 0) / known.length : null);
  }
  return found;
}

/** The last of each such lot. */
function lastOfEach(xs, most) {
  const size = Math.max(1, Math.ceil(xs.length / most));
  return xs.filter((_, i) => i % size === size - 1 || i === xs.length - 1);
}

const AXES = {
  step: { label: "step", format: words.whole, of: "step" },
  tokens: { label: "tokens", format: words.count, of: "tokens" },
};

const PARTS = [
  ["data", "data"], ["forward", "forward"], ["backward", "backward"], ["compute", "forward, backward, optimizer"], ["sync", "sync"],
  ["optimizer", "optimizer"], ["rest", "rest"], ["checkpoint", "checkpoint"], ["validation", "validation"],
];

function showRun(name) {
  write($("here"), name);
  const rows = new Columns();
  let parts = {};
  let laidOut = false;
  const facts = {
    steps: card("Step"), left: card("Time left"), loss: card("Loss"), validation: card("Validation loss"), metrics: card("Validation"),
    speed: card("Tokens/s"), mfu: card("MFU"), checkpoint: card("Last checkpoint"), memory: card("Peak memory"), sent: card("Bytes sent"),
    restarts: card("Restarts"), goodput: card("Goodput"), last: card("Last event"),
  };
  const bar = h("progress", { max: 1, value: 0, "aria-label": "progress of the run" });
  facts.steps.element.append(h("dd", { class: "more" }, bar));
  const state = h("span", {});
  const line = h("p", { class: "note" });
  const ending = h("div", {});
  const alerts = h("div", {});
  const charts = {
    loss: new Chart({ id: "loss", title: "Loss", format: words.short }),
    speed: new Chart({ id: "speed", title: "Tokens per second", format: words.rate, floor: 0 }),
    norm: new Chart({ id: "norm", title: "Gradient norm", format: words.short, floor: 0 }),
    rate: new Chart({ id: "rate", title: "Learning rate", format: words.short, floor: 0 }),
    parts: new Chart({ id: "parts", title: "Seconds of a step", format: words.seconds, stacked: true, floor: 0 }),
    mfu: new Chart({ id: "mfu", title: "MFU", format: words.percent, floor: 0, note: "of what this machine can do at most, as measured at the start of the run" }),
    skew: new Chart({ id: "skew", title: "Skew", format: words.percent, floor: 0, note: "how much longer the slowest rank works on a step than the others" }),
    sent: new Chart({ id: "sent", title: "Bytes sent per step", format: words.size, floor: 0, note: "by all ranks together" }),
    memory: new Chart({ id: "memory", title: "Peak memory", format: words.size, floor: 0 }),
    quality: new Chart({ id: "quality", title: "Validation", format: words.short }),
  };
  const ranks = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Ranks, table" });
  const ranksPart = section("ranks", "Ranks", ranks);
  const samples = h("div", {});
  const samplesPart = section("samples", "What the model writes", samples);
  const happened = h("ol", { class: "told", tabindex: 0 });
  const happenedPart = section("happened", "What happened", happened);
  const choices = h("ul", { class: "choices" });
  const choicesPart = h("details", { class: "card choices-part" }, h("summary", {}, "What was chosen, and why"), choices);

  let axis = remembered("axis", "step", AXES);
  let log = remembered("log", "no", { yes: 1, no: 1 }) === "yes";
  const choose = h("fieldset", { class: "choose" }, h("legend", { class: "visually-hidden" }, "Across the charts"), ...Object.keys(AXES).map((key) => h("label", {},
    h("input", { type: "radio", name: "axis", value: key, checked: key === axis, change: () => { axis = key; remember("axis", key); draw(); } }), `by ${key}`)),
    h("label", {}, h("input", { type: "checkbox", checked: log, change: (event) => { log = event.target.checked; remember("log", log ? "yes" : "no"); draw(); } }), "logarithmic loss"));

  function layOut() {
    placed(name, h("div", { class: "title" }, h("h1", {}, name), state, choose), line, ending, alerts, h("dl", { class: "facts", "aria-label": "Figures of the run" }, ...Object.values(facts).map((one) => one.element)),
      h("div", { class: "charts" }, ...Object.values(charts).map((one) => one.element), ranksPart), h("div", { class: "charts" }, samplesPart, happenedPart), choicesPart);
    laidOut = true;
  }

  function draw() {
    const x = AXES[axis];
    const xs = rows.get(x.of);
    const plain = (chart, column, style, value) => chart.show([{ label: "", style, xs, ys: rows.get(column) }], x, value);
    const loss = rows.get("loss");
    const byStep = new Map(rows.get("step").map((step, i) => [step, xs[i]]));
    const checked = (parts.validations ?? []).map((one) => ({ ...one, x: axis === "step" ? one.step : nearest(byStep, one.step) })).filter((one) => one.x !== null);
    charts.loss.log = log;
    const lossSeries = [];
    if (loss.length > 30) {
      const band = rows.get("steps").some((steps) => steps > 1) ? [rows.get("loss_low"), rows.get("loss_high")] : null;
      lossSeries.push({ label: "each", style: "s1", faint: true, xs, ys: loss, band });
      lossSeries.push({ label: "training", style: "s1", xs, ys: smooth(loss) });
    } else lossSeries.push({ label: "training", style: "s1", xs, ys: loss });
    lossSeries.push({ label: "validation", style: "s2", dots: true, xs: checked.map((one) => one.x), ys: checked.map((one) => one.loss) });
    charts.loss.show(lossSeries, x, words.figure(parts.run?.loss ?? parts.run?.train_loss, 3));
    plain(charts.speed, "tokens_per_second", "s3", words.rate(parts.run?.tokens_per_second));
    plain(charts.norm, "gradient_norm", "s4", words.short(rows.last("gradient_norm")));
    plain(charts.rate, "learning_rate", "s5", words.short(rows.last("learning_rate")));
    plain(charts.mfu, "mfu", "s6", words.percent(rows.last("mfu")));
    plain(charts.skew, "skew", "s2", words.percent(rows.last("skew")));
    plain(charts.sent, "bytes", "s7", words.size(rows.last("bytes")));
    const stacked = PARTS.map(([key, label], i) => ({ label, style: `s${i + 1}`, xs: lastOfEach(xs, 100), ys: gather(rows.get(`${key}_seconds`), 100) })).filter((one) => one.ys.some((y) => y));
    charts.parts.show(stacked, x, words.seconds(stacked.reduce((sum, one) => sum + (one.ys.at(-1) ?? 0), 0)));
    const names = Object.keys(parts.validations?.at(-1)?.metrics ?? {});
    const bits = checked.some((one) => one.bits_per_byte !== null);
    charts.quality.show([...names.map((metric, i) => ({ label: metric, style: `s${i + 1}`, dots: true, xs: checked.map((one) => one.x), ys: checked.map((one) => one.metrics[metric] ?? null) })),
      ...(bits ? [{ label: "bits per byte", style: "s6", dots: true, xs: checked.map((one) => one.x), ys: checked.map((one) => one.bits_per_byte) }] : [])], x, "");
    const memory = parts.memory ?? [];
    const of = [...new Set(memory.map((one) => one.rank))].sort((a, b) => a - b);
    const started = parts.run?.started ?? 0;
    charts.memory.show(memory.length > of.length ? of.slice(0, 8).map((rank, i) => {
      const mine = memory.filter((one) => one.rank === rank);
      return { label: `rank ${rank}`, style: `s${(i % 7) + 1}`, xs: mine.map((one) => one.time - started), ys: mine.map((one) => one.bytes), dots: true };
    }) : [], { label: "after", format: words.seconds }, words.size(parts.run?.peak_memory_bytes));
  }

  function show(changed) {
    if (changed.run) showFacts(changed.run);
    if ("ending" in changed) showEnding(changed.ending);
    if (changed.alerts) showAlerts(alerts, changed.alerts);
    if (changed.ranks) showRanks(changed.ranks);
    if (changed.samples) {
      samplesPart.hidden = !changed.samples.length;
      samples.replaceChildren(...changed.samples.map((one) => h("figure", { class: "sample" }, h("figcaption", { class: "note" }, `after step ${words.whole(one.step)}`), h("pre", { tabindex: 0 }, one.text))));
    }
    if (changed.happened) {
      happenedPart.hidden = !changed.happened.length;
      happened.replaceChildren(...changed.happened.map((one) => h("li", { class: one.kind }, h("time", { datetime: new Date(one.time * 1000).toISOString() }, words.date(one.time)), h("span", {}, one.said, one.more ? h("span", { class: "note" }, ` → ${one.more}`) : null))));
    }
    if (changed.choices) {
      choicesPart.hidden = !changed.choices.length;
      choices.replaceChildren(...changed.choices.map((one) => h("li", {}, one)));
    }
    draw();
  }

  function showFacts(run) {
    if (state.dataset.state !== run.state) {
      state.dataset.state = run.state;
      state.replaceChildren(pill(run.state));
    }
    write(line, [run.facts, run.started ? `begun ${words.date(run.started)}` : "", run.path].filter(Boolean).join(" · "));
    const done = run.steps ? Math.min(1, run.step / run.steps) : 0;
    bar.hidden = !run.steps;
    bar.value = done;
    fill(facts.steps, run.steps ? `${words.whole(run.step)} of ${words.whole(run.steps)}` : "not begun", run.tokens ? `${words.count(run.tokens)} tokens` : "");
    fill(facts.left, run.eta_seconds === null ? null : words.seconds(run.eta_seconds), run.eta_seconds === null ? "" : `until ${words.clock(now() + run.eta_seconds)}`);
    fill(facts.loss, run.loss === null && run.train_loss === null ? null : words.figure(run.loss ?? run.train_loss));
    fill(facts.validation, run.validation_loss === null ? null : words.figure(run.validation_loss), [run.bits_per_byte === null ? "" : `${words.figure(run.bits_per_byte)} bits per byte`, run.best_validation_loss !== null && run.best_validation_loss < run.validation_loss ? `best ${words.figure(run.best_validation_loss)}` : ""].filter(Boolean).join(", "));
    const metrics = Object.entries(run.metrics ?? {}).filter(([, value]) => typeof value === "number");
    fill(facts.metrics, metrics.length ? words.figure(metrics[0][1]) : null, metrics.length ? metrics[0][0] : "");
    fill(facts.speed, run.tokens_per_second === null ? null : words.rate(run.tokens_per_second));
    fill(facts.mfu, run.mfu === null ? null : words.percent(run.mfu));
    fill(facts.memory, run.peak_memory_bytes === null ? null : words.size(run.peak_memory_bytes), "the largest worker");
    fill(facts.sent, run.bytes_sent ? words.size(run.bytes_sent) : null, "by all ranks");
    fill(facts.restarts, run.restarts ? words.whole(run.restarts) : null, run.steps_repeated ? `${words.whole(run.steps_repeated)} steps done again` : "");
    fill(facts.goodput, run.goodput === null ? null : words.percent(run.goodput), `of ${words.seconds(run.wall_seconds)}`);
    facts.checkpoint.element.hidden = !run.checkpoint;
    if (run.checkpoint) {
      showAge(facts.checkpoint.value, run.checkpoint.time);
      write(facts.checkpoint.more, `of step ${words.whole(run.checkpoint.step)}`);
    }
    facts.last.element.hidden = !run.last_event;
    showAge(facts.last.value, run.last_event);
    document.title = `${run.state === "running" && run.steps ? `${Math.floor(done * 100)} % · ` : ""}${name} · Tutti`;
    announce("state", `The run is ${run.state}.`);
    if (run.state === "running") announce("quarter", run.steps ? `${Math.floor(done * 4) * 25} percent of the steps are done.` : "");
  }

  function showEnding(end) {
    if (!end) {
      ending.replaceChildren();
      return;
    }
    ending.replaceChildren(h("section", { class: `card ending ${end.state}`, "aria-labelledby": "ending-title" }, h("h2", { id: "ending-title" }, end.state === "finished" ? "It finished" : end.state === "failed" ? "It failed" : "It does not go on"),
      end.said ? h("pre", { class: "said", tabindex: 0 }, end.said) : null, end.moves.length ? h("p", { class: "note" }, "What you can do now, in the directory where it was started:") : null, h("ul", { class: "commands" }, ...end.moves.map((move) => command(move.command, move.purpose)))));
  }

  function showRanks(found) {
    ranksPart.hidden = !found.length;
    const most = Math.max(...found.map((one) => one.seconds ?? 0));
    const timed = most > 0;
    ranks.replaceChildren(plainTable("Ranks, their own work in a step, and where they are", ["rank", ...(timed ? ["own work a step", "of the others'"] : []), "step", "phase"], found.map((one) => [
      one.rank < 0 ? "server" : String(one.rank),
      ...(timed ? [h("span", { class: "bar" }, h("meter", { min: 0, max: most, value: one.seconds ?? 0, "aria-label": `own work of rank ${one.rank}` }), words.seconds(one.seconds)), one.of_others === null ? "–" : words.percent(one.of_others)] : []),
      words.whole(one.step), one.phase ?? "–",
    ])));
  }

  follow(`/stream?run=${encodeURIComponent(name)}`, (changed) => {
    if (changed.missing) {
      laidOut = false;
      missing(changed.missing);
      return;
    }
    parts = { ...parts, ...changed };
    if (changed.rows) rows.take(changed.rows);
    if (!laidOut) {
      layOut();
      show(parts);
    } else show(changed);
  });
}

function nearest(byStep, step) {
  let found = null;
  for (const [of, x] of byStep) {
    found = x;
    if (of >= step) return x;
  }
  return found;
}

function remembered(key, otherwise, allowed) {
  try {
    const found = localStorage.getItem(`tutti.${key}`);
    return found !== null && found in allowed ? found : otherwise;
  } catch {
    return otherwise;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`tutti.${key}`, value);
  } catch { /* it is only for the next time */ }
}

// One service -------------------------------------------------------------------------------------------------------

function showService(name) {
  write($("here"), name);
  const rows = new Columns();
  let laidOut = false;
  const state = h("span", {});
  const line = h("p", { class: "note" });
  const problem = h("div", {});
  const alerts = h("div", {});
  const versions = h("div", {});
  const facts = {
    requests: card("Requests/s"), p50: card("p50"), p99: card("p99"), first: card("First piece, p50"), failed: card("Failed"), waiting: card("Waiting"),
    written: card("Tokens written/s"), redactions: card("Redactions"), withheld: card("Withheld"), last: card("Last heard"),
  };
  const charts = {
    requests: new Chart({ id: "requests", title: "Requests per second", format: words.rate, floor: 0 }),
    seconds: new Chart({ id: "seconds", title: "Seconds of a request", format: words.seconds, floor: 0 }),
    first: new Chart({ id: "first", title: "Time to the first piece", format: words.seconds, floor: 0, note: "of an answer: with a model that writes and streams, the time to its first token" }),
    queue: new Chart({ id: "queue", title: "Queue", format: words.short, floor: 0 }),
    tokens: new Chart({ id: "tokens", title: "Tokens per second", format: words.rate, floor: 0 }),
    hidden: new Chart({ id: "hidden", title: "Redactions per second", format: words.short, floor: 0 }),
  };
  const by = h("div", { class: "charts" });

  function layOut() {
    placed(name, h("div", { class: "title" }, h("h1", {}, name), state), line, problem, alerts, h("dl", { class: "facts", "aria-label": "The last minute" }, ...Object.values(facts).map((one) => one.element)),
      versions, h("div", { class: "charts" }, ...Object.values(charts).map((one) => one.element)), by);
    laidOut = true;
  }

  function draw() {
    const xs = rows.get("time");
    const x = { label: "at", format: words.clock, ticks: timeTicks };
    const of = (column, label, style) => ({ label, style, xs, ys: rows.get(column) });
    charts.requests.show([of("requests", "all", "s1"), of("refused", "refused (4xx)", "s5"), of("failed", "failed (5xx)", "s2")], x, words.rate(rows.last("requests")));
    charts.seconds.show([of("seconds_p50", "p50", "s1"), of("seconds_p99", "p99", "s2")], x, words.seconds(rows.last("seconds_p99")));
    charts.first.show([of("first_p50", "p50", "s1"), of("first_p99", "p99", "s2")], x, words.seconds(rows.last("first_p50")));
    charts.queue.show([of("in_use", "being served", "s3"), of("waiting", "waiting", "s2")], x, words.whole(rows.last("waiting")));
    charts.tokens.show([of("tokens_read", "read", "s6"), of("tokens_written", "written", "s3")], x, words.rate(rows.last("tokens_written")));
    charts.hidden.show([of("redactions", "redactions", "s4"), of("withheld", "answers withheld", "s2")].filter((one) => one.ys.some((y) => y)), x, "");
  }

  function show(service) {
    const minute = service.last_minute;
    if (state.dataset.state !== service.state) {
      state.dataset.state = service.state;
      state.replaceChildren(pill(service.state));
    }
    write(line, [service.models.length ? `serves ${service.models.join(", ")}` : "", service.url].filter(Boolean).join(" · "));
    problem.replaceChildren(...(service.state === "unreachable" ? [h("section", { class: "card ending failed", "aria-labelledby": "problem-title" }, h("h2", { id: "problem-title" }, "It does not answer"), h("p", {}, service.problem),
      h("p", { class: "note" }, "It is asked again every few seconds."))] : service.state === "down" ? [h("section", { class: "card ending failed", "aria-labelledby": "problem-title" }, h("h2", { id: "problem-title" }, "Its engine is dead or wedged"), h("p", {}, "It answers, but computes nothing: start it again; its own output says why."))] : []));
    const value = (key, say) => (minute[key] === undefined || minute[key] === null ? null : say(minute[key]));
    fill(facts.requests, value("requests", words.rate), "over the last minute");
    fill(facts.p50, value("seconds_p50", words.seconds));
    fill(facts.p99, value("seconds_p99", words.seconds));
    fill(facts.first, value("first_p50", words.seconds));
    fill(facts.failed, value("error_rate", words.percent), "of the requests");
    fill(facts.waiting, value("waiting", words.whole), minute.in_use === null || minute.in_use === undefined ? "" : `beside ${words.whole(minute.in_use)} that are served`);
    fill(facts.written, value("tokens_written", words.rate));
    const redactions = Object.values(service.redactions).reduce((a, b) => a + b, 0);
    fill(facts.redactions, redactions ? words.whole(redactions) : null, "since it began");
    fill(facts.withheld, service.withheld ? words.whole(service.withheld) : null, "answers, since it began");
    facts.last.element.hidden = !service.last_reached;
    showAge(facts.last.value, service.last_reached);
    const served = Object.entries(service.versions).sort(([a], [b]) => Number(b) - Number(a));
    const back = service.rolled_back ? `${words.whole(service.rolled_back)} rolled back by themselves since it began.` : "";
    versions.replaceChildren(...(served.length ? [section("versions", "Versions", table("Versions that are served", ["version", "of the requests", "workers", "in flight", "answered", "restarts"], served.map(([version, one]) => [
      version, words.percent(one.share ?? 0), `${words.whole(one.ready ?? 0)} of ${words.whole(one.wanted ?? 0)}`, words.whole(one.in_flight ?? 0), words.whole(one.requests ?? 0), words.whole(one.restarts ?? 0)])), back ? h("p", { class: "note" }, back) : null)] : []));
    const tables = [...Object.entries(service.requests).map(([label, counts]) => [`requests by ${label}`, label, counts]), ["redactions by kind", "kind", service.redactions]].filter(([, , counts]) => Object.keys(counts).length);
    by.replaceChildren(...tables.map(([title, label, counts], i) => section(`by-${i}`, `${title[0].toUpperCase()}${title.slice(1)}`, table(title, [label, "since it began"], Object.entries(counts).sort((a, b) => b[1] - a[1]).map(([key, n]) => [key, words.whole(n)])))));
    announce("state", `The service is ${STATES[service.state]}.`);
  }

  follow(`/stream?service=${encodeURIComponent(name)}`, (changed) => {
    if (changed.missing) {
      laidOut = false;
      missing(changed.missing);
      return;
    }
    if (!laidOut) layOut();
    if (changed.rows) rows.take(changed.rows);
    if (changed.service) show(changed.service);
    if (changed.alerts) showAlerts(alerts, changed.alerts);
    if (changed.rows) draw();
  });
}

function timeTicks(low, high, most) {
  const steps = [5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 14400];
  const step = steps.find((one) => (high - low) / one <= most) ?? 14400;
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
  return ticks.length ? ticks : [high];
}

if (location.pathname === "/run") showRun(query.get("name") ?? "");
else if (location.pathname === "/service") showService(query.get("name") ?? "");
else showAll();
