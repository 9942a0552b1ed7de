"use strict";

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function html(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Round numbers between two values, about so many.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(9));
  return found;
}

const wholeTicks = (count, most) => ticks(0, Math.max(1, count - 1), most).filter((at) => Number.isInteger(at) && at < count);

// Draws anew whenever the width of its place changes.
function drawn(place, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth && place.clientWidth !== width) place.replaceChildren(draw((width = place.clientWidth)));
  }).observe(place);
}

function axes(picture, box, x, y, names, xs, ys) {
  const digits = (values) => Math.max(0, ...values.map((value) => (String(value).split(".")[1] || "").length));
  const few = [digits(xs), digits(ys)];
  for (const at of ys) {
    picture.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(at), y2: y(at) }));
    picture.append(svg("text", { x: box.left - 6, y: y(at) + 4, "text-anchor": "end" }, at.toFixed(few[1])));
  }
  for (const at of xs) {
    picture.append(svg("line", { class: "tick", x1: x(at), x2: x(at), y1: box.bottom, y2: box.bottom + 4 }));
    picture.append(svg("text", { x: x(at), y: box.bottom + 16, "text-anchor": "middle" }, at.toFixed(few[0])));
  }
  picture.append(svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  picture.append(svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 32, "text-anchor": "middle" }, names[0]));
  const turned = `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`;
  picture.append(svg("text", { transform: turned, "text-anchor": "middle" }, names[1]));
}

// A measure of each frame, a line for each clip; a click goes to the frame. Returns what moves the cursor.
function drawCurves(place, title, clips, frames, go) {
  let cursor = null, x = null;
  drawn(place, (width) => {
    const box = { left: 54, right: width - 12, top: 12, bottom: 150 };
    const values = clips.flatMap((clip) => clip.curves[title]).filter((value) => value !== null);
    let low = Math.min(...values), high = Math.max(...values);
    const room = (high - low || Math.abs(high) * 0.02 || 1) * 0.08;
    low -= room;
    high += room;
    x = (frame) => box.left + ((box.right - box.left) * (frame + 0.5)) / frames;
    const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
    const picture = svg("svg", { width, height: 190, role: "img", "aria-label": `${title} of each frame` });
    axes(picture, box, x, y, ["frame", title], wholeTicks(frames, width / 80), ticks(low, high, 4));
    for (const clip of clips) {
      let path = "";
      clip.curves[title].forEach((value, frame) => {
        if (value === null) return; // infinite: identical frames
        const joined = frame > 0 && clip.curves[title][frame - 1] !== null;
        path += `${joined ? "L" : "M"}${x(frame).toFixed(1)} ${y(value).toFixed(1)}`;
        if (!joined) picture.append(svg("circle", { cx: x(frame), cy: y(value), r: 1.5, fill: clip.colour }));
      });
      picture.append(svg("path", { class: "line", d: path, stroke: clip.colour }));
      if (clip.worst !== null && clip.curves[title][clip.worst] !== null) {
        const at = { cx: x(clip.worst), cy: y(clip.curves[title][clip.worst]), r: 5, fill: clip.colour, class: "worst" };
        picture.append(svg("circle", at, svg("title", {}, `worst frame of ${clip.setting}: ${clip.worst}`)));
      }
    }
    cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom });
    picture.append(cursor);
    picture.addEventListener("click", (event) => {
      const share = (event.clientX - picture.getBoundingClientRect().left - box.left) / (box.right - box.left);
      go(Math.max(0, Math.min(frames - 1, Math.floor(share * frames))));
    });
    move(at);
    return picture;
  });
  let at = 0;
  const move = (frame) => {
    at = frame;
    if (!cursor) return;
    cursor.setAttribute("x1", x(at));
    cursor.setAttribute("x2", x(at));
  };
  return move;
}

