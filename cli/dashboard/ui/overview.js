// The pool at a glance.

import { bar, card, count, fill, h, hours, jobLink, moment, nodeLink, nothing, percent, table } from "./dom.js";
import { get, stream } from "./net.js";
import { grid, legend } from "./grid.js";
import { queueBar } from "./pool.js";

const PARTS = ["used", "idle", "unwell", "cordoned", "lost"];
const NOTES = 14;

const tile = (title, big, small, extra) =>
  h("section", { class: "tile" }, h("h2", {}, title), h("p", { class: "big" }, big), h("p", { class: "quiet" }, small), extra);

/** Devices by what they do. */
export const classBar = (it) =>
  bar(PARTS.map((part) => [part, it[part], `${count(it[part])} ${part}`]), it.devices, `${it.vendor ?? ""} ${it.model ?? "devices"}`);

/** Of trainings that tell, the part of their time that went into steps. */
function effective(rows) {
  const sum = (key) => rows.reduce((all, row) => all + row[key], 0);
  return percent(sum("effective_ms"), sum("trained_ms"));
}

function tiles(it, use) {
  const all = { devices: 0 };
  for (const part of PARTS) all[part] = it.devices.reduce((sum, one) => sum + one[part], 0);
  all.devices = it.devices.reduce((sum, one) => sum + one.devices, 0);
  const jobs = (...states) => states.reduce((sum, state) => sum + (it.jobs[state] ?? 0), 0);
  const nodes = Object.values(it.nodes).reduce((sum, one) => sum + one, 0);
  const odd = ["cordoned", "draining", "lost"].filter((state) => it.nodes[state]).map((state) => `${count(it.nodes[state])} ${state}`);
  const ended = ["succeeded", "failed", "cancelled", "timed-out"].filter((state) => it.jobs[state]);
  const share = effective(use.rows);
  const used = use.rows.reduce((sum, row) => sum + row.device_ms, 0);
  return [
    tile("Devices used", [count(all.used), h("small", {}, ` of ${count(all.devices)}`)],
      [`${count(all.idle)} idle`, all.unwell > 0 && `, ${count(all.unwell)} unwell`, all.cordoned > 0 && `, ${count(all.cordoned)} cordoned`, all.lost > 0 && `, ${count(all.lost)} lost`], classBar(all)),
    tile("Jobs", [count(jobs("starting", "running", "stopping")), h("small", {}, " running")],
      [h("a", { href: "#/jobs?state=pending" }, `${count(jobs("pending"))} wait`),
        ended.length > 0 && `; ended: ${ended.map((state) => `${count(it.jobs[state])} ${state}`).join(", ")}`]),
    tile("Nodes", [count(it.nodes.up ?? 0), h("small", {}, ` of ${count(nodes)} up`)], odd.join(", ") || "all of them take work"),
    tile("Effective training time", share || "—",
      share ? "of the time of trainings, last 7 days" : "no training has told of its time yet",
      h("p", { class: "quiet" }, `${hours(used)} of devices used in 7 days`)),
  ];
}

export function overview() {
  const top = h("div", { class: "tiles" });
  const kinds = h("div");
  const shares = h("div");
  const told = h("ol", { class: "notes" });
  const cells = grid({ low: true, by: () => "job", open: (node) => (location.hash = `#/nodes/${encodeURIComponent(node)}`) });
  const el = h("div", { class: "page" });
  const frame = [top, card("Devices", legend("used: a colour for each job"), cells.el),
    h("div", { class: "two" }, h("div", {}, card("Kinds of devices", kinds), card("Shares of queues", shares)), card("What happens", told))];
  let last = "";
  let [use, used] = [undefined, 0];
  let seen = [];
  const end = stream(`notes?recent=${3 * NOTES}`, {
    resumes: true,
    data: (note) => {
      if (seen.some((it) => it.seq === note.seq)) return;
      seen = [note, ...seen].slice(0, NOTES);
      fill(told, seen.map(noteLine));
    },
  });
  fill(told, h("li", { class: "nothing" }, "Nothing yet."));

  async function look() {
    // What was used is summed up over all jobs: that is not asked for every time.
    if (!use || performance.now() - used > 60000) [use, used] = [await get("usage?since=7d"), performance.now()];
    const [it, tree, devices] = await Promise.all([get("overview"), get("queues"), get("devices")]);
    if (!el.childElementCount) fill(el, frame);
    cells.show(devices.data);
    const text = it.text + use.text + tree.text;
    if (text === last) return;
    last = text;
    fill(top, tiles(it.data, use.data));
    fill(kinds, it.data.devices.length
      ? table([["Kind"], ["Used", "num"], ["", "wide"]], it.data.devices.map((one) => [
        h("span", {}, h("span", { class: "quiet" }, `${one.vendor} `), one.model), `${count(one.used)} / ${count(one.devices)}`, classBar(one)]))
      : nothing("No devices.", "aquifer agent", "on a machine brings its own."));
    const tops = tree.data.filter((queue) => !queue.parent);
    fill(shares, tops.length ? table([["Queue"], ["Holds", "num"], ["Share", "num"], ["", "wide"]], tops.map((queue) => [
      h("a", { href: "#/queues", "data-key": queue.name }, queue.name), count(queue.held_milli / 1000),
      percent(queue.share_millionths, 1e6), queueBar(queue, it.data.devices.reduce((sum, one) => sum + one.devices, 0))]))
      : nothing("No queues: the first job makes the one that it names."));
  }
  return { el, look, every: 3000, leave: () => (end(), cells.leave()) };
}

/** A note as a line; what it is about can be followed. */
export function noteLine(note) {
  const target = note.job ?? note.node;
  const rest = target && note.text.startsWith(target) ? note.text.slice(target.length) : ` ${note.text}`;
  const subject = target && note.text.startsWith(target) && (note.job ? jobLink(note.job) : nodeLink(note.node));
  return h("li", { class: `k-${note.kind}` }, moment(note.time_ms), h("span", {}, subject, rest));
}
