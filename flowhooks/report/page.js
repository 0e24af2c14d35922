"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const one = (selector) => document.querySelector(selector);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const HEIGHT = 190, TOP = 10, BOTTOM = 26, LEFT = 54;
const several = DATA.runs.length > 1;
const charts = [];
let cursor = null;

function make(tag, attributes, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

function html(tag, attributes, text) {
  const found = document.createElement(tag);
  Object.assign(found, attributes);
  if (text !== undefined) found.textContent = text;
  return found;
}

function number(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(size >= 1e5 ? 2 : 1).replace("e+", "e").replace("-", "\u2212").replace("e-", "e\u2212");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3))).replace("-", "\u2212");
}
const whole = (value) => Math.round(value).toLocaleString("en");

const ruler = document.createElement("canvas").getContext("2d");
function wide(text, bold) {
  ruler.font = `${bold ? "600 " : ""}11.5px system-ui, sans-serif`;
  return ruler.measureText(text).width;
}

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return found;
}

// The same steps on every time axis of the page.
const span = [0, Math.max(1, ...DATA.runs.map((run) => run.last))];

function paint(figure, line, i) {
  if (several) return { stroke: colour(`--r${line.run % 6}`), opacity: 1 };
  const lines = figure.series.filter((each) => !each.held);
  const place = line.held ? lines.findIndex((each) => `val/${each.metric}` === line.metric) : lines.indexOf(line);
  if (figure.ordered) return { stroke: colour("--accent"), opacity: 0.3 + (0.7 * (i + 1)) / figure.series.length };
  return { stroke: colour(`--s${(Math.max(place, 0) % 4) + 1}`), opacity: 1 };
}

class Chart {
  constructor(figure, host) {
    this.figure = figure;
    this.host = host.querySelector(".plot");
    host.querySelector(".save").addEventListener("click", () => this.save());
    this.width = 0;
    // At once, and again whenever its width changes; one in a part that is closed has none yet.
    this.draw();
    new ResizeObserver(() => { if (this.host.clientWidth !== this.width) this.draw(); }).observe(this.host);
  }

