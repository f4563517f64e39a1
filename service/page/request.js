/** Requests: from what is typed into a form, from a job, and as commands to copy. Nothing here touches the page. */

import { parse, stringify, wholeNumber } from "./numbers.js";
import { consecutive } from "./words.js";

/** @import { FieldError, Job, Model, SampleRequest } from "./types.js" */

/** @typedef {Record<string, string>} Values What a form holds, by field. */

/** Estimates that are shown of a job while it runs. */
export const PREVIEWS = 16;

/** Options that a form has no field for, with what they are if left out. */
const OTHER_OPTIONS = {
  rho: 7,
  discretization: "edm",
  schedule: "linear",
  scaling: "none",
  second_order: 1,
  S_churn: 40,
  S_min: 0,
  S_max: null,
  S_noise: 1,
  alpha: 0,
  bits: null,
  quantized: "all",
  guide: null,
  window: null,
};

/** Options that a form says in fields of their own, or that the page sets itself. */
const OWN_FIELDS = new Set(
  "dataset D count steps solver seed seeds label labels columns guidance precision scale trajectory previews".split(
    " ",
  ),
);

/**
 * The request that a form says, and what is wrong with it as far as can be seen here; the service sees the rest.
 *
 * @param {Values} values
 * @param {Model} model
 * @returns {{request: SampleRequest, errors: FieldError[]}}
 */
export function requestOf(values, model) {
  /** @type {FieldError[]} */
  const errors = [];
  const count = Number(values.count) || 1;
  /** @type {SampleRequest} */
  const request = { dataset: values.dataset, D: dimensionOf(values.D), count };
  if (values.steps) request.steps = Number(values.steps);
  if (values.solver && values.solver !== "heun") request.solver = values.solver;
  Object.assign(request, seedsOf(values.seed ?? "", errors), labelsOf(values, model, count, errors));
  if (values.columns) request.columns = Number(values.columns);
  if (values.guidance && Number(values.guidance) !== 1) request.guidance = Number(values.guidance);
  if (values.precision) request.precision = values.precision;
  if (values.trajectory) request.trajectory = true;
  request.scale = values.scale ? Number(values.scale) : usualScale(model);
  Object.assign(request, othersOf(values.others ?? "", errors));
  return { request, errors };
}

/**
 * @param {string} text
 * @returns {number | "inf"}
 */
export function dimensionOf(text) {
  return text === "inf" ? "inf" : Number(text);
}

/**
 * The enlargement of pictures that are saved: images of about 64 pixels.
 *
 * @param {Model} model
 * @returns {number}
 */
export function usualScale(model) {
  return Math.min(16, Math.max(1, Math.round(64 / model.resolution)));
}

/**
 * @param {string} text
 * @param {FieldError[]} errors
 * @returns {SampleRequest}
 */
function seedsOf(text, errors) {
  const parts = listed(text);
  if (!parts.length) return {};
  const seeds = parts.flatMap(rangeOf);
  if (seeds.includes(null)) {
    errors.push({ field: "seed", message: "must be a whole number, or a list such as 1, 5, 10-14" });
    return {};
  }
  return seeds.length === 1 ? { seed: seeds[0] } : { seeds };
}

/** More seeds than any service takes at once. */
const MOST_SEEDS = 4096;

/**
 * @param {string} part Such as "5" or "10-14".
 * @returns {(number | bigint | null)[]}
 */
function rangeOf(part) {
  const [first, last, ...more] = part.split("-").map((end) => wholeNumber(end.trim()));
  if (last === undefined) return [first];
  if (more.length || typeof first !== "number" || typeof last !== "number") return [null];
  if (last < first || last - first >= MOST_SEEDS) return [null];
  return Array.from({ length: last - first + 1 }, (_, k) => first + k);
}

/**
 * How many images a seed field decides by itself: the length of a list; 0 for none or one.
 *
 * @param {string} text
 * @returns {number}
 */
