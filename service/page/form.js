/** A form of fields that say a request: filled from the models, checked here and by the service. */

import { estimate } from "./api.js";
import { el, pause, say } from "./dom.js";
import { ChoiceField, CheckField, NumberField, SelectField, TextField } from "./fields.js";
import { Problem } from "./problem.js";
import { requestOf, seedsListed, usualScale } from "./request.js";
import { counted, dimension, errorWords, expectation, sentence } from "./words.js";

/** @import { Field } from "./fields.js" */
/** @import { Estimate, FieldError, Model, SampleRequest } from "./types.js" */

/** How long nothing is typed before the service is asked what it would take. */
const ESTIMATE_AFTER_SECONDS = 0.3;

/** How long a second click is taken for part of the first one. */
const SUBMIT_AGAIN_AFTER_SECONDS = 0.5;

/** Errors of these fields of a request belong to another field of the form. */
const SHOWN_AT = /** @type {Record<string, string>} */ ({ seeds: "seed" });

export const D_HINT = "1 is PFGM, ∞ is diffusion.";

/** @returns {HTMLElement} What D is, for who wants to know. */
export function aboutD() {
  return el(
    "details",
    { class: "about" },
    el("summary", {}, "What is D?"),
    el(
      "p",
      { class: "hint" },
      "PFGM++ takes images for electric charges in a space that has D dimensions more than an image has numbers, and " +
        "makes a new one by going back to them along the lines of their field. With a small D the network has " +
        "learned from noise of very different strengths, and forgives errors of its own; a large D is easier to " +
        "learn. Every D is a network of its own.",
    ),
  );
}

export class Form {
  /** @type {Model[]} */
  models = [];
  /** @type {AbortController} */
  #asking = new AbortController();
  #isSubmitting = false;

  /**
   * @param {string} name
   * @param {{title: string, submit: string, onSubmit: (request: SampleRequest) => Promise<void>, onChange: () => void}} options
   */
  constructor(name, { title, submit, onSubmit, onChange }) {
    this.name = name;
    this.onChange = onChange;
    this.onSubmit = onSubmit;
    this.fields = this.makeFields();
    this.error = el("p", { class: "notice bad", role: "alert", hidden: true });
    this.told = el("p", { class: "notice", role: "status", hidden: true });
    this.estimate = el("p", { class: "estimate" });
    this.button = el("button", { class: "primary", type: "submit" }, submit);
    this.element = el(
      "form",
      { class: "card form", novalidate: true, "aria-label": title },
      el("h1", {}, title),
      this.told,
      ...this.layout(),
      this.error,
      this.estimate,
      el("div", { class: "actions" }, this.button),
    );
    this.element.addEventListener("input", () => {
      this.forgive();
      this.changed();
    });
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
  }

  /** @returns {Record<string, Field | ChoiceField>} */
  makeFields() {
    const { name } = this;
    return {
      dataset: new SelectField(name, "dataset", "Data set"),
      D: new ChoiceField(name, "D", "D", { hint: D_HINT, more: aboutD() }),
      label: new SelectField(name, "label", "Classes"),
      labels: new TextField(name, "labels", "List of classes", {
        hint: "With commas; repeated until every image has one.",
      }),
      count: new NumberField(name, "count", "Images", { min: 1, value: "16" }),
      steps: new NumberField(name, "steps", "Steps", { min: 2 }),
      solver: new SelectField(name, "solver", "Solver"),
      seed: new TextField(name, "seed", "Seed", {
        placeholder: "drawn",
        hint: "Image k gets seed + k. Or a list: 1, 5, 10-14.",
      }),
      guidance: new NumberField(name, "guidance", "Guidance", {
        min: 0,
        max: 100,
        step: "any",
        hint: "1 or empty: none.",
      }),
      precision: new SelectField(name, "precision", "Precision", {
        options: ["", "exact", "fast"].map((value) => ({ value, text: value || "the service's default" })),
        hint: "fast: quicker; the images look the same, their bytes may differ.",
      }),
      columns: new NumberField(name, "columns", "Columns", { min: 1, hint: "Empty: about as many as rows." }),
      scale: new NumberField(name, "scale", "Enlargement", { min: 1, max: 16, hint: "Of saved pictures." }),
      trajectory: new CheckField(name, "trajectory", "Keep the trajectory (how each image came about)"),
      others: new TextField(name, "others", "Other options, as JSON", { placeholder: '{"sigma_max": 40}' }),
    };
  }

