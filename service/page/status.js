/** The state of workers and queue, looked at again and again while the page is visible. */

import { serviceStatus } from "./api.js";
import { connection } from "./connection.js";
import { byId, el, pause } from "./dom.js";
import { Problem, Unreachable } from "./problem.js";
import { table } from "./table.js";
import { amount, counted, duration, errorWords } from "./words.js";

/** @import { ServiceStatus } from "./types.js" */

const LOOK_EVERY_SECONDS = 2;

/**
 * Look for as long as the page is open.
 *
 * @param {() => void} onWorkers Called when other workers are there than before.
 */
export async function watchStatus(onWorkers) {
  let before = "";
  for (;;) {
    if (!document.hidden) {
      try {
        const status = await serviceStatus();
        show(status);
        const now = JSON.stringify(status.workers.map(({ name, models }) => [name, models]));
        if (before && now !== before) onWorkers();
        before = now;
      } catch (error) {
        await showError(error);
      }
    }
    await pause(LOOK_EVERY_SECONDS);
  }
}

/** Have the panel close by Escape, and by a click elsewhere. */
export function installStatusPanel() {
  const panel = byId("status");
  document.addEventListener("keydown", ({ key }) => key === "Escape" && panel.removeAttribute("open"));
  document.addEventListener("click", ({ target }) => {
    if (target instanceof Node && !panel.contains(target)) panel.removeAttribute("open");
  });
}

/** @param {unknown} error */
async function showError(error) {
  const isUnknown = error instanceof Problem && error.status === 401;
  summarize(isUnknown ? "Key needed" : error instanceof Unreachable ? "No connection" : "Trouble", "bad");
  byId("status-panel").replaceChildren(el("p", {}, errorWords(error)));
  if (error instanceof Unreachable) await connection.found();
}

/**
 * @param {string} words
 * @param {"good" | "busy" | "bad"} mood
 */
function summarize(words, mood) {
  byId("status").dataset.mood = mood;
  byId("status-words").textContent = words;
}

/** @param {ServiceStatus} status */
function show(status) {
  const working = status.workers.filter(({ state }) => state !== "lost");
  // A job that runs may have images that wait, and is then among the queued ones too.
  const waiting = status.models.reduce((sum, each) => sum + Math.max(0, each.queued_jobs - each.running_jobs), 0);
  const running = status.models.reduce((sum, { running_jobs }) => sum + running_jobs, 0);
  if (!working.length) summarize("No worker", "bad");
  else if (running && waiting) summarize(`${amount(running)} running, ${amount(waiting)} waiting`, "busy");
  else if (running) summarize(`${counted(running, "job")} running`, "busy");
  else if (waiting) summarize(`${counted(waiting, "job")} waiting`, "busy");
  else summarize(working.length > 1 ? `${counted(working.length, "worker")} idle` : "Idle", "good");
  byId("status-panel").replaceChildren(workersTable(status), queueTable(status));
}

/**
 * @param {ServiceStatus} status
 * @returns {HTMLElement}
 */
function workersTable({ workers }) {
  if (!workers.length) return el("p", {}, "There is no worker, so nothing can be sampled at present.");
  const rows = workers.map(({ name, state, device, evaluations_per_second }) => [
    name,
    state,
    device,
    evaluations_per_second ? `${counted(Math.round(evaluations_per_second), "evaluation")} a second` : "not known yet",
  ]);
  return table("Workers", ["Name", "State", "Device", "Speed"], rows);
}

/**
 * @param {ServiceStatus} status
 * @returns {HTMLElement}
 */
function queueTable({ models, evaluations }) {
  const shown = models.filter(({ queued_jobs, running_jobs }) => queued_jobs || running_jobs);
  if (!shown.length) return el("p", { class: "hint" }, "The queue is empty.");
  const rows = shown.map(({ model, queued_jobs, queued_images, running_jobs, oldest_age_seconds }) => [
    model,
    counted(running_jobs, "job"),
    counted(queued_images, "image"),
    queued_jobs ? duration(oldest_age_seconds) : "–",
  ]);
  const note = `${counted(evaluations, "evaluation")} accepted and not done.`;
  return table("Queue", ["Model", "Running", "Waiting", "For"], rows, note);
}
