/*
 * Foreign text and numbers as elements. Nothing here, or anywhere on the page, is ever parsed as HTML: text
 * becomes text nodes, and the reading view is built from a tree of known elements.
 */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const HIDDEN = new RegExp(INDEX.hidden, "gu");
const KNOWN = new Set(INDEX.elements);

/**
 * @param {string} tag
 * @param {Record<string, string | boolean>} [attributes]  false leaves an attribute out
 * @param {...(Node | string)} children
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** @param {string} id */
const byId = (id) => document.getElementById(id);

/**
 * Text in which no character can hide: control, zero-width and bidirectional ones as their code points.
 * @param {string} text
 */
function visible(text) {
  const shown = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const title = INDEX.names[code] ?? "control character";
    shown.append(text.slice(end, match.index), element("span", { class: "control", title }, `U+${code}`));
    end = match.index + match[0].length;
  }
  shown.append(text.slice(end));
  return shown;
}

/** Text on one line, for a label or a list: line breaks and tabs shown as signs. @param {string} text */
function oneLine(text) {
  return visible(text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));
}

/**
 * A tree of the reading view as nodes: a string, or `[tag, attributes, ...children]`.
 * @returns {Node}
 */
function build(tree) {
  if (typeof tree === "string") return visible(tree);
  const [tag, attributes, ...children] = tree;
  if (!KNOWN.has(tag)) throw new Error(`unknown element ${tag}`);
  const made = INDEX.mathml.includes(tag) ? document.createElementNS(MATHML, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (INDEX.attributes.includes(name)) made.setAttribute(name, value);
  }
  made.append(...children.map(build));
  return made;
}

/** `+0.81`, `−1.96`, `0.00`; a dash for what is not there. @param {number | null} nats */
function signed(nats, places = 2) {
  if (nats === null || Number.isNaN(nats)) return "–";
  const digits = Math.abs(nats).toFixed(places);
  return (Number(digits) === 0 ? "" : nats > 0 ? "+" : "−") + digits;
}

/** A log-probability: `−0.035`, and `≤ −65.535` where the scale ends. @param {number} log */
function logarithm(log) {
  return log <= -INDEX.floor ? `≤ −${INDEX.floor}` : signed(log, 3);
}

/** `98.1 %`, `0.042 %`, `3e-7 %`: a probability with digits that mean something. @param {number} log */
function percent(log) {
  const share = 100 * Math.exp(log);
  return (share >= 10 ? share.toFixed(1) : share >= 0.001 ? share.toPrecision(2) : share.toExponential(0)) + " %";
}
