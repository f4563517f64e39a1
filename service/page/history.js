/** The caller's jobs with thumbnails, the last one first. */

import { blob, erase, jobs } from "./api.js";
import { announce, byId, el, pause, say } from "./dom.js";
import { draw, excerpt, fit } from "./picture.js";
import { modelOf } from "./request.js";
import { ago, clock, counted, errorWords, moment, requestWords, seedWords, statusWords } from "./words.js";

/** @import { Job, Model } from "./types.js" */

const LOOK_EVERY_SECONDS = 3;

export class HistoryView {
  /** @type {Model[]} */
  models = [];
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  /** @type {AbortController | null} */
  #looking = null;
  #next = "";

  constructor() {
    this.error = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.list = el("ul", { class: "history" });
    this.none = el("p", { class: "empty" }, "Looking…");
    this.more = el("button", { type: "button", hidden: true, onclick: () => this.#older() }, "Older jobs");
    byId("history").append(el("h1", {}, "Your jobs"), this.error, this.none, this.list, this.more);
  }

  /** @param {Model[]} models */
  offer(models) {
    this.models = models;
  }

  enter() {
    this.leave();
    this.#looking = new AbortController();
    this.#look(this.#looking.signal);
  }

  leave() {
    this.#looking?.abort();
  }

  /** @param {AbortSignal} signal */
  async #look(signal) {
    while (!signal.aborted) {
      if (!document.hidden) await this.#update();
      await pause(LOOK_EVERY_SECONDS, signal).catch(() => {});
    }
  }

  async #update() {
    try {
      const { jobs: found, next } = await jobs();
      const isAnew = !next || !found.some(({ id }) => this.#entries.has(id)); // or jobs between them would be missing
      this.#forget(found, isAnew);
      for (const job of found) this.#put(job);
      if (isAnew) this.#showNext(next);
      say(this.error, "");
      this.none.textContent = "No jobs yet, or none that is still kept.";
    } catch (error) {
      this.none.textContent = "Your jobs are not known at present.";
      say(this.error, errorWords(error));
    }
  }

  async #older() {
    try {
      const { jobs: found, next } = await jobs(this.#next);
      for (const job of found) this.#put(job);
      this.#showNext(next);
    } catch (error) {
      say(this.error, errorWords(error));
    }
  }

  /** @param {string | null} next */
  #showNext(next) {
    this.#next = next ?? "";
    this.more.hidden = !next;
  }

  /** @param {Job} job Shown where its time has it. */
  #put(job) {
    let entry = this.#entries.get(job.id);
    if (!entry) {
      entry = new Entry(job, () => this.#delete(job.id));
      this.#entries.set(job.id, entry);
      const older = [...this.list.children].find((each) => String(each.getAttribute("data-time")) < job.created_at);
      this.list.insertBefore(entry.element, older ?? null);
    }
    entry.show(job, modelOf(this.models, job)?.classes ?? []);
    this.none.hidden = true;
  }

  /**
   * Take away what is no longer there.
   *
   * @param {Job[]} found The last jobs.
   * @param {boolean} isAnew Whether they are all that is to be shown.
   */
  #forget(found, isAnew) {
    const oldest = isAnew ? "" : (found.at(-1)?.created_at ?? "");
    const kept = new Set(found.map(({ id }) => id));
    for (const [id, entry] of this.#entries) {
      if (!kept.has(id) && entry.job.created_at > oldest) this.#remove(id);
    }
    this.none.hidden = this.#entries.size > 0;
  }

  /** @param {string} id */
  async #delete(id) {
    try {
      await erase(id);
      this.#remove(id);
      announce("Deleted.");
    } catch (error) {
      say(this.error, errorWords(error));
    }
    this.none.hidden = this.#entries.size > 0;
  }

  /** @param {string} id */
  #remove(id) {
    this.#entries.get(id)?.element.remove();
    this.#entries.delete(id);
  }
}

/** A job in the list. */
class Entry {
  #isDrawn = false;

  /**
   * @param {Job} job
   * @param {() => void} onDelete
   */
  constructor(job, onDelete) {
    this.job = job;
    this.canvas = el("canvas", { class: "pixels", width: 1, height: 1, "aria-hidden": true });
    this.thumbnail = el(
      "a",
      { class: "thumbnail", href: `#/job/${job.id}`, tabindex: -1, "aria-hidden": true },
      this.canvas,
    );
    this.words = el("a", { class: "entry-words", href: `#/job/${job.id}` });
    this.state = el("p", { class: "entry-state" });
    this.element = el(
      "li",
      { class: "card entry", "data-id": job.id, "data-time": job.created_at },
      this.thumbnail,
      el("div", { class: "entry-text" }, this.words, this.state),
      deleteButton(onDelete),
    );
    new IntersectionObserver((seen) => seen.some(({ isIntersecting }) => isIntersecting) && this.#draw()).observe(
      this.element,
    );
  }

  /**
   * @param {Job} job
   * @param {string[]} classes
   */
  show(job, classes) {
    const isNew = this.job.status !== job.status;
    this.job = job;
    this.element.dataset.status = job.status;
    this.words.textContent = `${requestWords(job.request, classes)}, ${seedWords(job)}`;
    const why = job.error ? `: ${job.error.detail}` : "";
    const half = job.status === "canceled" ? `, ${counted(job.progress.images_done, "image")} finished` : "";
    this.state.textContent = `${statusWords(job.status)}${half}${why} · ${ago(job.created_at)} · ${clock(job.created_at)}`;
    this.state.title = moment(job.created_at);
    if (isNew) this.#draw();
  }

  async #draw() {
    if (this.#isDrawn || !this.job.links.grid) return;
    this.#isDrawn = true;
    try {
      const grid = el("canvas");
      await draw(grid, await blob(this.job.links.grid), this.job.request.scale);
      const { count, columns } = this.job.request;
      const room = this.thumbnail.clientWidth;
      this.#isDrawn = room > 0; // none if the view was left meanwhile
      if (!room) return;
      excerpt(grid, count, columns, this.canvas, room);
      fit(this.canvas, { width: room, height: room });
    } catch {
      this.#isDrawn = false; // the list itself says when the service is away
    }
  }
}

/**
 * A button that asks once more before it does it.
 *
 * @param {() => void} onDelete
 * @returns {HTMLButtonElement}
 */
function deleteButton(onDelete) {
  const button = el("button", { type: "button", class: "quiet" }, "Delete");
  const calm = () => {
    button.textContent = "Delete";
    button.classList.remove("bad");
  };
  button.addEventListener("blur", calm);
  button.addEventListener("click", () => {
    if (button.classList.contains("bad")) return onDelete();
    button.textContent = "Delete for good?";
    button.classList.add("bad");
  });
  return button;
}
