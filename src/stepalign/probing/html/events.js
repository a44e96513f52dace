/*
 * What pointer and keys do, and the start.
 */

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
  activate(rollout.mark.wrong);
}

/** Up to four contexts side by side, or the current one alone again. */
function besideOrAlone() {
  const others = INDEX.contexts.map((_, k) => k).filter((k) => k !== context());
  showContexts(state.shown.length > 1 ? [context()] : [context(), ...others.slice(0, 3)]);
}

const KEYS = {
  "/": () => byId("search").focus(),
  j: () => go(1),
  k: () => go(-1),
  c: () => showContexts([(context() + 1) % INDEX.contexts.length]),
  s: besideOrAlone,
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
