// Draws the structure of the selected candidate on a canvas: balls and half-bonds, sorted by depth and fading with it.
(function () {
"use strict";
const data = JSON.parse(document.getElementById("structures").textContent);
const find = name => document.getElementById("view-" + name);
const canvas = document.getElementById("view"), context = canvas.getContext("2d");
const rows = Array.from(document.querySelectorAll("tr[data-i]"));
const TOP = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], SIDE = [[1, 0, 0], [0, 0, 1], [0, -1, 0]];
const TILTED = turn(turn(TOP, 0.3, 1, 0), -1.05, 2, 1);
// fit: pixels per Å at which everything is inside the canvas; found anew when something else is shown, kept while turning.
let current = data.candidates[0], rotation = TILTED, zoom = 1, fit = 0;

// A rotation by an angle (radians) in the plane of two screen axes, applied after what was there.
function turn(matrix, angle, a, b) {
  const c = Math.cos(angle), s = Math.sin(angle), out = matrix.map(row => row.slice());
  for (let k = 0; k < 3; k++) {
    out[a][k] = c * matrix[a][k] + s * matrix[b][k];
    out[b][k] = c * matrix[b][k] - s * matrix[a][k];
  }
  return out;
}
const along = (p, q, t) => p.map((x, k) => x + t * (q[k] - x));
const plus = (p, v, t) => p.map((x, k) => x + t * v[k]);

// Colours fade to white with depth (fade) and are lightened or darkened for light and shade.
function mix(hex, target, amount, fade) {
  const out = [1, 3, 5].map(at => {
    const channel = parseInt(hex.slice(at, at + 2), 16);
    const lit = channel + amount * (target - channel);
    return Math.round(lit + fade * (255 - lit));
  });
  return "rgb(" + out.join(",") + ")";
}

// Balls, half-bonds and pieces of cell edges of the cells shown, in Å.
function build(structure) {
  const vectors = [0, 3, 6].map(at => structure.cell.slice(at, at + 3));
  const atoms = structure.symbols.map((_, i) => structure.xyz.slice(3 * i, 3 * i + 3));
  const n = find("doubled").checked ? 2 : 1, balls = [], sticks = [], edges = [];
  // Half a bond, from the surface of its atom on: what points to the viewer must not cross its own ball.
  const stick = (p, q, symbol) => {
    const start = 0.9 * data.elements[symbol][1] / Math.hypot(...plus(q, p, -1));
    if (start < 0.5) sticks.push({p: along(p, q, start), q: along(p, q, 0.5), symbol});
  };
  let third = vectors[2], corner = [0, 0, 0];
  if (structure.sheet) {
    const reach = Math.max(...atoms.map(p => Math.abs(p[2]))) + 0.8;
    if (!find("vacuum").checked) third = [0, 0, 2 * reach];
    corner = third.map(x => -x / 2);
  }
  for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
    const shift = plus(plus([0, 0, 0], vectors[0], a), vectors[1], b), place = p => plus(p, shift, 1);
    atoms.forEach((p, i) => balls.push({p: place(p), symbol: structure.symbols[i]}));
    for (const [i, j, sa, sb, sc] of structure.bonds) {
      const image = (p, sign) => plus(plus(plus(p, vectors[0], sign * sa), vectors[1], sign * sb), vectors[2], sign * sc);
      stick(place(atoms[i]), place(image(atoms[j], 1)), structure.symbols[i]);
      stick(place(atoms[j]), place(image(atoms[i], -1)), structure.symbols[j]);
    }
    const box = [vectors[0], vectors[1], third];
    for (let k = 0; k < 3; k++) for (let m = 0; m < 4; m++) {
      const [u, v] = [box[(k + 1) % 3], box[(k + 2) % 3]];
      const start = plus(plus(place(corner), u, m & 1), v, m >> 1), end = plus(start, box[k], 1);
      for (let s = 0; s < 8; s++) edges.push({p: along(start, end, s / 8), q: along(start, end, (s + 1) / 8)});
    }
  }
  return {balls, sticks, edges};
}

