/** One job, watched until it ends, and what came of it. */

import { blob, cancel, patiently } from "./api.js";
import { filesOf } from "./archive.js";
import { breakdown } from "./breakdown.js";
import { announce, el, say } from "./dom.js";
import { follow } from "./follow.js";
import { currentKey } from "./key.js";
import { draw, fit, Grid, pngOf } from "./picture.js";
import { curlOf, pythonOf, requestOfJob } from "./request.js";
import { copyButton, saveLink } from "./save.js";
import { view } from "./viewer.js";
import { amount, capitalized, counted, duration, errorWords, expectation, imageWords, moment } from "./words.js";
import { requestWords, seedWords, sentence, statusWords } from "./words.js";

/** @import { OnWait } from "./api.js" */
/** @import { Job, Model, News } from "./types.js" */

export class JobView {
  /** @type {Job | null} */
  job = null;
  /** @type {Grid | null} */
  grid = null;
  #stopping = new AbortController();

  /**
   * @param {string} id
   * @param {{modelOf: (job: Job) => Model | undefined, onReuse: (job: Job) => void}} options
   */
  constructor(id, { modelOf, onReuse }) {
    this.id = id;
    this.modelOf = modelOf;
    this.onReuse = onReuse;
    this.state = el("h2", { class: "job-state" }, "Looking…");
    this.words = el("p", { class: "job-words" });
    this.notice = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.waiting = el("p", { class: "notice", role: "status", hidden: true });
    this.picture = el("div", { class: "picture" });
    this.caption = el("p", { class: "caption", "aria-hidden": true });
    this.meter = el("progress", { max: 1, "aria-label": "Progress" });
    this.news = el("p", { class: "hint" });
    this.stop = el("button", { type: "button", onclick: () => this.#cancel() }, "Cancel");
    this.progress = el(
      "div",
      { class: "progress", hidden: true },
      el("div", { class: "progress-line" }, this.meter, this.stop),
      this.news,
    );
    this.result = el("div", { class: "result" });
    this.element = el(
      "article",
      { class: "card job" },
      this.state,
      this.words,
      this.notice,
      this.waiting,
      this.progress,
      this.picture,
      this.caption,
      this.result,
    );
  }

  /** @returns {Model | undefined} */
  get model() {
    return this.job ? this.modelOf(this.job) : undefined;
  }

  /** Watch the job to its end. */
  async run() {
    const { signal } = this.#stopping;
    try {
      const job = await follow(
        this.id,
        {
          onJob: (each) => this.#show(each),
          onProgress: (news) => this.#showProgress(news),
          onPreview: ({ png }) => this.#showPreview(png),
          onWait: this.#wait,
        },
        signal,
      );
      await this.#showEnd(job);
    } catch (error) {
      if (!signal.aborted) this.#fail(errorWords(error));
    }
  }

  /** Watch it no longer. */
  close() {
    this.#stopping.abort();
  }

  /** @param {string} words */
  #fail(words) {
    say(this.notice, words);
    if (!this.job) this.state.textContent = "Not here";
  }

  /** @type {OnWait} */
  #wait = (words, seconds) => say(this.waiting, words, seconds);

  /**
   * @param {string} path
   * @returns {Promise<Blob>} A file of the job, as soon as the service answers.
   */
  #file(path) {
    const { signal } = this.#stopping;
    return patiently(() => blob(path, signal), { signal, onWait: this.#wait });
  }

  /** @param {Job} job */
  #show(job) {
    const before = this.job?.status;
    this.job = job;
    if (before !== job.status) {
      this.state.textContent = statusWords(job.status);
      this.element.dataset.status = job.status;
      if (before) announce(`${statusWords(job.status)}.`);
    }
    this.words.textContent = requestWords(job.request, this.model?.classes ?? []);
    this.#makeGrid(job);
    this.progress.hidden = Boolean(job.finished_at);
    if (!job.finished_at) this.#showProgress(job);
  }

  /** @param {Job} job */
  #makeGrid(job) {
    if (this.grid) return;
    const { window: part } = job.request;
    const side = this.model?.resolution;
    const size = part ?? (side ? { width: side, height: side } : undefined);
    this.grid = new Grid({
      count: job.request.count,
      columns: job.request.columns,
      size,
      label: `Grid of ${requestWords(job.request, this.model?.classes ?? [])}`,
      name: (k) => this.#imageName(k),
      onPoint: (k) => (this.caption.textContent = k === null ? this.#usualCaption() : this.#imageName(k)),
      onOpen: (k) => this.job && view(this.job, k, (each) => this.#imageName(each), this.grid?.places ?? []),
    });
    this.picture.replaceChildren(this.grid.element);
  }

  /**
   * @param {number} k
   * @returns {string}
   */
  #imageName(k) {
    return this.job ? capitalized(imageWords(this.job, k, this.model?.classes ?? [])) : "";
  }

  /** @returns {string} */
  #usualCaption() {
    if (!this.job?.links.grid) return "";
    return window.matchMedia("(hover: none)").matches
      ? "Tap an image for its seed and class, and to enlarge it."
      : "Point at an image for its seed and class; click it to enlarge it.";
  }

