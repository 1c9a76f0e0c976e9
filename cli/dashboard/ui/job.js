// One job: what it is, where its time went, why it waits, what happened to it, and what it prints.

import { badge, bar, card, count, duration, facts, fill, h, hours, jobLink, moment, nodeLink, nothing, plural, shares, size, table } from "./dom.js";
import { get, stream } from "./net.js";
import { act } from "./nodes.js";
import { detail, devicesOf, progress, runtime } from "./jobs.js";
import { noteLine } from "./overview.js";

const LEDGER = [
  ["steps", "steps_ms", "in steps"],
  ["start", "start_ms", "loading and waiting to start"],
  ["recovery", "recovery_ms", "recovering from members lost"],
  ["slow", "slow_ms", "in slow steps"],
  ["redo", "lost_ms", "lost since checkpoints"],
];
const TAIL = 300;
const LINES = 2000;
const ENDED = ["succeeded", "failed", "cancelled", "timed-out"];

/** Where the time of a training went, as a bar whose shares sum to 100 %. */
function ledger(spent) {
  const parts = shares(LEDGER.map(([, key]) => spent[key]));
  const all = LEDGER.reduce((sum, [, key]) => sum + spent[key], 0);
  const named = LEDGER.map(([kind, key, words], at) => ({ kind, ms: spent[key], words, share: parts[at] }));
  return card(`Where its time went: ${duration(all)}`,
    bar(named.map(({ kind, ms, words, share }) => [kind, ms, `${share.toFixed(1)} % ${words}`]), all || 1, "time"),
    h("p", { class: "legend" }, named.map(({ kind, ms, words, share }) =>
      h("span", { title: duration(ms) }, h("i", { class: `b-${kind}` }), h("b", {}, `${share.toFixed(1)} %`), ` ${words}`))));
}

