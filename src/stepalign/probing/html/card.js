/*
 * The card: one token's numbers under every context, and what student and teacher would have said in its place.
 */

/**
 * @param {Rollout} rollout  @param {number} i  the token  @param {number} context  the one whose list is shown
 * @returns {DocumentFragment}
 */
function cardContent(rollout, i, context) {
  const card = document.createDocumentFragment();
  const where = rollout.sections.filter((section) => section.first <= i).at(-1);
  const mark = rollout.mark;
  const wrong = mark && i >= mark.first && i < mark.last;
  const said = [`token ${i + 1} of ${rollout.pieces.length}`, where?.label, wrong && "in the error"];
  card.append(
    element("p", { class: "card-token" },
      element("b", {}, oneLine(rollout.pieces[i] || bareLabel(rollout, i))),
      element("small", {}, said.filter(Boolean).join(", "))),
    numbers(rollout, i, context),
  );
  const credit = rollout.credits[context];
  if (credit?.studentTop && credit.teacherTop) {
    card.append(element("div", { class: "tops" },
      topList("Student", credit.studentTop, credit.student, rollout.ids, i),
      topList(`Teacher, ${INDEX.contexts[context]}`, credit.teacherTop, credit.teacher, rollout.ids, i)));
  }
  return card;
}

/** The sampled token's credit and probabilities, one row a context. */
function numbers(rollout, i, context) {
  const body = element("tbody");
  rollout.credits.forEach((credit, k) => {
    if (credit === null) return;
    const nats = credit.credit[i];
    body.append(element("tr", { class: k === context ? "current" : "" },
      element("th", { scope: "row" }, visible(INDEX.contexts[k])),
      element("td", { class: nats < 0 ? "credit below" : "credit above" }, signed(nats, 3)),
      element("td", {}, logarithm(credit.teacher[i])),
      element("td", {}, percent(credit.teacher[i]))));
  });
  const own = rollout.credits[context] ?? rollout.credits.find((credit) => credit !== null);
  if (own) {
    body.append(element("tr", { class: "student" },
      element("th", { scope: "row" }, "student"),
      element("td", {}, "–"),
      element("td", {}, logarithm(own.student[i])),
      element("td", {}, percent(own.student[i]))));
  }
  const head = ["", "A", "log p", "p"].map((name) => element("th", { scope: "col" }, name));
  head[1].append(element("sub", {}, "t"));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), body);
}

/** The likeliest tokens in one view, and below them the sampled one where it is not among them. */
function topList(title, top, logs, ids, i) {
  const rows = [];
  let sampled = false;
  for (let k = i * top.size; k < (i + 1) * top.size; k += 1) {
    if (k > i * top.size && top.ids[k] === top.ids[k - 1]) break;
    const hit = top.ids[k] === ids[i];
    sampled ||= hit;
    rows.push(topRow(TOKENS[top.ids[k]], top.logs[k], hit));
  }
  if (!sampled) rows.push(element("li", { "aria-hidden": "true" }, "…"), topRow(TOKENS[ids[i]], logs[i], true));
  return element("div", {}, element("h5", {}, visible(title)), element("ol", {}, ...rows));
}

function topRow(text, log, sampled) {
  const row = element("li", { class: sampled ? "sampled" : "" },
    element("code", {}, oneLine(text)), element("span", {}, percent(log)));
  if (sampled) row.append(element("em", {}, "sampled"));
  row.style.setProperty("--share", `${100 * Math.exp(log)}%`);
  return row;
}

/**
 * Put the card beside a token: below its line, above it where there is no room, and within the window.
 * Where the window is narrow the style sheet docks it at the bottom instead.
 */
function placeCard(card, token) {
  const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const size = card.getBoundingClientRect();
  const gap = 8;
  const left = Math.max(gap, Math.min(box.left, window.innerWidth - size.width - gap));
  const below = box.bottom + gap + size.height <= window.innerHeight;
  const top = below ? box.bottom + gap : Math.max(gap, box.top - size.height - gap);
  card.style.left = `${left}px`;
  card.style.top = `${top}px`;
}

/** What a screen reader is told of the active token. */
function spoken(rollout, i, context) {
  const credit = rollout.credits[context];
  const name = rollout.pieces[i].trim() || bareLabel(rollout, i);
  if (credit === null) return `${name}, no credit under this context`;
  return `${name.replace(HIDDEN, "")}, credit ${signed(credit.credit[i])} nats under ${INDEX.contexts[context]}, ` +
    `student ${percent(credit.student[i])}, teacher ${percent(credit.teacher[i])}`;
}
