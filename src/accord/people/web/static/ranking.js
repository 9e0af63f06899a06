// Putting K completions in order: groups of equals, best first. Keys, buttons and the pointer do the same three things:
// move one, draw or undo a tie with the one above, call one unacceptable.

import { t } from "./words.js";

const up = -1;
const down = 1;

// Groups are lists of positions as shown; the functions return new groups.
export function moved(groups, item, step) {
  const at = groups.findIndex((group) => group.includes(item));
  const next = groups.map((group) => [...group]);
  if (next[at].length > 1) { // out of its tie first
    next[at] = next[at].filter((one) => one !== item);
    next.splice(step === up ? at : at + 1, 0, [item]);
  } else if (next[at + step]) {
    [next[at], next[at + step]] = [next[at + step], next[at]];
  }
  return next;
}

export function tiedWithAbove(groups, item) {
  const at = groups.findIndex((group) => group.includes(item));
  const within = groups[at].indexOf(item);
  const next = groups.map((group) => [...group]);
  if (within > 0) next.splice(at, 1, groups[at].slice(0, within), groups[at].slice(within)); // the tie is cut here
  else if (at > 0) next.splice(at - 1, 2, [...groups[at - 1], ...groups[at]]);
  return next;
}

// Let go of a card before another, after it, or onto it (a tie).
export function dropped(groups, item, other, where) {
  const next = groups.map((group) => group.filter((one) => one !== item)).filter((group) => group.length);
  const at = next.findIndex((group) => group.includes(other));
  const within = next[at].indexOf(other);
  const last = next[at].length - 1;
  if (where === "onto") next[at].splice(within + 1, 0, item);
  else if (where === "before" && within > 0) next[at].splice(within, 0, item); // between equals: an equal
  else if (where === "after" && within < last) next[at].splice(within + 1, 0, item);
  else next.splice(where === "before" ? at : at + 1, 0, [item]);
  return next;
}

export function ranksOf(groups, count) {
  return [...Array(count).keys()].map((item) => 1 + groups.findIndex((group) => group.includes(item)));
}

function groupsOf(ranks) {
  const found = new Map();
  ranks.forEach((rank, item) => found.set(rank, [...(found.get(rank) ?? []), item]));
  return [...found.keys()].sort((a, b) => a - b).map((rank) => found.get(rank));
}

export default function ranking({ form, cards, changed, say, current }) {
  const list = form.querySelector("#ranked");
  const cardOf = (item) => cards.find((card) => Number(card.dataset.position) === item);
  const letter = (item) => cardOf(item).dataset.letter;
  let groups = cards.map((_, item) => [item]);
  let bad = cards.map(() => false);
  let touched = false;
  let warned = false;

  function show() {
    const flat = groups.flat();
    const ranks = ranksOf(groups, cards.length);
    const here = document.activeElement;
    flat.forEach((item, place) => {
      const card = cardOf(item);
      if (list.children[place] !== card) list.insertBefore(card, list.children[place]);
      const tied = place > 0 && ranks[flat[place - 1]] === ranks[item];
      card.classList.toggle("tied", tied);
      card.classList.toggle("unacceptable", bad[item]);
      card.querySelector(".rank").textContent = ranks[item];
      card.setAttribute("aria-label", `${letter(item)}: ${standing(item, ranks)}`);
      card.querySelector(".standing").textContent = `: ${standing(item, ranks)}`;
      card.querySelector("[data-move=up]").disabled = place === 0 && !sharing(item);
      card.querySelector("[data-move=down]").disabled = place === flat.length - 1 && !sharing(item);
      card.querySelector("[data-move=tie]").disabled = place === 0;
      card.querySelector("[data-move=tie]").setAttribute("aria-pressed", tied);
      card.querySelector("[data-move=bad]").setAttribute("aria-pressed", bad[item]);
    });
    if (here !== document.activeElement && list.contains(here)) here.focus({ preventScroll: true });
  }

  const sharing = (item) => groups.find((group) => group.includes(item)).length > 1;

  function standing(item, ranks) {
    const equals = groups.find((group) => group.includes(item)).filter((one) => one !== item).map(letter);
    const tie = equals.length ? t(", tied with {others}", { others: equals.join(t(" and ")) }) : "";
    return t("rank {n} of {all}", { n: ranks[item], all: groups.length }) + tie + (bad[item] ? t(", unacceptable") : "");
  }

  function settle(next, item) {
    groups = next;
    touched = true;
    show();
    say(`${letter(item)}: ${standing(item, ranksOf(groups, cards.length))}`);
    changed();
  }

  const acts = {
    up: (item) => settle(moved(groups, item, up), item),
    down: (item) => settle(moved(groups, item, down), item),
    tie: (item) => settle(tiedWithAbove(groups, item), item),
    bad(item) {
      bad = bad.map((was, one) => (one === item ? !was : was));
      settle(groups, item);
    },
  };

  const reach = (item) => {
    cardOf(item).focus({ preventScroll: true });
    cardOf(item).scrollIntoView({ block: "nearest" });
  };
  const walk = (step) => {
    const flat = groups.flat();
    const at = current() === null ? (step > 0 ? -1 : flat.length) : flat.indexOf(current());
    reach(flat[Math.min(Math.max(at + step, 0), flat.length - 1)]);
  };
  const act = (name) => () => {
    const item = current() ?? groups.flat()[0];
    acts[name](item);
    reach(item);
  };

  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-move]");
    if (!button) return;
    const card = button.closest(".card");
    const byKey = button.matches(":focus-visible");
    acts[button.dataset.move](Number(card.dataset.position));
    if (!byKey || button.disabled) card.focus({ preventScroll: true });
  });
  dragging(list, cardOf, (item, other, where) => settle(dropped(groups, item, other, where), item));

  const clips = () => cards.forEach((card) => {
    const clip = card.querySelector(".clip");
    const text = clip.querySelector(".raw:not([hidden])") ?? clip.querySelector(".text");
    clip.classList.toggle("long", text.scrollHeight > text.clientHeight + 4);
  });
  const expand = () => {
    const open = list.classList.toggle("open");
    form.querySelector("[data-do=expand]").setAttribute("aria-pressed", open);
  };
  addEventListener("resize", clips);
  queueMicrotask(clips);

  return {
    best: () => groups[0][0],
    actions: { expand },
    keys: { j: () => walk(1), k: () => walk(-1), J: act("down"), K: act("up"), "=": act("tie"), x: act("bad"), o: expand },
    missing() {
      if (touched || warned) return "";
      warned = true;
      return t("You have not moved anything. Submit once more if this order is what you mean.");
    },
    read: () => (touched || warned ? { ranks: ranksOf(groups, cards.length), unacceptable: bad } : {}),
    restore({ ranks, unacceptable }) {
      if (ranks?.length === cards.length) {
        groups = groupsOf(ranks);
        touched = true;
      }
      if (unacceptable?.length === cards.length) bad = [...unacceptable];
      show();
    },
  };
}