/** Programs as one would type them. */
function program(role) {
  const word = (text) => (/^[\w\-./=:,+@%]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  if (role.command) return role.command.map(word).join(" ");
  if (role.train) return `train ${role.train.model} on ${role.train.data}, ${plural(role.train.steps, "step")}`;
  return role.serve ? `serve ${role.serve.model}` : "";
}

function explanation(it) {
  const verdicts = it.roles.flatMap((role) => role.verdicts.map((one) => [count(one.nodes), one.text, it.roles.length > 1 ? role.role : ""]));
  return card("Why it waits", h("p", { class: "say" }, `${it.job} ${it.sentence.replace(/\.$/, "")}.`),
    verdicts.length > 0 && table([["Nodes", "num"], ["Say", "why"], [it.roles.some((role) => role.role !== "worker") && it.roles.length > 1 ? "Role" : "", ""]], verdicts),
    it.blockers.length > 0 && table([["Held by", "mono"], ["Devices", "num"], ["Ends", ""]],
      it.blockers.map((one) => [jobLink(one.job), count(one.devices), one.ends_by_ms ? moment(one.ends_by_ms) : "no time limit"])),
    it.gave_way_to && h("p", {}, "Its last attempt gave way to ", jobLink(it.gave_way_to), "."),
    it.start_text && h("p", {}, it.start_text), it.change && h("p", {}, `It would start now with ${it.change.replace(/\.$/, "")}.`));
}

function about(job) {
  const spec = job.spec ?? { roles: [], env: {} };
  const env = Object.entries(spec.env);
  return facts([
    ["User", h("a", { href: `#/jobs?user=${encodeURIComponent(job.user)}` }, job.user || "nobody")], ["Queue", job.queue],
    ["Priority", job.priority || ""], ["Devices", devicesOf(job)], ["Class", job.class],
    ["Ranks", job.min_ranks < job.max_ranks ? `${job.ranks}, from ${job.min_ranks} to ${job.wanted_ranks}` : count(job.ranks)],
    ["Submitted", moment(job.submitted_ms)], ["Placed", job.placed_ms && moment(job.placed_ms)], ["Ended", job.ended_ms && moment(job.ended_ms)],
    ["Runs", runtime(job)], ["Attempts", job.attempt ? count(job.attempt) : ""],
    ["Failures", job.failures || job.last_failure ? `${job.failures}${job.last_failure ? `; the last: ${job.last_failure}` : ""}` : ""],
    ["Array", job.array_first && h("span", {}, `element ${job.array_index} of `, jobLink(job.array_first))],
    ["Used", job.device_ms || job.cpu_milli_ms ? `${hours(job.device_ms)} of devices, ${hours(job.cpu_milli_ms / 1000)} of cores` : ""],
    ["Lost", job.lost_device_ms ? `${hours(job.lost_device_ms)} of devices, in attempts that were placed again` : ""],
    ["Of capacity", job.capacity !== null ? `${(100 * job.capacity).toFixed(1)} % of what its ranks could have computed` : ""],
    ["Checkpoints", job.checkpoint_dir && h("code", {}, job.checkpoint_dir)],
    ["Time limit", spec.time_limit_ms && duration(spec.time_limit_ms)], ["After", spec.after?.map((id) => jobLink(id))],
    ["Reservation", spec.reservation],
    ["Runs what", spec.roles.map((role) => h("div", {}, h("span", { class: "quiet" }, `${role.ranks} × ${role.name} `), h("code", {}, program(role)), role.image && ` in ${role.image}`))],
    ["Each rank has", spec.roles.map((role) => h("div", {}, plural(role.cpus_milli / 1000, "core"), role.memory_bytes ? `, ${size(role.memory_bytes)}` : ""))],
    ["Environment", env.length > 0 && h("details", {}, h("summary", {}, plural(env.length, "variable")), env.map(([key, value]) => h("div", {}, h("code", {}, `${key}=${value}`))))],
  ]);
}

const workers = (job) => table([["Rank", "num"], ["Node"], ["Devices", "hide"], ["State"], ["Tells", "why"]], job.workers.map((it) => [
  count(it.rank), nodeLink(it.node), it.devices.length ? `${it.model} ${it.devices.join(",")}` : "", badge(it.state),
  h("span", {}, it.progress && progress(it.progress), it.endpoint && h("code", {}, it.endpoint)),
]));

export function job({ rest }) {
  const [id] = rest;
  const [top, why, body] = [0, 0, 0].map(() => h("div", { class: "part" }));
  const happened = h("ol", { class: "notes" });
  const logs = h("pre", { class: "logs", tabindex: 0, "aria-label": "what its workers print" });
  const said = h("p", { class: "quiet" });
  const el = h("div", { class: "page" });
  const cancel = act("Cancel", `Shall ${id} end?`, `jobs/${id}/cancel`);
  const ends = [];
  let last;
  let explained = -Infinity;
  let notes = [];

  function begin() {
    fill(el, top, why, body, h("div", { class: "two" }, card("What happened", happened), card("What it prints", said, logs)));
    fill(happened, h("li", { class: "nothing" }, "Nothing that is still known."));
    ends.push(stream(`notes?job=${id}&recent=200`, { resumes: true, data: (note) => {
      if (notes.some((it) => it.seq === note.seq)) return;
      notes = [...notes, note].slice(-200);
      fill(happened, [...notes].reverse().map(noteLine));
    } }));
    said.textContent = "Nothing yet.";
    ends.push(stream(`jobs/${id}/logs?tail=${TAIL}`, {
      open: () => (logs.replaceChildren(), (said.textContent = "Nothing yet.")),
      data: (line) => print(line.rank, line.text),
      missing: ({ lines }) => print("…", `${plural(lines, "line")} left out: they come faster than they are read`),
      unavailable: ({ rank, why }) => print(rank, why),
      end: ({ error }) => (said.textContent = error ?? (logs.childElementCount ? "" : "It has printed nothing.")),
      lost: () => !logs.childElementCount && (said.textContent = "Its logs cannot be read: they are of another user, or nobody answers."),
    }));
  }

  function print(rank, text) {
    const low = logs.scrollTop + logs.clientHeight >= logs.scrollHeight - 30;
    said.textContent = "";
    logs.append(h("div", {}, h("span", { class: "rank" }, `[${rank}] `), text));
    while (logs.childElementCount > LINES) logs.firstElementChild.remove();
    if (low) logs.scrollTop = logs.scrollHeight;
  }

  async function look() {
    const { data: it, text } = await get(`jobs/${id}`);
    if (!el.childElementCount) begin();
    if (it.state === "pending") {
      // All nodes are asked for it.
      if (performance.now() - explained > 10000) {
        explained = performance.now();
        fill(why, explanation((await get(`jobs/${id}/explain`)).data));
      }
    } else fill(why);
    if (text === last) return;
    last = text;
    const step = it.progress?.total_steps > 0 && it.progress;
    fill(top, h("h1", {}, it.name, " ", h("span", { class: "quiet mono" }, it.id), " ", badge(it.state)),
      h("div", { class: "tools" }, it.state !== "pending" && h("span", { class: "quiet" }, it.progress && !ENDED.includes(it.state) ? progress(it.progress) : detail(it)), !ENDED.includes(it.state) && cancel),
      step && !ENDED.includes(it.state) && h("div", { class: "tall" }, bar([["used", step.step, `step ${count(step.step)} of ${count(step.total_steps)}`]], step.total_steps, "progress")));
    fill(body, it.spent && ledger(it.spent), h("div", { class: "two" }, card("About", about(it)),
      card("Ranks", it.workers.length ? workers(it) : nothing("It holds nothing."))));
  }
  return { el, look, every: 2000, leave: () => ends.forEach((end) => end()) };
}
