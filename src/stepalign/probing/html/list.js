/*
 * The list of rollouts: their measures under the current context, sorted by a click on a column's head and
 * narrowed by words.
 */

/** @typedef {{key: string, label: string, title: string, value: (row: object, context: number) => any,
 *    shown?: (value: any) => string, tinted?: boolean}} Column */

const OUTCOMES = { true: "✓ right", false: "✗ wrong", null: "not graded" };

const outcome = (value) => OUTCOMES[value];
const stepOf = (value) => (value === null ? "–" : `step ${value}`);
const measure = (key) => (row, context) => row.measures[context]?.[key] ?? null;
const share = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);

const credit = (key, label, title) => ({ key, label, title, value: measure(key), shown: signed, tinted: true });

/** @type {Column[]} */
const COLUMNS = [
  { key: "id", label: "rollout", title: "", value: (row) => row.id },
  { key: "outcome", label: "answer", title: "graded by the reference", value: (row) => row.correct, shown: outcome },
  { key: "step", label: "error in", title: "the first wrong step", value: (row) => row.step, shown: stepOf },
  { key: "tokens", label: "tokens", title: "sampled tokens", value: (row) => row.tokens, shown: String },
  credit("mean", "credit", "mean credit of all tokens, nats"),
  credit("before", "before", "mean credit before the error, nats"),
  credit("at", "at the error", "mean credit of the error's tokens, nats"),
  credit("after", "after", "mean credit after the error, nats"),
  {
    key: "negative",
    label: "negative",
    title: "share of tokens with credit below zero",
    value: measure("negative"),
    shown: share,
  },
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
  const sign = sort.down ? -1 : 1;
  rows.sort((a, b) => sign * compare(a.value, b.value) || missingLast(a.value, b.value) || a.index - b.index);
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
    for (const { key, value, shown, tinted } of COLUMNS) {
      const found = value(row, context);
      if (key === "id") {
        const button = element("button", { type: "button", tabindex: "-1" }, visible(row.id));
        made.append(element("th", { scope: "row" }, button));
      } else {
        const sign = !tinted || found === null ? "" : found < 0 ? "below" : "above";
        made.append(element("td", { class: found === false ? "no" : sign }, shown(found)));
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
