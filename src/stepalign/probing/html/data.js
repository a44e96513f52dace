/*
 * What the page holds: an index that is read at once, and one packed block a rollout, read when it is shown.
 *
 * A block is base64 of zlib of: the length of a JSON head (uint32, little endian), the head, and numbers. The
 * head says where each array of numbers begins (`packing.py` writes all of it).
 */

/**
 * @typedef {{ids: Uint16Array | Uint32Array, logs: Float32Array, size: number}} Top  `size` entries a token
 * @typedef {{prompt: string, student: Float32Array, teacher: Float32Array, credit: Float32Array,
 *   studentTop: Top | null, teacherTop: Top | null}} Credit
 * @typedef {{pieces: string[], ids: Uint16Array | Uint32Array,
 *   sections: {label: string, step: number, first: number}[],
 *   mark: {step: number, first: number, last: number, wrong: number, source: string} | null,
 *   reading: any[], problem: object | null,
 *   answer: object | null, credits: (Credit | null)[]}} Rollout  one credit a context, in the index's order
 */

const INDEX = JSON.parse(document.getElementById("index").textContent);

/** The token table's texts, by the dense ids that the blocks use. */
let TOKENS = /** @type {string[]} */ ([]);

/** @param {string} id  @returns {Promise<ArrayBuffer>} the unpacked content of a data block */
async function unpack(id) {
  const text = document.getElementById(id).textContent.trim();
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** Read the token table. Needed before a rollout's likeliest tokens are shown. */
async function readTokens() {
  TOKENS = JSON.parse(new TextDecoder().decode(await unpack("tokens")));
}

/** @param {number} index  @returns {Promise<Rollout>} */
async function readRollout(index) {
  const buffer = await unpack(`rollout-${index}`);
  const size = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const start = Math.ceil((4 + size) / 4) * 4;
  const arrays = head.arrays.map(({ at, length, type }) => read(buffer, start + at, length, type));
  return {
    ...head,
    ids: arrays[head.ids],
    credits: head.credits.map((credit) => credit && unpackCredit(credit, arrays)),
  };
}

/** Numbers are little endian on every machine a browser runs on. */
function read(buffer, at, length, type) {
  if (type === "u4") return new Uint32Array(buffer, at, length);
  const numbers = new Uint16Array(buffer, at, length);
  return type === "log" ? Float32Array.from(numbers, (steps) => -steps * INDEX.unit) : numbers;
}

function unpackCredit(credit, arrays) {
  const student = arrays[credit.student];
  const teacher = arrays[credit.teacher];
  const top = (names) => names && { ids: arrays[names.ids], logs: arrays[names.logs], size: names.size };
  return {
    prompt: credit.prompt,
    student,
    teacher,
    credit: teacher.map((log, i) => log - student[i]),
    studentTop: top(credit.student_top),
    teacherTop: top(credit.teacher_top),
  };
}
