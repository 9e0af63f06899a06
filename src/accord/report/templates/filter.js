"use strict";
for (const box of document.querySelectorAll("[data-answers]")) {
  const body = box.querySelector("tbody"), rows = [...body.rows], told = box.querySelector("output");
  const [search, show, order] = ["search", "show", "order"].map((name) => box.querySelector(`[data-${name}]`));
  const words = rows.map((row) => row.textContent.toLowerCase());
  const change = (row) => Number(row.dataset.change), place = new Map(rows.map((row, i) => [row, i]));
  const orders = {
    file: (a, b) => place.get(a) - place.get(b),
    worst: (a, b) => change(a) - change(b) || place.get(a) - place.get(b),
    best: (a, b) => change(b) - change(a) || place.get(a) - place.get(b),
  };
  const look = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const kept = wanted.every((one) => words[i].includes(one))
        && (!show.value || row.dataset.marks.split(" ").includes(show.value));
      row.hidden = !kept;
      shown += kept;
    });
    body.append(...[...rows].sort(orders[order.value]));
    told.textContent = `${shown} of ${rows.length} prompts shown`;
  };
  box.querySelector("form").hidden = false;
  box.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  for (const one of [search, show, order]) one.addEventListener("input", look);
  look();
}
