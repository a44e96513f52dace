/* The page's state and its display. One rollout is in the document at a time; the address keeps the state after `#`. */

/** `shown`: the contexts whose columns are shown. List, card and keys follow the first. */
const state = { rollout: -1, shown: [INDEX.first.context], token: null, reading: false, scale: INDEX.scale, words: "" };
state.sort = { key: "", down: false };
let displayed = {}; // the state in the document
let rollout = null; // the open rollout's content
let order = []; // the listed rollouts' indexes
let TOKENS = {}; // texts by id
let carded = null; // the token whose card is shown
let requests = 0;

const SOURCES = { planted: "a planted slip", human: "as people marked it", critique: "as the critique says" };

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
  const request = ++requests;
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
  const refocus = focused();
  if (listing) showList();
  if (listing || opened) showPlace(opened);
  if (opened) showHead();
  if (rebuilt) {
    showSolution();
    showAsides();
  }
  if (rescaled) showScale();
  if (rebuilt || rescaled) tintTokens();
  showActive();
  drawStrips();
  refocus();
  history.replaceState(null, "", `#${address()}`);
}

/** Return a function that puts the focus back where it is now, if its element is replaced in the meantime. */
function focused() {
  const held = document.activeElement;
  const [column, row] = [held.closest(".tokens, #reading"), held.closest("#rows tr")];
  return () => {
    if (held.isConnected && held.getClientRects().length) return;
    if (row) (document.querySelector(`#rows tr[data-index="${row.dataset.index}"] button`) ?? byId("search")).focus();
    if (!column) return;
    const same = columns().find(({ dataset }) => dataset.context === column.dataset.context);
    (same ?? currentColumn() ?? byId("reading")).focus({ preventScroll: true });
  };
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
  // A button that is disabled loses the focus.
  byId("previous").ariaDisabled = [undefined, state.rollout].includes(order[0]);
  byId("next").ariaDisabled = [undefined, state.rollout].includes(order.at(-1));
}

function showHead() {
  const { id, correct, finish, tokens } = INDEX.rollouts[state.rollout];
  const { mark, problem } = rollout;
  byId("title").replaceChildren(visible(id));
  byId("facts").textContent = [
    OUTCOMES[correct],
    finish === "length" && "cut off at its length",
    mark && `first wrong in step ${mark.step}, ${SOURCES[mark.source]}`,
    `${tokens.toLocaleString("en")} tokens`,
  ].filter(Boolean).join(" · ");
  byId("to-error").ariaDisabled = mark === null;
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
  if (problem?.solution) folds.unshift(fold("reference", problem.answer ? `Reference solution, answer ${problem.answer}` : "Reference solution", pre(problem.solution)));
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
    for (const option of [before, token].filter(Boolean)) {
      option.classList.toggle("active", option === token);
      option.setAttribute("aria-selected", String(option === token));
      ["id", "aria-label"].forEach((name) => option.removeAttribute(name));
    }
    if (!token) continue;
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
  return open(below(kept.get("rollout"), INDEX.rollouts.length) ?? INDEX.first.rollout, {
    token: below(kept.get("token"), Infinity),
    shown: shown.length ? shown : state.shown,
    reading: kept.get("view") === "reading",
  });
}

async function start() {
  if (!INDEX.rollouts.length || !INDEX.contexts.length) return;
  TOKENS = (await unpack("tokens")).head;
  listenToSolution();
  listenToList();
  listenToControls();
  await followAddress();
  document.documentElement.dataset.ready = "true";
  performance.mark("interactive");
}

start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = `This page could not be shown (${error.message}). It needs a browser of 2024 or later.`;
});
