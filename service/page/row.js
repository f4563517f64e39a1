/** One of several jobs that are compared: its images, how they came about, and how far they are from one another. */

import { blob, patiently } from "./api.js";
import { el, say } from "./dom.js";
import { follow } from "./follow.js";
import { draw, fit, Grid, pngOf } from "./picture.js";
import { amount, counted, errorWords, expectation, statusWords } from "./words.js";

/** @import { OnWait } from "./api.js" */
/** @import { Comparison } from "./comparison.js" */
/** @import { Job, News, Preview } from "./types.js" */

/** CSS pixels of an estimate, where a row shows some of them; in a narrow room there are smaller ones. */
const ESTIMATE = 36;
const SMALL_ESTIMATE = 27;
const NARROW = 420;

/** CSS pixels of an image: the rows are to be seen together. */
const MOST_IMAGE_PIXELS = 96;

/** One job of a comparison. */
export class Row {
  /** @type {Job | null} */
  job = null;
  /** @type {Grid | null} */
  grid = null;
  /** @type {[number, number][]} Evaluations and noise levels at which it was seen. */
  seen = [];
  /** @type {HTMLCanvasElement | null} A row for every image: its estimates, and itself. */
  path = null;

  /**
   * @param {string} name
   * @param {() => Promise<{id: string}>} begin Submits the job, or knows it.
   * @param {Comparison} whole
   */
  constructor(name, begin, whole) {
    this.name = name;
    this.begin = begin;
    this.whole = whole;
    this.title = el("h3", {}, name);
    this.state = el("p", { class: "hint" }, "Sending…");
    this.picture = el("div", { class: "picture" });
    this.element = el(
      "section",
      { class: "compared", "aria-label": name },
      el("div", { class: "compared-name" }, this.title, this.state),
      this.picture,
    );
  }

  /** @param {AbortSignal} signal */
  async run(signal) {
    try {
      const { id } = await this.begin();
      await follow(
        id,
        {
          onJob: (job) => this.#show(job),
          onProgress: (news) => this.#progress(news),
          onPreview: (preview) => this.#preview(preview),
          onWait: this.wait,
        },
        signal,
      );
      await this.#finish(signal);
    } catch (error) {
      if (!signal.aborted) this.#tell(errorWords(error), "bad");
    }
  }

  /** @type {OnWait} */
  wait = (words, seconds) => {
    if (words) say(this.state, words, seconds);
  };

