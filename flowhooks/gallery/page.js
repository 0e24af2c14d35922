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
  one("#shown").textContent = `${shown} of ${cards.length} shown`;
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
  if (event.key === "Escape") clear();
  if (event.target.closest("input[type=search], select")) return;
  if (event.key === "/") { event.preventDefault(); form.search.focus(); }
  if (event.key === "m") { form.mask.checked = !form.mask.checked; look(); }
});
filter();
look();
