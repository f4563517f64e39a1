/** What the page shows, in its address: `#/sample?dataset=...`, `#/job/ID`, `#/compare?...`, `#/history`. */

/** @typedef {{view: string, id: string, values: Record<string, string>}} Route */

/** @returns {Route} */
export function currentRoute() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, id = ""] = path.split("/");
  return { view: view || "sample", id, values: Object.fromEntries(new URLSearchParams(query)) };
}

/**
 * @param {string} view
 * @param {Record<string, string>} values Empty ones are left out.
 * @returns {string}
 */
function hashOf(view, values) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

/**
 * Have the address say what is shown, without a new entry in the browser's history.
 *
 * @param {string} view
 * @param {Record<string, string>} values
 */
export function note(view, values) {
  history.replaceState(null, "", hashOf(view, values));
}

/**
 * Keep what a form holds for the next visit.
 *
 * @param {string} form
 * @param {Record<string, string>} values
 */
export function remember(form, values) {
  localStorage.setItem(`pfgmpp-${form}`, JSON.stringify(values));
}

/**
 * @param {string} form
 * @returns {Record<string, string>}
 */
export function remembered(form) {
  try {
    return JSON.parse(localStorage.getItem(`pfgmpp-${form}`) ?? "{}");
  } catch {
    return {};
  }
}
