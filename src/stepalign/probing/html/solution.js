/*
 * The solution under one context: tokens tinted by credit, in the steps that they belong to.
 *
 * A column is one listbox: a single stop of the tab key, in which arrow keys move an active token. The sign of
 * a token's credit is its hue and also a line, above the token for credit above zero and below it for credit
 * below; the magnitude is the tint's strength and the line's thickness.
 */

/** Share of the hue in the background of a token at the end of the scale. */
const STRONGEST = 62;

/**
 * @param {Rollout} rollout
 * @param {number} context
 * @returns {HTMLElement}
 */
function solutionColumn(rollout, context) {
  const name = INDEX.contexts[context];
  const list = element("div", {
    class: "tokens",
    role: "listbox",
    tabindex: "0",
    dir: "auto",
    "aria-label": `Solution, tokens tinted by credit under ${name}`,
    "data-context": String(context),
  });
  const bounds = rollout.sections.map((section) => section.first);
  rollout.sections.forEach((section, k) => {
    const end = bounds[k + 1] ?? rollout.pieces.length;
    const wrong = rollout.mark !== null && section.step === rollout.mark.step;
    const named = { role: "group", "aria-label": stepName(section, wrong) };
    const group = element("div", { ...named, class: wrong ? "step wrong" : "step" });
    group.append(element("span", { class: "gutter", "aria-hidden": "true", "data-label": section.label }));
    for (let i = section.first; i < end; i += 1) group.append(tokenElement(rollout, i));
    list.append(group);
  });
  return element("section", { class: "column" }, element("h4", {}, visible(name)), list);
}

function stepName(section, wrong) {
  return (section.label || "Before step 1") + (wrong ? ", the first wrong step" : "");
}

function tokenElement(rollout, i) {
  const piece = rollout.pieces[i];
  const made = element("span", { class: "token", role: "option", "data-i": String(i), "aria-selected": "false" });
  if (piece === "") {
    made.classList.add("bare");
    made.dataset.label = bareLabel(rollout, i);
  }
  piece.split("\n").forEach((line, k) => {
    if (k > 0) made.append(element("i", { class: "break" }), "\n");
    if (line) made.append(visible(line));
  });
  const mark = rollout.mark;
  if (mark && i >= mark.first && i < mark.last) {
    made.classList.add("error");
    if (i === mark.first) made.classList.add("first");
    if (i === mark.last - 1) made.classList.add("last");
  }
  return made;
}

/** What stands for a token without text of its own: a part of a character, or the token that ended it. */
function bareLabel(rollout, i) {
  const text = TOKENS[rollout.ids[i]];
  return text.includes("\ufffd") ? "▯" : text.replace(HIDDEN, "▯") || "▯";
}

/**
 * Tint every token of a column.
 * @param {HTMLElement} column
 * @param {Float32Array | null} credit  null where the context has no credit for this rollout
 * @param {number} scale  the credit in nats at which a tint is strongest
 */
function tint(column, credit, scale) {
  for (const token of column.querySelectorAll(".token")) {
    const share = credit === null ? 0 : credit[Number(token.dataset.i)] / scale;
    const size = Math.min(1, Math.abs(share));
    token.classList.toggle("plus", share > 0);
    token.classList.toggle("minus", share < 0);
    token.style.setProperty("--mix", `${Math.round(STRONGEST * size)}%`);
    token.style.setProperty("--line", `${thickness(size)}px`);
  }
}

/** @param {number} size  magnitude as a share of the scale */
function thickness(size) {
  return size < 0.1 ? 0 : size < 0.4 ? 1 : size < 0.8 ? 2 : 3;
}

/** @returns {HTMLElement | null} */
function tokenAt(column, i) {
  return column.querySelector(`.token[data-i="${i}"]`);
}

/**
 * The token in the line above or below, nearest to the active one's middle.
 * @param {HTMLElement} column  @param {number} i  @param {1 | -1} direction
 */
function lineNeighbour(column, i, direction) {
  const tokens = [...column.querySelectorAll(".token")];
  const from = tokens[i].getClientRects()[0];
  if (!from) return i;
  const middle = from.left + from.width / 2;
  let line = null;
  let best = i;
  let least = Infinity;
  for (let k = i + direction; k >= 0 && k < tokens.length; k += direction) {
    const box = tokens[k].getClientRects()[0];
    if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > from.height / 2) break;
    const distance = Math.abs(box.left + box.width / 2 - middle);
    if (distance < least) [least, best] = [distance, k];
  }
  return best;
}

/** Where an arrow or paging key leads from token `i`; null for other keys. */
function keyTarget(rollout, column, i, key) {
  const last = rollout.pieces.length - 1;
  const firsts = rollout.sections.map((section) => section.first);
  switch (key) {
    case "ArrowLeft": return Math.max(0, i - 1);
    case "ArrowRight": return Math.min(last, i + 1);
    case "ArrowUp": return lineNeighbour(column, i, -1);
    case "ArrowDown": return lineNeighbour(column, i, 1);
    case "Home": return 0;
    case "End": return last;
    case "PageUp": return firsts.filter((first) => first < i).at(-1) ?? 0;
    case "PageDown": return firsts.find((first) => first > i) ?? last;
    default: return null;
  }
}
