"use strict";
// Everything that is shown comes from one block of JSON and is written as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const BLUE = "#0072B2", INK = "#202124", SOFT = "#5F6368", GREY = "#AEB5BF", LINES = "#ECEFF1";
const FONT = { family: "system-ui, sans-serif", color: INK };
const ROLES = { front: "searched front", preset: "published rule", teacher: "teacher" };
const KINDS = { front: "front", preset: "rule", teacher: "teacher" };
// Marks as matplotlib calls them: plotly's name, and an outline for the legend.
const MARKS = {
  "s": ["square", "M3 3h10v10H3z"], "^": ["triangle-up", "M8 2l6 11H2z"], "D": ["diamond", "M8 1l6 7-6 7-6-7z"],
  "v": ["triangle-down", "M8 14L2 3h12z"], "P": ["cross", "M6 2h4v4h4v4h-4v4H6v-4H2V6h4z"],
  "X": ["x", "M2 4.5L4.5 2 8 5.5 11.5 2 14 4.5 10.5 8 14 11.5 11.5 14 8 10.5 4.5 14 2 11.5 5.5 8z"],
  "p": ["pentagon", "M8 1.5l6.6 4.8-2.5 7.7H3.9L1.4 6.3z"], "h": ["hexagon", "M8 1l6 3.5v7L8 15l-6-3.5v-7z"],
  "<": ["triangle-left", "M2 8l11-6v12z"], ">": ["triangle-right", "M14 8L3 2v12z"],
  "8": ["octagon", "M5 1.5h6L14.5 5v6L11 14.5H5L1.5 11V5z"], "d": ["diamond-tall", "M8 1l4 7-4 7-4-7z"],
  "*": ["star", "M8 1l2.1 4.7 5.1.5-3.8 3.4 1.1 5L8 12l-4.5 2.6 1.1-5L.8 6.2l5.1-.5z"],
  "o": ["circle", "M3 8a5 5 0 1 0 10 0a5 5 0 1 0-10 0z"],
  ".": ["circle", "M5.5 8a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0z"],
};
const byId = new Map(data.entries.map(entry => [entry.id, entry]));
const state = { x: data.x, y: data.y, chosen: data.recommended, hidden: new Set(), sorted: null, falling: false };

// Small helpers.

const $ = id => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Plotly reads a little markup in its texts. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function number(name, value, unit = true) {
  if (value === null || value === undefined) return "–";
  const about = data.scores[name] || {};
  if (about.share) return `${digits(100 * value)} %`;
  return digits(value) + (unit && about.unit ? (about.unit === "×" ? "×" : ` ${about.unit}`) : "");
}

/** Three digits that count, more where a share comes close to 1. */
function digits(value) {
  const size = Math.abs(value);
  if (size === 0 || size === 1) return String(value);
  if (size > 0.99 && size < 1) return value.toFixed(4);
  return size >= 1000 ? value.toFixed(0) : size < 1e-4 ? value.toExponential(2) : value.toPrecision(3);
}

function interval(name, [, low, high]) {
  if (low === null || high === null || low === high) return "";
  return `${number(name, low, false)} to ${number(name, high, false)}`;
}

function value(entry, name) {
  return entry.held_out[name] ? entry.held_out[name][0] : null;
}

// The front.

