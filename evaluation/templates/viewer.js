// Draws the structure of the selected candidate on a canvas: balls and half-bonds, sorted by depth and fading with it.
// `her` is what the scripts of the page share: here its data and show(candidate).
(function () {
"use strict";
const data = JSON.parse(document.getElementById("structures").textContent);
const find = name => document.getElementById("view-" + name);
const canvas = document.getElementById("view"), context = canvas.getContext("2d");
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

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const onScreen = () => dark.matches && !window.matchMedia("print").matches;
const ink = () => onScreen() ? "#c9d3dd" : "#1a1a1a", paper = () => onScreen() ? [18, 23, 29] : [255, 255, 255];

// Colours fade to the page's with depth (fade) and are lightened or darkened for light and shade.
function mix(hex, target, amount, fade) {
  const out = [1, 3, 5].map((at, k) => {
    const channel = parseInt(hex.slice(at, at + 2), 16);
    const lit = channel + amount * (target - channel);
    return Math.round(lit + fade * (paper()[k] - lit));
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
    const high = structure.hydrogen ? [...atoms, structure.hydrogen.xyz] : atoms;
    const reach = Math.max(...high.map(p => Math.abs(p[2]))) + 0.8;
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
  if (structure.hydrogen) {
    const {xyz, bonds} = structure.hydrogen;
    balls.push({p: xyz, symbol: "H"});
    for (const [i, sa, sb] of bonds) {
      const atom = plus(plus(atoms[i], vectors[0], sa), vectors[1], sb);
      stick(xyz, atom, "H");
      stick(atom, xyz, structure.symbols[i]);
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
    context.fillStyle = ink();
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
    items.push({z, paint: () => line(a, b, 1.2, mix(ink(), 0, 0, fade(z)))});
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

function show(candidate) {
  current = candidate;
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
canvas.addEventListener("keydown", event => {
  const turns = {ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15]}[event.key];
  const factor = {"+": 1.15, "=": 1.15, "-": 1 / 1.15}[event.key];
  if (turns) rotation = turn(turn(rotation, turns[0], 0, 2), turns[1], 2, 1);
  else if (factor) zoom = Math.min(20, Math.max(0.2, zoom * factor));
  else if (event.key === "0") return look(TILTED);
  else return;
  event.preventDefault();
  redraw();
});
dark.addEventListener("change", redraw);
window.addEventListener("beforeprint", redraw);
window.addEventListener("afterprint", redraw);
window.her = {data, show};
})();
