// The server: what it is asked, what it says instead of an answer, and how long the page waits for it.

const PATIENCE = 60; // seconds in a row for which a server that is not there is asked again
const WAITS = {
  0: "The server does not answer.",
  429: "The server is busy.",
  502: "The server is not there.",
  503: "The server is not ready.",
}; // what is worth asking again for, by status; 0: it cannot be reached

let token = sessionStorage.getItem("newsdesk-token") ?? "";

/** Send a token from now on; keep it until the tab is closed, or only as long as the page is open. */
export function useToken(given, keep) {
  token = given;
  if (keep) sessionStorage.setItem("newsdesk-token", token);
  else sessionStorage.removeItem("newsdesk-token");
}

/** Whether there is a token to send. */
export const hasToken = () => token !== "";

/** Why the server gave no answer: its status (0: it cannot be reached), kind, sentence, seconds to wait. */
export class Refused extends Error {
  constructor(status, kind, message, wait) {
    super(message);
    Object.assign(this, { status, kind, wait });
  }

  /** One sentence for whoever reads the page, with what to do. */
  get sentence() {
    const said = this.message.charAt(0).toUpperCase() + this.message.slice(1);
    switch (this.status) {
      case 0: return "The server does not answer. See whether it still runs, then try again: nothing here is lost.";
      case 401: return token
        ? "The server does not know this token. Check it, or ask for a new one."
        : "This server answers only with a token. Enter yours above.";
      case 403: return `The server refuses: ${this.message}.`;
      case 404: return `${said}. Choose one of the models that are listed now.`;
      case 413: return `${said}. Send shorter texts.`;
      case 429: return "The server has too much to do. Try again in a minute.";
      case 502: case 503: return "The server is not ready, or is stopping. Try again in a minute.";
      case 504: return "The server needs longer for a text than it may. Shorten the text, or ask one model at a time.";
      case 408: case 422: return `${said}.`;
      default: return "The server failed at this. Its log says why.";
    }
  }
}

/** The JSON that a path answers; of a body, to POST. Throws Refused, and AbortError once `signal` says so. */
export async function ask(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  if (body) headers["Content-Type"] = "application/json";
  let response, content;
  try {
    response = await fetch(path, options);
    content = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (!response || response.ok) throw new Refused(0, "unreachable", "");
    content = {};
  }
  if (response.ok) return content;
  const wait = Number(response.headers.get("Retry-After")) || 1;
  throw new Refused(response.status, content.kind ?? "", content.error ?? "it gave no reason", wait);
}

/** Wait a second; throws AbortError once `signal` says so. */
function aSecond(signal) {
  return new Promise((done, failed) => {
    const stop = () => {
      clearTimeout(timer);
      failed(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, 1000);
    signal?.addEventListener("abort", stop);
  });
}

/** Call `work` until it is answered: a server that is busy, or not ready, is asked again, as is reported. */
export async function patiently(work, report, signal) {
  for (let waited = 0; ;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof Refused) || !(error.status in WAITS)) throw error;
      if (error.status !== 429 && waited >= PATIENCE) throw error;
      const seconds = error.status === 0 ? 2 : Math.ceil(error.wait);
      for (let left = seconds; left > 0; left -= 1) {
        report(`${WAITS[error.status]} This page asks again in ${left} s.`);
        await aSecond(signal);
      }
      waited += seconds;
    }
  }
}
