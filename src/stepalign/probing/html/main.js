/*
 * The page's state and its keys. One rollout is in the document at a time; what is shown of it follows from
 * `state`, which the address keeps after its `#`, so that a view can be kept or sent.
 */

const state = {
  rollout: 0,
  /** The contexts whose columns are shown; the first is the one that list, strip and card follow. */
  shown: [0],
  token: /** @type {number | null} */ (null),
  scale: INDEX.scale,
  words: "",
  sort: { key: "", down: false },
  reading: false,
};

/** @type {Rollout | undefined} */
let rollout;
let order = /** @type {number[]} */ ([]);
/** Whose card is shown. */
let carded = /** @type {{column: HTMLElement, i: number} | null} */ (null);
/** Counts requests for a rollout: a slower, older one must not be shown over a newer one. */
let request = 0;

const context = () => state.shown[0];
const columns = () => [...document.querySelectorAll("#solution .tokens")];
const currentColumn = () => document.querySelector(`#solution .tokens[data-context="${context()}"]`);

// ── the rollout ─────────────────────────────────────────────────────────────────────────────────────────────

/** Show a rollout. @param {number} index  @param {number | null} [token] */
async function showRollout(index, token = null) {
  request += 1;
  const mine = request;
  const read = await readRollout(index);
  if (mine !== request) return;
  rollout = read;
  state.rollout = index;
  state.token = token !== null && token < rollout.pieces.length ? token : null;
  markCurrent(byId("rows"), index);
  byId("rows").querySelector(".current")?.scrollIntoView({ block: "nearest" });
  showHead();
  showProblem();
  showSolution();
  showAsides();
  remember();
}

function showHead() {
  const row = INDEX.rollouts[state.rollout];
  const mark = rollout.mark;
  byId("title").replaceChildren(visible(row.id));
  byId("facts").textContent = [
    OUTCOMES[row.correct],
    row.finish === "length" ? "cut off at its length" : null,
    mark ? `first wrong in step ${mark.step} (${mark.source === "planted" ? "a planted slip" : "as the critique says"})` : null,
    `${row.tokens.toLocaleString("en")} tokens`,
  ].filter(Boolean).join(" · ");
  const at = order.indexOf(state.rollout);
  byId("previous").disabled = at === 0 || order.length === 0;
  byId("next").disabled = at === order.length - 1 || order.length === 0;
  byId("to-error").disabled = mark === null;
}

function showProblem() {
  const { problem } = rollout;
  byId("problem").replaceChildren(...(problem ? problem.reading.map(build) : ["The problem is not in this probe."]));
}

function showSolution() {
  hideCard();
  byId("reading").hidden = !state.reading;
  byId("solution").hidden = state.reading;
  byId("solution").style.setProperty("--columns", String(state.shown.length));
  if (state.reading) {
    byId("reading").replaceChildren(...rollout.reading.map(build));
    byId("solution").replaceChildren();
  } else {
    byId("solution").replaceChildren(...[...state.shown].sort((a, b) => a - b).map((shown) => solutionColumn(rollout, shown)));
  }
  tintAll();
  if (state.token !== null) activate(state.token, { card: false });
}

function tintAll() {
  for (const column of columns()) tint(column, rollout.credits[column.dataset.context]?.credit ?? null, state.scale);
  drawStrips();
}

function drawStrips() {
  if (!rollout) return; // resized before the first rollout is unpacked
  INDEX.contexts.forEach((_, k) => {
    drawStrip(byId(`strip-${k}`), rollout, rollout.credits[k]?.credit ?? null, state.scale, state.token);
  });
}

/** What is folded below the solution. Each stays open, or closed, from one rollout to the next. */
function showAsides() {
  const open = new Set([...byId("asides").querySelectorAll("details[open]")].map((fold) => fold.dataset.name));
  const folds = [];
  const fold = (name, title, ...content) => {
    folds.push(element("details", { "data-name": name, open: open.has(name) }, element("summary", {}, visible(title)), ...content));
  };
  const { problem, answer } = rollout;
  if (answer?.kind === "critique") {
    fold("critique", `Critique by ${answer.critic}, case ${answer.case}`, element("div", { class: "reading" }, ...answer.reading.map(build)));
  } else if (answer) {
    fold("critique", `No critique: ${answer.reason}`, pre(answer.detail));
  }
  if (problem?.solution) fold("reference", `Reference solution, answer ${problem.answer}`, pre(problem.solution));
  state.shown.forEach((shown) => {
    const credit = rollout.credits[shown];
    if (credit) fold(`prompt-${shown}`, `What the teacher saw under ${INDEX.contexts[shown]}`, pre(credit.prompt));
  });
  byId("asides").replaceChildren(...folds);
}

function pre(text) {
  return element("pre", { dir: "auto", tabindex: "0" }, visible(text));
}

// ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Make a token the active one in every column.
 * @param {number} i
 * @param {{card?: boolean, column?: HTMLElement, scroll?: boolean}} [how]
 */
function activate(i, { card = true, column = currentColumn(), scroll = true } = {}) {
  state.token = i;
  for (const list of columns()) {
    const before = list.querySelector(".active");
    before?.classList.remove("active");
    before?.setAttribute("aria-selected", "false");
    before?.removeAttribute("id");
    before?.removeAttribute("aria-label");
    const token = tokenAt(list, i);
    token.classList.add("active");
    token.setAttribute("aria-selected", "true");
    token.id = `active-${list.dataset.context}`;
    token.setAttribute("aria-label", spoken(rollout, i, Number(list.dataset.context)));
    list.setAttribute("aria-activedescendant", token.id);
  }
  drawStrips();
  remember();
  const token = column && tokenAt(column, i);
  if (!token) return;
  if (scroll) token.scrollIntoView({ block: "nearest" });
  if (card) showCard(column, i);
}

function showCard(column, i) {
  const card = byId("card");
  card.replaceChildren(cardContent(rollout, i, Number(column.dataset.context)));
  card.hidden = false;
  carded = { column, i };
  placeCard(card, tokenAt(column, i));
}

function hideCard() {
  byId("card").hidden = true;
}

/** The card goes with its token, and away with it. */
function followScroll() {
  const card = byId("card");
  if (card.hidden) return;
  const token = tokenAt(carded.column, carded.i);
  const box = token?.getBoundingClientRect();
  if (!box || box.bottom < 0 || box.top > window.innerHeight) hideCard();
  else placeCard(card, token);
}

// ── contexts, scale, list ───────────────────────────────────────────────────────────────────────────────────

/** @param {number[]} shown */
function showContexts(shown) {
  state.shown = shown;
  INDEX.contexts.forEach((_, k) => {
    byId(`context-${k}`).setAttribute("aria-pressed", String(k === context()));
    byId(`beside-${k}`).checked = shown.includes(k);
    byId(`beside-${k}`).disabled = shown.length === 1 && shown[0] === k;
  });
  byId("list-context").replaceChildren(visible(INDEX.contexts[context()]));
  showList();
  showHead();
  showSolution();
  showAsides();
  remember();
}

function showScale() {
  byId("scale").value = String(state.scale);
  byId("scale-value").textContent = `±${state.scale} nats`;
  const shares = [-1, -0.5, -0.15, 0, 0.15, 0.5, 1];
  byId("legend").replaceChildren(...shares.map((part) => {
    const nats = part * state.scale;
    const swatch = element("span", { class: `token ${part > 0 ? "plus" : part < 0 ? "minus" : ""}` }, signed(nats, Math.abs(nats) < 1 ? 2 : 1));
    swatch.style.setProperty("--mix", `${Math.round(STRONGEST * Math.abs(part))}%`);
    swatch.style.setProperty("--line", `${thickness(Math.abs(part))}px`);
    return swatch;
  }));
}

function showList() {
  order = listed(state.words, state.sort, context());
  listRows(byId("rows"), order, context(), state.rollout);
  byId("count").textContent = order.length === INDEX.rollouts.length
    ? `${order.length} rollouts`
    : `${order.length} of ${INDEX.rollouts.length} rollouts`;
  for (const head of document.querySelectorAll("#columns th")) {
    const sorted = head.dataset.key === state.sort.key;
    head.setAttribute("aria-sort", sorted ? (state.sort.down ? "descending" : "ascending") : "none");
  }
}

/** Go to the rollout that stands `by` places further down the list. */
function go(by) {
  const at = order.indexOf(state.rollout);
  const to = at < 0 ? 0 : at + by;
  if (to >= 0 && to < order.length) return showRollout(order[to]);
  return undefined;
}

// ── the address ─────────────────────────────────────────────────────────────────────────────────────────────

function remember() {
  const kept = new URLSearchParams({ rollout: String(state.rollout + 1), contexts: state.shown.map((k) => k + 1).join("-") });
  if (state.token !== null) kept.set("token", String(state.token + 1));
  if (state.reading) kept.set("view", "reading");
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const within = (text, size) => (/^\d+$/.test(text ?? "") && Number(text) >= 1 && Number(text) <= size ? Number(text) - 1 : null);
  const shown = (kept.get("contexts") ?? "").split("-").map((k) => within(k, INDEX.contexts.length)).filter((k) => k !== null);
  if (shown.length) state.shown = [...new Set(shown)];
  state.reading = kept.get("view") === "reading";
  byId(state.reading ? "view-reading" : "view-tokens").checked = true;
  return { index: within(kept.get("rollout"), INDEX.rollouts.length) ?? 0, token: within(kept.get("token"), 1e9) };
}

// ── events ──────────────────────────────────────────────────────────────────────────────────────────────────

