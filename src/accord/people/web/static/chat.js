// Talking to a served model: answers as they are written, and what somebody says of them.
// Texts go into the page as texts; HTML comes from the server alone, which has cleaned it.

import { addCopying } from "./copying.js";
import { memory } from "./net.js";
import { t } from "./words.js";

const MOST_TALKS = 50; // that a browser remembers
const TITLE = 60; // characters
const TRIES = 3; // of sending feedback where nothing answers

const at = (id) => document.getElementById(id);
const keeps = document.querySelector(".chat").dataset.keeps === "1";
const talks = memory.read(localStorage, "talks") ?? [];
let talk = talks[0] ?? null;
let writing = null; // the AbortController of the answer that is being written

// ---- the server -------------------------------------------------------------------------------------------------

function headers(more) {
  const key = memory.read(sessionStorage, "key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}), ...more };
}

async function ask(path, body, more = {}) {
  const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, { ...sent, redirect: "error", ...more, headers: headers(more.headers) });
  if (response.ok) return response;
  const said = (await response.json().catch(() => null))?.error?.message;
  at("door").hidden = response.status !== 401;
  if (response.status === 401) at("key").focus();
  throw Object.assign(new Error(said ?? response.statusText), { status: response.status });
}

async function* events(body, signal) {
  const response = await ask("/v1/chat/completions", { ...body, stream: true }, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue; // a comment, which keeps the connection alive
      if (block === "data: [DONE]") return;
      const event = JSON.parse(block.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// The same key each time: what arrived twice is taken once.
async function say(token, kind, more = {}) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  for (let tries = 1; ; tries++) {
    try {
      await ask("/v1/feedback", { feedback_token: token, kind, ...more }, { headers: { "Idempotency-Key": key }, keepalive: true });
      return tell(t("Thank you, this is kept."));
    } catch (error) {
      if (error.status || tries === TRIES) return problem(error);
      await new Promise((done) => setTimeout(done, 500 * tries));
    }
  }
}

// ---- small things -----------------------------------------------------------------------------------------------

function make(name, values = {}, ...inner) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...inner);
  return made;
}

const press = (words, onclick, more = {}) => make("button", { type: "button", class: "quiet", onclick, ...more }, words);

function tell(words) {
  at("live").textContent = words;
  const toast = at("toast");
  toast.textContent = words;
  toast.hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => (toast.hidden = true), 2500);
}

function problem(error) {
  at("problem").hidden = false;
  at("problem").textContent = error.message || t("The server does not answer.");
}

function keep() {
  memory.write(localStorage, "talks", talks.slice(0, MOST_TALKS));
}

async function drawn(texts) {
  if (!texts.length) return [];
  try {
    return (await (await ask("/chat/drawn", { texts })).json()).html;
  } catch {
    return texts.map(() => null); // shown as they are
  }
}

function textOf(text, html) {
  if (html === null || html === undefined) return make("div", { class: "prose plain", dir: "auto" }, text);
  const box = make("div", { class: "prose", dir: "auto" });
  box.innerHTML = html; // cleaned by the server, and the page's policy runs no script in it
  addCopying(box);
  return box;
}

// ---- the page ---------------------------------------------------------------------------------------------------

async function show() {
  const shown = talk;
  const wanted = (shown?.turns ?? []).flatMap((turn) => (turn.role === "assistant" ? (turn.choose ?? [turn]) : []));
  const html = await drawn(wanted.map((one) => one.content));
  if (shown !== talk) return;
  const of = new Map(wanted.map((one, i) => [one, html[i]]));
  at("log").replaceChildren(...(talk?.turns ?? []).map((turn, i) => row(turn, i, of)));
  at("list").replaceChildren(...talks.map(entry));
  const waits = talk?.turns.at(-1)?.choose !== undefined;
  at("send").disabled = waits || writing !== null;
  at("message").disabled = waits;
  at("stop").hidden = writing === null;
}