// Quality over time: a point for each setting that has one.
function drawPlot(place, settings, anotherSeed, told) {
  const points = settings.filter((one) => one.seconds && one.psnr);
  const dense = settings.find((one) => one.kind === "dense" && one.seconds);
  drawn(place, (width) => {
    const box = { left: 54, right: width - 16, top: 16, bottom: 300 };
    const spans = points.map(({ psnr: [mean, half] }) => [mean - (half || 0), mean + (half || 0)]).flat();
    if (anotherSeed !== null) spans.push(anotherSeed);
    let low = Math.min(...spans), high = Math.max(...spans);
    const room = (high - low || 2) * 0.12;
    low -= room;
    high += room;
    const most = 1.06 * Math.max(...points.map((one) => one.seconds[2]), dense ? dense.seconds[0] : 0);
    const x = (value) => box.left + ((box.right - box.left) * value) / most;
    const y = (value) => box.bottom - ((box.bottom - box.top) * (value - low)) / (high - low);
    const picture = svg("svg", { width, height: 340, role: "group", "aria-label": "PSNR over seconds, a point for each setting" });
    const names = ["seconds denoising a video", "PSNR to dense, dB"];
    axes(picture, box, x, y, names, ticks(0, most, width / 90), ticks(low, high, 6));
    const label = (words, at) => svg("text", { class: "label", ...at }, words);
    if (dense) {
      picture.append(svg("line", { class: "dense", x1: x(dense.seconds[0]), x2: x(dense.seconds[0]), y1: box.top, y2: box.bottom }));
      picture.append(label("dense", { x: x(dense.seconds[0]) - 5, y: box.top + 10, "text-anchor": "end" }));
    }
    if (anotherSeed !== null) {
      picture.append(svg("line", { class: "seed", x1: box.left, x2: box.right, y1: y(anotherSeed), y2: y(anotherSeed) }));
      picture.append(label("another seed", { x: box.left + 6, y: y(anotherSeed) - 5 }));
    }
    const fewer = points.filter((one) => one.kind === "fewer steps").sort((a, b) => a.seconds[0] - b.seconds[0]);
    if (fewer.length > 1) {
      const line = fewer.map((one) => `${x(one.seconds[0])},${y(one.psnr[0])}`).join(" ");
      picture.append(svg("polyline", { class: "fewer", points: line }));
    }
    for (const one of points) {
      const [middle, least, greatest] = one.seconds, [mean, half] = one.psnr;
      const at = { stroke: one.colour, class: "span" };
      const group = svg("g", { class: "point", tabindex: 0, role: "img", "data-point": one.name });
      group.append(svg("line", { ...at, x1: x(least), x2: x(greatest), y1: y(mean), y2: y(mean) }));
      if (half) group.append(svg("line", { ...at, x1: x(middle), x2: x(middle), y1: y(mean - half), y2: y(mean + half) }));
      group.append(svg("circle", { cx: x(middle), cy: y(mean), r: 12, fill: "transparent" }));
      group.append(svg("circle", { cx: x(middle), cy: y(mean), r: one.kind === "sparse" ? 6 : 4, fill: one.colour, class: "dot" }));
      const interval = half === null ? "" : ` \u00b1 ${half.toFixed(1)}`;
      const spread = least === greatest ? "" : ` (${least.toFixed(2)} to ${greatest.toFixed(2)})`;
      const text = `${one.name}: ${middle.toFixed(2)} seconds${spread}, ${mean.toFixed(1)}${interval} dB`;
      group.setAttribute("aria-label", text);
      for (const event of ["pointerenter", "focus"]) group.addEventListener(event, () => told(one.name, text));
      picture.append(group);
    }
    return picture;
  });
}

// What ran: layers downwards, steps to the right.
const REASONS = ["#f28e2b", "#b5179e", "#009e73", "#8c564b"];
const reasonColour = (number) => REASONS[Math.min(number, REASONS.length - 1)];

function cellText(heat, row, [layer, step, sparse, dense, density, reasons]) {
  const where = `${heat.transformers.length > 1 ? `${row.name}, ` : ""}step ${step}, layer ${layer}: `;
  const parts = [];
  if (sparse) parts.push(`density ${density.toFixed(3)} in ${sparse} sparse ${sparse > 1 ? "calls" : "call"}`);
  if (dense) parts.push(`${dense} dense ${dense > 1 ? "calls" : "call"}: ${reasons.map((r) => heat.reasons[r].text).join("; ")}`);
  return where + parts.join("; ");
}

function drawHeat(place, heat, told) {
  const made = heat.transformers.map((row) => {
    const panel = html("div", { class: "panel" });
    if (heat.transformers.length > 1) panel.append(html("h3", {}, row.name));
    const chart = html("div");
    panel.append(chart);
    drawn(chart, (width) => heatPanel(width, heat, row, told));
    return panel;
  });
  place.replaceChildren(...made);
}

