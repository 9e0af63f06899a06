// One task on one page: reads the answer off the page, keeps it safe, sends it once.

import { call, memory, persist } from "./net.js";
import "./copying.js";
import { extras } from "./extras.js";
import { ownKeys } from "./keys.js";
import { texts } from "./texts.js";
import { timer } from "./timer.js";
import { walker } from "./walker.js";
import { t } from "./words.js";

const form = document.getElementById("task");
const given = JSON.parse(form.dataset.task);
const live = document.getElementById("live");
const toast = document.getElementById("toast");
const submit = document.getElementById("submit");
const saved = document.getElementById("saved");
const problem = document.getElementById("problem");
// What this page answers. An undone answer is another revision; another person at this browser has another order.
const own = `${given.person}:${given.task_id}:${given.mode}:${given.revision}`;
const path = `/api/tasks/${encodeURIComponent(given.task_id)}`;
const managing = given.mode !== "label"; // no lease, no draft, no way back but another answer

const say = (message) => (live.textContent = message);
const task = { form, cards: [...form.querySelectorAll(".card")], say, changed, current, walker, path, listed: managing };
const kept = managing ? null : memory.read(localStorage, `draft:${own}`);
const draft = kept ?? given.draft ?? {};
const time = timer(draft);
const kind = (await import(given.script)).default(task);
const more = extras(task, kind);
const views = texts(task);
const mine = ownKeys(given.person);
let locked = false;
let restoring = true;

// ---- the answer, and keeping it ----------------------------------------------------------------------------------

function read() {
  return { ...kind.read(), ...more.read(), ...time() };
}

let unsent = null;
function changed() {
  if (restoring || locked) return;
  tell("");
  if (managing) return;
  memory.write(localStorage, `draft:${own}`, read());
  saved.textContent = "";
  clearTimeout(unsent);
  unsent = setTimeout(save, 800);
}

async function save() {
  clearTimeout(unsent);
  unsent = null;
  try {
    await call("PUT", `${path}/draft`, read());
    if (unsent !== null) return; // changed meanwhile: that will be sent too
    memory.write(localStorage, `draft:${own}`, null);
    saved.textContent = t("draft saved");
  } catch {
    saved.textContent = t("draft kept in this browser");
  }
}

addEventListener("pagehide", () => unsent !== null && !locked && save());

// A key for this task and revision, the same after a reload: whatever is sent twice is one judgement.
function onceKey() {
  const held = memory.read(localStorage, `key:${own}`);
  if (held) return held;
  const made = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  memory.write(localStorage, `key:${own}`, made);
  return made;
}

// ---- sending -----------------------------------------------------------------------------------------------------

const once = (verb, answer) => call("POST", `${path}/${verb}`, answer, { "Idempotency-Key": onceKey() });
const SENDING = {
  label: (answer) => once("submit", answer),
  adjudicate: (answer) => once("adjudicate", answer),
  gold: ({ seconds, pauses_s, ...answer }) => call("PUT", `${path}/gold`, { answer, overlap: form.elements.overlap.valueAsNumber }),
};
const NEXT = { label: "/task", adjudicate: "/manage/disagreements", gold: "/manage/gold" };

function tell(message) {
  problem.hidden = !message;
  problem.textContent = message;
}

function lock(on) {
  locked = on;
  form.inert = on;
  form.classList.toggle("sending", on);
}

async function send() {
  if (locked || wait() > 0) return;
  const missing = kind.missing();
  if (missing) return tell(missing);
  if (!form.reportValidity()) return;
  lock(true);
  clearTimeout(unsent);
  unsent = null;
  const answer = read();
  if (!managing) memory.write(localStorage, `draft:${own}`, answer);
  try {
    const receipt = await persist(
      () => SENDING[given.mode](answer),
      () => notify(t("No connection. Your answer is kept and will be sent as soon as the server answers.")),
    );
    leave(receipt && { type: "submission", id: receipt.submission_id, message: receipt.extra ? t("Kept as an extra: somebody else had this task") : t("Saved") });
  } catch (error) {
    refused(error);
  }
}

function refused(error) {
  lock(false);
  toast.hidden = true;
  if (error.status === 401) return tell(t("You are logged out. Log in again in another tab, then submit: nothing is lost."));
  tell(error.message);
}

function leave(done) {
  forget();
  memory.write(sessionStorage, "last", managing ? null : done);
  location.assign(NEXT[given.mode]);
}