function row(turn, i, html) {
  if (turn.role === "user") return make("article", { class: "turn ours" }, make("p", { class: "role" }, t("you")), make("div", { class: "prose plain", dir: "auto" }, turn.content));
  const said = make("div");
  if (turn.choose) said.append(choice(turn, html));
  else said.append(textOf(turn.content, html.get(turn)), tools(turn, i));
  return make("article", { class: "turn theirs" }, make("p", { class: "role" }, t("model")), said);
}

function tools(turn, i) {
  const last = i === talk.turns.length - 1;
  const bar = make("div", { class: "tools" });
  if (keeps && turn.token) {
    for (const [value, words] of [["up", t("Good")], ["down", t("Bad")]]) {
      bar.append(press(words, () => rate(turn, value), { "aria-pressed": String(turn.thumb === value), "data-do": value }));
    }
    bar.append(press(t("Edit"), () => edit(turn, bar), { "data-do": "edit" }));
  }
  bar.append(press(t("Copy"), () => copy(turn), { "data-do": "copy" }));
  if (last && !writing) bar.append(press(t("Another answer"), () => again(turn), { "data-do": "retry" }));
  if (turn.note) bar.append(make("span", { class: "soft small" }, turn.note));
  return bar;
}

function choice(turn, html) {
  const columns = make("div", { class: "cards two" });
  turn.choose.forEach((one, i) => {
    const words = t("{letter} is better", { letter: "AB"[i] });
    columns.append(make("section", { class: "card", "aria-label": "AB"[i] }, textOf(one.content, html.get(one)), make("p", {}, press(words, () => choose(turn, i), { "data-do": "AB"[i] }))));
  });
  const both = press(t("Both alike"), () => choose(turn, null), { "data-do": "tie" });
  return make("div", {}, make("p", { class: "soft" }, t("Which answer is better?")), columns, make("p", {}, both));
}

function entry(one) {
  const open = press(one.title, () => turnTo(one), { "aria-current": one === talk ? "true" : null });
  const drop = press("×", () => forget(one), { "aria-label": t("Delete {title}", { title: one.title }) });
  return make("li", {}, open, drop);
}

function turnTo(one) {
  writing?.abort();
  talk = one;
  at("problem").hidden = true;
  show();
  at("message").focus();
}

function forget(one) {
  talks.splice(talks.indexOf(one), 1);
  keep();
  turnTo(one === talk ? (talks[0] ?? null) : talk);
}

// ---- what somebody does -----------------------------------------------------------------------------------------

function rate(turn, value) {
  turn.thumb = value;
  keep();
  say(turn.token, "thumb", { value });
  show().then(() => {
    const bar = at("log").children[talk.turns.indexOf(turn)]?.querySelector(".tools");
    bar?.querySelector(`[data-do="${value}"]`)?.focus({ preventScroll: true });
    bar?.after(form(t("Why? (if you like)"), "", "input", (reason) => say(turn.token, "thumb", { value, reason })));
  });
}

function edit(turn, bar) {
  const made = form(t("What the answer should have been"), turn.content, "textarea", (text) => {
    if (text === turn.content) return;
    say(turn.token, "edit", { value: text });
    Object.assign(turn, { content: text, note: t("edited by you") });
    keep();
    show();
  });
  bar.after(made);
  made.querySelector("textarea").focus();
}

function form(words, value, kind, done) {
  const field = make(kind, { dir: "auto", maxlength: kind === "input" ? 4000 : 200000 });
  field.value = value;
  const made = make("form", { class: "editing" }, make("label", {}, words, field), make("p", {}, make("button", { class: "quiet" }, t("Keep")), press(t("Cancel"), () => made.remove())));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    made.remove();
    if (field.value.trim()) done(field.value.trim());
  });
  return made;
}