  draw() {
    const figure = this.figure, width = (this.width = this.host.clientWidth);
    if (!width) return;
    const held = this.svg === document.activeElement && this.svg !== undefined;
    const direct = figure.series.length > 1;
    // Room for the widest value at any step, so that the curves stay where they are while one reads them.
    this.room = Math.max(...figure.series.flatMap((line) => line.y.map((value) => number(value).length))) * 6.9;
    const labels = direct ? Math.max(...figure.series.map((line) => wide(`${line.label} `))) : 0;
    this.right = Math.min(14 + this.room + labels, Math.max(width * 0.42, 14 + this.room));
    let low = Infinity, high = -Infinity;
    for (const line of figure.series) for (const values of [line.y, line.low, line.high, line.raw]) for (const value of values || []) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    this.log = figure.log && low > 0 && high / low > 10;
    if (figure.reference !== null && !this.log) { low = Math.min(low, figure.reference); high = Math.max(high, figure.reference); }
    const flat = Math.abs(high) * 0.05 || 0.5;
    if (this.log) { low = Math.log10(low); high = Math.log10(high); } else if (high - low < Math.abs(high) * 1e-9 + 1e-300) { low -= flat; high += flat; }
    const pad = (high - low) * 0.05;
    this.range = [low - pad, high + pad];
    const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, tabindex: 0, role: "img", "aria-label": this.words(), "font-family": "system-ui, sans-serif", "font-size": 11.5 });
    this.frame(svg);
    figure.series.forEach((line, i) => this.line(svg, line, paint(figure, line, i)));
    this.over = make("g", {});
    svg.append(this.over);
    this.host.replaceChildren(svg);
    this.svg = svg;
    this.read();
    svg.addEventListener("pointermove", (event) => move(this.step(event)));
    svg.addEventListener("pointerleave", () => move(null));
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("blur", () => move(null));
    if (held) svg.focus();
  }

  words() {
    const parts = this.figure.series.map((line) => `${line.label}: ${number(line.y[0])} at step ${whole(line.x[0])}, ${number(line.y[line.y.length - 1])} at step ${whole(line.x[line.x.length - 1])}`);
    return `${this.figure.title}. ${parts.join("; ")}`;
  }

  x(step) { return LEFT + ((step - span[0]) / (span[1] - span[0])) * (this.width - LEFT - this.right); }
  y(value) { return TOP + (1 - ((this.log ? Math.log10(value) : value) - this.range[0]) / (this.range[1] - this.range[0])) * (HEIGHT - TOP - BOTTOM); }

  frame(svg) {
    const soft = colour("--soft"), grid = colour("--grid"), end = this.width - this.right, floor = HEIGHT - BOTTOM;
    let marks = ticks(this.range[0], this.range[1], 4);
    if (this.log) {
      const decades = Array.from({ length: Math.floor(this.range[1]) - Math.floor(this.range[0]) + 1 }, (_, i) => 10 ** (Math.floor(this.range[0]) + i));
      const within = (value) => Math.log10(value) >= this.range[0] && Math.log10(value) <= this.range[1];
      marks = decades.filter(within);
      if (marks.length < 3) marks = decades.flatMap((each) => [each, 2 * each, 5 * each]).filter(within);
      while (marks.length > 6) marks = marks.filter((_, i) => i % 2 === 0);
    }
    for (const value of marks) {
      const at = this.y(value);
      svg.append(make("line", { x1: LEFT, x2: end, y1: at, y2: at, stroke: grid }));
      svg.append(make("text", { x: LEFT - 8, y: at + 4, "text-anchor": "end", fill: soft }, number(value)));
    }
    const steps = ticks(span[0], span[1], this.width < 420 ? 3 : 4).filter((each) => Number.isInteger(each));
    for (const step of steps) {
      const at = this.x(step);
      svg.append(make("text", { x: at, y: HEIGHT - 8, "text-anchor": at > end - 20 ? "end" : at < LEFT + 12 ? "start" : "middle", fill: soft }, `${step === steps[0] ? "step " : ""}${whole(step)}`));
    }
    svg.append(make("line", { x1: LEFT, x2: end, y1: floor, y2: floor, stroke: colour("--line") }));
    if (this.figure.reference !== null && !this.log) {
      const at = this.y(this.figure.reference);
      svg.append(make("line", { x1: LEFT, x2: end, y1: at, y2: at, stroke: soft, "stroke-dasharray": "2 4" }));
    }
    const seen = new Map();
    for (const each of DATA.warnings) seen.set(each.step, [...(seen.get(each.step) || []), each.text]);
    for (const [step, texts] of [...seen].slice(0, 60)) {
      const at = Math.max(LEFT, this.x(step));
      const mark = make("path", { class: "warned", d: `M${at - 4.5} ${floor + 8}L${at + 4.5} ${floor + 8}L${at} ${floor + 0.5}Z`, fill: colour("--warn") });
      mark.append(make("title", {}, `step ${whole(step)}: ${texts.join("\n")}`));
      mark.addEventListener("click", () => light(step));
      svg.append(make("line", { x1: at, x2: at, y1: TOP, y2: floor, stroke: colour("--warn"), "stroke-opacity": 0.35, "stroke-dasharray": "1 3" }), mark);
    }
  }

  line(svg, line, { stroke, opacity }) {
    const path = (values) => line.x.map((step, i) => `${i ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(values[i]).toFixed(1)}`).join("");
    if (line.low) {
      const back = line.x.map((step, i) => `L${this.x(step).toFixed(1)} ${this.y(line.low[i]).toFixed(1)}`).reverse().join("");
      svg.append(make("path", { class: "band", d: `${path(line.high)}${back}Z`, fill: stroke, "fill-opacity": 0.16 * opacity }));
    }
    if (line.raw) svg.append(make("path", { d: path(line.raw), fill: "none", stroke, "stroke-opacity": 0.28 * opacity }));
    const dashes = line.held ? { "stroke-dasharray": "5 3" } : {};
    svg.append(make("path", { class: "line", d: path(line.y), fill: "none", stroke, "stroke-width": 1.8, "stroke-opacity": opacity, "stroke-linejoin": "round", ...dashes }));
    if (line.x.length < 12) for (let i = 0; i < line.x.length; i++) svg.append(make("circle", { cx: this.x(line.x[i]), cy: this.y(line.y[i]), r: 2.6, fill: stroke, "fill-opacity": opacity }));
  }

  // The labels at the right, of the last values or of those at the cursor.
  read() {
    if (!this.svg) return;
    const { figure, over } = this, end = this.width - this.right, shown = [];
    over.replaceChildren();
    figure.series.forEach((line, i) => {
      const at = cursor === null ? line.x.length - 1 : nearest(line.x, cursor);
      shown.push({ line, at, y: this.y(line.y[at]), ...paint(figure, line, i) });
    });
    if (cursor !== null) over.append(make("line", { x1: this.x(cursor), x2: this.x(cursor), y1: TOP, y2: HEIGHT - BOTTOM, stroke: colour("--soft"), "stroke-opacity": 0.6 }));
    const placed = [...shown].sort((a, b) => a.y - b.y);
    placed.forEach((each, i) => { each.to = Math.max(each.y, TOP + 2, i ? placed[i - 1].to + 14 : 0); });
    for (let i = placed.length - 1, most = HEIGHT - BOTTOM + 2; i >= 0; most = placed[i--].to - 14) placed[i].to = Math.min(placed[i].to, most);
    for (const each of placed) {
      const value = number(each.line.y[each.at]);
      if (cursor !== null) over.append(make("circle", { cx: this.x(each.line.x[each.at]), cy: each.y, r: 3.2, fill: each.stroke }));
      const label = make("text", { x: end + 8, y: each.to + 4, fill: colour("--ink") });
      if (placed.length > 1) {
        let words = each.line.label;
        while (words.length > 2 && wide(`${words} `) > this.right - 12 - this.room) words = `${words.slice(0, -2)}\u2026`;
        label.append(make("tspan", { fill: figure.ordered && !several ? colour("--soft") : each.stroke }, `${words} `));
      }
      label.append(make("tspan", { "font-weight": 600 }, value));
      over.append(label);
    }
    if (cursor !== null) {
      const first = shown[0];
      const band = first.line.low ? `, mean of ${whole(first.line.bins)}, ${number(first.line.low[first.at])} to ${number(first.line.high[first.at])}` : first.line.raw ? `, logged ${number(first.line.raw[first.at])}` : "";
      const text = `step ${whole(first.line.x[first.at])}${shown.length === 1 ? band : ""}`, left = this.x(cursor) > end - 130;
      over.append(make("text", { x: this.x(cursor) + (left ? -6 : 6), y: TOP + 2, "text-anchor": left ? "end" : "start", fill: colour("--soft"), stroke: colour("--paper"), "stroke-width": 3, "paint-order": "stroke" }, text));
    }
  }

  step(event) {
    const box = this.svg.getBoundingClientRect(), at = event.clientX - box.left;
    const found = span[0] + ((at - LEFT) / (this.width - LEFT - this.right)) * (span[1] - span[0]);
    const steps = this.figure.series[0].x;
    return at < LEFT - 6 || found > span[1] * 1.02 ? null : steps[nearest(steps, found)];
  }

  key(event) {
    const steps = this.figure.series[0].x, here = cursor === null ? steps.length : nearest(steps, cursor);
    const by = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: here - by, ArrowRight: here + by, Home: 0, End: steps.length - 1 }[event.key];
    if (event.key === "Escape") { move(null); event.preventDefault(); }
    if (to === undefined) return;
    event.preventDefault();
    const at = Math.min(steps.length - 1, Math.max(0, to));
    move(steps[at]);
    one("#told").textContent = `step ${whole(steps[at])}: ${this.figure.series.map((line) => `${line.label} ${number(line.y[nearest(line.x, steps[at])])}`).join(", ")}`;
  }

  save() {
    this.draw();
    const copy = this.svg.cloneNode(true), head = 34;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("viewBox", `0 ${-head} ${this.width} ${HEIGHT + head}`);
    copy.setAttribute("width", this.width);
    copy.setAttribute("height", HEIGHT + head);
    copy.prepend(make("rect", { x: 0, y: -head, width: this.width, height: HEIGHT + head, fill: colour("--paper") }), make("text", { x: 10, y: -12, "font-size": 14, "font-weight": 600, fill: colour("--ink") }, this.figure.title));
    const image = new Image();
    image.onload = () => {
      const canvas = html("canvas", { width: this.width * 2, height: (HEIGHT + head) * 2 });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      const name = this.figure.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "figure";
      const link = html("a", { href: canvas.toDataURL("image/png"), download: `${name}.png` });
      document.body.dataset.saved = link.download;
      link.click();
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  }
}

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

