// Plain forms of the pages: <form data-api="VERB /path" data-then="/next"> sends its fields as JSON.

import { call } from "./net.js";

function values(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || ((field.type === "radio" || field.type === "checkbox") && !field.checked)) continue;
    const isPlain = field.type !== "number" && !field.dataset.as; // else it holds JSON: a number, null
    found[field.name] = isPlain ? field.value : JSON.parse(field.value);
  }
  return Object.keys(found).length ? found : undefined;
}

function show(form, message, good) {
  let place = form.querySelector(".result");
  if (!place) {
    place = document.createElement("p");
    place.className = "result";
    place.setAttribute("role", "status");
    form.append(place);
  }
  place.replaceChildren();
  if (good) {
    const code = document.createElement("code");
    code.textContent = message;
    place.append(form.dataset.tell ?? "", " ", code);
  } else {
    place.textContent = message;
  }
}

// Nothing of a person's work stays in the browser; keys of one's own do.
function forget() {
  sessionStorage.clear();
  for (const name of Object.keys(localStorage)) if (!name.startsWith("accord:keys:")) localStorage.removeItem(name);
}

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-api]");
  if (!form) return;
  event.preventDefault();
  if (form.dataset.busy) return;
  form.dataset.busy = "yes";
  const [verb, path] = form.dataset.api.split(" ");
  try {
    const answer = await call(verb, path, values(form));
    if (path.startsWith("/api/logout")) forget();
    if (form.dataset.show && answer) show(form, String(answer[form.dataset.show]), true);
    else if (form.dataset.then) location.assign(form.dataset.then);
    else location.reload();
  } catch (error) {
    show(form, error.message, false);
  } finally {
    delete form.dataset.busy;
  }
});

// Menus close when one presses elsewhere, or Escape.
document.addEventListener("click", (event) => {
  for (const open of document.querySelectorAll("details.menu[open], details.flags[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.menu[open], details.flags[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});
