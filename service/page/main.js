/** Where the page begins: the views, and which of them is shown. */

import { models } from "./api.js";
import { installBanner } from "./banner.js";
import { CompareView } from "./compare.js";
import { connection } from "./connection.js";
import { byId, pause } from "./dom.js";
import { HistoryView } from "./history.js";
import { allowAsking, installKeyButton } from "./key.js";
import { Unreachable } from "./problem.js";
import { currentRoute } from "./route.js";
import { SampleView } from "./sample.js";
import { installStatusPanel, watchStatus } from "./status.js";

const ASK_EVERY_SECONDS = 2;

const NO_WORKER = "There is no worker, so nothing can be sampled; this goes on as soon as there is one.";

const sample = new SampleView();
const compare = new CompareView();
const history = new HistoryView();

/** What each first word of the address shows. */
const VIEWS = /** @type {Record<string, {section: string, view: SampleView | CompareView | HistoryView}>} */ ({
  sample: { section: "sample", view: sample },
  job: { section: "sample", view: sample },
  compare: { section: "compare", view: compare },
  history: { section: "history", view: history },
});

/** Show the view that the address says, and have it show what that says. */
function enter() {
  show().enter(currentRoute());
}

/** @returns {SampleView | CompareView | HistoryView} The view that is now shown. */
function show() {
  const { section, view } = VIEWS[currentRoute().view] ?? VIEWS.sample;
  for (const name of ["sample", "compare", "history"]) byId(name).hidden = name !== section;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = link instanceof HTMLElement && link.dataset.view === section;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const each of [sample, compare, history]) if (each !== view) each.leave();
  return view;
}

let isOffering = false;

/** Ask what can be sampled, until there is something. */
async function offer() {
  if (isOffering) return;
  isOffering = true;
  while (!(await isOffered())) await pause(ASK_EVERY_SECONDS);
  isOffering = false;
}

/** @returns {Promise<boolean>} Whether the views offer something now; else they say why not. */
async function isOffered() {
  const isFirst = !sample.models.length;
  try {
    const offered = await models();
    if (!offered.length) throw new Error(NO_WORKER);
    for (const view of [sample, compare, history]) view.offer(offered);
    return true;
  } catch (error) {
    if (error instanceof Unreachable) await connection.found();
    else for (const { form } of [sample, compare]) form.refuse(error);
    return false;
  } finally {
    if (isFirst) enter(); // later the forms hold what was chosen, whatever is on offer meanwhile
  }
}

// A key that was declined is asked for again when the user wants something of the service.
document.addEventListener("submit", allowAsking, true);

installBanner();
installKeyButton();
installStatusPanel();
window.addEventListener("hashchange", enter);
show();
offer();
watchStatus(offer);