export function seedsListed(text) {
  return seedsOf(text, []).seeds?.length ?? 0;
}

/**
 * @param {Values} values
 * @param {Model} model
 * @param {number} count
 * @param {FieldError[]} errors
 * @returns {SampleRequest}
 */
function labelsOf(values, model, count, errors) {
  const chosen = values.label ?? "";
  if (!chosen || !model.classes.length) return {};
  if (chosen.startsWith("=")) return { label: chosen.slice(1) };
  const names = chosen === "turn" ? model.classes : listed(values.labels ?? "");
  const message = chosen === "turn" ? "" : faultOfClasses(names, model, count);
  if (message) errors.push({ field: "labels", message });
  return message ? {} : { labels: Array.from({ length: count }, (_, k) => names[k % names.length]) };
}

/**
 * @param {string} text
 * @returns {string[]} What it lists with commas.
 */
export function listed(text) {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter(Boolean);
}

/**
 * @param {string[]} names
 * @param {Model} model
 * @param {number} count
 * @returns {string} What is wrong with a list of classes; "" for nothing.
 */
function faultOfClasses(names, { classes }, count) {
  if (!names.length) return `name at least one class, such as ${classes[0]}`;
  const strangers = names.filter(
    (name) => !classes.includes(name) && !(Number(wholeNumber(name) ?? NaN) < classes.length),
  );
  if (strangers.length) return `there is no class ${strangers.join(", ")}; there are ${classes.join(", ")}`;
  return names.length > count ? `lists ${names.length} classes, which is more than there are images (${count})` : "";
}

/**
 * @param {string} text
 * @param {FieldError[]} errors
 * @returns {SampleRequest}
 */
function othersOf(text, errors) {
  if (!text.trim()) return {};
  try {
    const others = parse(text);
    if (others && typeof others === "object" && !Array.isArray(others)) return withoutOwn(others, errors);
  } catch {
    // said below
  }
  errors.push({ field: "others", message: 'must be a JSON object, such as {"sigma_max": 40}' });
  return {};
}

/**
 * @param {SampleRequest} others
 * @param {FieldError[]} errors Of options that are said elsewhere in the form.
 * @returns {SampleRequest}
 */
function withoutOwn(others, errors) {
  for (const name of Object.keys(others).filter((each) => OWN_FIELDS.has(each))) {
    const message = name === "previews" ? "is set by this page" : "has a field of its own in this form";
    errors.push({ field: "others", message: `${name}: ${message}` });
  }
  return others;
}

/**
 * The model of a job, if it is still on offer.
 *
 * @param {Model[]} models
 * @param {Job} job
 * @returns {Model | undefined}
 */
export function modelOf(models, { request }) {
  return models.find(({ dataset, D }) => dataset === request.dataset && D === request.D);
}

/**
 * The request that makes the images of a job again.
 *
 * @param {Job} job
 * @param {Model | undefined} model
 * @returns {SampleRequest}
 */
export function requestOfJob(job, model) {
  const { dataset, D, steps, solver, count, columns, scale, precision, guidance, trajectory } = job.request;
  /** @type {SampleRequest} */
  const request = { dataset, D, count, steps, precision, scale }; // whatever is usual where it is asked for
  if (solver !== "heun") request.solver = solver;
  Object.assign(request, consecutive(job.seeds) ? { seed: job.seeds[0] } : { seeds: job.seeds });
  const names = job.request.labels?.map((/** @type {number | null} */ label) =>
    label === null ? null : (model?.classes[label] ?? label),
  );
  if (names?.every((/** @type {any} */ name) => name !== null)) {
    Object.assign(request, new Set(names).size === 1 ? { label: names[0] } : { labels: names });
  }
  if (columns !== Math.ceil(Math.sqrt(count))) request.columns = columns;
  if (guidance !== 1) request.guidance = guidance;
  if (trajectory) request.trajectory = true;
  return { ...request, ...otherOptions(job, model) };
}