  /** @param {News} news */
  #showProgress({ status, queue_position, progress, eta_seconds }) {
    const { evaluations_done, evaluations_total, images_done, images_total } = progress;
    this.meter.value = evaluations_total ? evaluations_done / evaluations_total : 0;
    const ahead = queue_position ? `${counted(queue_position, "job")} before it` : "next in the queue";
    const lack = this.job?.waits_for ? ` It waits for ${this.job.waits_for}.` : "";
    const evaluations = `${amount(evaluations_done)} of ${counted(evaluations_total, "evaluation")}`;
    const done = `${evaluations}, ${amount(images_done)} of ${counted(images_total, "image")}`;
    const left = eta_seconds ? ` · ${expectation(eta_seconds, " left")}` : "";
    this.news.textContent = (status === "queued" ? `${ahead}.${lack}` : done) + left;
  }

  /** @param {string} png */
  async #showPreview(png) {
    if (this.job?.finished_at) return;
    await this.grid?.preview(pngOf(png));
    this.element.dataset.previews = String(Number(this.element.dataset.previews ?? 0) + 1);
  }

  async #cancel() {
    this.stop.disabled = true;
    try {
      await cancel(this.id);
    } catch (error) {
      this.#fail(errorWords(error));
    }
    this.stop.disabled = false;
  }

  /** @param {Job} job */
  async #showEnd(job) {
    const total = job.latency && job.status === "succeeded" ? ` in ${duration(job.latency.total_seconds)}` : "";
    this.state.textContent = statusWords(job.status) + total;
    if (job.status === "canceled") this.#showCanceled(job);
    this.#fail(job.error ? `${sentence(job.error.detail)} (${job.error.code})` : "");
    this.result.replaceChildren(
      ...(job.latency && job.status === "succeeded" ? [breakdown(job.latency)] : []),
      this.#saving(job),
      this.#reusing(job),
      this.#facts(job),
    );
    if (job.links.grid) await this.#showGrid(job);
    else if (job.links.zip) await this.#showFinished(job);
    else this.picture.classList.toggle("unfinished", Boolean(this.grid));
    if (job.links.trajectory) this.result.append(this.#trajectory(job));
  }

  /** @param {Job} job */
  async #showGrid(job) {
    await this.grid?.show(await this.#file(job.links.grid), job.request.scale);
    this.grid?.makeOpenable();
    this.caption.textContent = this.#usualCaption();
    this.element.dataset.picture = "whole";
  }

  /** @param {Job} job */
  #showCanceled({ progress, links }) {
    const { images_done: done, images_total: total } = progress;
    const what = done
      ? `${amount(done)} of ${counted(total, "image")} had been finished`
      : "No image had been finished";
    this.news.textContent = what + (links.npz ? "; they can be downloaded." : ".");
    this.picture.after(this.news);
  }

  /** @param {Job} job Whose other images were not finished. */
  async #showFinished(job) {
    const files = [...(await filesOf(await this.#file(job.links.zip)))];
    const images = files.flatMap(([name, png]) => {
      const place = name.endsWith(".png") ? Number.parseInt(name, 10) : NaN;
      return Number.isNaN(place) ? [] : [/** @type {[number, Blob]} */ ([place, png])];
    });
    await this.grid?.showSome(new Map(images), job.request.scale);
    this.element.dataset.picture = "some";
  }

  /**
   * @param {Job} job
   * @returns {HTMLElement}
   */
  #saving({ id, links }) {
    const tell = (/** @type {string} */ words) => this.#fail(words);
    const files = [
      ["Grid, PNG", links.grid, "png"],
      ["Images, npz", links.npz, "npz"],
      ["Images, ZIP", links.zip, "zip"],
      ["Film, GIF", links.film, "gif"],
      ["Trajectories, PNG", links.trajectory, "trajectory.png"],
    ];
    const shown = files.filter(([, path]) => path);
    return el(
      "div",
      { class: "actions", hidden: !shown.length },
      el("span", { class: "actions-name" }, "Download"),
      ...shown.map(([text, path, end]) => saveLink(text, path, `pfgmpp-${id.slice(0, 8)}.${end}`, tell)),
    );
  }

  /**
   * @param {Job} job
   * @returns {HTMLElement}
   */
  #reusing(job) {
    return el(
      "div",
      { class: "actions" },
      el("span", { class: "actions-name" }, "Again"),
      copyButton("Copy as curl", () => curlOf(job, this.model, location.origin, currentKey() !== "")),
      copyButton("Copy as Python", () => pythonOf(requestOfJob(job, this.model), location.origin)),
      this.model ? el("button", { type: "button", onclick: () => this.onReuse(job) }, "Use these settings") : null,
    );
  }

  /**
   * @param {Job} job
   * @returns {HTMLElement}
   */
  #facts(job) {
    const { precision, arithmetic, checkpoint_sha256 } = job.model;
    const facts = [
      ["Job", job.id],
      ["Asked for", moment(job.created_at)],
      ["Seeds", seedWords(job).replace(/^seeds? /, "")],
      ["Precision", arithmetic ? `${precision} (${arithmetic})` : precision],
      ["Checkpoint", `${checkpoint_sha256.slice(0, 16)}…`],
    ];
    return el(
      "details",
      { class: "facts" },
      el("summary", {}, "Details"),
      el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    );
  }

  /**
   * @param {Job} job
   * @returns {HTMLElement}
   */
  #trajectory(job) {
    const canvas = el("canvas", {
      class: "pixels",
      role: "img",
      "aria-label": "The estimates of every step, a row for every image",
    });
    const room = el("div", { class: "scrolled", tabindex: 0 }, canvas);
    const hint = el(
      "p",
      { class: "hint" },
      "A row for every image: from the highest noise level at the left to the image itself at the right. ",
    );
    const whole = el("details", { class: "facts" }, el("summary", {}, "How the images came about"), hint, room);
    let isAsked = false;
    whole.addEventListener("toggle", async () => {
      if (!whole.open || isAsked) return;
      isAsked = true;
      try {
        await draw(canvas, await this.#file(job.links.trajectory), job.request.scale);
        fit(canvas, { width: Math.max(room.clientWidth, 3 * canvas.width), factor: 4 });
        if (room.scrollWidth > room.clientWidth) hint.append("Scroll sideways to see all of it.");
      } catch (error) {
        isAsked = false; // it may be opened once more
        this.#fail(errorWords(error));
      }
    });
    return whole;
  }
}