function move(step) {
  if (step === cursor) return;
  cursor = step;
  for (const chart of charts) chart.read();
}

function light(step) {
  DATA.warnings.forEach((each, i) => one(`#warning-${i + 1}`).classList.toggle("lit", each.step === step));
  one(`#warning-${DATA.warnings.findIndex((each) => each.step === step) + 1}`).scrollIntoView({ block: "center" });
}

for (const figure of DATA.figures) {
  const host = document.getElementById(figure.id);
  if (host) charts.push(new Chart(figure, host));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((chart) => chart.draw()));

// Images: a step for all runs, one image of it, before and after or run and run.
const view = { step: 0, cell: 0, wipe: false, at: 50 };
const steps = [...new Set(DATA.images.runs.flatMap((run) => run.steps))].sort((a, b) => a - b);

function shownAt(run, step) {
  const at = run.steps.filter((each) => each <= step).length - 1;
  return at < 0 ? null : { step: run.steps[at], url: run.images[at][view.cell] };
}

function columns() {
  const step = steps[view.step], runs = DATA.images.runs.filter((run) => run.steps.length);
  if (several) return runs.map((run) => ({ name: DATA.runs[run.run].name, ...(shownAt(run, step) || { step, url: null }) }));
  const first = { step: runs[0].steps[0], url: runs[0].images[0][view.cell] };
  return [{ name: "before", ...first }, { name: "after", ...shownAt(runs[0], step) }];
}