function traces() {
  const { x, y } = state, made = [candidates(x, y)];
  data.families.forEach((family, i) => {
    const entries = data.entries.filter(e => e.family === i);
    const colors = on => entries.map(e => e.hollow === on ? "#fff" : family.color);
    const line = { color: colors(false), width: entries.map(e => e.hollow ? 1.8 : 0.7) };
    const marker = { size: 10, color: colors(true), symbol: MARKS[family.mark][0], line };
    made.push(series(`family ${i}`, entries, { mode: "markers", marker }, family.color + "66"));
  });
  const front = data.entries.filter(e => e.role === "front").sort((a, b) => value(a, x) - value(b, x));
  const searched = data.objectives.includes(x) && data.objectives.includes(y);  // else a line means nothing
  const style = { mode: searched ? "lines+markers" : "markers", line: { color: BLUE, width: 2.2 } };
  made.push(series("front", front, { ...style, marker: { size: 10, color: BLUE } }, BLUE));
  const drawable = e => !(data.scores[y].log && value(e, y) <= 0);  // the teacher has no error
  const teacher = data.entries.filter(e => e.role === "teacher" && drawable(e));
  made.push(series("teacher", teacher, { mode: "markers", marker: { size: 15, color: INK, symbol: "star" } }, INK));
  if (byId.get(data.recommended).role === "front") made.push(ring(data.recommended, BLUE, 21));
  made.push(ring(state.chosen, INK, 28));
  return made.map(trace => ({
    type: "scatter", showlegend: false, visible: !state.hidden.has(trace.group),
    cliponaxis: trace.group !== "ring" && trace.group !== "teacher", ...trace,
  }));
}

function candidates(x, y) {
  const xs = data.points[x] || [], ys = data.points[y] || [];
  if (!xs.length || !ys.length) return { group: "candidates", x: [], y: [] };
  const from = i => data.points.generation ? data.points.generation[i] : "?";
  const text = xs.map((_, i) => `candidate, generation ${from(i)}<br>` +
    `${plain(x)} ${number(x, xs[i])}, ${plain(y)} ${number(y, ys[i])}<extra></extra>`);
  return { group: "candidates", x: xs, y: ys, mode: "markers", marker: { size: 5, color: GREY }, hovertemplate: text };
}

function series(group, entries, style, faint) {
  const { x, y } = state;
  const bars = name => ({
    type: "data", symmetric: false, color: faint, thickness: 1.2, width: 3,
    visible: entries.some(e => e.held_out[name] && e.held_out[name][1] !== null),
    array: entries.map(e => reach(e.held_out[name], 2)), arrayminus: entries.map(e => reach(e.held_out[name], 1)),
  });
  const line = (e, name) => {
    const range = e.held_out[name] && interval(name, e.held_out[name]);
    return `${plain(name)} ${number(name, value(e, name))}${range ? ` (${range})` : ""}`;
  };
  return {
    group, x: entries.map(e => value(e, x)), y: entries.map(e => value(e, y)), customdata: entries.map(e => e.id),
    error_x: bars(x), error_y: bars(y), ...style,
    hovertemplate: entries.map(e => `<b>${plain(e.name)}</b><br>${line(e, x)}<br>${line(e, y)}<extra></extra>`),
  };
}

function ring(id, color, size) {
  const entry = byId.get(id), marker = { size, color: "rgba(0,0,0,0)", line: { color, width: 2.6 } };
  return {
    group: "ring", hoverinfo: "skip", mode: "markers", marker, x: [value(entry, state.x)], y: [value(entry, state.y)],
  };
}

/** How far a score's interval goes to one side: 1 down, 2 up. */
function reach(score, side) {
  return score && score[side] !== null && score[0] !== null ? Math.abs(score[side] - score[0]) : 0;
}

function drawFront() {
  const { x, y } = state, about = data.scores[y], narrow = $("chart").clientWidth < 520;
  const axis = name => ({
    title: {
      text: wrapped(plain(data.scores[name].label), narrow ? 34 : 60), font: { size: narrow ? 12 : 14 }, standoff: 8,
    },
    tickformat: data.scores[name].share ? ".0%" : "", automargin: true, zeroline: false, showline: true,
    gridcolor: LINES, linecolor: SOFT,
  });
  const range = about.log ? about.range.map(Math.log10) : about.range;
  const limit = data.limits[y];
  Plotly.react("chart", traces(), {
    xaxis: { ...axis(x), range: data.scores[x].range },
    yaxis: { ...axis(y), type: about.log ? "log" : "linear", dtick: about.log ? 1 : null, range },
    shapes: limit !== undefined ? [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: limit, y1: limit, layer: "below",
      line: { color: SOFT, width: 1, dash: "dash" },
    }] : [],
    annotations: [...recommendation(about), ...(limit !== undefined ? [{
      xref: "paper", x: 1, y: limit, text: "criterion of every run", showarrow: false, yanchor: "top", xanchor: "right",
      font: { color: SOFT, size: 12 },
    }] : [])],
    font: { ...FONT, size: 13 }, margin: { l: 56, r: 14, t: 12, b: 48 }, plot_bgcolor: "#fff", paper_bgcolor: "#fff",
    hovermode: "closest", hoverdistance: 26, hoverlabel: { align: "left", bgcolor: "#fff", font: { color: INK } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",  // a finger scrolls the page
  }, { displayModeBar: false, responsive: true, showTips: false });
}