/** @param {Event} event */
function hit(event) {
  const token = /** @type {HTMLElement} */ (event.target).closest?.("#solution .token");
  return token ? { column: token.closest(".tokens"), i: Number(token.dataset.i) } : null;
}

function listenToSolution() {
  const solution = byId("solution");
  solution.addEventListener("pointerover", (event) => {
    const found = hit(event);
    if (found && event.pointerType === "mouse") showCard(found.column, found.i);
  });
  solution.addEventListener("pointerleave", hideCard);
  solution.addEventListener("click", (event) => {
    const found = hit(event);
    if (found) activate(found.i, { column: found.column, scroll: false });
  });
  solution.addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens:focus-visible")) activate(state.token ?? 0, { column: event.target });
  });
  solution.addEventListener("focusout", hideCard);
  solution.addEventListener("keydown", (event) => {
    const column = event.target.closest(".tokens");
    if (!column || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = keyTarget(rollout, column, state.token ?? 0, event.key);
    if (to === null) return;
    event.preventDefault();
    activate(to, { column });
  });
}

function listenToList() {
  listHead(byId("columns"), (key) => {
    state.sort = { key, down: state.sort.key === key ? !state.sort.down : !["id", "step"].includes(key) };
    showList();
    showHead();
  });
  byId("search").addEventListener("input", (event) => {
    state.words = event.target.value;
    showList();
    showHead();
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && order.length) showRollout(order[0]);
  });
  const rows = byId("rows");
  rows.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) showRollout(Number(row.dataset.index));
  });
  rows.addEventListener("keydown", async (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    await go(by);
    rows.querySelector(".current button")?.focus();
  });
}

function listenToControls() {
  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  byId("to-error").addEventListener("click", toError);
  byId("scale").addEventListener("input", (event) => {
    state.scale = Number(event.target.value);
    showScale();
    tintAll();
  });
  for (const view of document.getElementsByName("view")) {
    view.addEventListener("change", () => setReading(byId("view-reading").checked));
  }
  INDEX.contexts.forEach((_, k) => {
    byId(`context-${k}`).addEventListener("click", () => showContexts([k]));
    byId(`beside-${k}`).addEventListener("change", (event) => {
      const others = state.shown.filter((shown) => shown !== k);
      showContexts(event.target.checked ? [...others, k] : others);
    });
    byId(`strip-${k}`).addEventListener("click", (event) => {
      const i = tokenUnder(event, event.currentTarget, rollout);
      if (!state.shown.includes(k)) showContexts([k]);
      setReading(false);
      activate(i);
    });
  });
  for (const choice of document.getElementsByName("theme")) choice.addEventListener("change", setTheme);
  window.addEventListener("resize", drawStrips);
  window.addEventListener("scroll", followScroll, { passive: true, capture: true });
  window.addEventListener("hashchange", () => {
    const { index, token } = recall();
    showRollout(index, token).then(() => showContexts(state.shown));
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawStrips);
}

function setReading(reading) {
  if (state.reading === reading) return;
  state.reading = reading;
  byId(reading ? "view-reading" : "view-tokens").checked = true;
  showSolution();
  remember();
}

function setTheme() {
  document.documentElement.dataset.theme = document.querySelector('input[name="theme"]:checked').value;
  drawStrips();
}

function toError() {
  if (!rollout.mark) return;
  setReading(false);
  currentColumn().focus();
  activate(rollout.mark.first);
}

const KEYS = {
  "/": () => byId("search").focus(),
  j: () => go(1),
  k: () => go(-1),
  c: () => showContexts([(context() + 1) % INDEX.contexts.length]),
  s: () => showContexts(state.shown.length > 1 ? [context()] : [context(), ...INDEX.contexts.keys().filter((k) => k !== context())].slice(0, 4)),
  e: toError,
  r: () => setReading(!state.reading),
  "?": () => byId("keys").showModal(),
};

/** Keys that work everywhere but in a field. */
function listenToKeys() {
  byId("show-keys").addEventListener("click", KEYS["?"]);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (document.activeElement === byId("search")) byId("search").blur();
      hideCard();
      return;
    }
    const typing = event.target.matches("input:not([type=radio], [type=checkbox], [type=range]), textarea, select");
    const act = KEYS[event.key];
    if (!act || typing || event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    event.preventDefault();
    act();
  });
}

async function start() {
  if (!INDEX.rollouts.length || !INDEX.contexts.length) return;
  const { index, token } = recall();
  listenToList();
  listenToControls();
  listenToSolution();
  listenToKeys();
  showScale();
  await readTokens();
  await showRollout(index, token);
  showContexts(state.shown);
  document.documentElement.dataset.ready = "true";
  performance.mark("interactive");
}

start().catch((error) => {
  byId("trouble").hidden = false;
  byId("trouble").textContent = `This page could not be shown (${error.message}). It needs a browser of 2024 or later.`;
});
