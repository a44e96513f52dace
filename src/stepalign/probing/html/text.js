/* Foreign text and numbers as elements: text nodes, and a tree of known elements. Nothing is parsed as HTML. */

const INDEX = JSON.parse(document.getElementById("index").textContent);
const HIDDEN = new RegExp(INDEX.hidden, "gu");

const byId = (id) => document.getElementById(id);

/** Create an element. An attribute that is false is left out. */
function element(tag, attributes = {}, ...children) {
  const created = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) created.setAttribute(name, value === true ? "" : value);
  }
  created.append(...children);
  return created;
}

/** Show control, zero-width and bidirectional characters of a text as their code points. */
function visible(text) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const title = INDEX.names[code] ?? "control character";
    fragment.append(...broken(text.slice(end, match.index)), element("span", { class: "control", title }, `U+${code}`));
    end = match.index + match[0].length;
  }
  fragment.append(...broken(text.slice(end)));
  return fragment;
}

/** Put each 500 characters without a space into a block: a browser lays out a megabyte in one line for many seconds. */
const broken = (text) => text.split(/(\S{500})/u).map((part, i) => (i % 2 ? element("span", { class: "long" }, part) : part));

/** Show a text on one line, with signs for line breaks, tabs and spaces. */
const oneLine = (text) => visible(text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

const pre = (text) => element("pre", { dir: "auto", tabindex: "0" }, visible(text));

/** Build a node from a tree of the reading view: a string, or `[tag, attributes, ...children]`. */
function build(tree) {
  if (typeof tree === "string") return visible(tree);
  const [tag, attributes, ...children] = tree;
  if (!INDEX.elements.includes(tag)) throw new Error(`unknown element ${tag}`);
  const space = INDEX.mathml.includes(tag) ? "http://www.w3.org/1998/Math/MathML" : "http://www.w3.org/1999/xhtml";
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (INDEX.attributes.includes(name)) node.setAttribute(name, value);
  }
  node.append(...children.map(build));
  return node;
}

/** Format nats: `+0.81`, `−1.96`, `0.00`; a dash for a missing value. */
function signed(nats, places = 2) {
  if (nats === null) return "–";
  const digits = Math.abs(nats).toFixed(places);
  return (Number(digits) === 0 ? "" : nats > 0 ? "+" : "−") + digits;
}

/** Format the probability of a logarithm with significant digits: `98.1 %`, `0.042 %`, `3e-7 %`. */
function percent(log) {
  const share = 100 * Math.exp(log);
  return (share >= 10 ? share.toFixed(1) : share >= 0.001 ? share.toPrecision(2) : share.toExponential(0)) + " %";
}
