// Undo of the last answer or skip, where the queue is empty and no task's own script runs.

import { ownKeys } from "./keys.js";
import { call, memory } from "./net.js";

const button = document.getElementById("undo");
const last = memory.read(sessionStorage, "last");

async function undo() {
  const id = encodeURIComponent(last.id);
  try {
    const again = await call("POST", last.type === "skip" ? `/api/tasks/${id}/unskip` : `/api/submissions/${id}/undo`);
    memory.write(sessionStorage, "last", null);
    location.assign(`/task/${encodeURIComponent(again.task_id)}`);
  } catch (error) {
    button.replaceWith(error.message);
  }
}

if (last) {
  const mine = ownKeys(button.dataset.person);
  button.hidden = false;
  button.addEventListener("click", undo);
  document.addEventListener("keydown", (event) => mine.usual(["u"], event.key) && !event.ctrlKey && !event.metaKey && !event.altKey && undo());
}
