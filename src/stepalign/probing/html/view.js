/*
 * The page's state and what is shown of it. One rollout is in the document at a time; what is shown of it follows from
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

// ── the rollout ────────────────────────────────────────────────────────────────────────────────────────

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
    mark && `first wrong in step ${mark.step}, ${mark.source === "planted" ? "a planted slip" : "as the critique says"}`,
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
    const inOrder = [...state.shown].sort((a, b) => a - b);
    byId("solution").replaceChildren(...inOrder.map((shown) => solutionColumn(rollout, shown)));
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
    const summary = element("summary", {}, visible(title));
    folds.push(element("details", { "data-name": name, open: open.has(name) }, summary, ...content));
  };
  const { problem, answer } = rollout;
  if (answer?.kind === "critique") {
    const read = element("div", { class: "reading", dir: "auto" }, ...answer.reading.map(build));
    fold("critique", `Critique by ${answer.critic}, case ${answer.case}`, read);
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

// ── tokens ─────────────────────────────────────────────────────────────────────────────────────────────

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

// ── contexts, scale, list ──────────────────────────────────────────────────────────────────────────────

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
    const sign = part > 0 ? "plus" : part < 0 ? "minus" : "";
    const swatch = element("span", { class: `token ${sign}` }, signed(nats, Math.abs(nats) < 1 ? 2 : 1));
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

// ── the address ────────────────────────────────────────────────────────────────────────────────────────

function remember() {
  const contexts = state.shown.map((k) => k + 1).join("-");
  const kept = new URLSearchParams({ rollout: String(state.rollout + 1), contexts });
  if (state.token !== null) kept.set("token", String(state.token + 1));
  if (state.reading) kept.set("view", "reading");
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  const within = (text, size) => (/^[1-9]\d*$/.test(text ?? "") && Number(text) <= size ? Number(text) - 1 : null);
  const asked = (kept.get("contexts") ?? "").split("-").map((k) => within(k, INDEX.contexts.length));
  const shown = asked.filter((k) => k !== null);
  if (shown.length) state.shown = [...new Set(shown)];
  state.reading = kept.get("view") === "reading";
  byId(state.reading ? "view-reading" : "view-tokens").checked = true;
  return { index: within(kept.get("rollout"), INDEX.rollouts.length) ?? 0, token: within(kept.get("token"), 1e9) };
}
