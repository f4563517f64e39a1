/** Pictures of small images, drawn with whole device pixels for each of theirs, so that they are crisp. */

import { el } from "./dom.js";

/** Pixels between the images of a grid, and around them. */
const GAP = 1;

/**
 * Draw a PNG that is enlarged so many times, as it was before.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} png
 * @param {number} scale
 * @param {boolean} [isSized] Whether the canvas stays as large as it is.
 */
export async function draw(canvas, png, scale, isSized = false) {
  const bitmap = await createImageBitmap(png);
  if (!isSized) {
    canvas.width = Math.round(bitmap.width / scale);
    canvas.height = Math.round(bitmap.height / scale);
  }
  const context = canvas.getContext("2d");
  if (!context) return;
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

/**
 * @param {string} base64
 * @returns {Blob}
 */
export function pngOf(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

/**
 * Show a canvas as large as fits, by a whole factor; what is larger than the room is made smaller smoothly.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {{width: number, height?: number, factor?: number}} room In CSS pixels; `factor`: most of them for one.
 */
export function fit(canvas, { width, height = Infinity, factor: most = Infinity }) {
  if (!canvas.width || !canvas.height || width <= 0) return;
  const density = window.devicePixelRatio || 1;
  const wanted = Math.min(width / canvas.width, height / canvas.height, most);
  const factor = Math.floor(wanted * density) / density || Math.min(wanted, width / canvas.width);
  canvas.style.width = `${canvas.width * factor}px`;
  canvas.style.height = `${canvas.height * factor}px`;
  canvas.classList.toggle("smooth", factor * density < 1);
}

/**
 * Draw the first images of a grid, as many as can be told apart in a square of so many CSS pixels.
 *
 * @param {HTMLCanvasElement} grid
 * @param {number} count
 * @param {number} columns
 * @param {HTMLCanvasElement} canvas
 * @param {number} room
 */
export function excerpt(grid, count, columns, canvas, room) {
  const [width, height] = [(grid.width - GAP) / columns, (grid.height - GAP) / Math.ceil(count / columns)];
  const most = Math.max(1, Math.min(MOST_EXCERPT, Math.floor(room / Math.max(width, height))));
  const across = Math.min(most, Math.ceil(Math.sqrt(count)));
  const down = Math.min(most, Math.ceil(count / across));
  canvas.width = across * width + GAP;
  canvas.height = down * height + GAP;
  const context = canvas.getContext("2d");
  if (!context) return;
  context.fillStyle = "#303030";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (let k = 0; k < Math.min(count, across * down); k++) {
    const [x, y] = [(k % columns) * width + GAP, Math.floor(k / columns) * height + GAP];
    const [toX, toY] = [(k % across) * width + GAP, Math.floor(k / across) * height + GAP];
    context.drawImage(grid, x, y, width - GAP, height - GAP, toX, toY, width - GAP, height - GAP);
  }
}

/** Images across and down an excerpt, at most. */
const MOST_EXCERPT = 4;

/** Most CSS pixels of one image in a grid of many, and of a grid of few. */
const MOST_IMAGE_PIXELS = 256;
const SMALL_GRID_PIXELS = 480;

/** CSS pixels in height that a grid may have in any window, and those of a higher one that are for what is above it. */
const GRID_PIXELS = 400;
const OTHER_PIXELS = 280;

/** Those up to which a grid is not made smaller than it is, for then it would be blurred. */
const CRISP_PIXELS = 600;

/** @typedef {{width: number, height: number}} Size Of one image. */

/** A grid of images, each of which can be pointed at and opened. */
export class Grid {
  #drawn = Promise.resolve();

  /**
   * @param {{count: number, columns: number, size?: Size, most?: number, onPoint?: (k: number | null) => void,
   *   onOpen?: (k: number) => void, name: (k: number) => string, label: string}} options
   */
  constructor(options) {
    this.options = options;
    this.canvas = el("canvas", { class: "pixels", role: "img", "aria-label": options.label });
    const leave = () => options.onPoint?.(null);
    this.cells = el("div", {
      class: "cells",
      role: "group",
      "aria-label": "Images; arrow keys go from one to the next",
      onpointerover: (/** @type {Event} */ event) => this.#point(event),
      onpointerleave: leave,
      onfocusin: (/** @type {Event} */ event) => this.#point(event),
      onfocusout: leave,
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#move(event),
      onclick: (/** @type {Event} */ event) => this.#place(event) >= 0 && options.onOpen?.(this.#place(event)),
    });
    this.element = el("div", { class: "grid" }, el("div", { class: "frame" }, this.canvas, this.cells));
    if (options.size) this.#empty(options.size);
    new ResizeObserver(() => this.#fit()).observe(this.element);
  }

  /** @returns {number[]} The images that can be opened. */
  get places() {
    const buttons = [...this.cells.querySelectorAll("button")];
    return buttons.flatMap(({ disabled }, k) => (disabled ? [] : [k]));
  }

  get rows() {
    return Math.ceil(this.options.count / this.options.columns);
  }

  /** @param {Size} size Grey until there is something to see. */
  #empty({ width, height }) {
    const { columns } = this.options;
    this.canvas.width = columns * (width + GAP) + GAP;
    this.canvas.height = this.rows * (height + GAP) + GAP;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    context.fillStyle = "#303030";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.fillStyle = "#808080";
    for (let k = 0; k < this.options.count; k++) {
      const [row, column] = [Math.floor(k / columns), k % columns];
      context.fillRect(GAP + column * (width + GAP), GAP + row * (height + GAP), width, height);
    }
  }

  /**
   * @param {Blob} png
   * @param {number} scale By which it is enlarged.
   */
  async show(png, scale) {
    await this.#draw(png, scale, false);
  }

  /** @param {Blob} png What the images are taken for; of large ones it has fewer pixels. */
  async preview(png) {
    await this.#draw(png, 1, Boolean(this.options.size));
  }

  /**
   * @param {Blob} png
   * @param {number} scale
   * @param {boolean} isSized
   */
  async #draw(png, scale, isSized) {
    const before = this.#drawn;
    this.#drawn = before.then(() => draw(this.canvas, png, scale, isSized)); // or the last might not be the last
    await this.#drawn;
    this.#fit();
  }

  #fit() {
    const { columns } = this.options;
    const image = (this.canvas.width - GAP) / columns;
    const crisp = Math.min(CRISP_PIXELS, this.canvas.height);
    const height = Math.max(GRID_PIXELS, crisp, window.innerHeight - OTHER_PIXELS);
    const most = this.options.most ?? Math.max(MOST_IMAGE_PIXELS, SMALL_GRID_PIXELS / Math.max(columns, this.rows));
    fit(this.canvas, { width: this.element.clientWidth, height, factor: Math.max(1, most / image) });
  }

  /**
   * Show these images and no others, for they are all that was finished.
   *
   * @param {Map<number, Blob>} images By their places, as large as they were.
   * @param {number} scale By which they are enlarged.
   */
  async showSome(images, scale) {
    const { columns } = this.options;
    await this.#drawn;
    const context = this.canvas.getContext("2d");
    const single = el("canvas");
    const [first] = images.keys();
    for (const [k, png] of images) {
      await draw(single, png, scale);
      if (k === first) this.#empty(single); // all are as large as this one
      context?.drawImage(
        single,
        GAP + (k % columns) * (single.width + GAP),
        GAP + Math.floor(k / columns) * (single.height + GAP),
      );
    }
    this.makeOpenable();
    const buttons = [...this.cells.querySelectorAll("button")];
    for (const [k, button] of buttons.entries()) {
      button.disabled = !images.has(k);
      if (button.disabled) button.setAttribute("aria-label", `Image ${k}: not finished`);
      button.tabIndex = k === this.places[0] ? 0 : -1;
    }
    this.#fit();
  }

  /** Make every image a button, one stop of the tab key for all. */
  makeOpenable() {
    const { count, columns, name } = this.options;
    const [width, height] = [(this.canvas.width - GAP) / columns, (this.canvas.height - GAP) / this.rows];
    const buttons = Array.from({ length: count }, (_, k) => {
      const button = el("button", {
        type: "button",
        class: "cell",
        "aria-label": name(k),
        tabindex: k ? -1 : 0,
        "data-k": k,
      });
      button.style.left = `${(100 * (GAP + (k % columns) * width)) / this.canvas.width}%`;
      button.style.top = `${(100 * (GAP + Math.floor(k / columns) * height)) / this.canvas.height}%`;
      button.style.width = `${(100 * (width - GAP)) / this.canvas.width}%`;
      button.style.height = `${(100 * (height - GAP)) / this.canvas.height}%`;
      return button;
    });
    this.cells.replaceChildren(...buttons);
  }

  /**
   * @param {Event} event
   * @returns {number} The image that it is about; -1 for none.
   */
  #place({ target }) {
    return target instanceof HTMLButtonElement ? [...this.cells.children].indexOf(target) : -1;
  }

  /** @param {Event} event */
  #point(event) {
    const k = this.#place(event);
    if (k >= 0) this.options.onPoint?.(k);
  }

  /** @param {KeyboardEvent} event Go on to another image. */
  #move(event) {
    const by = this.#stride(event.key);
    const next = this.cells.children[this.#place(event) + by];
    if (!by || !(next instanceof HTMLButtonElement)) return;
    event.preventDefault();
    for (const button of this.cells.querySelectorAll("button")) button.tabIndex = button === next ? 0 : -1;
    next.focus();
  }

  /**
   * @param {string} key
   * @returns {number} How many images farther it goes.
   */
  #stride(key) {
    const { columns } = this.options;
    return { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key] ?? 0;
  }
}