async function copy(turn) {
  try {
    await navigator.clipboard.writeText(turn.content);
    if (keeps && turn.token) say(turn.token, "copy");
    tell(t("Copied"));
  } catch {
    tell(t("Not allowed here")); // by the browser: plain http, or no permission
  }
}

function choose(turn, i) {
  const [first, second] = turn.choose;
  const value = i === null ? [1, 1] : i === 0 ? [1, 2] : [2, 1];
  if (first.token && second.token) say(first.token, "ranking", { value, others: [second.token] });
  const taken = turn.choose[i ?? 0];
  delete turn.choose;
  Object.assign(turn, taken);
  keep();
  show().then(() => at("message").focus());
}

function again(turn) {
  if (keeps && turn.token) say(turn.token, "retry");
  talk.turns.splice(talk.turns.indexOf(turn), 1);
  answer();
}

async function answer() {
  const here = talk;
  at("problem").hidden = true;
  const messages = here.turns.map(({ role, content }) => ({ role, content }));
  const two = keeps && Math.random() < Number(at("compare").value);
  writing = new AbortController();
  await show();
  const boxes = (two ? ["A", "B"] : [""]).map(() => make("div", { class: "prose plain", dir: "auto" }));
  const drafts = boxes.map(() => ({ content: "", token: null }));
  const columns = two ? make("div", { class: "cards two" }, ...boxes.map((box) => make("section", { class: "card" }, box))) : boxes[0];
  at("log").append(make("article", { class: "turn theirs", "aria-busy": "true" }, make("p", { class: "role" }, t("model")), make("div", {}, columns)));
  let failed = null;
  try {
    for await (const event of events({ model: at("model").value, messages, ...(two ? { compare: 2 } : {}) }, writing.signal)) {
      for (const one of event.choices) {
        const draft = drafts[one.index];
        draft.content += one.delta?.content ?? "";
        draft.token = one.feedback?.token ?? draft.token;
        if (one.finish_reason === "length") draft.note = t("cut: the longest answer it may give");
        boxes[one.index].textContent = draft.content;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") for (const draft of drafts) draft.note = t("stopped");
    else failed = error;
  }
  writing = null;
  if (failed) problem(failed);
  else if (two && drafts.every((one) => one.token)) here.turns.push({ role: "assistant", choose: drafts });
  else here.turns.push({ role: "assistant", ...drafts[0] });
  keep();
  if (here !== talk) return;
  await show();
  if (!failed) at("live").textContent = drafts.map((one) => one.content).join("\n");
  (two && !failed ? at("log").querySelector('[data-do="A"]') : at("message"))?.focus();
}

function send() {
  const content = at("message").value.trim();
  if (!content || writing || at("send").disabled) return;
  if (!talk) {
    talk = { title: content.slice(0, TITLE), turns: [] };
    talks.unshift(talk);
  }
  // What stood unanswered, because the server refused, is said again with the rest.
  talk.turns.push({ role: "user", content });
  at("message").value = "";
  answer();
}

async function begin() {
  const models = (await (await ask("/v1/models")).json()).data.filter((one) => one.task !== "score");
  at("model").replaceChildren(...models.map((one) => make("option", { value: one.id }, one.id)));
  at("which").hidden = models.length < 2;
  at("door").hidden = true;
  await show();
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => writing?.abort());
addEventListener("keydown", (event) => event.key === "Escape" && writing?.abort());
at("new").addEventListener("click", () => turnTo(null));
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  memory.write(sessionStorage, "key", at("key").value.trim());
  at("key").value = "";
  at("problem").hidden = true;
  begin().catch(problem);
});
at("compare").value = memory.read(localStorage, "compare") ?? "0.2";
at("compare").addEventListener("change", () => memory.write(localStorage, "compare", at("compare").value));
at("compare").closest("label").hidden = !keeps;
at("talks").open = matchMedia("(min-width: 901px)").matches;
at("message").focus();
begin().catch(problem);
