/** Requests to the API: with the caller's key, refusals as `Problem`, no answer as `Unreachable`. */

import { connection } from "./connection.js";
import { pause } from "./dom.js";
import { askForKey, currentKey, keyHeaders } from "./key.js";
import { parse, stringify } from "./numbers.js";
import { Problem, Unreachable } from "./problem.js";
import { sentence } from "./words.js";

/** @typedef {(words: string, seconds?: number) => void} OnWait Told why, and for how many seconds; "" for no longer. */

/** @import { Estimate, Job, Model, SampleRequest, ServiceStatus } from "./types.js" */

/**
 * The answer to a request. Raises Problem or Unreachable, or what the signal was given for.
 *
 * @param {string} path
 * @param {{method?: string, body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const key = currentKey();
    const isJson = body !== undefined;
    const options = {
      method,
      signal,
      body: isJson ? stringify(body) : undefined,
      headers: { ...headers, ...(isJson ? { "Content-Type": "application/json" } : {}), ...keyHeaders() },
    };
    const response = await reached(() => fetch(path, options), signal);
    if (response.ok) return response;
    if (AWAY.has(response.status) && !isProblem(response)) throw lost();
    if (response.status !== 401 || !(await askForKey(key))) throw await problemOf(response, signal);
  }
}

/** What a proxy answers when the service does not. */
const AWAY = new Set([502, 503, 504]);

/**
 * What comes of asking, or of reading an answer. Raises Unreachable if the connection breaks.
 *
 * @template Result
 * @param {() => Promise<Result>} act
 * @param {AbortSignal} [signal]
 * @returns {Promise<Result>}
 */
async function reached(act, signal) {
  try {
    return await act();
  } catch {
    signal?.throwIfAborted();
    throw lost();
  }
}

/** @returns {Unreachable} What is noted to be so. */
function lost() {
  connection.lose();
  return new Unreachable();
}

/**
 * @param {Response} response
 * @returns {boolean} Whether the service itself says what is the matter.
 */
function isProblem({ headers }) {
  return headers.get("Content-Type")?.startsWith("application/problem+json") ?? false;
}

/**
 * @param {Response} response
 * @param {AbortSignal} [signal]
 * @returns {Promise<Problem>}
 */
async function problemOf(response, signal) {
  const later = Number(response.headers.get("Retry-After")) || 0;
  if (isProblem(response)) return new Problem(parse(await reached(() => response.text(), signal)), later);
  const title = `${response.status} ${response.statusText}`.trim();
  const detail = `Something between here and the service answered ${title}.`;
  return new Problem({ title, status: response.status, detail, code: "", errors: [] }, later);
}

/**
 * What an act comes to, which is repeated while the service is away or says to come again later.
 *
 * @template Result
 * @param {() => Promise<Result>} act
 * @param {{signal?: AbortSignal, onWait?: OnWait}} [options]
 * @returns {Promise<Result>}
 */
export async function patiently(act, { signal, onWait = () => {} } = {}) {
  for (;;) {
    try {
      const result = await act();
      onWait("");
      return result;
    } catch (error) {
      if (error instanceof Unreachable) {
        onWait("The service does not answer; this goes on as soon as it does.");
        await connection.found(signal);
      } else if (error instanceof Problem && error.retryAfterSeconds) {
        await countDown(error, signal, onWait);
      } else throw error;
    }
  }
}

/**
 * @param {Problem} problem
 * @param {AbortSignal | undefined} signal
 * @param {OnWait} onWait
 */
async function countDown(problem, signal, onWait) {
  for (let left = problem.retryAfterSeconds; left > 0; left--) {
    onWait(sentence(problem.message), left);
    await pause(1, signal);
  }
}

/**
 * @param {string} path
 * @param {Parameters<typeof ask>[1]} [options]
 * @returns {Promise<any>}
 */
async function json(path, options) {
  const response = await ask(path, options);
  return parse(await reached(() => response.text(), options?.signal));
}

/** @returns {Promise<Model[]>} What can be sampled. */
export function models() {
  return json("/v1/models");
}

/** @returns {Promise<ServiceStatus>} Workers and queue. */
export function serviceStatus() {
  return json("/v1/status");
}

/**
 * @param {string} id
 * @param {AbortSignal} [signal]
 * @returns {Promise<Job>}
 */
export function job(id, signal) {
  return json(`/v1/jobs/${encodeURIComponent(id)}`, { signal });
}

/**
 * @param {string} cursor
 * @param {number} limit
 * @returns {Promise<{jobs: Job[], next: string | null}>} The caller's jobs, the last one first.
 */
export function jobs(cursor = "", limit = 20) {
  return json(`/v1/jobs?limit=${limit}&cursor=${encodeURIComponent(cursor)}`);
}

/**
 * The job that a request makes; repeated under one key it is the same job.
 *
 * @param {SampleRequest} request
 * @param {{signal?: AbortSignal, onWait?: OnWait}} [options]
 * @returns {Promise<Job>}
 */
export function submit(request, { signal, onWait } = {}) {
  const headers = { "Idempotency-Key": newKey() };
  return patiently(() => json("/v1/samples", { method: "POST", body: request, headers, signal }), { signal, onWait });
}

/** @returns {string} A name for a submission; `randomUUID` is there over HTTPS and on this machine alone. */
function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {SampleRequest} request
 * @param {AbortSignal} signal
 * @returns {Promise<Estimate>} What it would take.
 */
export function estimate(request, signal) {
  return json("/v1/estimates", { method: "POST", body: request, signal });
}

/**
 * @param {string} id
 * @returns {Promise<Job>} The job, which ends.
 */
export function cancel(id) {
  return json(`/v1/jobs/${id}/cancel`, { method: "POST" });
}

/** @param {string} id */
export async function erase(id) {
  await ask(`/v1/jobs/${id}`, { method: "DELETE" });
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<Blob>} A file of a job.
 */
export async function blob(path, signal) {
  const response = await ask(path, { signal });
  return reached(() => response.blob(), signal);
}
