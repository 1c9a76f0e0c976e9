// Jobs: what waits, what runs, what has ended.

import { badge, bar, count, fill, h, jobLink, moment, nodeLink, nothing, plural, table } from "./dom.js";
import { get } from "./net.js";

const STATES = ["pending", "starting", "running", "stopping", "succeeded", "failed", "cancelled", "timed-out"];
const PAGE = 100;

/** What a worker tells of itself, in one line. */
export function progress(it) {
  const parts = [];
  if (it.step !== null) parts.push(it.total_steps !== null ? `step ${count(it.step)}/${count(it.total_steps)}` : `step ${count(it.step)}`);
  if (it.loss !== null) parts.push(`loss ${it.loss.toFixed(3)}`);
  if (it.tokens_per_s !== null) parts.push(`${count(Math.round(it.tokens_per_s))} tokens/s`);
  if (it.message) parts.push(it.message);
  return parts.join(", ");
}

const ENDED = STATES.slice(4);
const bare = (job) => job.reason.replace(/^waits: /, "").replace(`${job.state}: `, "");

/** Why it waits, how far it is, or why it failed. */
export function detail(job) {
  if (job.progress && !ENDED.includes(job.state)) {
    const told = progress(job.progress);
    const { step, total_steps: total } = job.progress;
    if (told) return h("span", {}, total > 0 && bar([["used", step, `step ${step}`]], total, "progress"), told);
  }
  const said = bare(job);
  return said === job.state || said === job.state.replace("-", " ") ? "" : said;
}

export const devicesOf = (job) => (job.devices ? `${count(job.devices)} ${job.device_model}` : "");

const ranks = (job) => (job.min_ranks < job.max_ranks ? `${count(job.ranks)} (${job.min_ranks}–${job.wanted_ranks})` : count(job.ranks));

const where = (job) => (job.state === "pending" || !job.nodes.length ? ""
  : h("span", {}, nodeLink(job.nodes[0]), job.nodes.length > 1 && ` +${job.nodes.length - 1}`));

export function runtime(job) {
  if (job.state === "pending" || !job.placed_ms) return "";
  if (!job.ended_ms) return moment(job.placed_ms, true);
  const it = moment(job.placed_ms, true);
  delete it.dataset.ms;
  it.textContent = durationOf(job.ended_ms - job.placed_ms);
  return it;
}

const durationOf = (ms) => {
  const probe = moment(Date.now() - ms, true);
  return probe.textContent;
};

export function jobs({ query }) {
  const wanted = new URLSearchParams();
  for (const name of ["state", "queue", "user", "name"]) if (query.get(name)) wanted.set(name, query.get(name));
  const states = new Set((wanted.get("state") ?? "").split(",").filter(Boolean));
  const before = (query.get("before") ?? "").split(".").filter(Boolean); // The pages before this one.
  const at = query.get("page") ?? "";
  const go = (change) => {
    const next = new URLSearchParams(wanted);
    for (const [name, value] of Object.entries(change)) value ? next.set(name, value) : next.delete(name);
    location.hash = `#/jobs${next.size ? `?${next}` : ""}`;
  };
  const chip = (state) => h("button", { class: "chip", "data-key": state, "aria-pressed": String(states.has(state)), onclick: () => {
    states.has(state) ? states.delete(state) : states.add(state);
    go({ state: [...states].join(",") });
  } }, state, Number(counts?.[state]) ? h("small", {}, ` ${count(counts[state])}`) : "");
  let counts;
  const chips = h("div", { class: "chips", role: "group", "aria-label": "states" });
  const field = (name, words) => h("input", { type: "search", name, value: wanted.get(name) ?? "", placeholder: words, "aria-label": words, size: 14 });
  const form = h("form", { class: "tools", onsubmit: (event) => {
    event.preventDefault();
    const given = new FormData(form);
    go({ queue: given.get("queue").trim(), user: given.get("user").trim(), name: given.get("name").trim() });
  } }, field("name", "part of a name"), field("user", "user"), field("queue", "queue"), h("button", {}, "Search"),
  wanted.size > 0 && h("a", { href: "#/jobs" }, "all jobs"));
  const list = h("section", { class: "card" });
  const pages = h("p", { class: "pages" });
  const el = h("div", { class: "page" });
  let last;
  async function look() {
    const asked = new URLSearchParams(wanted);
    asked.set("limit", PAGE);
    if (at) asked.set("page", at);
    const page = await get(`jobs?${asked}`);
    if (!el.childElementCount) fill(el, h("h1", {}, "Jobs"), chips, form, list, pages);
    const text = page.text + page.next + page.counts;
    if (text === last) return;
    last = text;
    counts = Object.fromEntries((page.counts ?? "").split(" ").map((it) => it.split("=")));
    fill(chips, STATES.map(chip));
    fill(list, page.data.length ? rows(page.data) : page.next ? nothing("None of those looked at so far is like that; there are older ones.") : wanted.size ? nothing("No job is like that.") : nothing("No jobs yet:", "aquifer run -- echo hello", "makes one."));
    const older = () => go({ page: page.next, before: [...before, at || "0"].join(".") });
    const newer = () => go({ page: before.at(-1) === "0" ? "" : before.at(-1), before: before.slice(0, -1).join(".") });
    fill(pages, before.length > 0 && h("button", { class: "quietly", onclick: newer, "data-key": "newer" }, "← newer"),
      page.data.length > 0 && h("span", { class: "quiet" }, plural(page.data.length, "job"), page.next || before.length ? ` on page ${before.length + 1}` : ""),
      page.next && h("button", { class: "quietly", onclick: older, "data-key": "older" }, "older →"));
  }
  return { el, look, every: 3000 };
}

const rows = (jobs) => table(
  [["Job", "mono"], ["Name", "name"], ["User", "hide"], ["Queue", "hide"], ["State"], ["Ranks", "num hide"], ["Devices", "hide"], ["Nodes", "hide"], ["Age", "num"], ["Runs", "num hide"], ["", "why"]],
  jobs.map((job) => [
    jobLink(job.id), job.name + (job.array_index === null ? "" : `[${job.array_index}]`), job.user, job.queue, badge(job.state), ranks(job),
    devicesOf(job), where(job), moment(job.submitted_ms, true), runtime(job), detail(job),
  ]));
