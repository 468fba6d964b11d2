// Shows one material: its structure, its values, what it decomposes into and the known sheets like it. #ID in the address names it.
(function () {
"use strict";
const her = window.her, table = her.table, find = name => document.getElementById("view-" + name);
const columns = new Map(table.columns.map(column => [column.key, column]));
const byId = new Map(her.data.candidates.map((candidate, i) => [candidate.id, i]));
let current = 0;

function make(tag, text, attributes) {
  return Object.assign(document.createElement(tag), {textContent: text}, attributes);
}

function listValues(list, keys, i) {
  list.replaceChildren();
  for (const key of keys) {
    const said = her.text(i, key), {label, unit, about} = columns.get(key);
    if (said) list.append(make("dt", label, {title: about}), make("dd", unit ? `${said} ${unit}` : said));
  }
}

function listDecomposition(i) {
  const phases = her.value(i, "decomposition"), e = her.value(i, "e_above_hull_ev");
  const list = make("ul", "");
  for (const phase of phases ? phases.split(" + ") : []) {
    const [share, ...name] = phase.split(" ");
    list.append(make("li", `${name.join(" ")}: ${Math.round(100 * Number(share))} % of the atoms`));
  }
  find("decomposition").replaceChildren(...(phases
    ? [make("p", `The most stable phases of this composition on the potential's hull${e === null ? "" : `; E_above_hull ${e.toFixed(3)} eV/atom`}:`), list]
    : [make("p", "No hull was found for it: the products are not known.", {className: "hint"})]));
}

function listSimilar(i) {
  const similar = her.data.candidates[i].similar || [], number = x => x === null || x === undefined ? "–" : x.toFixed(2);
  if (!similar.length) {
    find("similar").replaceChildren(make("p", "None of the well-known sheets has an element or the layer group in common.", {className: "hint"}));
    return;
  }
  const sheets = make("table", ""), head = sheets.createTHead().insertRow(), body = sheets.createTBody();
  for (const title of ["sheet", "in common", "layer group", "E_hull (eV/atom)", "ΔG_H (eV)", "ΔG_H, DFT (eV)"]) {
    head.append(make("th", title, {scope: "col", className: title.includes("(") ? "n" : ""}));
  }
  for (const [index, common] of similar) {
    const sheet = table.known[index], row = body.insertRow(), std = sheet.delta_g_std_ev;
    row.append(make("th", sheet.name, {scope: "row"}), make("td", common), make("td", sheet.layer_group),
      make("td", number(sheet.e_above_hull_ev), {className: "n"}),
      make("td", number(sheet.delta_g_ev) + (std === null ? "" : ` ± ${number(std)}`), {className: "n"}),
      make("td", number(sheet.delta_g_dft_ev), {className: "n"}));
  }
  find("similar").replaceChildren(sheets);
}

function listLegend({structure}, i) {
  const legend = find("legend"), site = her.text(i, "h_site_kind"), hydrogen = structure && structure.hydrogen;
  legend.replaceChildren();
  for (const symbol of new Set(structure ? structure.symbols : [])) {
    const entry = legend.appendChild(document.createElement("span"));
    entry.appendChild(document.createElement("i")).style.background = her.data.elements[symbol][0];
    entry.append(symbol);
  }
  find("hydrogen").textContent = hydrogen ? `H stands on its best site by DimeNet++ (${site}), as placed before it is relaxed; one per drawing.`
    : site ? `H is not drawn: its best site by DimeNet++ is ${site}, but its place is not stored with this result.` : "";
}

her.select = function (i, scroll) {
  const candidate = her.data.candidates[i], verdict = table.verdicts[i];
  for (const k of [current, i]) {
    her.rows[k].classList.toggle("shown", k === i);
    her.rows[k].tabIndex = k === i ? 0 : -1;
  }
  her.rows[current].removeAttribute("aria-current");
  her.rows[i].setAttribute("aria-current", "true");
  current = i;
  find("id").textContent = candidate.id;
  find("verdict").textContent = verdict;
  find("verdict").className = "badge " + table.badges[verdict];
  find("given").href = her.rows[i].querySelector(".files a").href;
  find("link").href = "#" + encodeURIComponent(candidate.id);
  find("cif").disabled = find("extxyz").disabled = !candidate.structure;
  listValues(find("facts"), table.facts, i);
  listDecomposition(i);
  listSimilar(i);
  if (find("all").open) listValues(find("values"), columns.keys(), i);
  listLegend(candidate, i);
  her.show(candidate);
  if (scroll) document.getElementById("page-material").scrollIntoView({block: "start"});
};

function followAddress() {
  let name = location.hash.slice(1);
  try { name = decodeURIComponent(name); } catch (problem) { /* an address that was cut stays as it is */ }
  if (byId.has(name)) her.select(byId.get(name), true);
  return byId.has(name);
}

function choose(i) {
  her.select(i, false);
  try {
    history.replaceState(null, "", "#" + encodeURIComponent(her.data.candidates[i].id));
  } catch (problem) { /* a browser may forbid it for files */ }
}

document.querySelectorAll("tr[data-i]").forEach(row => {
  const i = Number(row.dataset.i);
  row.addEventListener("click", event => {
    if (event.target.closest("button.cif")) her.saveCif(i);
    else if (!event.target.closest("a")) choose(i);
  });
  row.addEventListener("keydown", event => {
    if (event.target !== row) return;
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key], shown = her.visible();
    if (event.key === "Enter" || event.key === " ") choose(i);
    else if (step) {
      const next = shown[shown.indexOf(i) + step];
      if (next === undefined) return;
      choose(next);
      her.rows[next].focus({preventScroll: true});
      her.rows[next].scrollIntoView({block: "nearest"});
    } else return;
    event.preventDefault();
  });
  row.querySelector("button.cif").disabled = !her.data.candidates[i].structure;
});
find("cif").addEventListener("click", () => her.saveCif(current));
find("extxyz").addEventListener("click", () => her.saveExtxyz([current]));
find("all").addEventListener("toggle", () => { if (find("all").open) listValues(find("values"), columns.keys(), current); });
window.addEventListener("hashchange", followAddress);
if (!followAddress() && her.rows.length) her.select(0, false);
document.body.dataset.ready = Math.round(performance.now());
})();
