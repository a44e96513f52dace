/*
 * The open rollout: its tokens under each context, a token's card, and the strips. A column is one listbox: a single stop
 * of the tab key, in which keys move an active token. A token's credit is a hue and a line, above the token for positive
 * and below it for negative credit; the magnitude is the tint's strength and the line's thickness.
 */

/** Tint a token or a swatch of the legend by its credit. */
function tint(token, nats) {
  const size = Math.min(1, Math.abs(nats) / state.scale);
  token.classList.toggle("plus", nats > 0);
  token.classList.toggle("minus", nats < 0);
  token.style.setProperty("--mix", `${Math.round(62 * size)}%`);
  token.style.setProperty("--line", `${size < 0.1 ? 0 : size < 0.4 ? 1 : size < 0.8 ? 2 : 3}px`);
}

/** Build the column of context `k`. */
function solutionColumn(k) {
  const label = `Solution, tokens tinted by credit under ${INDEX.contexts[k]}`;
  const attributes = { class: "tokens", role: "listbox", tabindex: "0", dir: "auto", "aria-label": label };
  const list = element("div", { ...attributes, "data-context": k });
  rollout.sections.forEach(({ label, step, first }, s) => {
    const wrong = rollout.mark?.step === step;
    const name = (label || "Before step 1") + (wrong ? ", the first wrong step" : "");
    const group = element("div", { role: "group", "aria-label": name, class: wrong ? "step wrong" : "step" });
    group.append(element("span", { class: "gutter", "aria-hidden": "true", "data-label": label }));
    const end = rollout.sections[s + 1]?.first ?? rollout.pieces.length;
    for (let i = first; i < end; i += 1) group.append(tokenElement(i));
    list.append(group);
  });
  return element("section", { class: "column" }, element("h4", {}, visible(INDEX.contexts[k])), list);
}

function tokenElement(i) {
  const { pieces, mark } = rollout;
  const token = element("span", { class: "token", role: "option", "data-i": i, "aria-selected": "false" });
  token.classList.toggle("bare", pieces[i] === "");
  token.classList.toggle("error", inError(i));
  token.classList.toggle("first", i === mark?.first && inError(i));
  token.classList.toggle("last", inError(i) && i === mark.last - 1);
  if (pieces[i] === "") token.dataset.label = bareLabel(i);
  pieces[i].split("\n").forEach((line, k) => {
    if (k > 0) token.append(element("i", { class: "break" }), "\n");
    token.append(visible(line));
  });
  return token;
}

const inError = (i) => rollout.mark !== null && i >= rollout.mark.first && i < rollout.mark.last;
const tokenText = (id) => TOKENS[id] ?? `⟨${id}⟩`;
const tokenAt = (column, i) => column?.querySelector(`.token[data-i="${i}"]`);

/** Label a token without text of its own: a part of a character, or the token that ended the solution. */
function bareLabel(i) {
  const text = tokenText(rollout.ids[i]);
  return text.includes("\ufffd") ? "▯" : text.replace(HIDDEN, "▯") || "▯";
}

/** Describe the active token to a screen reader. */
function spoken(i, k) {
  const credit = rollout.credits[k];
  const name = (rollout.pieces[i].trim() || bareLabel(i)).replace(HIDDEN, "");
  if (credit === null) return `${name}, no credit under this context`;
  return `${name}, credit ${signed(credit.values[i])} nats under ${INDEX.contexts[k]}, ` +
    `student ${percent(rollout.student.logs[i])}, teacher ${percent(credit.logs[i])}`;
}

/** Find the token to which a key leads from token `i`; null for other keys. */
function keyTarget(column, i, key) {
  const last = rollout.pieces.length - 1;
  const firsts = rollout.sections.map((section) => section.first);
  const targets = {
    ArrowLeft: () => Math.max(0, i - 1),
    ArrowRight: () => Math.min(last, i + 1),
    ArrowUp: () => lineNeighbour(column, i, -1),
    ArrowDown: () => lineNeighbour(column, i, 1),
    Home: () => 0,
    End: () => last,
    PageUp: () => firsts.filter((first) => first < i).at(-1) ?? 0,
    PageDown: () => firsts.find((first) => first > i) ?? last,
  };
  return targets[key]?.() ?? null;
}

/** Find the token in the line above (−1) or below (1) that is nearest to the middle of token `i`. */
function lineNeighbour(column, i, direction) {
  const boxes = [...column.querySelectorAll(".token")].map((token) => token.getClientRects()[0]);
  const from = boxes[i];
  const middle = (box) => box.left + box.width / 2;
  const down = (box) => direction * (box.top - from.top);
  const beyond = [...boxes.keys()].filter((k) => boxes[k] && down(boxes[k]) > from.height / 2);
  const line = Math.min(...beyond.map((k) => down(boxes[k]))) + from.height / 2;
  const away = (k) => Math.abs(middle(boxes[k]) - middle(from));
  return beyond.filter((k) => down(boxes[k]) <= line).sort((a, b) => away(a) - away(b))[0] ?? i;
}

// ── the card: a token's numbers under every context, and the likeliest tokens in its place ──────────────