/** The word beside the recommended point: on its better side, where nothing lies, if there is room. */
function recommendation(about) {
  const best = byId.get(data.recommended), x = value(best, state.x), y = value(best, state.y);
  if (best.role !== "front" || x === null || y === null || state.hidden.has("front")) return [];
  const [low, high] = about.range.map(v => about.log ? Math.log10(v) : v), at = about.log ? Math.log10(y) : y;
  const down = about.better === "higher" ? -1 : 1, room = (down > 0 ? at - low : high - at) > 0.25 * (high - low);
  const aside = x / data.scores[state.x].range[1] * ($("chart").clientWidth - 80) > 136;  // pixels from the axis
  return [{
    x, y: at, text: "<b>recommended</b>", font: { color: BLUE, size: 14 }, bgcolor: "rgba(255,255,255,0.75)",
    showarrow: true, arrowcolor: BLUE, arrowhead: 0, arrowwidth: 1.2, standoff: 13, captureevents: false,
    ax: aside ? -28 : 0, xanchor: aside ? "right" : "center", ay: (room ? 68 : -68) * down,
  }];
}

function wrapped(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if ((lines.at(-1) + word).length > width) lines.push("");
    lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines.join("<br>");
}

function icon(mark, color) {
  const outline = svg("path", { d: MARKS[mark][1], fill: color });
  return svg("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, outline);
}

function drawLegend() {
  $("marks").open = innerWidth > 600;
  const items = [
    ["front", "searched front", "o", BLUE], ...data.families.map((f, i) => [`family ${i}`, f.name, f.mark, f.color]),
    ["teacher", "teacher", "*", INK], ["candidates", "candidates, calibration prompts", ".", GREY],
  ];
  for (const [group, text, mark, color] of items) {
    const box = element("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => {
      box.checked ? state.hidden.delete(group) : state.hidden.add(group);
      drawFront();
    });
    $("legend").append(element("label", {}, box, icon(mark, color), text));
  }
}

function drawAxes() {
  for (const [id, names] of [["x", data.costs], ["y", data.qualities]]) {
    for (const name of names) {
      $(id).append(element("option", { value: name }, data.scores[name].label.split(" · ")[0]));
    }
    $(id).value = state[id];
    $(id).addEventListener("change", () => { state[id] = $(id).value; drawFront(); });
  }
}

// The chosen schedule.

function choose(id) {
  if (!byId.has(id)) return;
  state.chosen = id;
  const entry = byId.get(id), about = name => `${name} ${number(name, value(entry, name))}`;
  drawFront();
  $("chosen").textContent = `Chosen: ${entry.name}, ${about(state.x)}, ${about(state.y)}.`;  // said aloud
  $("name").textContent = entry.name;
  const family = entry.family === null ? "" : `, ${data.families[entry.family].name}`;
  const advice = id === data.recommended && entry.role === "front" ? ", recommended" : "";
  const behind = entry.behind ? `; surely dominated by ${entry.behind} on held-out prompts` : "";
  $("role").textContent = ROLES[entry.role] + family + advice + behind;
  const place = data.entries.indexOf(entry);
  $("previous").disabled = place === 0;
  $("next").disabled = place === data.entries.length - 1;
  drawPictures(entry);
  drawPlan($("plan"), entry.plan, data);
  drawScores(entry);
  $("export").textContent = entry.export;
  $("apply").textContent = entry.apply;
  list("facts", entry.facts);
  for (const row of document.querySelectorAll("#table tbody tr")) {
    row.classList.toggle("now", row.dataset.id === id);
    row.querySelector("button").setAttribute("aria-pressed", row.dataset.id === id);
  }
  try { history.replaceState(null, "", `#${id}`); } catch { /* a frame without an address */ }
}