  /** @returns {HTMLElement[]} The fields as they stand in the form. */
  layout() {
    const { dataset, D, label, labels, count, steps, solver, seed, ...more } = this.fields;
    const others = Object.values(more).map((field) => field.element);
    return [
      dataset.element,
      D.element,
      label.element,
      labels.element,
      el("div", { class: "pair" }, count.element, steps.element),
      solver.element,
      seed.element,
      el(
        "details",
        { class: "more" },
        el("summary", {}, "More options"),
        el("div", { class: "more-fields" }, ...others),
      ),
    ];
  }

  /** @param {Model[]} models What can be sampled. */
  offer(models) {
    this.models = models;
    this.blame([]);
    this.element.classList.add("is-filled");
    const names = [...new Set(models.map((model) => model.dataset))];
    /** @type {SelectField} */ (this.fields.dataset).offer(names.map((name) => ({ value: name, text: name })));
    this.adapt();
  }

  /** @returns {Model[]} Those of the data set. */
  get ofDataset() {
    return this.models.filter((model) => model.dataset === this.fields.dataset.value);
  }

  /** @returns {Model | undefined} The chosen one. */
  get model() {
    return this.ofDataset.find(({ D }) => String(D) === this.fields.D.value) ?? this.ofDataset[0];
  }

  /** Have the fields offer what the data set and the model have. */
  adapt() {
    this.adaptD();
    const { model } = this;
    if (!model) return;
    const { label, count, steps, solver } = this.fields;
    /** @type {SelectField} */ (label).offer(classOptions(model));
    label.element.hidden = !model.classes.length;
    this.fields.labels.element.hidden = label.value !== "list" || label.element.hidden;
    if (count instanceof NumberField) count.bound({ placeholder: "1" });
    if (steps instanceof NumberField) steps.bound({ max: model.max_steps, placeholder: String(model.default_steps) });
    /** @type {SelectField} */ (solver).offer(model.solvers.map((name) => ({ value: name, text: name })));
    if (this.fields.scale instanceof NumberField) this.fields.scale.bound({ placeholder: String(usualScale(model)) });
  }

  adaptD() {
    const options = this.ofDataset.map(({ D }) => ({ value: String(D), text: dimension(D) }));
    const usual = options.findLast(({ value }) => value !== "inf") ?? options[0];
    if (this.fields.D instanceof ChoiceField) this.fields.D.offer(options, [usual.value]);
  }

