/* The list of rollouts: their measures under the current context, sorted by a column and narrowed by words. */

const OUTCOMES = { true: "✓ right", false: "✗ wrong", null: "not graded" };
const dashed = (format) => (value) => (value === null ? "–" : format(value));

const nats = (key, label, title) => ({ key, label, title, value: measure(key), format: signed, tinted: true });
const measure = (key) => (row) => row.measures[state.shown[0]]?.[key] ?? null;

const COLUMNS = [
  { key: "id", label: "rollout", title: "", value: (row) => row.id },
  { key: "outcome", label: "answer", title: "graded", value: (row) => row.correct, format: (value) => OUTCOMES[value] },
  { key: "step", label: "error in", title: "first wrong step", value: (row) => row.step,
    format: dashed((step) => `step ${step}`) },
  { key: "tokens", label: "tokens", title: "sampled tokens", value: (row) => row.tokens, format: String },
  nats("mean", "credit", "mean credit of all tokens, nats"),
  nats("before", "before", "mean credit before the error, nats"),
  nats("at", "at the error", "mean credit of the error's tokens, nats"),
  nats("after", "after", "mean credit after the error, nats"),
  { key: "negative", label: "negative", title: "share of tokens with credit below zero", value: measure("negative"),
    format: dashed((share) => `${Math.round(100 * share)} %`) },
];

/** Return the rollouts that match every word, sorted; rows without a value come last. */
function listed() {
  const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find(({ key }) => key === state.sort.key);
  const rows = INDEX.rollouts
    .map((row, index) => ({ index, value: column ? column.value(row) : index, text: row.search }))
    .filter(({ text }) => words.every((word) => text.includes(word)));
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  rows.sort(({ value: a }, { value: b }) => (a === null || b === null
    ? (a === null) - (b === null)
    : (state.sort.down ? -1 : 1) * compare(a, b)));
  return rows.map(({ index }) => index);
}

function headCell({ key, label, title }) {
  const button = element("button", { type: "button", title }, label);
  return element("th", { scope: "col", "data-key": key, "aria-sort": "none" }, button);
}

function listRow(index) {
  const row = INDEX.rollouts[index];
  const cells = COLUMNS.slice(1).map(({ value, format, tinted }) => {
    const content = value(row);
    const sign = !tinted || content === null ? "" : content < 0 ? "below" : "above";
    return element("td", { class: content === false ? "no" : sign }, format(content));
  });
  const button = element("button", { type: "button", tabindex: "-1" }, visible(row.id));
  return element("tr", { "data-index": index }, element("th", { scope: "row" }, button), ...cells);
}

/** Mark the open rollout's row, and make it the list's one stop of the tab key. */
function markCurrent() {
  const rows = [...byId("rows").rows];
  const current = rows.find((row) => Number(row.dataset.index) === state.rollout);
  for (const row of rows) {
    row.classList.toggle("current", row === current);
    const button = row.querySelector("button");
    button.tabIndex = row === (current ?? rows[0]) ? 0 : -1;
    button.setAttribute("aria-current", String(row === current));
  }
  return current;
}
