// Nodes with their devices as cells, and one node in full.

import { badge, bar, card, count, facts, fill, h, jobLink, milli, moment, nothing, sentence, size, table } from "./dom.js";
import { get, post } from "./net.js";
import { grid, legend } from "./grid.js";

export function nodes({ rest, query }) {
  return rest.length ? node(rest[0]) : all(query);
}

function all(query) {
  let by = query.get("by") === "job" ? "job" : "state";
  let text = query.get("name") ?? "";
  let devices;
  const told = h("p", { class: "quiet" });
  const cells = grid({
    by: () => by,
    filter: (it) => (!text || it.name.includes(text)) && (!query.get("state") || it.state === query.get("state")),
    open: (name) => (location.hash = `#/nodes/${encodeURIComponent(name)}`),
  });
  const name = h("input", { type: "search", value: text, placeholder: "part of a name", "aria-label": "nodes by name", oninput: () => {
    text = name.value.trim();
    cells.layout();
  } });
  const choice = (what, words) => h("button", { class: "chip", "aria-pressed": String(by === what), onclick: (event) => {
    by = what;
    for (const it of event.target.parentElement.children) it.setAttribute("aria-pressed", String(it === event.target));
    cells.paint();
  } }, words);
  const el = h("div", { class: "page" });
  async function look() {
    const { data, text: now } = await get("devices");
    if (!el.childElementCount) {
      fill(el, h("h1", {}, "Nodes"), h("div", { class: "tools" }, name, h("span", { role: "group", "aria-label": "colours" },
        choice("state", "by state"), choice("job", "by job")), told), h("section", { class: "card" }, legend(), cells.el));
    }
    if (now === devices) return;
    devices = now;
    const states = {};
    for (const it of data.nodes) states[it.state] = (states[it.state] ?? 0) + 1;
    told.textContent = Object.entries(states).map(([state, n]) => `${count(n)} ${state}`).join(", ");
    if (!data.nodes.length) fill(el.lastElementChild, nothing("The pool has no nodes.", "aquifer agent", "on a machine makes it one."));
    cells.show(data);
  }
  return { el, look, every: 3000, leave: cells.leave };
}

/** A question before something is done, in the page itself. */
export function act(words, question, path) {
  const said = h("span", { class: "wrong", role: "alert" });
  const box = h("span", { class: "act" });
  const first = h("button", { class: "quietly", onclick: () => {
    const no = h("button", { class: "quietly", onclick: () => fill(box, first, said) }, "No");
    const yes = h("button", { class: "danger", onclick: async () => {
      yes.disabled = true;
      said.textContent = "";
      try {
        await post(path);
      } catch (refusal) {
        said.textContent = refusal.message;
      }
      fill(box, first, said);
    } }, `Yes, ${words.toLowerCase()}`);
    fill(box, h("span", {}, question), yes, no);
    no.focus();
  } }, words);
  fill(box, first, said);
  return box;
}