  /** @returns {Record<string, string>} What the fields hold. */
  get values() {
    return Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]));
  }

  /** What is not among them is as at first. */
  set values(values) {
    this.element.reset();
    const { dataset, ...others } = this.fields;
    if (values.dataset) dataset.value = values.dataset;
    this.adapt();
    for (const [name, field] of Object.entries(others)) if (name in values) field.value = values[name];
    this.changed();
  }

  /** What the fields hold has changed. */
  changed() {
    this.adapt();
    this.#followSeeds();
    this.onChange();
    this.askEstimate();
  }

  /** Have a list of seeds say how many images there are. */
  #followSeeds() {
    const { seed, count } = this.fields;
    const listed = seedsListed(seed.value);
    if (listed) count.value = String(listed);
    if (!(count instanceof NumberField)) return;
    count.number.readOnly = listed > 0;
    count.hint.textContent = listed ? "One for each seed of the list." : "";
  }

  /**
   * Fill it as an address says, and say what of that is not to be had.
   *
   * @param {Record<string, string>} values
   */
  fill(values) {
    this.values = values;
    const unknown = Object.entries(values).filter(([name]) => !Object.hasOwn(this.fields, name));
    const refused = Object.entries(values).filter(
      ([name, value]) => Object.hasOwn(this.fields, name) && !this.fields[name].takes(value),
    );
    const said = [...refused, ...unknown].map(([name, value]) => `${name}=${value}`).join(", ");
    say(this.told, said && `The address asks for what is not on offer here, and is left out: ${said}.`);
  }

  /** Say no more what an address asked for that is not to be had. */
  forgive() {
    this.told.hidden = true;
  }

  /** @returns {{request: SampleRequest, errors: FieldError[]}} */
  read() {
    const { model } = this;
    if (!model) return { request: {}, errors: [{ field: "dataset", message: "no model is on offer at present" }] };
    const { request, errors } = requestOf(this.values, model);
    for (const [name, field] of Object.entries(this.fields)) {
      const message = field.element.hidden ? "" : field.check();
      if (message) errors.push({ field: name, message });
    }
    return { request, errors };
  }

  /** Submit what is typed, unless it is being submitted. */
  async submit() {
    if (this.#isSubmitting) return;
    const { request, errors } = this.read();
    this.blame(errors);
    if (errors.length) return this.focusFault();
    this.forgive();
    this.#isSubmitting = true;
    this.button.setAttribute("aria-disabled", "true");
    this.#asking.abort(); // what is wrong with the request is said once
    this.estimate.textContent = "";
    try {
      await Promise.all([this.onSubmit(request), pause(SUBMIT_AGAIN_AFTER_SECONDS)]);
    } finally {
      this.#isSubmitting = false;
      this.button.removeAttribute("aria-disabled");
    }
    if (!this.element.querySelector(".error:not(:empty), .notice.bad:not([hidden])")) this.askEstimate();
  }

  /** Ask what the request would take, once nothing is typed any more, and show what is wrong with it. */
  async askEstimate() {
    this.#asking.abort();
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    const { request, errors } = this.read();
    this.blame(errors);
    if (errors.length) {
      this.estimate.textContent = "";
      return;
    }
    try {
      await pause(ESTIMATE_AFTER_SECONDS, signal);
      this.estimate.textContent = estimateWords(await this.estimateOf(request, signal));
    } catch (error) {
      if (signal.aborted) return;
      this.estimate.textContent = "";
      if (error instanceof Problem) this.refuse(error);
    }
  }

  /**
   * @param {SampleRequest} request
   * @param {AbortSignal} signal
   * @returns {Promise<Estimate>}
   */
  estimateOf(request, signal) {
    return estimate(request, signal);
  }

  /** @param {unknown} error Show why the request was refused, where that is. */
  refuse(error) {
    const errors = error instanceof Problem ? error.errors : [];
    this.blame(errors, errors.length ? "" : errorWords(error));
  }

  /**
   * Show what is wrong at the fields; what belongs to none is shown below them.
   *
   * @param {FieldError[]} errors
   * @param {string} [words]
   */
  blame(errors, words = "") {
    /** @type {Record<string, string>} */
    const faults = {};
    const homeless = [];
    for (const { field, message } of errors) {
      const name = this.fieldFor(field);
      if (name === "others" && field !== name) {
        faults.others = [faults.others, `${field}: ${message}`].filter(Boolean).join("; ");
      } else if (name) faults[name] ??= message;
      else homeless.push(`${field}: ${message}`);
    }
    for (const [name, field] of Object.entries(this.fields)) field.fault(faults[name] ?? "");
    const more = /** @type {HTMLDetailsElement | null} */ (this.element.querySelector(".more"));
    if (more?.querySelector(".error:not(:empty)")) more.open = true;
    say(this.error, [words, ...homeless].filter(Boolean).join("; "));
  }

  /**
   * @param {string} path Of a field of the request.
   * @returns {string | undefined} The field of the form that it is written in.
   */
  fieldFor(path) {
    const name = path.split(".")[0];
    const shown = SHOWN_AT[name] ?? (name === "labels" && this.fields.labels?.element.hidden ? "label" : name);
    if (shown in this.fields) return shown;
    return this.fields.others?.value.includes(`"${name}"`) ? "others" : undefined;
  }

  focusFault() {
    Object.values(this.fields)
      .find((field) => field.error.textContent)
      ?.focus();
  }
}

/**
 * @param {Model} model
 * @returns {{value: string, text: string}[]}
 */
function classOptions(model) {
  return [
    { value: "", text: "drawn from each seed" },
    { value: "turn", text: "all in turn" },
    { value: "list", text: "a list…" },
    ...model.classes.map((name) => ({ value: `=${name}`, text: name })),
  ];
}

/**
 * @param {Estimate} estimate
 * @returns {string}
 */
function estimateWords({ evaluations, eta_seconds, refusal }) {
  const what = counted(evaluations, "network evaluation");
  if (refusal) return `${what}. It would be refused now: ${sentence(refusal.detail)}`;
  return eta_seconds ? `${what}, ${expectation(eta_seconds)}.` : `${what}. How long they take is not known yet.`;
}