// ---- by pointer --------------------------------------------------------------------------------------------------

// The card follows the pointer and nothing else moves until it is let go; a line or a tint shows where it would land.
function dragging(list, cardOf, drop) {
  let held = null;

  function target(y) {
    let nearest = null;
    for (const card of list.children) {
      if (card === held.card) continue;
      const box = card.getBoundingClientRect();
      const distance = Math.max(box.top - y, y - box.bottom, 0);
      if (nearest === null || distance < nearest.distance) {
        const share = (y - box.top) / box.height;
        nearest = { card, distance, where: share < 0.3 ? "before" : share > 0.7 ? "after" : "onto" };
      }
    }
    return nearest;
  }

  function clear() {
    for (const card of list.children) card.classList.remove("before", "after", "onto");
  }

  function follow() {
    if (!held) return;
    const { card, y, startY, startScroll } = held;
    card.style.transform = `translateY(${y - startY + scrollY - startScroll}px)`;
    const found = target(y);
    clear();
    found?.card.classList.add(found.where);
    held.found = found;
  }

  function roll() { // the page follows a card that is held at its edge
    if (!held) return;
    const bottom = innerHeight - (document.querySelector(".bar")?.offsetHeight ?? 0);
    const edge = 70;
    const step = held.y < edge ? held.y - edge : held.y > bottom - edge ? held.y - bottom + edge : 0;
    if (step) {
      scrollBy(0, Math.max(-18, Math.min(18, step / 3)));
      follow();
    }
    requestAnimationFrame(roll);
  }

  function end(keep) {
    if (!held) return;
    const { card, found, hasMoved } = held;
    held = null;
    clear();
    card.style.transform = "";
    card.classList.remove("dragging");
    list.classList.remove("sorting");
    card.focus({ preventScroll: true });
    if (keep && hasMoved && found) drop(Number(card.dataset.position), Number(found.card.dataset.position), found.where);
    card.scrollIntoView({ block: "nearest" });
  }

  list.addEventListener("pointerdown", (event) => {
    const grip = event.target.closest(".grip");
    if (!grip || event.button !== 0 || held) return;
    event.preventDefault();
    grip.setPointerCapture(event.pointerId);
    const card = grip.closest(".card");
    held = { card, y: event.clientY, startY: event.clientY, startScroll: scrollY, found: null, hasMoved: false };
    card.classList.add("dragging");
    list.classList.add("sorting");
    requestAnimationFrame(roll);
  });
  list.addEventListener("pointermove", (event) => {
    if (!held) return;
    held.y = event.clientY;
    held.hasMoved ||= Math.abs(held.y - held.startY) > 4;
    follow();
  });
  list.addEventListener("pointerup", () => end(true));
  list.addEventListener("pointercancel", () => end(false));
  document.addEventListener("keydown", (event) => event.key === "Escape" && end(false));
}
