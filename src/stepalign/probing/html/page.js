/*
 * The page's state, what follows from it, and the events that change it. One rollout is in the document at a time. The
 * address keeps the state after its `#`, so that a view can be kept or sent.
 */

const state = {
  rollout: -1,
  /** The contexts whose columns are shown. List, card and keys follow the first. */
  shown: [0],
  token: null,
  scale: INDEX.scale,
  words: "",
  sort: { key: "", down: false },
  reading: false,
};

/** The state in the document. */
let displayed = {};
/** The open rollout's content. */
let rollout = null;
/** The listed rollouts' indexes. */
let order = [];
/** The texts of tokens by id. */
let TOKENS = {};
/** The token whose card is shown. */
let carded = null;
let requests = 0;

const columns = () => [...document.querySelectorAll("#solution .tokens")];
const currentColumn = () => columns().find((column) => Number(column.dataset.context) === state.shown[0]);

// ── data ────────────────────────────────────────────────────────────────────────────────────────────────

/** Unpack a block (`page.py` writes it): JSON, and numbers as their low, middle and high bytes. */
async function unpack(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const [head, planes] = [bytes.subarray(0, bytes.indexOf(0)), bytes.subarray(bytes.indexOf(0) + 1)];
  const count = planes.length / 3;
  const number = (_, i) => planes[i] + 256 * planes[count + i] + 65536 * planes[2 * count + i];
  return { head: JSON.parse(new TextDecoder().decode(head)), numbers: Array.from({ length: count }, number) };
}

/** Open a rollout, unless another one is requested in the meantime. */
async function open(index, changes = {}) {
  requests += 1;
  const request = requests;
  const { head, numbers } = await unpack(`rollout-${index}`);
  if (request !== requests) return;
  const ids = (span) => numbers.slice(...span);
  const logs = (span) => ids(span).map((steps) => -steps * INDEX.unit);
  for (const scored of [head.student, ...head.credits].filter(Boolean)) {
    scored.logs = logs(scored.logs);
    scored.values = scored.logs.map((log, i) => log - head.student.logs[i]);
    if (scored.top) scored.top = { ids: ids(scored.top.ids), logs: logs(scored.top.logs) };
  }
  rollout = head;
  update({ rollout: index, token: null, ...changes });
}

/** Go to the rollout that is `by` places further down the list. */
function go(by) {
  const index = order[order.includes(state.rollout) ? order.indexOf(state.rollout) + by : 0];
  return index === undefined ? undefined : open(index);
}

// ── display ─────────────────────────────────────────────────────────────────────────────────────────────

/** Change the state, and update every part of the document that depends on the change. */
function update(changes) {
  Object.assign(state, changes);
  if (state.token !== null && state.token >= rollout.pieces.length) state.token = null;
  const changed = (...names) => names.some((name) => state[name] !== displayed[name]);
  const [listing, opened] = [changed("words", "sort", "shown"), changed("rollout")];
  const [rebuilt, rescaled] = [changed("rollout", "shown", "reading"), changed("scale")];
  displayed = { ...state };
  if (listing) showList();
  if (listing || opened) showPlace(opened);
  if (opened) showHead();
  if (rebuilt) showSolution();
  if (rebuilt) showAsides();
  if (rescaled) showScale();
  if (rebuilt || rescaled) tintTokens();
  showActive();
  drawStrips();
  history.replaceState(null, "", `#${address()}`);
}

function showList() {
  order = listed();
  byId("rows").replaceChildren(...order.map(listRow));
  const all = INDEX.rollouts.length;
  byId("count").textContent = order.length === all ? `${all} rollouts` : `${order.length} of ${all} rollouts`;
  byId("list-context").replaceChildren(visible(INDEX.contexts[state.shown[0]]));
  for (const head of byId("columns").cells) {
    const sorted = head.dataset.key === state.sort.key;
    head.setAttribute("aria-sort", sorted ? (state.sort.down ? "descending" : "ascending") : "none");
  }
}

function showPlace(scroll) {
  const row = markCurrent();
  if (scroll) row?.scrollIntoView({ block: "nearest" });
  const at = order.indexOf(state.rollout);
  byId("previous").disabled = at === 0 || order.length === 0;
  byId("next").disabled = at === order.length - 1 || order.length === 0;
}

function showHead() {
  const { id, correct, finish, tokens } = INDEX.rollouts[state.rollout];
  const { mark, problem } = rollout;
  byId("title").replaceChildren(visible(id));
  byId("facts").textContent = [
    OUTCOMES[correct],
    finish === "length" && "cut off at its length",
    mark && `first wrong in step ${mark.step}, ${mark.source === "planted" ? "a planted slip" : "as the critique says"}`,
    `${tokens.toLocaleString("en")} tokens`,
  ].filter(Boolean).join(" · ");
  byId("to-error").disabled = mark === null;
  byId("problem").replaceChildren(...(problem?.reading.map(build) ?? ["The problem is not in this probe."]));
}

