/**
 * Jobs followed to their ends by server-sent events: all on one stream, for browsers hold few connections to one place,
 * and by `fetch`, for an EventSource cannot show a key.
 */

import { ask, job as ofId, patiently } from "./api.js";
import { pause } from "./dom.js";
import { parse } from "./numbers.js";

/** @import { OnWait } from "./api.js" */
/** @import { Job, News, Preview } from "./types.js" */

/**
 * @typedef {object} Listeners
 * @property {(job: Job) => void} onJob
 * @property {(news: News) => void} [onProgress]
 * @property {(preview: Preview) => void} [onPreview]
 * @property {OnWait} [onWait]
 *
 * @typedef {Listeners & {id: string, onEnd: () => void}} Follower
 */

/** The API's own limit; what is beyond it waits for the end of a job. */
const MOST_JOBS = 32;

/** Jobs that are followed one right after the other need no stream each. */
const GATHER_SECONDS = 0.02;

/** After which a stream that broke off is asked for again. */
const RETRY_SECONDS = 1;

/** @type {Set<Follower>} */
const followers = new Set();
let changed = new AbortController();
let isListening = false;

/**
 * Resolves with the job when it has ended. Raises Problem when it is not there.
 *
 * @param {string} id
 * @param {Listeners} listeners
 * @param {AbortSignal} signal
 * @returns {Promise<Job>}
 */
export async function follow(id, listeners, signal) {
  for (;;) {
    const job = await patiently(() => ofId(id, signal), { signal, onWait: listeners.onWait });
    listeners.onJob(job);
    if (job.finished_at) return job;
    await listenFor(id, listeners, signal);
  }
}

/**
 * Pass on what is heard of a job, until it has ended or nothing more is heard.
 *
 * @param {string} id
 * @param {Listeners} listeners
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
async function listenFor(id, listeners, signal) {
  /** @type {(value?: unknown) => void} */
  let onEnd = () => {};
  const ended = new Promise((resolve) => (onEnd = resolve));
  const follower = { ...listeners, id, onEnd };
  signal.addEventListener("abort", onEnd, { once: true });
  followers.add(follower);
  changed.abort();
  if (!isListening) listen();
  await ended;
  followers.delete(follower);
  signal.removeEventListener("abort", onEnd);
  if (!followers.size) changed.abort();
  signal.throwIfAborted();
}

/** Listen for as long as there are followers, anew whenever there are others. */
async function listen() {
  isListening = true;
  const heard = { ids: "", last: "" };
  while (followers.size) {
    changed = new AbortController();
    const { signal } = changed;
    try {
      await pause(GATHER_SECONDS, signal);
      await hear([...new Set([...followers].map(({ id }) => id))].slice(0, MOST_JOBS), heard, signal);
      await pause(RETRY_SECONDS, signal);
    } catch {
      if (signal.aborted) continue;
      await pause(RETRY_SECONDS);
    }
    for (const { onEnd } of followers) onEnd(); // each asks for its job, and knows what is the matter if there is none
    await pause(0);
  }
  isListening = false;
}

/**
 * Pass on what comes on one stream. `heard` keeps the id of the last message, and of which jobs that was.
 *
 * @param {string[]} ids
 * @param {{ids: string, last: string}} heard
 * @param {AbortSignal} signal
 */
async function hear(ids, heard, signal) {
  const query = ids.map((id) => `job=${id}`).join("&");
  if (query !== heard.ids) heard.last = "";
  heard.ids = query;
  const { body } = await ask(`/v1/events?${query}`, { headers: { "Last-Event-ID": heard.last }, signal });
  if (!body) return;
  for await (const message of messages(body)) {
    heard.last = message.id || heard.last;
    pass(message);
  }
}

/** @param {Message} message */
function pass({ event, data }) {
  const content = parse(data);
  for (const follower of followers) {
    if (follower.id !== (content.job ?? content.id)) continue;
    if (event === "progress") follower.onProgress?.(content);
    else if (event === "preview") follower.onPreview?.(content);
    else if (event === "finished") follower.onEnd();
    else follower.onJob(content);
  }
}

/** @typedef {{id: string, event: string, data: string}} Message */

/**
 * The messages of a `text/event-stream`.
 *
 * @param {ReadableStream<Uint8Array>} stream
 * @returns {AsyncGenerator<Message>}
 */
export async function* messages(stream) {
  const reader = stream.pipeThrough(/** @type {any} */ (new TextDecoderStream())).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const message = messageOf(block);
        if (message.data) yield message;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/**
 * @param {string} block
 * @returns {Message}
 */
function messageOf(block) {
  const message = { id: "", event: "message", data: "" };
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([a-z]+): ?(.*)$/.exec(line) ?? [];
    if (name === "data") message.data += (message.data && "\n") + value;
    else if (name === "id" || name === "event") message[name] = value;
  }
  return message;
}
