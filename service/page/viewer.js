/** One image of a job, large, with the way to its neighbours. */

import { blob } from "./api.js";
import { el } from "./dom.js";
import { draw, fit } from "./picture.js";
import { saveLink } from "./save.js";
import { errorWords } from "./words.js";

/** @import { Job } from "./types.js" */

/** Of the shorter side of the window. */
const SHARE_OF_WINDOW = 0.62;
const MOST_PIXELS = 400;

/**
 * Open it in a dialog; Escape closes it, arrow keys go on.
 *
 * @param {Job} job
 * @param {number} first
 * @param {(k: number) => string} nameOf
 * @param {number[]} places Of the images that there are.
 */
export function view(job, first, nameOf, places) {
  let shown = first;
  const canvas = el("canvas", { class: "pixels", role: "img" });
  const caption = el("p", { id: "viewer-caption" });
  const error = el("p", { class: "error", role: "alert" });
  const saving = el("span");
  const tell = (/** @type {string} */ words) => (error.textContent = words);
  const step = (/** @type {number} */ by) => show(places[(places.indexOf(shown) + by + places.length) % places.length]);
  const dialog = el(
    "dialog",
    { class: "viewer", "aria-labelledby": "viewer-caption" },
    el("div", { class: "viewer-picture" }, canvas),
    caption,
    error,
    el(
      "div",
      { class: "actions" },
      el("button", { type: "button", onclick: () => step(-1) }, "Previous"),
      el("button", { type: "button", onclick: () => step(1) }, "Next"),
      saving,
      el("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close"),
    ),
  );

  /** @param {number} k */
  async function show(k) {
    shown = k;
    const path = `/v1/jobs/${job.id}/images/${k}.png`;
    caption.textContent = nameOf(k);
    canvas.setAttribute("aria-label", nameOf(k));
    saving.replaceChildren(saveLink("Download PNG", path, `${job.id}-${k}.png`, tell));
    try {
      const png = await blob(path);
      if (shown !== k) return;
      await draw(canvas, png, job.request.scale);
      const room = Math.min(MOST_PIXELS, SHARE_OF_WINDOW * Math.min(window.innerWidth, window.innerHeight));
      fit(canvas, { width: room, height: room });
      tell("");
    } catch (fault) {
      tell(errorWords(fault));
    }
  }

  dialog.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowRight") step(1);
    if (key === "ArrowLeft") step(-1);
  });
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  show(first);
}