/** Fill the card for token `i`, with the likeliest tokens under context `k`. */
function cardContent(i, k) {
  const { pieces, sections, credits, student } = rollout;
  const section = sections.filter(({ first }) => first <= i).at(-1);
  const place = [`token ${i + 1} of ${pieces.length}`, section.label, inError(i) && "in the error"].filter(Boolean);
  const row = (name, attributes, nats, log) => element("tr", attributes,
    element("th", { scope: "row" }, visible(name)),
    element("td", { class: nats === null ? "" : nats < 0 ? "below" : "above" }, signed(nats, 3)),
    element("td", {}, signed(log, 3)),
    element("td", {}, percent(log)));
  const rows = credits.flatMap((credit, c) => credit === null ? [] : [
    row(INDEX.contexts[c], { class: c === k ? "current" : "" }, credit.values[i], credit.logs[i])]);
  if (student) rows.push(row("student", { class: "student" }, null, student.logs[i]));
  const heads = [[], ["A", element("sub", {}, "t")], ["log p"], ["p"]];
  const head = element("tr", {}, ...heads.map((parts) => element("th", { scope: "col" }, ...parts)));
  const content = [
    element("p", { class: "card-token" },
      element("b", {}, oneLine(pieces[i] || bareLabel(i))), element("small", {}, place.join(", "))),
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  ];
  if (credits[k]?.top && student.top) {
    content.push(element("div", { class: "tops" },
      topList("Student", student, i), topList(`Teacher, ${INDEX.contexts[k]}`, credits[k], i)));
  }
  return content;
}

/** List the likeliest tokens, and below them the sampled one where it is not among them. */
function topList(title, { top, logs }, i) {
  const sampled = rollout.ids[i];
  const size = top.ids.length / logs.length;
  const ids = top.ids.slice(i * size, (i + 1) * size);
  const rows = ids.map((id, k) => topRow(id, top.logs[i * size + k], id === sampled));
  if (!ids.includes(sampled)) {
    rows.push(element("li", { "aria-hidden": "true" }, "…"), topRow(sampled, logs[i], true));
  }
  return element("div", {}, element("h5", {}, visible(title)), element("ol", {}, ...rows));
}

function topRow(id, log, sampled) {
  const row = element("li", { class: sampled ? "sampled" : "" },
    element("code", {}, oneLine(tokenText(id))), element("span", {}, percent(log)));
  if (sampled) row.append(element("em", {}, "sampled"));
  row.style.setProperty("--share", `${100 * Math.exp(log)}%`);
  return row;
}

/**
 * Place the card below its token, above it where there is no room, and within the window; hide it with its token.
 * In a narrow window the style sheet docks it at the bottom.
 */
function placeCard() {
  const card = byId("card");
  if (card.hidden) return;
  const box = carded.getClientRects()[0];
  card.hidden = !box || box.bottom < 0 || box.top > window.innerHeight;
  if (card.hidden) return;
  const { width, height } = card.getBoundingClientRect();
  const below = box.bottom + 16 + height <= window.innerHeight;
  card.style.left = `${Math.max(8, Math.min(box.left, window.innerWidth - width - 8))}px`;
  card.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
}

// ── the strips: credit along the whole solution, one a context, on one scale ────────────────────────────

function drawStrip(canvas, credit) {
  const { width, height } = canvas.getBoundingClientRect();
  if (width === 0) return;
  const dots = window.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.round(width * dots), Math.round(height * dots)];
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  const fill = (name, ...rectangle) => {
    canvas.style.color = `var(${name})`; // a canvas has no variables: the style sheet resolves it
    pen.fillStyle = getComputedStyle(canvas).color;
    pen.fillRect(...rectangle);
  };
  const { pieces, mark, sections } = rollout;
  const [step, middle] = [width / pieces.length, height / 2];
  if (mark) fill("--strip-error", mark.first * step - 1, 0, Math.max(3, (mark.last - mark.first) * step + 2), height);
  for (const { first } of sections) fill("--rule", first * step, 0, 1, height);
  for (const sign of [1, -1]) {
    fill(sign > 0 ? "--plus" : "--minus", 0, 0, 0, 0); // the colour, once for all bars of the sign
    (credit?.values ?? []).forEach((nats, i) => {
      const size = Math.min(1, Math.max(0, sign * nats) / state.scale) * (middle - 1);
      pen.fillRect(i * step, sign > 0 ? middle - size : middle, Math.max(step - 0.25, 1), size);
    });
  }
  fill("--muted", 0, middle - 0.5, width, 1);
  if (state.token !== null) fill("--ink", (state.token + 0.5) * step - 0.75, 0, 1.5, height);
}

function drawStrips() {
  if (rollout) INDEX.contexts.forEach((_, k) => drawStrip(byId(`strip-${k}`), rollout.credits[k]));
}

/** Find the token under a click on a strip. */
function tokenUnder(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const at = Math.floor(((event.clientX - box.left) / box.width) * rollout.pieces.length);
  return Math.max(0, Math.min(rollout.pieces.length - 1, at));
}
