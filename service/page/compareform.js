/** The form of what is compared: one request, for several D or numbers of steps. */

import { estimate } from "./api.js";
import { el } from "./dom.js";
import { ChoiceField, NumberField, TextField } from "./fields.js";
import { aboutD, D_HINT, Form } from "./form.js";
import { evaluationsOf } from "./levels.js";
import { Problem } from "./problem.js";
import { dimensionOf, listed } from "./request.js";
import { dimension } from "./words.js";

/** @import { Estimate, SampleRequest } from "./types.js" */

const MOST_IMAGES = 16;

const SWEEP_HINT = "A list with commas.";

/** The API's own limit. */
const MOST_PREVIEWS = 64;

export class CompareForm extends Form {
  makeFields() {
    const { name } = this;
    const { dataset, D, label, labels, solver, steps, seed } = super.makeFields();
    const by = new ChoiceField(name, "by", "What differs");
    by.offer(
      [
        { value: "D", text: "D" },
        { value: "steps", text: "Steps" },
      ],
      ["D"],
    );
    const all = new ChoiceField(name, "Ds", "D", {
      isMany: true,
      hint: D_HINT,
      more: aboutD(),
    });
    const sweep = new TextField(name, "sweep", "Steps", { hint: SWEEP_HINT, value: "4, 8, 18, 36, 64" });
    const count = new NumberField(name, "count", "Images", { min: 1, max: MOST_IMAGES, value: "8" });
    return { by, dataset, Ds: all, D, label, labels, count, steps, sweep, solver, seed };
  }

  /** @returns {HTMLElement[]} */
  layout() {
    const { by, dataset, Ds, D, label, labels, count, steps, sweep, solver, seed } = this.fields;
    return [
      by.element,
      dataset.element,
      Ds.element,
      D.element,
      label.element,
      labels.element,
      el("div", { class: "pair" }, count.element, steps.element),
      sweep.element,
      solver.element,
      seed.element,
    ];
  }

  /** @returns {"D" | "steps"} */
  get by() {
    return this.fields.by.value === "steps" ? "steps" : "D";
  }

  adapt() {
    const { Ds, D, steps, sweep } = this.fields;
    Ds.element.hidden = steps.element.hidden = this.by === "steps";
    D.element.hidden = sweep.element.hidden = this.by === "D";
    super.adapt();
  }

  adaptD() {
    super.adaptD();
    const options = this.ofDataset.map((model) => ({ value: String(model.D), text: dimension(model.D) }));
    const all = options.map(({ value }) => value);
    if (this.fields.Ds instanceof ChoiceField) this.fields.Ds.offer(options, all);
  }

  /** @returns {number[]} The numbers of steps to compare. */
  get sweep() {
    return listed(this.fields.sweep.value).map(Number);
  }

  changed() {
    super.changed();
    const { hint } = this.fields.sweep;
    const twice = new Set(this.sweep.filter((steps, place) => steps && this.sweep.indexOf(steps) !== place));
    hint.textContent = twice.size ? `${[...twice].join(", ")}: listed twice, compared once.` : SWEEP_HINT;
  }

  /** @returns {string} What is wrong with the numbers of steps; "" for nothing. */
  #faultOfSweep() {
    const most = this.model?.max_steps ?? Infinity;
    const poor = listed(this.fields.sweep.value).filter(
      (part) => !(Number.isInteger(Number(part)) && Number(part) >= 2 && Number(part) <= most),
    );
    if (poor.length || !this.sweep.length) {
      const which = poor.length ? `${poor.join(", ")}: ` : "";
      return `${which}must be whole numbers from 2 to ${most}, such as 4, 8, 18`;
    }
    return "";
  }

  read() {
    const { request, errors } = super.read();
    const message = this.by === "steps" ? this.#faultOfSweep() : "";
    if (message) errors.push({ field: "sweep", message });
    return { request, errors };
  }

  /**
   * @param {SampleRequest} base
   * @returns {SampleRequest[]} What to ask for.
   */
  requestsOf(base) {
    if (this.by === "D") return this.fields.Ds.value.split(",").map((D) => this.#whole({ ...base, D: dimensionOf(D) }));
    return [...new Set(this.sweep)].sort((a, b) => a - b).map((steps) => this.#whole({ ...base, steps }));
  }

  /**
   * @param {SampleRequest} request
   * @returns {SampleRequest}
   */
  #whole(request) {
    const steps = request.steps ?? this.model?.default_steps ?? MOST_PREVIEWS;
    const previews = Math.min(MOST_PREVIEWS, evaluationsOf(request.solver ?? "heun", steps));
    return { ...request, columns: request.count, trajectory: true, previews };
  }

  /**
   * @param {SampleRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<Estimate>} Of all of them, one after the other.
   */
  async estimateOf(request, signal) {
    const each = await Promise.all(this.requestsOf(request).map((one) => this.#estimateOne(one, signal)));
    const sum = (/** @type {(one: Estimate) => number} */ of) => each.reduce((total, one) => total + of(one), 0);
    const isKnown = each.every(({ eta_seconds }) => eta_seconds);
    return {
      ...each[0],
      evaluations: sum(({ evaluations }) => evaluations),
      eta_seconds: isKnown
        ? { p50: sum((one) => one.eta_seconds?.p50 ?? 0), p90: sum((one) => one.eta_seconds?.p90 ?? 0) }
        : null,
      refusal: each.find(({ refusal }) => refusal)?.refusal ?? null,
    };
  }

  /**
   * @param {SampleRequest} one
   * @param {AbortSignal} signal
   * @returns {Promise<Estimate>} Raises Problem, which says of what differs which one it is about.
   */
  async #estimateOne(one, signal) {
    try {
      return await estimate(one, signal);
    } catch (error) {
      if (error instanceof Problem) {
        for (const each of error.errors) if (each.field === this.by) each.message = `${one[this.by]}: ${each.message}`;
      }
      throw error;
    }
  }

  /**
   * @param {string} path
   * @returns {string | undefined}
   */
  fieldFor(path) {
    if (path === "D" && this.by === "D") return "Ds";
    if (path === "steps" && this.by === "steps") return "sweep";
    return super.fieldFor(path);
  }
}