function picture(column, cell) {
  if (!column.url) return html("div", { className: "none" }, "no image at this step");
  return html("img", { src: column.url, className: cell.tiny ? "tiny" : "", width: cell.width, height: cell.height, alt: `${column.name}, step ${whole(column.step)}: ${cell.prompt || "validation images"}` });
}

// A few pixels are shown larger, but not as large as an image of many.
function fit(figure, cell) {
  if (cell.tiny) figure.style.maxWidth = `${Math.max(200, 8 * cell.width)}px`;
}

function caption(parts, cell) {
  const found = html("figcaption", {});
  for (const part of parts) {
    const words = html("span", {});
    words.append(html("b", {}, part.name), ` step ${whole(part.step)}`);
    found.append(words);
  }
  if (cell.seed !== null) found.append(html("span", {}, `seed ${whole(cell.seed)}`), html("span", {}, `${whole(cell.steps)} sampling steps`));
  return found;
}

function look() {
  const cell = DATA.images.cells[view.cell], found = columns(), both = found.length === 2 && found[0].url && found[1].url;
  const wiping = view.wipe && Boolean(both);
  one("#at").textContent = `step ${whole(steps[view.step])}`;
  one("#step").value = String(view.step);
  one("#step").setAttribute("aria-valuetext", `step ${whole(steps[view.step])}`);
  one("#wipe").setAttribute("aria-pressed", String(wiping));
  one("#side").setAttribute("aria-pressed", String(!wiping));
  one("#wipe").disabled = found.length !== 2;
  one("#divide").hidden = !wiping;
  one("#prompt").textContent = cell.prompt === null ? "The grid of a version that wrote no labels." : cell.prompt;
  if (wiping) {
    const figure = html("figure", {}), over = html("div", { className: "over" });
    fit(figure, cell);
    over.append(picture(found[0], cell), picture(found[1], cell), html("i", {}));
    over.addEventListener("pointerdown", (event) => { over.setPointerCapture(event.pointerId); drag(over, event); });
    over.addEventListener("pointermove", (event) => { if (event.buttons || event.pointerType === "mouse") drag(over, event); });
    figure.append(over, caption(found, cell));
    one("#stage").replaceChildren(figure);
    divide();
  } else {
    one("#stage").replaceChildren(...found.map((column) => {
      const figure = html("figure", {});
      fit(figure, cell);
      figure.append(picture(column, cell), caption([column], cell));
      return figure;
    }));
  }
  // An image that the last run did not generate is shown from the run before it.
  const drawn = [...DATA.images.runs].reverse().filter((run) => run.steps.length);
  [...one("#thumbs").children].forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === view.cell));
    const urls = drawn.map((run) => run.images[Math.max(0, run.steps.filter((each) => each <= steps[view.step]).length - 1)][i]);
    const url = urls.find((each) => each);
    if (url) button.firstChild.src = url;
  });
}

