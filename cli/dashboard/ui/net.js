// What is asked of the dashboard's own server, and what came of it.

/** Whoever shows the state of the connection: `heard({age, error, next, unknown})`. */
let listener = () => {};
export const onHeard = (it) => (listener = it);

export class Refused extends Error {
  constructor(status, sentence, next) {
    super(sentence);
    Object.assign(this, { status, next });
  }
}

async function refused(answer) {
  const said = await answer.json().catch(() => ({}));
  return new Refused(answer.status, said.error ?? `the dashboard answered ${answer.status}`, said.next ?? "");
}

/** Asks for JSON; returns it with its text, what to ask for the next page with, and how many jobs there are by state. */
export async function get(path, signal) {
  let answer;
  try {
    answer = await fetch(`/api/${path}`, { signal, headers: { accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw heard(new Refused(0, "the dashboard does not answer", "is `aquifer dashboard` still running?"));
  }
  if (!answer.ok) throw heard(await refused(answer));
  const text = await answer.text();
  const age = answer.headers.get("aquifer-age-ms");
  listener({ age: age === null ? null : Number(age) });
  return { data: JSON.parse(text), text, next: answer.headers.get("aquifer-next-page"), counts: answer.headers.get("aquifer-jobs") };
}

function heard(error) {
  if (error.status === 401) listener({ unknown: true, error: error.message, next: error.next });
  else if (error.status === 0 || error.status >= 500) listener({ error: error.message, next: error.next });
  return error;
}

/** Does something. */
export async function post(path, body = {}) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw await refused(answer);
}

/**
 * Hears a stream: `on.data(value)`, and others by the names of events. It is made again when it is lost, after what was
 * heard last, and rests while nobody looks. Returns what ends it.
 */
export function stream(path, on) {
  let source;
  let over = false;
  const open = () => {
    if (source || over || document.hidden) return;
    source = new EventSource(`/api/${path}`);
    source.onmessage = (event) => on.data(JSON.parse(event.data));
    for (const name of ["end", "missing", "unavailable"]) {
      source.addEventListener(name, (event) => {
        on[name]?.(JSON.parse(event.data));
        if (name === "end") close(on.resumes ? 3000 : null);
      });
    }
    source.onopen = () => on.open?.();
    source.onerror = () => {
      on.lost?.();
      // A refusal closes it for good; whoever is there again answers later.
      if (source?.readyState === EventSource.CLOSED) close(5000);
    };
  };
  const close = (again) => {
    source?.close();
    source = undefined;
    over = again === null;
    if (again) setTimeout(open, again);
  };
  const seen = () => (document.hidden && on.rests !== false ? close(0) : open());
  document.addEventListener("visibilitychange", seen);
  open();
  return () => {
    document.removeEventListener("visibilitychange", seen);
    close(null);
  };
}