function showSolution() {
  byId("card").hidden = true;
  byId(state.reading ? "view-reading" : "view-tokens").checked = true;
  byId("reading").hidden = !state.reading;
  byId("solution").hidden = state.reading;
  byId("solution").style.setProperty("--columns", state.shown.length);
  byId("reading").replaceChildren(...(state.reading ? rollout.reading.map(build) : []));
  const inOrder = state.reading ? [] : [...state.shown].sort((a, b) => a - b);
  byId("solution").replaceChildren(...inOrder.map(solutionColumn));
  INDEX.contexts.forEach((_, k) => {
    byId(`context-${k}`).setAttribute("aria-pressed", String(k === state.shown[0]));
    byId(`beside-${k}`).checked = state.shown.includes(k);
    byId(`beside-${k}`).disabled = state.shown.length === 1 && state.shown[0] === k;
  });
}

/** Fill the folds below the solution. Each stays open, or closed, from one rollout to the next. */
function showAsides() {
  const open = new Set([...byId("asides").querySelectorAll("details[open]")].map((fold) => fold.dataset.name));
  const fold = (name, title, ...content) =>
    element("details", { "data-name": name, open: open.has(name) }, element("summary", {}, visible(title)), ...content);
  const { problem, critique, credits } = rollout;
  const folds = state.shown.filter((k) => credits[k]).map((k) =>
    fold(`prompt-${k}`, `The teacher’s prompt under ${INDEX.contexts[k]}`, pre(credits[k].prompt)));
  if (problem?.solution) folds.unshift(fold("reference", `Reference solution, answer ${problem.answer}`, pre(problem.solution)));
  if (critique) {
    const reading = element("div", { class: "reading", dir: "auto" }, ...critique.reading.map(build));
    folds.unshift(fold("critique", critique.title, reading));
  }
  byId("asides").replaceChildren(...folds);
}

function showScale() {
  byId("scale").value = state.scale;
  byId("scale-value").textContent = `±${state.scale} nats`;
  byId("legend").replaceChildren(...[-1, -0.5, -0.15, 0, 0.15, 0.5, 1].map((share) => {
    const nats = share * state.scale;
    const swatch = element("span", { class: "token" }, signed(nats, Math.abs(nats) < 1 ? 2 : 1));
    tint(swatch, nats);
    return swatch;
  }));
}

function tintTokens() {
  for (const column of columns()) {
    const values = rollout.credits[column.dataset.context]?.values;
    column.querySelectorAll(".token").forEach((token, i) => tint(token, values ? values[i] : 0));
  }
}

/** Make the state's token the active option of every column. */
function showActive() {
  for (const column of columns()) {
    const [before, token] = [column.querySelector(".active"), tokenAt(column, state.token)];
    if (before === token) continue;
    before?.classList.remove("active");
    before?.setAttribute("aria-selected", "false");
    for (const name of ["id", "aria-label"]) before?.removeAttribute(name);
    if (!token) continue;
    token.classList.add("active");
    token.setAttribute("aria-selected", "true");
    token.id = `active-${column.dataset.context}`;
    token.setAttribute("aria-label", spoken(state.token, Number(column.dataset.context)));
    column.setAttribute("aria-activedescendant", token.id);
  }
}

function showCard(column, i) {
  byId("card").replaceChildren(...cardContent(i, Number(column.dataset.context)));
  byId("card").hidden = false;
  carded = tokenAt(column, i);
  placeCard();
}

const hideCard = () => { byId("card").hidden = true; };

/** Make a token active, bring it into view and show its card. */
function activate(i, column, { scroll = true } = {}) {
  update({ token: i });
  if (scroll) tokenAt(column, i).scrollIntoView({ block: "nearest" });
  showCard(column, i);
}

// ── the address ─────────────────────────────────────────────────────────────────────────────────────────

function address() {
  const kept = new URLSearchParams({ rollout: state.rollout + 1, contexts: state.shown.map((k) => k + 1).join("-") });
  if (state.token !== null) kept.set("token", state.token + 1);
  if (state.reading) kept.set("view", "reading");
  return kept;
}

/** Open what the address names; parts that it lacks, or that do not exist, stay as they are. */
function followAddress() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const below = (text, size) => (/^[1-9]\d*$/.test(text ?? "") && Number(text) <= size ? Number(text) - 1 : null);
  const named = (kept.get("contexts") ?? "").split("-").map((k) => below(k, INDEX.contexts.length));
  const shown = [...new Set(named.filter((k) => k !== null))];
  return open(below(kept.get("rollout"), INDEX.rollouts.length) ?? 0, {
    token: below(kept.get("token"), Infinity),
    shown: shown.length ? shown : state.shown,
    reading: kept.get("view") === "reading",
  });
}