function divide() {
  const over = one("#stage .over");
  if (!over) return;
  over.children[1].style.clipPath = `inset(0 0 0 ${view.at}%)`;
  over.children[2].style.left = `${view.at}%`;
  one("#divider").value = String(view.at);
}

function drag(over, event) {
  const box = over.getBoundingClientRect();
  view.at = Math.round(Math.min(100, Math.max(0, ((event.clientX - box.left) / box.width) * 100)));
  divide();
}

const viewer = one("#viewer");
if (viewer && steps.length) {
  view.step = steps.length - 1;
  viewer.hidden = false;
  one("#step").max = String(steps.length - 1);
  viewer.addEventListener("submit", (event) => event.preventDefault());
  one("#step").addEventListener("input", (event) => { view.step = Number(event.target.value); look(); });
  one("#divider").addEventListener("input", (event) => { view.at = Number(event.target.value); divide(); });
  one("#side").addEventListener("click", () => { view.wipe = false; look(); });
  one("#wipe").addEventListener("click", () => { view.wipe = true; look(); });
  DATA.images.cells.forEach((cell, i) => {
    const button = html("button", { type: "button", title: cell.prompt || "" });
    button.setAttribute("aria-label", `image ${i + 1}${cell.prompt ? `: ${cell.prompt}, seed ${cell.seed}` : ""}`);
    button.append(html("img", { alt: "", className: cell.tiny ? "tiny" : "" }));
    button.addEventListener("click", () => { view.cell = i; look(); });
    one("#thumbs").append(button);
  });
  one("#thumbs").hidden = DATA.images.cells.length < 2;
  const kept = DATA.watched && JSON.parse(sessionStorage.getItem("view"));
  // Who looked at the last step sees the new last one.
  if (kept) Object.assign(view, kept, { step: kept.last ? steps.length - 1 : Math.min(kept.step, steps.length - 1) });
  view.cell = Math.min(view.cell, DATA.images.cells.length - 1);
  look();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !viewer || !steps.length) return;
  if (event.key === "w") view.wipe = !view.wipe;
  else if (event.key === "[") view.step = Math.max(0, view.step - 1);
  else if (event.key === "]") view.step = Math.min(steps.length - 1, view.step + 1);
  else return;
  look();
});

// Only where a server renews the page.
async function renew() {
  try {
    const answer = await fetch("state");
    if (answer.ok && (await answer.text()) !== DATA.watched) {
      sessionStorage.setItem("view", JSON.stringify({ ...view, last: view.step === steps.length - 1 }));
      location.reload();
    }
  } catch { /* the server has ended; what is shown stays */ }
}
if (DATA.watched) setInterval(renew, 3000);
