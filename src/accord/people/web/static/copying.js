// A button at each block of code that copies its exact characters.

import { t } from "./words.js";

// Marks stand for characters that nobody sees: what is copied has the characters themselves.
export function sourceOf(code) {
  const copy = code.cloneNode(true);
  for (const mark of copy.querySelectorAll(".mark:not(.joiner)")) mark.replaceWith(String.fromCodePoint(parseInt(mark.textContent.slice(2), 16)));
  return copy.textContent;
}

export function addCopying(root) {
  for (const pre of root.querySelectorAll("pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet copy";
    button.textContent = t("Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(sourceOf(pre.querySelector("code") ?? pre));
        button.textContent = t("Copied");
      } catch {
        button.textContent = t("Not allowed here"); // by the browser: plain http, or no permission
      }
      setTimeout(() => (button.textContent = t("Copy")), 2000);
    });
    const box = document.createElement("div");
    box.className = "block";
    pre.replaceWith(box);
    box.append(button, pre);
  }
}

for (const prose of document.querySelectorAll(".prose")) addCopying(prose);