// ── events ──────────────────────────────────────────────────────────────────────────────────────────────

function toError() {
  if (!rollout.mark) return;
  update({ reading: false });
  currentColumn().focus();
  activate(rollout.mark.wrong, currentColumn());
}

/** Show up to four contexts side by side, or the current one alone again. */
function toggleBeside() {
  const [current, ...more] = state.shown;
  const others = INDEX.contexts.map((_, k) => k).filter((k) => k !== current);
  update({ shown: more.length ? [current] : [current, ...others.slice(0, 3)] });
}

const KEYS = {
  "/": () => byId("search").focus(),
  j: () => go(1),
  k: () => go(-1),
  c: () => update({ shown: [(state.shown[0] + 1) % INDEX.contexts.length] }),
  s: toggleBeside,
  e: toError,
  r: () => update({ reading: !state.reading }),
  "?": () => byId("keys").showModal(),
};

const modified = (event) => event.ctrlKey || event.metaKey || event.altKey;

function listen() {
  const on = (target, type, handle, options) => target.addEventListener(type, handle, options);
  const [solution, search, rows] = [byId("solution"), byId("search"), byId("rows")];

  const hit = (event, act) => {
    const token = event.target.closest(".token");
    if (token) act(Number(token.dataset.i), token.closest(".tokens"));
  };
  on(solution, "pointerover", (event) => {
    if (event.pointerType === "mouse") hit(event, (i, column) => showCard(column, i));
  });
  on(solution, "pointerleave", hideCard);
  on(solution, "click", (event) => hit(event, (i, column) => activate(i, column, { scroll: false })));
  on(solution, "focusin", (event) => {
    if (event.target.matches(".tokens:focus-visible")) activate(state.token ?? 0, event.target);
  });
  on(solution, "focusout", hideCard);
  on(solution, "keydown", (event) => {
    const column = event.target.closest(".tokens");
    const to = column && !modified(event) ? keyTarget(column, state.token ?? 0, event.key) : null;
    if (to === null) return;
    event.preventDefault();
    activate(to, column);
  });

  byId("columns").replaceChildren(...COLUMNS.map(headCell));
  on(byId("columns"), "click", (event) => {
    const key = event.target.closest("button")?.parentElement.dataset.key;
    const down = state.sort.key === key ? !state.sort.down : !["id", "step"].includes(key);
    if (key) update({ sort: { key, down } });
  });
  on(search, "input", () => update({ words: search.value }));
  on(search, "keydown", (event) => { if (event.key === "Enter" && order.length) open(order[0]); });
  on(rows, "click", (event) => {
    const row = event.target.closest("tr");
    if (row) open(Number(row.dataset.index));
  });
  on(rows, "keydown", async (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    await go(by);
    rows.querySelector(".current button")?.focus();
  });

  on(byId("previous"), "click", () => go(-1));
  on(byId("next"), "click", () => go(1));
  on(byId("to-error"), "click", toError);
  on(byId("show-keys"), "click", KEYS["?"]);
  on(byId("scale"), "input", (event) => update({ scale: Number(event.target.value) }));
  for (const view of document.getElementsByName("view")) {
    on(view, "change", () => update({ reading: byId("view-reading").checked }));
  }
  for (const theme of document.getElementsByName("theme")) {
    on(theme, "change", () => {
      document.documentElement.dataset.theme = theme.value;
      drawStrips();
    });
  }
  INDEX.contexts.forEach((_, k) => {
    on(byId(`context-${k}`), "click", () => update({ shown: [k] }));
    on(byId(`beside-${k}`), "change", (event) => {
      const others = state.shown.filter((other) => other !== k);
      update({ shown: event.target.checked ? [...others, k] : others });
    });
    on(byId(`strip-${k}`), "click", (event) => {
      const i = tokenUnder(event);
      update({ shown: state.shown.includes(k) ? state.shown : [k], reading: false });
      activate(i, currentColumn());
    });
  });
  on(window, "resize", drawStrips);
  on(window, "scroll", placeCard, { passive: true, capture: true });
  on(window, "hashchange", followAddress);
  on(window.matchMedia("(prefers-color-scheme: dark)"), "change", drawStrips);
  on(document, "keydown", (event) => {
    if (event.key === "Escape") {
      search.blur();
      hideCard();
    }
    const typing = event.target.matches("input:not([type=radio], [type=checkbox], [type=range])");
    if (!KEYS[event.key] || typing || modified(event) || byId("keys").open) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}

async function start() {
  if (!INDEX.rollouts.length || !INDEX.contexts.length) return;
  TOKENS = (await unpack("tokens")).head;
  listen();
  await followAddress();
  document.documentElement.dataset.ready = "true";
  performance.mark("interactive");
}

start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = `This page could not be shown (${error.message}). It needs a browser of 2024 or later.`;
});
