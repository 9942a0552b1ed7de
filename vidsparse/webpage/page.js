"use strict";

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const settingNamed = (name) => data.settings.find((one) => one.name === name);

// Videos

const scenes = [...document.querySelectorAll(".scene")];
let players = null, cursors = [], shown = [];

function pair() {
  const videos = players.videos, left = videos[+byId("left").value], right = videos[+byId("right").value];
  if (!left || !right) return;
  drawWipe(byId("wipe"), left, right, byId("split").value / 1000);
  drawDifference(byId("difference"), left, right, +byId("amplify").value);
}

function changed() {
  const { frame, frames, playing } = players;
  byId("frame").value = frame;
  byId("place").textContent = `${frame} of ${frames - 1}`;
  byId("play").textContent = playing ? "Pause" : "Play";
  byId("play").setAttribute("aria-label", playing ? "Pause all" : "Play all");
  for (const move of cursors) move(frame);
  if (!byId("pair").hidden) pair();
}

function go(frame) {
  players.pause();
  players.seek(frame);
}

function show(number) {
  if (players) players.pause();
  scenes.forEach((scene, index) => (scene.hidden = index !== number));
  document.querySelectorAll("[data-show]").forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === number)));
  shown = data.scenes[number].clips;
  const videos = [...scenes[number].querySelectorAll("video")];
  players = new Players(videos, data.scenes[number].fps, Math.min(...shown.map((clip) => clip.frames)), () => changed());
  players.loop = byId("loop").checked;
  players.setSpeed(+byId("speed").value);
  byId("frame").max = players.frames - 1;
  byId("pair").hidden = videos.length < 2;
  ["left", "right"].forEach((side, index) => {
    byId(side).replaceChildren(...shown.map((clip, at) => html("option", { value: at }, clip.setting)));
    byId(side).selectedIndex = Math.min(index, shown.length - 1);
  });
  nameSides();
  showCurves();
  players.seek(0);
}

function nameSides() {
  const [left, right] = ["left", "right"].map((side) => shown[+byId(side).value].setting);
  byId("wipe-text").textContent = `Left of the line: ${left}. Right of it: ${right}. Drag it.`;
  byId("difference-text").textContent =
    `What differs between ${left} and ${right}, times ${byId("amplify").value}; black is equal. Shown are the compressed videos; the figures were measured before compression.`;
  byId("amplified").textContent = `x${byId("amplify").value}`;
}

function showCurves() {
  const measured = shown.filter((clip) => Object.values(clip.curves).some((values) => values.some((value) => value !== null)));
  byId("curves").hidden = measured.length === 0;
  const titles = measured.length ? Object.keys(measured[0].curves) : [];
  const panels = titles.map(() => html("div", { class: "chart" }));
  byId("curve-panels").replaceChildren(...panels);
  cursors = titles.map((title, index) => {
    const own = measured.filter((clip) => clip.curves[title].some((value) => value !== null));
    return own.length ? drawCurves(panels[index], title, own, players.frames, go) : () => {};
  });
  const jumps = measured.filter((clip) => clip.worst !== null).map((clip) => {
    const text = `Worst frame of ${clip.setting}: ${clip.worst} (${clip.curves["PSNR, dB"][clip.worst].toFixed(1)} dB)`;
    const button = html("button", { type: "button", "data-worst": clip.worst }, html("i", { class: "swatch", style: `background:${clip.colour}` }), text);
    button.addEventListener("click", () => go(clip.worst));
    return button;
  });
  byId("worst").replaceChildren(...jumps);
}

function worstFrame() {
  const known = shown.filter((clip) => clip.worst !== null);
  const psnr = (clip) => clip.curves["PSNR, dB"][clip.worst];
  return known.length ? known.reduce((a, b) => (psnr(b) < psnr(a) ? b : a)).worst : null;
}

function startVideos() {
  document.querySelectorAll("[data-show]").forEach((tab) => tab.addEventListener("click", () => show(+tab.dataset.show)));
  byId("play").addEventListener("click", () => players.toggle());
  byId("back").addEventListener("click", () => go(players.frame - 1));
  byId("forward").addEventListener("click", () => go(players.frame + 1));
  byId("frame").addEventListener("input", () => go(+byId("frame").value));
  byId("speed").addEventListener("change", () => players.setSpeed(+byId("speed").value));
  byId("loop").addEventListener("change", () => (players.loop = byId("loop").checked));
  for (const id of ["left", "right", "split", "amplify"]) {
    byId(id).addEventListener("input", () => {
      nameSides();
      pair();
    });
  }
  const wipe = byId("wipe");
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    if (event.type === "pointerdown") wipe.setPointerCapture(event.pointerId);
    const { left, width } = wipe.getBoundingClientRect();
    byId("split").value = (1000 * (event.clientX - left)) / width;
    pair();
  };
  wipe.addEventListener("pointerdown", drag);
  wipe.addEventListener("pointermove", drag);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, button, summary, [tabindex]")) return;
    const worst = worstFrame();
    if (event.key === " ") players.toggle();
    else if (event.key === "ArrowLeft") go(players.frame - 1);
    else if (event.key === "ArrowRight") go(players.frame + 1);
    else if (event.key.toLowerCase() === "w" && worst !== null) go(worst);
    else return;
    event.preventDefault();
  });
  show(0);
}

// Charts

function startPlot() {
  const points = data.settings.filter((one) => one.seconds && one.psnr);
  if (!points.length) return;
  byId("plot-section").hidden = false;
  drawPlot(byId("plot"), data.settings, data.another_seed, (name, text) => {
    byId("plot-text").textContent = text;
    document.querySelectorAll("tr[data-setting]").forEach((row) => row.classList.toggle("chosen", row.dataset.setting === name));
  });
}

function startHeat() {
  const ran = data.settings.filter((one) => one.heat);
  if (!ran.length) return;
  byId("heat-section").hidden = false;
  const choice = byId("heat-setting");
  choice.replaceChildren(...ran.map((one) => html("option", {}, one.name)));
  byId("heat-choice").hidden = ran.length < 2;
  const draw = () => {
    const { heat } = settingNamed(choice.value);
    byId("heat-text").textContent = "Point at a cell, or go to the map with Tab and from cell to cell with the arrow keys.";
    drawHeat(byId("heat"), heat, (text) => (byId("heat-text").textContent = text));
    drawHeatLegend(byId("heat-legend"), heat);
  };
  choice.addEventListener("input", draw);
  draw();
}

// Copying

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // an old browser, or a page that may not
    const area = html("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

document.querySelectorAll("[data-copy]").forEach((button) =>
  button.addEventListener("click", async () => {
    await copy(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
    byId("said").textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }),
);

byId("save").addEventListener("click", () => {
  const link = html("a", { download: "report.json" });
  link.href = URL.createObjectURL(new Blob([byId("report").textContent], { type: "application/json" }));
  link.click();
  URL.revokeObjectURL(link.href);
});

if (scenes.length) startVideos();
startPlot();
if (drawSplit(byId("time"), data.settings)) byId("time-section").hidden = false;
startHeat();