/**
 * @param {Job} job
 * @param {Model | undefined} model
 * @returns {SampleRequest}
 */
function otherOptions({ request }, model) {
  const usual = { ...OTHER_OPTIONS, sigma_min: model?.sigma_min, sigma_max: model?.sigma_max };
  return Object.fromEntries(
    Object.entries(usual)
      .filter(([name, value]) => request[name] !== undefined && request[name] !== null && request[name] !== value)
      .map(([name]) => [name, request[name]]),
  );
}

/**
 * What a form holds when it says the request of a job.
 *
 * @param {Job} job
 * @param {Model} model
 * @returns {Values}
 */
export function valuesOfJob(job, model) {
  const { labels, label, seed, seeds, trajectory, ...request } = requestOfJob(job, model);
  const others = otherOptions(job, model);
  const texts = Object.entries(request)
    .filter(([name]) => !(name in others))
    .map(([name, value]) => [name, String(value)]);
  return {
    ...Object.fromEntries(texts),
    seed: seeds ? seeds.join(", ") : String(seed),
    label: labels ? "list" : label === undefined ? "" : `=${label}`,
    labels: labels ? labels.join(", ") : "",
    trajectory: trajectory ? "on" : "",
    others: Object.keys(others).length ? stringify(others) : "",
  };
}

/** A job that samples no longer is done before a submission is answered, which waits for 60 seconds at most. */
const ANSWERED_SECONDS = 40;

/**
 * The request of a job as a command that writes its grid; the key is left to the environment. One that may take longer
 * is asked for under one name again and again, until it has ended.
 *
 * @param {Job} job
 * @param {Model | undefined} model
 * @param {string} server
 * @param {boolean} hasKey
 * @returns {string}
 */
export function curlOf(job, model, server, hasKey) {
  const command = submission(requestOfJob(job, model), server, hasKey);
  const isShort = job.status === "succeeded" && (job.latency?.sampling_seconds ?? Infinity) <= ANSWERED_SECONDS;
  if (isShort) return `${command} -w 'grid.png: %{content_type}\\n'`;
  return [
    "name=$(date +%s)-$$ answer=202",
    'while [ "$answer" = 202 ]; do',
    `  answer=$(${command} -w '%{http_code}' -H "Idempotency-Key: $name")`,
    "done",
  ].join("\n");
}

/**
 * @param {SampleRequest} request
 * @param {string} server
 * @param {boolean} hasKey
 * @returns {string} A command; what refuses the request is written instead of the grid, but not silently.
 */
function submission(request, server, hasKey) {
  const body = stringify(request).replaceAll("'", "'\\''");
  return [
    `curl --fail-with-body -sS ${server}/v1/samples`,
    ...(hasKey ? ['  -H "Authorization: Bearer $PFGMPP_KEY"'] : []),
    "  -H 'Content-Type: application/json' -H 'Prefer: wait=60' -H 'Accept: image/png'",
    `  -d '${body}' -o grid.png`,
  ].join(" \\\n");
}

/**
 * The request as a program, which takes a key from the environment.
 *
 * @param {SampleRequest} request
 * @param {string} server
 * @returns {string}
 */
export function pythonOf(request, server) {
  const fields = Object.entries(request).map(([name, value]) => `${name}=${pythonLiteral(value)}`);
  return [
    "# Run it with .venv/bin/python in the project's folder, or where pfgmpp-serve is installed.",
    "from service.client import Client",
    "",
    `images = Client("${server}").sample(${fields.join(", ")})`,
    'images.save("grid.png")',
    "",
  ].join("\n");
}

/**
 * @param {any} value
 * @returns {string}
 */
function pythonLiteral(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, each]) => `${JSON.stringify(name)}: ${pythonLiteral(each)}`)
      .join(", ")}}`;
  }
  return stringify(value);
}
