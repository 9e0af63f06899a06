// How texts are shown: drawn (markdown, formulas, colours), or as the raw characters that are stored.

import { memory } from "./net.js";
import { t } from "./words.js";

export const viewOf = (scope) => (scope.querySelector("[data-do=raw]")?.getAttribute("aria-pressed") === "true" ? "raw" : "text");

export function show(scope, view) {
  for (const one of scope.querySelectorAll(".text, .raw, .diff")) one.hidden = !one.classList.contains(view);
  dispatchEvent(new Event("resize")); // what is clipped by height looks again
}

export function texts({ form, cards, say }) {
  const system = form.querySelector(".system");
  const conversation = form.querySelector(".conversation");
  const scopes = [conversation, ...cards];

  function turn(scope, raw) {
    scope.querySelector("[data-do=raw]")?.setAttribute("aria-pressed", raw);
    show(scope, raw ? "raw" : "text");
    if (scope === conversation && system) show(system, raw ? "raw" : "text");
  }

  function turnAll() {
    const raw = scopes.some((scope) => viewOf(scope) === "text");
    for (const scope of scopes) turn(scope, raw);
    memory.write(sessionStorage, "raw", raw || null); // the next task too
    say(raw ? t("Raw characters are shown.") : t("Texts are drawn."));
  }

  if (memory.read(sessionStorage, "raw")) for (const scope of scopes) turn(scope, true);
  return {
    actions: {
      raw(button) {
        const scope = button.closest(".card, .conversation");
        turn(scope, viewOf(scope) === "text");
        // Who clicked it goes on with the keys of the task: Enter submits, and does not press it again.
        if (!button.matches(":focus-visible")) scope.matches(".card") ? scope.focus({ preventScroll: true }) : button.blur();
      },
    },
    keys: { r: turnAll },
  };
}
