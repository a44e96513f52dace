/* Pointer, keys and controls. */

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

let sought = null; // the element that had the focus before the search

function search() {
  sought = document.activeElement;
  byId("search").focus();
}

/** Leave the search for where it was called from, or for the open solution. */
function leaveSearch() {
  if (document.activeElement !== byId("search")) return;
  if (sought === null || sought === document.body || !sought.isConnected) sought = currentColumn() ?? byId("reading");
  sought.focus();
}

const KEYS = {
  "/": search,
  j: () => go(1),
  k: () => go(-1),
  c: () => update({ shown: [(state.shown[0] + 1) % INDEX.contexts.length] }),
  s: toggleBeside,
  e: toError,
  r: () => update({ reading: !state.reading }),
  "?": () => byId("keys").showModal(),
};

const modified = (event) => event.ctrlKey || event.metaKey || event.altKey;
const on = (target, type, handle, options) => target.addEventListener(type, handle, options);

/** Call a function with the token and the column under an event, where there are any. */
function hit(event, act) {
  const token = event.target.closest(".token");
  if (token) act(Number(token.dataset.i), token.closest(".tokens"));
}

function listenToSolution() {
  const solution = byId("solution");
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
  on(window, "scroll", placeCard, { passive: true, capture: true });
}

function listenToList() {
  const [search, rows] = [byId("search"), byId("rows")];
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
}

function listenToControls() {
  on(byId("previous"), "click", () => go(-1));
  on(byId("next"), "click", () => go(1));
  on(byId("to-error"), "click", toError);
  on(byId("show-keys"), "click", KEYS["?"]);
  on(byId("scale"), "input", (event) => update({ scale: Number(event.target.value) }));
  for (const view of document.getElementsByName("view")) {
    on(view, "change", () => update({ reading: byId("view-reading").checked }));
  }
  for (const theme of document.getElementsByName("theme")) {
    on(theme, "change", () => { document.documentElement.dataset.theme = theme.value; drawStrips(); });
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
  on(window, "hashchange", followAddress);
  on(window.matchMedia("(prefers-color-scheme: dark)"), "change", drawStrips);
  on(document, "keydown", (event) => {
    if (event.key === "Escape") { leaveSearch(); hideCard(); }
    const typing = event.target.matches("input:not([type=radio], [type=checkbox], [type=range])");
    if (!KEYS[event.key] || typing || modified(event) || byId("keys").open) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}