function drawPictures(entry) {
  const teacher = data.entries.find(e => e.role === "teacher"), own = entry.pictures, theirs = teacher.pictures;
  const note = text => $("pictures").replaceChildren(element("p", { class: "note" }, text));
  if (!own || !theirs) return note("This search has kept no pictures of it.");
  const alone = entry === teacher;
  note(alone ? "What all others are compared with; held-out prompts."
    : "The teacher's picture, this schedule's, and four times their difference; held-out prompts, same noise." +
      (own.worst ? " The worst run first." : ""));
  const names = ["teacher", entry.name, "difference times four"];
  const figure = (title, sources) => {
    const row = sources.map((src, i) => element("img", { src, alt: `${title}: ${names[i]}`, decoding: "async" }));
    $("pictures").append(
      element("figure", {}, element("figcaption", {}, title), element("div", { class: "row" }, ...row)));
  };
  if (own.worst) figure(entry.worst, own.worst);
  data.shown.forEach((prompt, i) => {
    figure(prompt, [theirs.own[i], ...(alone ? [] : [own.own[i], own.difference[i]])]);
  });
}

function drawScores(entry) {
  const teacher = data.entries.find(e => e.role === "teacher");
  const heads = ["score", "held-out", "calibration", "gap", "teacher"];
  const rows = Object.entries(entry.held_out).map(([name, held]) => {
    const cell = (score, sign = "") => score
      ? [sign + number(name, score[0]), element("small", {}, ` ${interval(name, score)}`)] : ["–"];
    const known = entry.calibration[name], change = entry.change[name];
    const gap = entry.gap[name] || difference(held, known);
    const against = change ? [" (", ...cell(change, change[0] > 0 ? "+" : ""), " by prompt)"] : [];
    const cells = [cell(held), cell(known), cell(gap, gap && gap[0] > 0 ? "+" : "")];
    return element("tr", {},
      element("th", { scope: "row" }, name + (data.guard.includes(name) ? " (not searched for)" : "")),
      ...[...cells, [number(name, value(teacher, name)), ...against]].map(parts => element("td", {}, ...parts)));
  });
  $("scores").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map(text => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows));
}

/** Of two scores that vary from prompt to prompt. */
function difference(held, known) {
  return known && held[1] !== null && held[0] !== null && known[0] !== null ? [held[0] - known[0], null, null] : null;
}