  /**
   * @param {string} words
   * @param {string} [mood]
   */
  #tell(words, mood = "") {
    say(this.state, words);
    this.state.classList.toggle("bad", mood === "bad");
  }

  /** @param {Job} job */
  #show(job) {
    this.job = job;
    this.element.dataset.status = job.status;
    this.title.replaceChildren(el("a", { href: `#/job/${job.id}` }, this.whole.nameOf(job)));
    this.name = this.whole.nameOf(job);
    this.element.setAttribute("aria-label", this.name);
    if (!job.finished_at) this.#tell(statusWords(job.status));
    if (this.grid) return;
    const model = this.whole.modelOf(job);
    this.grid = new Grid({
      count: job.request.count,
      columns: job.request.columns,
      size: model && { width: model.resolution, height: model.resolution },
      most: MOST_IMAGE_PIXELS,
      label: `${this.name}: ${job.request.count} images`,
      name: (k) => `${this.name}, ${this.whole.imageName(job, k)}`,
      onPoint: (k) => this.whole.point(job, k),
      onOpen: (k) => this.whole.choose(k),
    });
    this.picture.replaceChildren(this.grid.element);
  }

  /** @param {News} news */
  #progress({ status, progress, eta_seconds }) {
    if (status !== "running") return;
    const done = `${amount(progress.evaluations_done)} of ${counted(progress.evaluations_total, "evaluation")}`;
    this.#tell(done + (eta_seconds ? `, ${expectation(eta_seconds, " left")}` : ""));
  }

  /** @param {Preview} preview */
  async #preview({ evaluation, sigma, png }) {
    this.seen.push([evaluation, sigma]);
    if (!this.job?.finished_at) await this.grid?.preview(pngOf(png));
  }

  /** @param {AbortSignal} signal */
  async #finish(signal) {
    const { job } = this;
    if (!job?.latency || !job.links.grid) {
      const why = job?.error ? `: ${job.error.detail}` : "";
      return this.#tell(job ? statusWords(job.status) + why : "", "bad");
    }
    const files = () => Promise.all([blob(job.links.grid, signal), blob(job.links.trajectory, signal)]);
    const [grid, path] = await patiently(files, { signal, onWait: this.wait });
    this.#tell(this.whole.costOf(job.latency));
    const canvas = el("canvas");
    canvas.getContext("2d", { willReadFrequently: true });
    await Promise.all([this.grid?.show(grid, job.request.scale), draw(canvas, path, job.request.scale)]);
    this.path = canvas;
    this.grid?.makeOpenable();
    this.whole.redraw();
  }

  /** @returns {{width: number, height: number}} Of an image. */
  get size() {
    const steps = this.job?.request.steps ?? 1;
    const count = this.job?.request.count ?? 1;
    return {
      width: ((this.path?.width ?? 1) - 1) / (steps + 1) - 1,
      height: ((this.path?.height ?? 1) - 1) / count - 1,
    };
  }

  /**
   * @param {number} k
   * @param {number} step The number of steps for the image itself.
   * @returns {Uint8ClampedArray}
   */
  pixels(k, step) {
    const { width, height } = this.size;
    const context = this.path?.getContext("2d");
    return (
      context?.getImageData(1 + step * (width + 1), 1 + k * (height + 1), width, height).data ?? new Uint8ClampedArray()
    );
  }

  /** @returns {number[]} How far the estimates of every step are from the images: the root of the mean square. */
  get distances() {
    const { steps, count } = this.job?.request ?? { steps: 0, count: 0 };
    return Array.from({ length: steps }, (_, step) =>
      rootMean(Array.from({ length: count }, (_, k) => meanSquare(this.pixels(k, step), this.pixels(k, steps)))),
    );
  }
}

/**
 * @param {Uint8ClampedArray} a
 * @param {Uint8ClampedArray} b
 * @returns {number} Of the differences of two images, whose opacity counts as nothing.
 */
function meanSquare(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) if (i % 4 !== 3) sum += ((a[i] - b[i]) / 255) ** 2;
  return sum / ((3 / 4) * a.length || 1);
}

/**
 * @param {number[]} squares
 * @returns {number}
 */
function rootMean(squares) {
  return Math.sqrt(squares.reduce((sum, each) => sum + each, 0) / (squares.length || 1));
}

/**
 * @param {Row} row
 * @param {Row} other
 * @returns {number} How far their final images are from each other.
 */
export function finalDistance(row, other) {
  const { count, steps } = /** @type {Job} */ (row.job).request;
  const others = /** @type {Job} */ (other.job).request.steps;
  return rootMean(Array.from({ length: count }, (_, k) => meanSquare(row.pixels(k, steps), other.pixels(k, others))));
}

/**
 * As many estimates of an image as fit, evenly over the steps, the first and the image itself among them.
 *
 * @param {Row} row
 * @param {number} k
 * @param {number} room CSS pixels.
 * @returns {HTMLCanvasElement}
 */
export function pathCanvas(row, k, room) {
  const { width, height } = row.size;
  const steps = row.job?.request.steps ?? 1;
  const most = room < NARROW ? SMALL_ESTIMATE : ESTIMATE;
  const shown = Math.max(2, Math.min(steps + 1, Math.floor((room - 1) / most)));
  const canvas = el("canvas", {
    class: "pixels",
    role: "img",
    "aria-label": `${row.name}: ${shown} of ${steps + 1} estimates`,
  });
  canvas.width = shown * (width + 1) + 1;
  canvas.height = height + 2;
  const context = canvas.getContext("2d");
  if (context && row.path) {
    context.fillStyle = "#303030";
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (let place = 0; place < shown; place++) {
      const step = Math.round((place * steps) / (shown - 1));
      const from = [1 + step * (width + 1), 1 + k * (height + 1), width, height];
      context.drawImage(row.path, from[0], from[1], width, height, 1 + place * (width + 1), 1, width, height);
    }
  }
  fit(canvas, { width: room, factor: most / (width + 1) });
  return canvas;
}
