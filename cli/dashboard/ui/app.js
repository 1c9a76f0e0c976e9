// The frame: which page is shown, how often it looks, and how the connection is.

import { duration, fill, h, sentence } from "./dom.js";
import { get, onHeard, post } from "./net.js";
import { overview } from "./overview.js";
import { nodes } from "./nodes.js";
import { jobs } from "./jobs.js";
import { job } from "./job.js";
import { queues, reservations, services, usage } from "./pool.js";
import { notes } from "./notes.js";

const PAGES = [
  ["", "Overview", overview],
  ["nodes", "Nodes", nodes],
  ["jobs", "Jobs", jobs],
  ["queues", "Queues", queues],
  ["services", "Services", services],
  ["reservations", "Reservations", reservations],
  ["usage", "Usage", usage],
  ["notes", "Notes", notes],
];

const main = document.getElementById("main");
const link = document.getElementById("link");
const banner = document.getElementById("banner");
let shown; // { page, timer, busy, leave }
let me = {};

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // It was typed in.
  }
}

/** `#/jobs/job-7?state=running` */
function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name = "", ...rest] = path.split("/");
  return { name, rest: rest.map(decoded), query: new URLSearchParams(query) };
}

function show() {
  if (location.hash === "#main") return main.focus();
  const { name, rest, query } = route();
  const [, title, make] = PAGES.find(([known]) => known === name) ?? PAGES[0];
  const isJob = name === "jobs" && rest.length;
  document.title = `${isJob ? rest[0] : name === "nodes" && rest.length ? rest[0] : title} · Aquifer`;
  fill(document.getElementById("nav"), PAGES.map(([path, title]) =>
    h("a", { href: `#/${path}`, "aria-current": path === name ? "page" : undefined, "data-key": path }, title)));
  leave();
  const page = (isJob ? job : make)({ rest, query });
  shown = { page, name };
  fill(main, page.el);
  window.scrollTo(0, 0);
  look(shown);
}

function leave() {
  if (!shown) return;
  clearTimeout(shown.timer);
  shown.page.leave?.();
  shown = undefined;
}

/** Looks again and again, the less often the longer an answer takes, and not while nobody sees it. */
async function look(at) {
  if (at !== shown || at.busy || document.hidden || !at.page.look) return;
  clearTimeout(at.timer);
  at.busy = true;
  const begun = performance.now();
  try {
    await at.page.look();
    at.failed = false;
  } catch (error) {
    if (error.name !== "AbortError") at.failed = at.page.failed?.(error) ?? fail(at, error);
  }
  at.busy = false;
  const took = performance.now() - begun;
  at.timer = setTimeout(() => look(at), at.failed ? 2000 : Math.max(at.page.every ?? 3000, Math.min(8 * took, 30000)));
  document.body.dataset.looked = at.name || "overview";
}

/** A page that nothing has come of yet tells why; one that has shown something goes on showing it. */
function fail(at, error) {
  if (at !== shown) return true;
  if (error.status !== 401 && !at.page.el.childElementCount) {
    const body = h("section", { class: "card" }, h("h2", {}, "Nothing can be shown"), h("p", {}, sentence(error.message)), error.next && h("p", { class: "quiet" }, sentence(error.next)));
    fill(main, body);
    at.gone = true;
  }
  return true;
}

onHeard(({ age, error, next, unknown }) => {
  const state = unknown ? "lost" : error ? "lost" : age !== null && age !== undefined ? "old" : "live";
  const words = { live: "live", old: "stands by", lost: unknown ? "signed out" : "no answer" }[state];
  fill(link, h("span", { class: `dot ${state}` }), words, me.sign_in === "token" && !unknown &&
    h("button", { class: "plain", onclick: signOut }, "Sign out"));
  link.title = me.server ? `the pool at ${me.server}` : "";
  banner.hidden = state === "live" || Boolean(unknown);
  banner.className = `banner ${state}`;
  if (state === "old") {
    banner.textContent = `No scheduler leads. This is the pool as one that stands by knew it ${duration(age)} ago.`;
  } else if (error) {
    banner.textContent = `${sentence(error)} ${next ? sentence(next) : ""} It is tried again.`;
  }
  if (unknown) return signIn(error, next);
  if (!error && shown?.gone) show();
});

function signIn(error, next) {
  leave();
  document.body.dataset.looked = "sign-in";
  const token = h("input", { type: "password", id: "token", autocomplete: "off", required: true, spellcheck: "false" });
  const told = h("p", { class: "wrong", role: "alert" });
  const send = async (event) => {
    event.preventDefault();
    told.textContent = "";
    try {
      await post("sign-in", { token: token.value });
      token.value = "";
      await begin();
    } catch (refusal) {
      told.textContent = `${sentence(refusal.message)} ${refusal.next ? sentence(refusal.next) : ""}`;
    }
  };
  const byToken = /token/.test(next ?? "");
  const form = h("form", { onsubmit: send }, h("label", { for: "token" }, "Token"), token, h("button", {}, "Sign in"), told);
  fill(main, h("section", { class: "card door" }, h("h1", {}, "Sign in"),
    h("p", {}, byToken ? "With your own token of the pool: what you see and do is what it may." : sentence(next ?? error)),
    byToken && form));
  if (byToken) token.focus();
}

async function signOut() {
  await post("sign-out").catch(() => {});
  begin();
}

async function begin() {
  try {
    me = (await get("me")).data;
  } catch (error) {
    if (error.status !== 401) setTimeout(begin, 3000);
    return;
  }
  show();
}

window.addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => shown && look(shown));
begin();