function list(id, pairs) {
  $(id).replaceChildren(...pairs.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
}

// All schedules, and the search.

function drawTable() {
  const first = ["speedup", "macs"].filter(name => name in data.scores);
  const names = [...new Set([...first, ...Object.keys(data.scores)])], columns = ["schedule", "kind", ...names];
  const own = { schedule: entry => entry.name, kind: entry => entry.role };
  const key = entry => (own[state.sorted] || (e => value(e, state.sorted)))(entry);
  const order = [...data.entries], way = state.falling ? -1 : 1;
  if (state.sorted) order.sort((a, b) => way * compared(key(a), key(b)));
  const rows = order.map(entry => {
    const button = element("button", { type: "button", "aria-pressed": entry.id === state.chosen }, entry.name);
    button.addEventListener("click", () => choose(entry.id));
    const texts = [KINDS[entry.role], ...names.map(name => number(name, value(entry, name), false))];
    const cells = [button, ...texts].map(content => element("td", {}, content));
    return element("tr", { class: entry.id === state.chosen ? "now" : "", "data-id": entry.id }, ...cells);
  });
  $("table").replaceChildren(
    element("thead", {}, element("tr", {}, ...columns.map(head))), element("tbody", {}, ...rows));
}

/** A column's head: a button that sorts by it, and the other way round when pressed again. */
function head(column, place) {
  const button = element("button", { type: "button" }, column), unit = (data.scores[column] || {}).unit;
  const sorted = state.sorted === column, way = state.falling ? "descending" : "ascending";
  if (unit) button.append(element("small", {}, ` ${unit}`));
  if (sorted) button.append(element("span", { "aria-hidden": "true" }, state.falling ? " ↓" : " ↑"));
  button.addEventListener("click", () => {
    state.falling = sorted && !state.falling;
    state.sorted = column;
    drawTable();
    $("table").querySelectorAll("th button")[place].focus();
  });
  return element("th", { scope: "col", "aria-sort": sorted ? way : "none" }, button);
}

function compared(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
}

function drawSearch() {
  list("cost", data.facts.cost);
  list("environment", data.facts.environment);
  for (const [split, prompts] of Object.entries(data.prompts)) {
    const items = prompts.map(prompt => element("li", {}, prompt));
    const title = element("summary", {}, `${prompts.length} ${split.replace("_", "-")} prompts`);
    $("prompts").append(element("details", {}, title, element("ul", {}, ...items)));
  }
  drawConvergence(data.history.filter(row => typeof row.hypervolume === "number"));
}

function drawConvergence(rows) {
  if (!rows.length) return $("convergence").remove();
  const x = rows.map(row => row.evaluations ?? row.generation), y = rows.map(row => row.hypervolume);
  const [first, last] = [y[0], y.at(-1)].map(v => Number(v.toPrecision(4)));
  $("convergence").setAttribute("role", "img");
  $("convergence").setAttribute("aria-label",
    `Hypervolume of the front: ${first} after the first generation, ${last} after the last of ${rows.length}.`);
  const axis = text => ({ title: { text, standoff: 6 }, gridcolor: LINES, zeroline: false, automargin: true });
  const style = { mode: "lines+markers", line: { color: BLUE, width: 2 }, marker: { size: 6, color: BLUE } };
  Plotly.newPlot("convergence", [{ x, y, ...style }], {
    xaxis: axis("evaluations"), yaxis: axis("hypervolume"), margin: { l: 60, r: 14, t: 10, b: 42 },
    font: { ...FONT, size: 12.5 },
  }, { staticPlot: true, responsive: true });
}

function copied(button) {
  const source = $(button.dataset.copies), before = button.textContent;
  const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = before; }, 1500); };
  const byHand = () => { getSelection().selectAllChildren(source); if (document.execCommand("copy")) done(); };
  navigator.clipboard ? navigator.clipboard.writeText(source.textContent).then(done, byHand) : byHand();
}

/** The schedule that the address names, by the short form or by its digest; null where it names none. */
function addressed() {
  const asked = location.hash.slice(1).replace(/^sha256:/, "");
  const begins = entry => asked.length >= 6 && entry.digest.startsWith(`sha256:${asked}`);
  const found = data.entries.find(entry => entry.id === asked) || data.entries.find(begins);
  return found ? found.id : null;
}

$("title").textContent = `${data.title}: schedules`;
$("summary").textContent = data.summary.join(" ");
$("notes").append(...data.notes.map(note => element("li", {}, note)));
drawAxes();
drawLegend();
drawTable();
drawSearch();
choose(addressed() || data.recommended);
$("chart").on("plotly_click", event => { if (event.points[0].customdata) choose(event.points[0].customdata); });
for (const [id, by] of [["previous", -1], ["next", 1]]) {
  $(id).addEventListener("click", () => choose(data.entries[data.entries.indexOf(byId.get(state.chosen)) + by].id));
}
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copied(button));
addEventListener("hashchange", () => { const id = addressed(); if (id) choose(id); });
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;  // on a phone, an address bar that comes and goes
  width = innerWidth;
  drawFront();
  drawPlan($("plan"), byId.get(state.chosen).plan, data);
});
addEventListener("beforeprint", () => {
  for (const id of ["chart", "convergence"]) if ($(id)) Plotly.Plots.resize($(id));
});