function node(name) {
  const el = h("div", { class: "page" });
  let last;
  let [was, acts] = [undefined, undefined];
  async function look() {
    const { data: it, text } = await get(`nodes/${encodeURIComponent(name)}`);
    const jobs = [...new Set(it.workers.map((worker) => worker.split(".")[0]))].slice(0, 16);
    const held = await Promise.all(jobs.map((id) => get(`jobs/${id}`).catch(() => null)));
    const holders = new Map();
    for (const { data: job } of held.filter(Boolean)) {
      for (const worker of job.workers.filter((worker) => worker.node === name)) {
        for (const device of worker.devices) holders.set(device, [...(holders.get(device) ?? []), job]);
      }
    }
    const now = text.replace(/"lease_left_ms":\d+/, "") + JSON.stringify([...holders].map(([device, jobs]) => [device, jobs.map((job) => job.id)]));
    if (now === last) return;
    last = now;
    if (it.availability !== was) [was, acts] = [it.availability, h("div", { class: "tools" }, tools(it))];
    fill(el, h("h1", {}, it.name, " ", badge(it.state)),
      acts,
      (it.cordoned_because || it.findings.length > 0) && h("section", { class: "card warn" }, it.cordoned_because && h("p", {}, `Cordoned, because ${it.cordoned_because}`), it.findings.map((what) => h("p", {}, what))),
      card("Devices", it.devices.length ? devices(it, holders) : nothing("It offers no devices, but cores and memory.")),
      h("div", { class: "two" }, card("About", facts([
        ["Cores held", h("span", {}, `${milli(it.cpus_milli_held)} of ${milli(it.cpus_milli)}`, bar([["used", it.cpus_milli_held, "held"]], it.cpus_milli || 1, "cores"))],
        ["Memory held", h("span", {}, `${size(it.memory_bytes_held)} of ${size(it.memory_bytes)}`, bar([["used", it.memory_bytes_held, "held"]], it.memory_bytes || 1, "memory"))],
        ["Address", it.address], ["Ports of workers", `${it.first_port}–${it.last_port}`], ["Containers", it.engine],
        ["Agent", it.version], ["Labels", Object.entries(it.labels).map(([key, value]) => h("code", {}, `${key}=${value}`))],
        ["Booked by", it.reservations.map((one) => h("div", {}, one.name, ", begins ", moment(one.start_ms), ", ends ", moment(one.end_ms)))],
      ])), card("Workers", it.workers.length
        ? table([["Worker"], ["Name"], ["User"], ["State"]], it.workers.map((worker) => {
          const job = held.find((one) => one?.data.id === worker.split(".")[0])?.data;
          return [jobLink(worker.split(".")[0], worker), job?.name, job?.user, job && badge(job.state)];
        }))
        : nothing("Nothing runs here."))));
  }
  return { el, look, every: 3000 };
}

/** What can be done with a node; the questions stay while it stays as it is. */
const tools = (it) => {
  const path = (what) => `nodes/${encodeURIComponent(it.name)}/${what}`;
  const open = act("Uncordon", "Shall it take work again?", path("uncordon"));
  const drain = act("Drain", "Shall its workers be stopped and placed elsewhere?", path("drain"));
  if (it.availability !== "open") return [open, it.availability === "cordoned" && drain];
  return [act("Cordon", "Shall it take no new work? What runs there runs on.", path("cordon")), drain];
};

/** Why a device takes no new work, and what to do about it, to who asks. */
function why(it, device) {
  const told = h("div", { class: "reasons" });
  const ask = h("button", { class: "plain", "data-key": `why${device.index}`, onclick: async () => {
    const { data } = await get(`nodes/${encodeURIComponent(it.name)}/devices/${device.index}`).catch(() => ({ data: { reasons: [] } }));
    fill(told, data.reasons.map((one) => [one.what, one.then, one.next].filter(Boolean).map((text) => h("p", {}, sentence(text)))));
  } }, "why");
  return [" ", ask, told];
}

function devices(it, holders) {
  const state = (device) => {
    if (!it.up) return "lost";
    if (device.fault) return device.health;
    if (device.held) return "used";
    return device.cordoned || it.availability !== "open" ? "cordoned" : "idle";
  };
  const kind = (device) => (device.fault ? "unwell" : state(device));
  return table([["#", "num"], ["State"], ["Model"], ["Held by"], ["Memory", "num"], ["Island", "num"], ["UUID", "mono"]],
    it.devices.map((device) => [
      count(device.index),
      h("span", {}, h("i", { class: `cell b-${kind(device)}` }), state(device),
        device.fault && h("small", {}, ` ${device.fault}`, device.fault_since_ms && ", since ", moment(device.fault_since_ms, true)),
        device.cordoned && device.held && h("small", {}, " cordoned"), !["used", "idle"].includes(state(device)) && why(it, device)),
      h("span", {}, h("span", { class: "quiet" }, `${device.vendor} `), device.model),
      (holders.get(device.index) ?? []).map((job) => h("div", {}, jobLink(job.id), ` ${job.name}${job.array_index === null ? "" : `[${job.array_index}]`} `, h("span", { class: "quiet" }, job.user))),
      size(device.memory_bytes), device.island ?? "", device.uuid,
    ]));
}