function draw() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!current.structure) {
    context.fillStyle = "#555";
    context.font = "15px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillText("no structure: " + (current.note || "none was stored"), width / 2, height / 2, width - 20);
    return "empty";
  }
  const {balls, sticks, edges} = build(current.structure);
  const center = [0, 1, 2].map(k => balls.reduce((sum, ball) => sum + ball.p[k], 0) / balls.length);
  const turned = p => {
    const d = plus(p, center, -1);
    return rotation.map(row => row[0] * d[0] + row[1] * d[1] + row[2] * d[2]);
  };
  if (!fit) {
    const corners = balls.concat(edges).map(item => turned(item.p)), margin = 1;
    const half = axis => Math.max(...corners.map(r => Math.abs(r[axis]))) + margin;
    fit = Math.min(width / 2 / half(0), height / 2 / half(1));
  }
  const scale = zoom * fit;
  const project = p => {
    const r = turned(p);
    return [width / 2 + scale * r[0], height / 2 - scale * r[1], r[2]];
  };
  const depths = balls.map(ball => project(ball.p)[2]), near = Math.max(...depths), far = Math.min(...depths);
  const fade = z => Math.min(1, Math.max(0, (near - z) / Math.max(near - far, 4))) * 0.5;
  const line = (a, b, thickness, colour) => {
    context.lineWidth = thickness;
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(a[0], a[1]);
    context.lineTo(b[0], b[1]);
    context.stroke();
  };
  const items = balls.map(ball => {
    const [x, y, z] = project(ball.p), [hex, size] = data.elements[ball.symbol], r = size * scale;
    return {z, paint: () => {
      const light = context.createRadialGradient(x - 0.35 * r, y - 0.35 * r, 0.1 * r, x, y, r);
      light.addColorStop(0, mix(hex, 255, 0.65, fade(z)));
      light.addColorStop(0.5, mix(hex, 0, 0, fade(z)));
      light.addColorStop(1, mix(hex, 0, 0.4, fade(z)));
      context.beginPath();
      context.arc(x, y, r, 0, 2 * Math.PI);
      context.fillStyle = light;
      context.fill();
      context.lineWidth = 0.7;
      context.strokeStyle = mix("#222222", 0, 0, fade(z));
      context.stroke();
    }};
  });
  for (const {p, q, symbol} of sticks) {
    const a = project(p), b = project(q), z = (a[2] + b[2]) / 2, hex = data.elements[symbol][0];
    items.push({z, paint: () => {
      line(a, b, 0.24 * scale + 1.4, mix("#222222", 0, 0, fade(z)));
      line(a, b, 0.24 * scale, mix(hex, 0, 0.12, fade(z)));
    }});
  }
  for (const {p, q} of edges) {
    const a = project(p), b = project(q), z = (a[2] + b[2]) / 2;
    items.push({z, paint: () => line(a, b, 1.2, mix("#1a1a1a", 0, 0, fade(z)))});
  }
  items.sort((one, other) => one.z - other.z).forEach(item => item.paint());
  return "drawn";
}

function refit() {
  fit = 0;
  redraw();
}

function redraw() {
  try {
    document.body.dataset.viewer = draw();
  } catch (problem) {
    document.body.dataset.viewer = "error: " + problem.message;
  }
  document.body.dataset.shown = current.id;
}

function show(index) {
  current = data.candidates[index];
  rows.forEach(row => row.classList.toggle("shown", Number(row.dataset.i) === index));
  find("id").textContent = current.id;
  find("cif").href = current.href;
  const facts = find("facts"), legend = find("legend");
  facts.replaceChildren();
  legend.replaceChildren();
  for (const [name, value] of current.facts) {
    facts.appendChild(document.createElement("dt")).textContent = name;
    facts.appendChild(document.createElement("dd")).textContent = value;
  }
  for (const symbol of new Set(current.structure ? current.structure.symbols : [])) {
    const entry = legend.appendChild(document.createElement("span"));
    entry.appendChild(document.createElement("i")).style.background = data.elements[symbol][0];
    entry.append(symbol);
  }
  refit();
}

function look(matrix) {
  rotation = matrix;
  zoom = 1;
  refit();
}

canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
canvas.addEventListener("pointermove", event => {
  if (!event.buttons) return;
  rotation = turn(turn(rotation, 0.01 * event.movementX, 0, 2), 0.01 * event.movementY, 2, 1);
  redraw();
});
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoom = Math.min(20, Math.max(0.2, zoom * Math.exp(-0.0015 * event.deltaY)));
  redraw();
}, {passive: false});
canvas.addEventListener("dblclick", () => look(TILTED));
find("top").addEventListener("click", () => look(TOP));
find("side").addEventListener("click", () => look(SIDE));
find("tilt").addEventListener("click", () => look(TILTED));
find("doubled").addEventListener("change", refit);
find("vacuum").addEventListener("change", refit);
window.addEventListener("resize", refit);
for (const row of rows) {
  row.addEventListener("click", event => { if (!event.target.closest("a")) show(Number(row.dataset.i)); });
  row.addEventListener("keydown", event => { if (event.key === "Enter" && event.target === row) show(Number(row.dataset.i)); });
}
show(0);
})();
