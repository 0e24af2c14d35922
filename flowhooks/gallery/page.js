"use strict";
const one = (selector) => document.querySelector(selector);
const form = one("#filters");
const cards = [...document.querySelectorAll("article")];
const wanted = ["dataset", "bucket", "state"];

function filter() {
  const text = form.search.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = wanted.every((key) => !form[key].value || card.dataset[key] === form[key].value);
    card.hidden = !(fits && card.dataset.text.includes(text));
    shown += !card.hidden;
  }
  const of = Number(one("#shown").dataset.of);
  const rest = of > cards.length ? ` on this page shown, ${of} in all` : " shown";
  one("#shown").textContent = `${shown} of ${cards.length}${rest}`;
  one("#nothing").hidden = shown > 0 || cards.length === 0;
  for (const row of document.querySelectorAll("button[data-bucket]")) {
    row.setAttribute("aria-pressed", String(row.dataset.bucket === form.bucket.value));
  }
}

function clear() {
  form.search.value = "";
  for (const key of wanted) form[key].value = "";
  filter();
}

function look() {
  document.body.classList.toggle("unmasked", !form.mask.checked);
  document.body.dataset.size = form.size.value;
}

const zoom = one("#zoom");
const files = [...document.querySelectorAll("button.frame")];
let current = null, whole = null, veil = null;

function enlarge(file) {
  current = file;
  const [small, mask] = file.querySelectorAll("img");
  const box = zoom.querySelector(".box");
  if (!whole) {
    whole = Object.assign(document.createElement("img"), {className: "whole"});
    veil = Object.assign(document.createElement("img"), {className: "mask", alt: ""});
    box.before(whole);
    box.append(veil);
  }
  whole.src = file.dataset.whole || small.src;
  whole.alt = small.alt;
  whole.classList.toggle("tiny", !file.dataset.whole && small.classList.contains("tiny"));
  const [left, top, right, bottom] = (file.dataset.box || "0 0 1 1").split(" ").map(Number);
  Object.assign(box.style, {
    left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%`,
  });
  box.classList.toggle("cut", right - left < 1 || bottom - top < 1);
  if (mask) veil.src = mask.src; else veil.removeAttribute("src");
  zoom.querySelector(".about").textContent = [small.alt, file.dataset.about].filter(Boolean).join(" \u2013 ");
  if (!zoom.open) zoom.showModal();
}

function step(by) {
  const visible = files.filter((file) => !file.closest("article").hidden);
  const next = visible[visible.indexOf(current) + by];
  if (next) enlarge(next);
}

for (const file of files) file.addEventListener("click", () => enlarge(file));
zoom.addEventListener("click", (event) => { if (event.target === zoom || event.target.matches(".close")) zoom.close(); });
zoom.addEventListener("close", () => current.focus());

form.hidden = false;
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", () => { filter(); look(); });
for (const button of document.querySelectorAll(".clear")) button.addEventListener("click", clear);
for (const row of document.querySelectorAll("button[data-bucket]")) {
  row.addEventListener("click", () => {
    form.bucket.value = form.bucket.value === row.dataset.bucket ? "" : row.dataset.bucket;
    filter();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (zoom.open) {
    if (event.key === "Escape") { event.preventDefault(); zoom.close(); }
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
    if (event.key === "m") { form.mask.checked = !form.mask.checked; look(); }
    return;
  }
  if (event.key === "Escape") clear();
  if (event.target.closest("input[type=search], select")) return;
  if (event.key === "/") { event.preventDefault(); form.search.focus(); }
  if (event.key === "m") { form.mask.checked = !form.mask.checked; look(); }
});
filter();
look();