function heatPanel(width, heat, row, told) {
  const side = Math.max(7, Math.min(26, 420 / row.layers)), wide = Math.min(44, (width - 66) / row.steps);
  const box = { left: 54, top: 6 };
  box.right = box.left + wide * row.steps;
  box.bottom = box.top + side * row.layers;
  const x = (step) => box.left + wide * (step + 0.5), y = (layer) => box.top + side * (layer + 0.5);
  const label = `Density by step and layer of ${row.name}; the arrow keys tell each cell`;
  const picture = svg("svg", { width, height: box.bottom + 40, tabindex: 0, role: "application", "aria-label": label, class: "heat" });
  const hatch = svg("pattern", { id: `hatch-${row.name}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  hatch.append(svg("rect", { width: 6, height: 6, class: "empty" }), svg("line", { x1: 0, x2: 0, y1: 0, y2: 6, class: "hatch" }));
  picture.append(svg("defs", {}, hatch));
  const rows = wholeTicks(row.layers, Math.min(8, row.layers));
  axes(picture, box, x, y, ["step", "layer"], wholeTicks(row.steps, Math.max(2, (wide * row.steps) / 60)), rows);
  const texts = new Map();
  const cell = (layer, step, attributes) => {
    const size = { x: box.left + wide * step, y: box.top + side * layer, width: wide, height: side };
    picture.append(svg("rect", { ...size, ...attributes, class: `cell ${attributes.class || ""}` }));
  };
  for (const [step, calls, by] of row.skipped) {
    for (let layer = 0; layer < row.layers; layer++) {
      cell(layer, step, { fill: `url(#hatch-${row.name})` });
      texts.set(`${layer} ${step}`, `step ${step}: ${calls} calls skipped, by ${by}`);
    }
  }
  for (const one of row.cells) {
    const [layer, step, sparse, , density, reasons] = one;
    if (sparse) {
      cell(layer, step, { style: `--density:${(100 * density).toFixed(1)}%`, class: "sparse" });
      if (reasons.length) {
        const inner = { x: box.left + wide * step + 2, y: box.top + side * layer + 2, width: wide - 4, height: side - 4 };
        picture.append(svg("rect", { ...inner, fill: "none", stroke: reasonColour(reasons[0]), "stroke-width": 2 }));
      }
    } else cell(layer, step, { fill: reasonColour(reasons[0]) });
    texts.set(`${layer} ${step}`, cellText(heat, row, one));
  }
  const marked = svg("rect", { class: "marked", width: wide, height: side, visibility: "hidden" });
  picture.append(marked);
  let place = [0, 0];
  const show = (layer, step) => {
    place = [Math.max(0, Math.min(row.layers - 1, layer)), Math.max(0, Math.min(row.steps - 1, step))];
    marked.setAttribute("x", box.left + wide * place[1]);
    marked.setAttribute("y", box.top + side * place[0]);
    marked.setAttribute("visibility", "visible");
    told(texts.get(place.join(" ")) || `step ${place[1]}, layer ${place[0]}: no call`);
  };
  picture.addEventListener("pointermove", (event) => {
    const from = picture.getBoundingClientRect();
    const step = Math.floor((event.clientX - from.left - box.left) / wide);
    const layer = Math.floor((event.clientY - from.top - box.top) / side);
    if (step >= 0 && step < row.steps && layer >= 0 && layer < row.layers) show(layer, step);
  });
  picture.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [];
    if (down === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    show(place[0] + down, place[1] + right);
  });
  picture.addEventListener("focus", () => show(...place));
  return picture;
}

function drawHeatLegend(place, heat) {
  const entry = (mark, text) => html("li", {}, mark, text);
  const swatch = (colour) => html("i", { class: "swatch", style: `background:${colour}` });
  const scale = html("span", { class: "scale" }, "0 ", html("i", { class: "gradient" }), " 1");
  const entries = [entry(scale, " density of pairs of tiles in sparse calls")];
  heat.reasons.forEach(({ text, count }, number) => {
    entries.push(entry(swatch(reasonColour(number)), `dense, ${count} ${count === 1 ? "call" : "calls"}: ${text}`));
  });
  for (const by of new Set(heat.transformers.flatMap((row) => row.skipped.map((one) => one[2])))) {
    entries.push(entry(html("i", { class: "swatch hatched" }), `skipped, by ${by}`));
  }
  place.replaceChildren(...entries);
}

// A bar for each setting, on one scale.
const PART_COLOURS = { "choosing tiles": "#D55E00", "attention layers": "#0072B2", "rest of denoising": "#8fb8d4" };
function drawSplit(place, settings) {
  const timed = settings.filter((one) => Object.keys(one.split).length);
  const sum = (one) => Object.values(one.split).reduce((a, b) => a + b, 0), most = Math.max(...timed.map(sum));
  const colour = (part) => PART_COLOURS[part] || "var(--faint)";
  for (const one of timed) {
    const words = Object.entries(one.split).map(([part, seconds]) => `${part} ${seconds.toFixed(2)} s`).join(", ");
    const bar = html("div", { class: "bar", role: "img", "aria-label": `${one.name}: ${words}` });
    for (const [part, seconds] of Object.entries(one.split)) {
      const share = `width:${(100 * seconds) / most}%;background:${colour(part)}`;
      bar.append(html("span", { style: share, title: `${part}: ${seconds.toFixed(3)} s` }));
    }
    const text = html("div", { class: "bar-text" }, html("b", {}, one.name), ` ${sum(one).toFixed(2)} s`);
    const detail = html("ul", { class: "legend" });
    for (const [part, seconds] of Object.entries(one.split)) {
      const share = ((100 * seconds) / sum(one)).toFixed(seconds / sum(one) < 0.1 ? 1 : 0);
      const swatch = html("i", { class: "swatch", style: `background:${colour(part)}` });
      detail.append(html("li", {}, swatch, `${part} ${seconds.toFixed(seconds < 0.1 ? 3 : 2)} s, ${share} %`));
    }
    place.append(text, bar, detail);
  }
  return timed.length > 0;
}
