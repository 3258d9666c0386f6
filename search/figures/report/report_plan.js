"use strict";
// The heat-map of a plan: steps across, nodes down, one colour per action.

/** Draw a plan into an element; `actions` and `branches` are [word, colour] by letter. */
function drawPlan(place, plan, { actions, branches, full, own }) {
  const rows = plan.groups.flatMap(([, runs]) => runs), height = rows.reduce((sum, [count]) => sum + count, 0);
  const bits = rows.some(row => row[2] !== null), width = Math.max(280, place.clientWidth);
  const longest = Math.max(...plan.groups.flatMap(([label]) => lines(label).map(line => line.length)), 8);
  const left = Math.min(130, 12 + 6.7 * longest), right = width - (bits ? 52 : 4), top = plan.guidance ? 30 : 2;
  const tall = Math.min(14, Math.max(3, 300 / height)), bottom = top + tall * height;
  const frame = { left, right, top, bottom, tall, height, cell: (right - left) / plan.steps };
  const chart = svg("svg", {
    viewBox: `0 0 ${width} ${bottom + (plan.timesteps ? 42 : 28)}`, role: "img", "aria-label": plan.words,
    "font-size": 12, "font-family": "inherit", fill: INK,
  });
  const draw = {
    rect: (x, y, w, h, fill, title) =>
      chart.append(svg("rect", { x, y, width: w, height: h, fill }, svg("title", {}, title))),
    text: (x, y, words, more = {}) => chart.append(svg("text", { x, y, "text-anchor": "middle", ...more }, words)),
    line: (x1, y1, x2, y2, stroke, width) =>
      chart.append(svg("line", { x1, y1, x2, y2, stroke, "stroke-width": width })),
  };
  drawNodes(plan, frame, actions, bits && full, width, draw);
  drawGrid(plan, frame, draw);
  [...plan.at].forEach((letter, t) => {
    const more = { "font-size": 10, "font-weight": 700 };
    if (letter !== own) draw.text(left + (t + 0.5) * frame.cell, top + tall / 2 + 4, letter, more);
  });
  if (plan.guidance) drawGuidance(plan.guidance, frame, branches, draw);
  drawSteps(plan, frame, draw);
  if (bits) draw.text((right + 8 + width) / 2, bottom + 14, "bits");
  place.replaceChildren(chart, keys(plan, actions, branches), inWords(plan));
}

/** Rows by group, equal neighbours in one piece; on the right the bits of their weights, of which `full` are all. */
function drawNodes(plan, { left, right, top, tall, cell }, actions, full, width, draw) {
  let y = top;
  for (const [label, runs] of plan.groups) {
    const begin = y;
    for (const [count, letters, weight] of runs) {
      for (const [letter, from, to] of stretches(letters)) {
        const [word, color] = actions[letter], steps = to - from === 1 ? from : `${from} to ${to - 1}`;
        draw.rect(left + from * cell, y, (to - from) * cell, count * tall, color, `${label}, step ${steps}: ${word}`);
      }
      if (full) {
        const value = weight ?? full, middle = y + count * tall / 2 + 4;
        draw.rect(right + 8, y, width - right - 8, count * tall, shade(value / full), `${label}: ${value} bits`);
        const more = { "font-size": 11, fill: value > full / 2 ? "#fff" : INK };
        if (count * tall >= 11) draw.text((right + 8 + width) / 2, middle, String(Number(value.toPrecision(2))), more);
      }
      y += count * tall;
    }
    const words = y - begin < 9 ? [] : lines(label).slice(0, y - begin < 26 ? 1 : 2);
    words.forEach((line, i) => {
      draw.text(left - 8, (begin + y) / 2 + 4 + 14 * (i - (words.length - 1) / 2), line, { "text-anchor": "end" });
    });
    draw.line(left, y, right, y, SOFT, 0.8);
  }
}

function drawGrid(plan, { left, right, top, bottom, tall, height, cell }, draw) {
  const at = t => left + t * cell;
  for (let t = 1; t < plan.steps && cell > 4; t++) draw.line(at(t), top, at(t), bottom, "#fff", 0.8);
  for (let i = 1; i < height && tall > 4; i++) draw.line(left, top + i * tall, right, top + i * tall, "#fff", 0.5);
}

/** The strip above: which half of the batch runs, and the scale where it is not the call's. */
function drawGuidance(guidance, { left, cell }, branches, draw) {
  [...guidance.branch].forEach((letter, t) => {
    const [word, color] = branches[letter], scale = guidance.scale[t];
    draw.rect(left + t * cell, 2, cell, 20, color, `step ${t}: ${word}, scale ${scale ?? guidance.call}`);
    if (scale === null || letter === "O" || cell < 20) return;
    const more = { "font-size": 10, fill: letter === "C" ? "#fff" : INK };
    draw.text(left + (t + 0.5) * cell, 16, String(Number(scale.toPrecision(2))), more);
  });
  draw.text(left - 8, 16, "guidance", { "text-anchor": "end" });
}

function drawSteps(plan, { left, right, bottom, cell }, draw) {
  const every = Math.max(1, Math.ceil(plan.steps / Math.max(1, Math.floor((right - left) / 36))));
  const small = { fill: SOFT, "font-size": 11 };
  for (let t = 0; t < plan.steps; t += every) {
    draw.text(left + (t + 0.5) * cell, bottom + 14, String(t));
    if (plan.timesteps) draw.text(left + (t + 0.5) * cell, bottom + 28, plan.timesteps[t].toFixed(0), small);
  }
  draw.text(left - 8, bottom + 14, "step", { "text-anchor": "end" });
  if (plan.timesteps) draw.text(left - 8, bottom + 28, "timestep", { "text-anchor": "end", ...small });
}

/** What the colours mean, of those that are there. */
function keys(plan, actions, branches) {
  const used = new Set(plan.groups.flatMap(([, runs]) => runs.flatMap(([, letters]) => [...letters])));
  const found = Object.keys(actions).filter(letter => used.has(letter)).map(letter => actions[letter]);
  for (const [letter, [word, color]] of Object.entries(plan.guidance ? branches : {})) {
    if (letter !== "C" && plan.guidance.branch.includes(letter)) found.push([`guidance: ${word}`, color]);
  }
  return element("div", { class: "keys" }, ...found.map(([word, color]) => {
    const swatch = element("i");
    swatch.style.background = color;
    return element("span", {}, swatch, word);
  }));
}

function inWords(plan) {
  const text = plan.notation || "everything is computed at every step";
  const block = element("pre", { tabindex: 0, "aria-label": "The plan in the plan notation" }, text);
  return element("details", {}, element("summary", {}, "The plan as text"), block);
}

/** A group's label, its blocks on a line of their own. */
function lines(label) {
  const at = label.lastIndexOf(" blocks 0");
  return at < 0 ? [label] : [label.slice(0, at), label.slice(at + 1)];
}

/** [letter, first step, step after the last] of every stretch of equal letters. */
function stretches(letters) {
  const found = [];
  [...letters].forEach((letter, t) => {
    if (found.length && found.at(-1)[0] === letter) found.at(-1)[2] = t + 1;
    else found.push([letter, t, t + 1]);
  });
  return found;
}

/** From pale yellow over green to dark blue. */
function shade(share) {
  const stops = [[255, 255, 217], [65, 182, 196], [8, 29, 88]];
  const at = Math.min(1.999, Math.max(0, 2 * share)), i = Math.floor(at);
  return `rgb(${stops[i].map((from, k) => Math.round(from + (at - i) * (stops[i + 1][k] - from))).join(",")})`;
}