function forget() {
  memory.write(localStorage, `draft:${own}`, null);
  memory.write(localStorage, `key:${own}`, null);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

// Reading takes time: the button counts down, by the time the page was really seen.
function wait() {
  return Math.ceil(given.min_seconds - time().seconds);
}

function countdown() {
  const left = wait();
  submit.disabled = left > 0;
  submit.firstElementChild.textContent = left > 0 ? t("Read on: {n} s", { n: left }) : submit.dataset.label;
  if (left > 0) setTimeout(countdown, 250);
}

// ---- the lease ---------------------------------------------------------------------------------------------------

async function beat() {
  if (document.hidden || locked) return;
  try {
    await call("POST", `${path}/heartbeat`);
  } catch (error) {
    if (error.status === 404) saved.textContent = t("somebody else may have this task now; your answer still counts as an extra");
  }
}

if (!managing) setInterval(beat, Math.min(Math.max(given.lease_s / 3, 5), 240) * 1000);

// ---- skip, undo --------------------------------------------------------------------------------------------------

const skipping = document.getElementById("skip");
skipping.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reason = skipping.querySelector("input[name=reason]:checked")?.value;
  if (!reason || locked) return;
  lock(true);
  clearTimeout(unsent);
  try {
    await save();
    await call("POST", `${path}/skip`, { reason, note: skipping.querySelector("textarea").value });
    leave({ type: "skip", id: given.task_id, message: t("Skipped") });
  } catch (error) {
    skipping.close();
    refused(error);
  }
});

const undoable = () => memory.read(sessionStorage, "last");
const undoButton = form.querySelector("[data-do=undo]");

async function undo() {
  const last = undoable();
  if (!last) return say(t("Nothing to undo here. The history page shows older work."));
  const door = last.type === "skip" ? `/api/tasks/${encodeURIComponent(last.id)}/unskip` : `/api/submissions/${encodeURIComponent(last.id)}/undo`;
  try {
    if (unsent !== null) await save();
    const again = await call("POST", door);
    memory.write(sessionStorage, "last", null);
    location.assign(`/task/${encodeURIComponent(again.task_id)}`);
  } catch (error) {
    memory.write(sessionStorage, "last", null);
    if (undoButton) undoButton.hidden = true;
    tell(error.message);
  }
}

function notify(message, undoing = false) {
  toast.replaceChildren(message);
  if (undoing) {
    const button = document.createElement("button");
    const key = document.createElement("kbd");
    key.textContent = "u";
    button.append(t("Undo"), " ", key);
    button.addEventListener("click", undo);
    toast.append(button);
    mine.label(toast);
    setTimeout(() => (toast.hidden = true), 8000);
  }
  toast.hidden = false;
}

// ---- keys --------------------------------------------------------------------------------------------------------

function current() {
  const found = task.cards.findIndex((card) => card.contains(document.activeElement) || card === document.activeElement);
  return found >= 0 ? Number(task.cards[found].dataset.position) : null;
}

mine.offer(document.getElementById("help"));
const open = (id) => document.getElementById(id).showModal();
const actions = {
  help: () => open("help"),
  skip: () => !managing && open("skip"),
  undo: () => !managing && undo(),
  close: (button) => button.closest("dialog").close(),
};
const keys = { "?": actions.help, s: actions.skip, u: actions.undo, ...views.keys, ...more.keys, ...kind.keys };

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  const act = actions[button.dataset.do] ?? views.actions[button.dataset.do] ?? more.actions[button.dataset.do] ?? kind.actions?.[button.dataset.do];
  act?.(button);
});

const typing = (target) => target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");

document.addEventListener("keydown", (event) => {
  const dialog = document.querySelector("dialog[open]");
  if (dialog) return dialogKey(event, dialog);
  if (event.isComposing || event.repeat && event.key === "Enter") return;
  if (typing(event.target)) return typingKey(event);
  if (event.ctrlKey || event.metaKey || event.altKey || locked) return;
  if (event.key === "Enter") {
    const pressed = event.target.closest("button, a, summary");
    if (pressed && pressed !== submit && pressed.matches(":focus-visible")) return; // Enter presses what Tab has reached
    event.preventDefault();
    return send();
  }
  const act = keys[mine.usual(Object.keys(keys), event.key)];
  if (!act) return;
  event.preventDefault();
  act(event);
});

function typingKey(event) {
  if (event.key === "Escape") {
    event.preventDefault();
    (event.target.closest(".card") ?? submit).focus();
  } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
}

function dialogKey(event, dialog) {
  if (typing(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
  const reason = dialog.querySelectorAll("input[type=radio]")[Number(event.key) - 1];
  if (reason) {
    event.preventDefault();
    reason.checked = true;
    reason.focus();
  } else if (event.key === "Enter" && event.target.matches("input")) {
    event.preventDefault();
    dialog.querySelector("form").requestSubmit();
  }
}

// ---- begin -------------------------------------------------------------------------------------------------------

for (const part of [kind, more]) {
  try {
    part.restore(draft);
  } catch (error) {
    console.warn("a draft that does not fit this task is left out", error);
  }
}
restoring = false;
countdown();
if (kept) save(); // the last page could not send it
const last = undoable();
if (last && !managing) {
  notify(last.message, true);
  undoButton.hidden = false;
}
addEventListener("pageshow", (event) => event.persisted && location.reload()); // "back" shows what is really leased
form.dataset.ready = "yes";
