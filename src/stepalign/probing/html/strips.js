/*
 * The strips: credit along the whole solution, one row a context on one scale, to choose a context by.
 */

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Rollout} rollout
 * @param {Float32Array | null} credit
 * @param {number} scale  nats at half the strip's height
 * @param {number | null} active  the active token
 */
function drawStrip(canvas, rollout, credit, scale, active) {
  const { width, height } = canvas.getBoundingClientRect();
  if (width === 0) return;
  const dots = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * dots);
  canvas.height = Math.round(height * dots);
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  // A canvas knows no variables: the style sheet resolves each into the colour of an element.
  const colour = (name) => {
    canvas.style.color = `var(${name})`;
    return getComputedStyle(canvas).color;
  };
  const count = rollout.pieces.length;
  const step = width / count;
  const middle = height / 2;

  if (rollout.mark) {
    pen.fillStyle = colour("--strip-error");
    const { first, last } = rollout.mark;
    pen.fillRect(first * step - 1, 0, Math.max(3, (last - first) * step + 2), height);
  }
  pen.fillStyle = colour("--rule");
  for (const section of rollout.sections) pen.fillRect(section.first * step, 0, 1, height);
  const [plus, minus] = [colour("--plus"), colour("--minus")];
  for (let i = 0; credit !== null && i < count; i += 1) {
    const size = Math.min(1, Math.abs(credit[i]) / scale) * (middle - 1);
    pen.fillStyle = credit[i] < 0 ? minus : plus;
    pen.fillRect(i * step, credit[i] < 0 ? middle : middle - size, Math.max(step - 0.25, 1), size);
  }
  pen.fillStyle = colour("--muted");
  pen.fillRect(0, middle - 0.5, width, 1);
  if (active !== null) {
    pen.fillStyle = colour("--ink");
    pen.fillRect(active * step + step / 2 - 0.75, 0, 1.5, height);
  }
}

/** The token under a click on a strip. */
function tokenUnder(event, canvas, rollout) {
  const box = canvas.getBoundingClientRect();
  const at = Math.floor(((event.clientX - box.left) / box.width) * rollout.pieces.length);
  return Math.max(0, Math.min(rollout.pieces.length - 1, at));
}
