/*
 * The list of rollouts: their measures under the current context, sorted by a click on a column's head and
 * narrowed by words.
 */

/** @typedef {{key: string, label: string, title: string, value: (row: object, context: number) => any,
 *    shown?: (value: any) => string}} Column */

const OUTCOMES = { true: "✓ right", false: "✗ wrong", null: "not graded" };

const measure = (key) => (row, context) => row.measures[context]?.[key] ?? null;
const share = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

/** @type {Column[]} */
const COLUMNS = [
  { key: "id", label: "rollout", title: "", value: (row) => row.id },
  { key: "outcome", label: "answer", title: "graded against the reference", value: (row) => row.correct, shown: (value) => OUTCOMES[value] },
  { key: "step", label: "error in", title: "the first wrong step", value: (row) => row.step, shown: (value) => (value === null ? "–" : `step ${value}`) },
  { key: "tokens", label: "tokens", title: "sampled tokens", value: (row) => row.tokens, shown: String },
  { key: "mean", label: "credit", title: "mean credit of all tokens, nats", value: measure("mean"), shown: signed },
  { key: "before", label: "before", title: "mean credit before the error, nats", value: measure("before"), shown: signed },
  { key: "at", label: "at the error", title: "mean credit of the error's tokens, nats", value: measure("at"), shown: signed },
  { key: "after", label: "after", title: "mean credit after the error, nats", value: measure("after"), shown: signed },
  { key: "negative", label: "negative", title: "share of tokens with credit below zero", value: measure("negative"), shown: share },
];

/**
 * Indexes of the rollouts that match every word, in order.
 * @param {string} words  @param {{key: string, down: boolean}} sort  @param {number} context
 */
function listed(words, sort, context) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const column = COLUMNS.find((found) => found.key === sort.key);
  const rows = INDEX.rollouts
    .map((row, index) => ({ index, value: column ? column.value(row, context) : index, text: row.search }))
    .filter(({ text }) => wanted.every((word) => text.includes(word)));
  rows.sort((a, b) => (sort.down ? -1 : 1) * compare(a.value, b.value) || missingLast(a.value, b.value) || a.index - b.index);
  return rows.map((row) => row.index);
}

function compare(a, b) {
  if (a === null || b === null) return 0;
  return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
}

const missingLast = (a, b) => Number(a === null) - Number(b === null);

/** Fill the table's head once. @param {(key: string) => void} onSort */
function listHead(row, onSort) {
  for (const { key, label, title } of COLUMNS) {
    const button = element("button", { type: "button", title }, label);
    button.addEventListener("click", () => onSort(key));
    row.append(element("th", { scope: "col", "data-key": key, "aria-sort": "none" }, button));
  }
}

/**
 * Fill the table's body.
 * @param {HTMLElement} body  @param {number[]} order  @param {number} context  @param {number} current
 */
function listRows(body, order, context, current) {
  body.replaceChildren(...order.map((index) => {
    const row = INDEX.rollouts[index];
    const made = element("tr", { "data-index": String(index) });
    for (const { key, value, shown } of COLUMNS) {
      const found = value(row, context);
      if (key === "id") {
        const button = element("button", { type: "button", tabindex: "-1" }, visible(row.id));
        made.append(element("th", { scope: "row" }, button));
      } else {
        const sign = typeof found === "number" && ["mean", "before", "at", "after"].includes(key) ? (found < 0 ? "below" : "above") : "";
        made.append(element("td", { class: key === "outcome" && found === false ? "no" : sign }, shown(found)));
      }
    }
    return made;
  }));
  markCurrent(body, current);
}

/** Mark the shown rollout's row and make it the list's one stop of the tab key. */
function markCurrent(body, current) {
  for (const row of body.rows) {
    const is = Number(row.dataset.index) === current;
    row.classList.toggle("current", is);
    const button = row.querySelector("button");
    button.tabIndex = is ? 0 : -1;
    if (is) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  if (body.rows.length && !body.querySelector(".current")) body.rows[0].querySelector("button").tabIndex = 0;
}
