// The kinds of task, one function each. A kind reads its part of the answer off the page, says what is missing,
// puts an earlier answer back, and names its keys and which completion is best so far.

import { ranking } from "./ranking.js";

// j and k walk over things on the page.
function walker(things, reached = () => {}) {
  let at = -1;
  const go = (step) => {
    at = Math.min(Math.max(at + step, 0), things.length - 1);
    const thing = things[at];
    thing.focus({ preventScroll: true });
    thing.scrollIntoView({ block: "nearest" });
    reached(thing, at);
  };
  return { go, at: () => at, to: (place) => { at = place; go(0); }, keys: { j: () => go(1), k: () => go(-1) } };
}

function pair({ form, cards, changed }) {
  const choices = [...form.querySelectorAll("input[name=choice]")];
  const chosen = () => choices.find((choice) => choice.checked)?.value;
  const best = () => (/^[01]/.test(chosen() ?? "") ? Number(chosen()[0]) : null);
  const show = () => cards.forEach((card, i) => card.classList.toggle("best", best() === i));
  const pick = (choice) => {
    choice.checked = true;
    show();
    changed();
  };
  form.addEventListener("change", (event) => event.target.name === "choice" && (show(), changed()));
  return {
    best,
    keys: { ...Object.fromEntries(choices.map((choice) => [choice.dataset.key, () => pick(choice)])), ...walker(cards).keys },
    missing: () => (chosen() ? "" : "Choose first: 1 to 4 for A, 6 to 9 for B, 5 for a tie, 0 if both are bad."),
    read() {
      const choice = chosen();
      if (!choice) return {};
      if (choice === "tie" || choice === "bad") {
        return { ranks: [1, 1], unacceptable: [choice === "bad", choice === "bad"], strength: null };
      }
      const [better, strength] = choice.split(" ");
      return { ranks: better === "0" ? [1, 2] : [2, 1], unacceptable: [false, false], strength };
    },
    restore({ ranks, unacceptable, strength }) {
      if (!ranks) return;
      const tie = unacceptable?.every(Boolean) ? "bad" : "tie";
      const value = ranks[0] === ranks[1] ? tie : `${ranks[0] < ranks[1] ? 0 : 1} ${strength ?? "better"}`;
      choices.forEach((choice) => (choice.checked = choice.value === value));
      show();
    },
  };
}

function rating({ form, cards, changed, say }) {
  const rows = [...form.querySelectorAll(".axis")];
  const radios = (row) => [...row.querySelectorAll("input")];
  const value = (row) => radios(row).find((radio) => radio.checked)?.value;
  const mark = (here) => rows.forEach((row) => row.classList.toggle("current", row === here));
  rows.forEach((row) => (row.tabIndex = -1));
  const walk = walker(rows, mark);
  form.addEventListener("focusin", (event) => {
    const row = event.target.closest(".axis");
    if (row) mark(row);
  });
  form.addEventListener("change", (event) => event.target.closest(".axis") && changed());
  const give = (number) => {
    const place = walk.at() < 0 ? rows.findIndex((row) => !value(row)) : walk.at();
    const row = rows[place < 0 ? 0 : place];
    const values = radios(row);
    const radio = values.find((one) => one.value === String(number)) ?? (number === 0 && values.find((one) => one.value === "10"));
    if (!radio) return say(`This scale goes from ${values[0].value} to ${values.at(-1).value}`);
    radio.checked = true;
    say(`${row.dataset.axis}: ${number}`);
    changed();
    walk.to(Math.min(rows.indexOf(row) + 1, rows.length - 1));
  };
  const digits = Object.fromEntries([...Array(10).keys()].map((digit) => [String(digit), () => give(digit)]));
  return {
    best: () => best(cards, rows, value),
    keys: { ...digits, ...walk.keys },
    missing() {
      const empty = rows.find((row) => !value(row));
      if (!empty) return "";
      walk.to(rows.indexOf(empty));
      return `Rate ${empty.dataset.axis} too.`;
    },
    read() {
      const ratings = cards.map(() => ({}));
      for (const row of rows) if (value(row)) ratings[row.dataset.of][row.dataset.axis] = Number(value(row));
      return { ratings };
    },
    restore({ ratings }) {
      for (const row of rows) {
        const held = ratings?.[row.dataset.of]?.[row.dataset.axis];
        radios(row).forEach((radio) => (radio.checked = radio.value === String(held)));
      }
    },
  };
}

// The completion with the highest sum so far.
function best(cards, rows, value) {
  const sums = cards.map((_, i) => rows.filter((row) => Number(row.dataset.of) === i).reduce((sum, row) => sum + Number(value(row) ?? 0), 0));
  return sums.some(Boolean) ? sums.indexOf(Math.max(...sums)) : null;
}

function label({ form, cards, changed }) {
  const value = (i) => form.querySelector(`input[name=good-${i}]:checked`)?.value;
  const walk = walker(cards);
  const firstEmpty = () => cards.findIndex((_, i) => !value(i));
  const give = (word) => {
    const at = walk.at() >= 0 ? walk.at() : Math.max(firstEmpty(), 0);
    form.querySelector(`input[name=good-${at}][value=${word}]`).checked = true;
    changed();
    walk.to(Math.min(at + 1, cards.length - 1));
  };
  form.addEventListener("change", (event) => event.target.name?.startsWith("good-") && changed());
  return {
    best: () => { const good = cards.findIndex((_, i) => value(i) === "good"); return good < 0 ? null : good; },
    keys: { g: () => give("good"), b: () => give("bad"), ...walk.keys },
    missing: () => (firstEmpty() < 0 ? "" : (walk.to(firstEmpty()), "Say good or bad.")),
    read: () => (firstEmpty() < 0 ? { good: cards.map((_, i) => value(i) === "good") } : {}),
    restore({ good }) {
      good?.forEach((is, i) => (form.querySelector(`input[name=good-${i}][value=${is ? "good" : "bad"}]`).checked = true));
    },
  };
}

function demonstration({ form, changed }) {
  const text = form.querySelector("#text");
  const words = form.querySelector("#words");
  const count = () => {
    const found = text.value.trim().split(/\s+/).filter(Boolean).length;
    words.textContent = `${found} ${found === 1 ? "word" : "words"}`;
  };
  text.addEventListener("input", () => (count(), changed()));
  return {
    best: () => null,
    keys: { w: () => text.focus() },
    missing: () => (text.value.trim() ? "" : (text.focus(), "Write something first.")),
    read: () => ({ text: text.value }),
    restore({ text: held }) {
      text.value = held ?? "";
      count();
    },
  };
}

export const KINDS = { pair, ranking, rating, label, demonstration };
