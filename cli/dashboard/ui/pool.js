// Queues, services, reservations, and who used what.

import { badge, count, fill, h, hours, duration, jobLink, milli, moment, nodeLink, nothing, percent, table } from "./dom.js";
import { get } from "./net.js";

/** A page that is one list: asks, and draws again what has changed. */
function page(title, path, draw, tools, every = 3000) {
  const list = h("section", { class: "card" });
  const el = h("div", { class: "page" });
  let last;
  async function look() {
    const paths = [path()].flat();
    const found = await Promise.all(paths.map((one) => get(one)));
    if (!el.childElementCount) fill(el, h("h1", {}, title), tools, list);
    const text = paths.join() + found.map((one) => one.text).join();
    if (text === last) return;
    last = text;
    fill(list, draw(...found.map((one) => one.data)));
  }
  return { el, look, every };
}

/** What a queue holds, with marks where its guarantee and its limit are. */
export function queueBar(queue, devices) {
  const all = Math.max(1000 * devices, queue.held_milli, queue.guaranteed_milli, queue.limit_milli ?? 0, 1);
  const at = (milli) => Math.min(99.5, (100 * milli) / all);
  const words = `holds ${milli(queue.held_milli)} of ${milli(all)} devices, ${milli(queue.guaranteed_milli)} guaranteed, ${queue.limit_milli === null ? "no limit" : `at most ${milli(queue.limit_milli)}`}`;
  return h("div", { class: "bar marked", role: "img", title: words, "aria-label": words },
    queue.held_milli > 0 && h("span", { class: "b-used", "width%": (100 * queue.held_milli) / all }),
    queue.guaranteed_milli > 0 && h("i", { class: "mark low", "left%": at(queue.guaranteed_milli) }),
    queue.limit_milli !== null && h("i", { class: "mark", "left%": at(queue.limit_milli) }));
}

/** Each queue with its depth, after the one above it. */
function tree(queues, parent = null, depth = 0) {
  const below = queues.filter((queue) => queue.parent === parent);
  return below.flatMap((queue) => [[depth, queue], ...tree(queues, queue.name, depth + 1)]);
}

export const queues = () => page("Queues", () => ["queues", "overview"], (all, glance) => {
  if (!all.length) return nothing("No queues: the first job makes the one that it names;", "aquifer queues set research --weight 3", "makes one before.");
  const devices = glance.devices.reduce((sum, one) => sum + one.devices, 0);
  return [table([["Queue"], ["Holds", "num"], ["", "wide"], ["Share", "num"], ["Weight", "num"], ["Guaranteed", "num"], ["Limit", "num"], ["Usage", "num"], ["Wait", "num"], ["Run", "num"], ["Users"]],
    tree(all).map(([depth, queue]) => [
      h("a", { href: `#/jobs?queue=${encodeURIComponent(queue.name)}`, "data-key": queue.name, indent: 18 * depth }, queue.name), milli(queue.held_milli), queueBar(queue, devices),
      percent(queue.share_millionths, 1e6), count(queue.weight), milli(queue.guaranteed_milli), queue.limit_milli === null ? "none" : milli(queue.limit_milli),
      hours(queue.used_device_ms), count(queue.pending_jobs), count(queue.running_jobs),
      queue.users.length ? queue.users.join(" ") : queue.parent ? "" : "all",
    ])), h("p", { class: "quiet" }, "The bar is of all devices: what a queue holds, with those below it; ", h("i", { class: "mark low" }), " what it is guaranteed, ", h("i", { class: "mark" }), " its limit. Usage fades with time.")];
});

export const services = () => page("Services", () => "services", (all) => {
  if (!all.length) return nothing("No services:", "aquifer submit deploy/examples/serve.yaml", "makes one.");
  const ms = (it) => (it === null ? "" : `≤ ${count(it)} ms`);
  return table([["Model", "name"], ["Job", "mono"], ["State"], ["Replicas", "num"], ["First token", "num"], ["Next token", "num"], ["Tokens/s", "num"], ["Tells", "why"]], all.map((it) => [
    it.model, jobLink(it.job), it.wanted === 0 ? "sleeps" : badge(it.state), h("span", { title: `at most ${it.most}` }, `${count(it.ready)} of ${count(it.wanted)}`), ms(it.ttft_ms), ms(it.tpot_ms),
    it.tokens_per_s === null ? "" : count(Math.round(it.tokens_per_s)),
    h("span", {}, it.told.length ? it.told.map((told) => h("div", {}, told)) : it.reason, it.endpoints.map((url) => h("div", {}, h("code", {}, url)))),
  ]));
});

export const reservations = () => page("Reservations", () => "reservations", (all) => {
  if (!all.length) return nothing("Nothing is booked:", "aquifer reserve maint --nodes NODE --in 2h --for 4h", "books a node.");
  return table([["Name", "name"], ["State"], ["Begins"], ["Ends"], ["For"], ["Nodes", "why"], ["Conflicts"]], all.map((it) => [
    it.name, badge(it.state), moment(it.start_ms), moment(it.end_ms), [...it.queues, ...it.users].join(" ") || "nobody",
    it.nodes.flatMap((name) => [nodeLink(name), " "]), it.conflicts.flatMap((id) => [jobLink(id), " "]),
  ]));
});

export function usage({ query }) {
  const since = query.get("since") ?? "7d";
  const choices = [["1d", "day"], ["7d", "7 days"], ["30d", "30 days"], ["0", "all"]];
  const tools = h("div", { class: "tools", role: "group", "aria-label": "since" }, choices.map(([it, words]) =>
    h("a", { class: "chip", href: `#/usage?since=${it}`, "aria-current": it === since ? "true" : undefined }, words)));
  return page("Usage", () => `usage?since=${encodeURIComponent(since)}`, (it) => {
    const rows = [...it.rows].sort((a, b) => b.device_ms - a.device_ms || b.cpu_milli_ms - a.cpu_milli_ms);
    const most = Math.max(1, ...rows.map((row) => row.device_ms));
    const held = h("p", { class: "quiet" }, `${count(it.devices_held)} of ${count(it.devices)} devices are held now. Jobs count by when they were submitted.`);
    if (!rows.length) return [nothing("Nobody has used anything since then."), held];
    return [table([["Queue"], ["User"], ["Device hours", "num"], ["", "wide"], ["Lost", "num"], ["Core hours", "num"], ["Jobs", "num"], ["Succeeded", "num"], ["Failed", "num"], ["Effective", "num"], ["Of capacity", "num"], ["Mean wait", "num"]], rows.map((row) => [
      row.queue, row.user, hours(row.device_ms), h("div", { class: "bar" }, h("span", { class: "b-used", "width%": (100 * row.device_ms) / most })),
      row.lost_device_ms ? hours(row.lost_device_ms) : "", hours(row.cpu_milli_ms / 1000), count(row.jobs), count(row.succeeded), count(row.failed),
      percent(row.effective_ms, row.trained_ms), percent(row.worked_ms, row.held_ms), duration(row.waited_ms / Math.max(1, row.jobs)),
    ])), held];
  }, tools, 20000);
}
