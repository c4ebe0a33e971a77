// What can be tried depends on what the model is for; /v1/models says it.

const at = (id) => document.getElementById(id);
let key = "";
let model = null;
let running = null;

/** An element with text and attributes; text is never read as markup. */
function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...inside);
  return element;
}

async function call(path, body, signal) {
  const options = { headers: { Authorization: `Bearer ${key}` }, signal };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the service answered ${answer.status}`);
  }
  return answer;
}

async function asked(path, body) {
  const told = await (await call(path, body)).json();
  showRaw(path, body, told);
  return told;
}

function showRaw(path, body, told) {
  at("raw").hidden = false;
  at("raw").querySelector("pre").textContent =
    `POST ${path}\n${JSON.stringify(body, null, 2)}\n\n${JSON.stringify(told, null, 2)}`;
}

// What is shown -------------------------------------------------------------------------------------------------

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** The first line of a table, whose last column has numbers. */
function headed(...names) {
  const cells = names.map((name, place) =>
    make("th", { scope: "col", className: place === names.length - 1 ? "number" : "" }, name));
  return make("thead", {}, make("tr", {}, ...cells));
}

function scores(rows, what) {
  const lines = rows.map(([name, share]) =>
    make("tr", {}, make("th", { scope: "row" }, name),
      make("td", { className: "number" },
        make("meter", { min: 0, max: 1, value: share, ariaLabel: `${name}: ${percent(share)}` }), ` ${percent(share)}`)));
  return make("table", {}, headed(what, "chance"), make("tbody", {}, ...lines));
}

function marked(text, spans) {
  const shown = make("p", { className: "text" });
  let reached = 0;
  for (const span of [...spans].sort((one, other) => one.start - other.start)) {
    if (span.start < reached) continue;
    shown.append(text.slice(reached, span.start));
    const mark = make("mark", { className: span.kind ?? "" }, text.slice(span.start, span.end));
    if (span.label) mark.append(make("sup", {}, span.label));
    if (span.title) mark.title = span.title;
    shown.append(mark);
    reached = span.end;
  }
  shown.append(text.slice(reached));
  return shown;
}

/** JavaScript counts halves of rare letters; the service counts letters. */
function places(text, spans) {
  const letters = [...text];
  const starts = [0];
  for (const letter of letters) starts.push(starts.at(-1) + letter.length);
  return spans.map((span) => ({ ...span, start: starts[span.start], end: starts[span.end] }));
}

function why(explanation) {
  const most = Math.max(...explanation.words.map((word) => Math.abs(word.attribution)), 1e-9);
  const parts = ["text", "pair"].filter((part) => part in explanation);
  const title = explanation.entity ? `“${explanation.entity.text}” is ${explanation.label}` : explanation.label;
  const rows = [...explanation.words].sort((one, other) => Math.abs(other.attribution) - Math.abs(one.attribution));
  return make("section", {}, make("h2", {}, `Why ${title}`),
    ...parts.map((part) => marked(explanation[part], places(explanation[part], explanation.words
      .filter((word) => (word.part ?? "text") === part && Math.abs(word.attribution) > 0.05 * most)
      .map((word) => ({
        ...word,
        kind: `${word.attribution > 0 ? "for" : "against"}${Math.abs(word.attribution) < 0.4 * most ? " weak" : ""}`,
        title: word.attribution.toFixed(2),
      }))))),
    make("p", { className: "hint" }, "Underlined: speaks for it; in dashes: against it. In log-odds:"),
    make("table", {}, headed("word", "worth"), make("tbody", {}, ...rows.slice(0, 12).map((word) =>
      make("tr", {}, make("th", { scope: "row" }, word.text),
        make("td", { className: "number" }, word.attribution.toFixed(2)))))));
}

// What can be asked ---------------------------------------------------------------------------------------------

const area = (id, label, attributes = {}) =>
  [make("label", { htmlFor: id }, label), make("textarea", { id, required: true, ...attributes })];
const line = (id, label, attributes = {}) =>
  [make("label", { htmlFor: id }, label), make("input", { id, ...attributes })];

function buttons(first, ...others) {
  return make("div", { className: "row" }, make("button", {}, first),
    ...others.map(([name, act]) => make("button", { type: "button", className: "second", onclick: () => act() }, name)));
}

const turns = [];

async function write() {
  const text = at("text").value;
  const most = Number(at("most").value);
  const shared = { model: model.id, max_tokens: most, temperature: Number(at("heat").value), stream: true };
  const chats = at("chats").checked;
  const body = chats ? { ...shared, messages: [...turns, { role: "user", content: text }] } : { ...shared, prompt: text };
  const path = chats ? "/v1/chat/completions" : "/v1/completions";
  running = new AbortController();
  const answer = await call(path, body, running.signal);
  if (!chats) at("said").replaceChildren();
  const shown = make("div", { className: "turn model" });
  at("said").append(make("div", { className: "turn" }, text), shown);
  at("said").setAttribute("aria-busy", "true"); // it is read out when it is whole
  let rest = "", whole = "";
  const read = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await read.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (event === "data: [DONE]") continue;
        const told = JSON.parse(event.slice("data: ".length));
        if (told.error) throw new Error(told.error.message);
        const piece = told.choices[0]?.delta?.content ?? told.choices[0]?.text ?? "";
        whole += piece;
        shown.append(piece);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    at("said").setAttribute("aria-busy", "false");
    running = null;
  }
  if (chats) {
    turns.push({ role: "user", content: text }, { role: "assistant", content: whole });
    at("text").value = "";
  }
  showRaw(path, body, whole);
}

const given = () => at("pair")?.value ? { text: at("text").value, pair: at("pair").value } : at("text").value;

async function explain() {
  const told = await asked("/v1/explain", { model: model.id, input: given() });
  at("said").replaceChildren(...told.data.map(why));
  if (!told.data.length) at("said").append(make("p", {}, "Nothing was found in this text."));
}

const KINDS = {
  writer: {
    fields: () => [...area("text", "Text"),
      make("div", { className: "row" },
        make("div", {}, ...line("most", "Tokens, at most", { type: "number", min: 1, value: 128 })),
        make("div", {}, ...line("heat", "Temperature", { type: "number", min: 0, max: 2, step: 0.1, value: 0.8 }))),
      make("div", { className: "row", hidden: !model.chats }, make("input", { id: "chats", type: "checkbox", checked: model.chats }),
        make("label", { htmlFor: "chats" }, "It is a conversation")),
      buttons("Write", ["Stop", () => running?.abort()],
        ["Begin anew", () => { turns.length = 0; at("said").replaceChildren(); }])],
    ask: write,
  },
  classifier: {
    fields: () => [...area("text", "Text"), ...line("pair", "Second text, if the model compares two"),
      buttons("Classify", ["Why?", () => doing(explain)])],
    ask: async () => {
      const told = await asked("/v1/classify", { model: model.id, input: given() });
      at("said").replaceChildren(scores(Object.entries(told.data[0].scores), "label"));
    },
  },
  tagger: {
    fields: () => [...area("text", "Text"), buttons("Find", ["Why?", () => doing(explain)])],
    ask: async () => {
      const text = at("text").value;
      const found = (await asked("/v1/extract", { model: model.id, input: text })).data[0].entities;
      at("said").replaceChildren(marked(text, places(text, found)), found.length
        ? scores(found.map((one) => [`${one.text} (${one.label})`, one.score]), "entity")
        : make("p", {}, "Nothing was found in this text."));
    },
  },
  embedder: {
    fields: () => [...area("text", "Text"), ...area("pair", "Texts to compare it with, one on each line"),
      buttons("Compare")],
    ask: async () => {
      const others = at("pair").value.split("\n").filter((one) => one.trim());
      const told = await asked("/v1/embeddings", { model: model.id, input: [at("text").value, ...others] });
      const [own, ...vectors] = told.data.map((one) => one.embedding);
      const product = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);
      const alike = vectors.map((vector) => product(own, vector) / Math.sqrt(product(own, own) * product(vector, vector)));
      at("said").replaceChildren(make("table", {}, headed("text", "cosine"), make("tbody", {}, ...others.map((text, place) => [text, alike[place]])
        .sort((one, other) => other[1] - one[1]).map(([text, cosine]) => make("tr", {}, make("th", { scope: "row" }, text),
          make("td", { className: "number" }, cosine.toFixed(3)))))));
    },
  },
  recommender: {
    fields: () => [...line("text", "What somebody had, in order, with commas between", { required: true }),
      buttons("Recommend")],
    ask: async () => {
      const had = at("text").value.split(",").map((one) => one.trim()).filter(Boolean);
      const told = await asked("/v1/recommend", { model: model.id, input: had });
      at("said").replaceChildren(scores(told.data[0].items.map((one) => [one.item, one.score]), "item"));
    },
  },
  answerer: {
    fields: () => [...area("text", "Question"), ...area("pair", "The text in which the answer stands"), buttons("Answer")],
    ask: async () => {
      const body = { model: model.id, input: { question: at("text").value, context: at("pair").value } };
      const found = (await asked("/v1/answer", body)).data[0];
      at("said").replaceChildren(...(found.answer
        ? [marked(at("pair").value, places(at("pair").value, [found])), scores([[found.answer, found.score]], "answer")]
        : [make("p", {}, "There is no answer in this text.")]));
    },
  },
  documents: {
    fields: () => [...area("text", "Question"), buttons("Answer")],
    ask: async () => {
      const told = await asked("/v1/answer", { model: model.id, question: at("text").value });
      at("said").replaceChildren(make("div", { className: "turn model" }, told.answer ?? "These passages are nearest:"),
        ...told.citations.map((one, place) => make("figure", {}, make("blockquote", { className: "text" }, one.passage),
          make("figcaption", {}, `[${one.number ?? place + 1}] ${one.document}`))));
    },
  },
};

async function doing(act) {
  at("trouble").textContent = "";
  const all = at("ask").querySelectorAll("button:not(.second)");
  all.forEach((button) => { button.disabled = true; });
  try {
    await act();
  } catch (error) {
    at("trouble").textContent = error.message;
  } finally {
    all.forEach((button) => { button.disabled = false; });
  }
}

async function open() {
  model = (await (await call("/v1/models")).json()).data[0];
  const kind = model.documents ? "documents" : model.kind;
  document.title = at("title").textContent = model.id;
  at("about").textContent = `${model.documents ? "Answers from documents, by a" : "A"} ${model.kind}, served by Tutti`;
  const form = at("ask");
  form.replaceChildren(...KINDS[kind].fields());
  form.onsubmit = (event) => {
    event.preventDefault();
    doing(KINDS[kind].ask);
  };
  form.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  at("door").hidden = true;
  form.hidden = false;
  form.querySelector("textarea, input").focus();
}

at("door").onsubmit = (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  doing(open);
};

// The link in the terminal brings the key behind a #, which browsers send to nobody.
if (location.hash.length > 1) {
  key = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);
  doing(open);
} else {
  at("key").focus();
}
