"use strict";
// Keeps the pages up to date. They are whole without it: it fills in what the service streams, counts warnings
// down, shows times locally, and sends the buttons' requests without leaving the page. What people have written
// is only ever set as text.

const page = document.body.dataset;
const list = (name) => document.querySelector(`[data-list="${name}"]`);
const byId = (id) => document.getElementById(id);
const COUNTDOWN_STEPS = [60, 30, 10]; // seconds left at which a screen reader is told again

// --- words, as the pages of the service write them ---------------------------------------------------

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 60)} h`;
}

const percent = (value) => (value === null ? "unknown" : `${Math.round(value)} %`);

const figure = (value, unit) => (value === null ? "unknown" : `${Math.round(value)}${unit}`);

function memory(mib) {
  if (mib === null) return "unknown";
  return mib < 1024 ? `${Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}

// What people compare of an image's digest; the whole of it is in the element's title.
const digest = (image) => (image || "").replace(/(sha256:[0-9a-f]{12})[0-9a-f]+/g, "$1…");

const gpus = (value) => String(Math.round(value * 1000) / 1000);

function words(id) {
  const found = new Map();
  const terms = byId(id) ? byId(id).querySelectorAll("dt") : [];
  for (const term of terms) found.set(term.textContent, term.nextElementSibling.textContent);
  return found;
}

const titles = words("titles");
const modes = words("modes");
const title = (slug) => titles.get(slug) || slug;

function showTime(element, iso) {
  element.setAttribute("datetime", iso || "");
  const time = iso && new Date(iso);
  const today = time && time.toDateString() === new Date().toDateString();
  element.textContent = !time ? "unknown" : today ? time.toLocaleTimeString() : time.toLocaleString();
}

// --- filling elements ----------------------------------------------------------------------------------

function field(root, name) {
  return root.querySelector(`[data-field="${name}"]`);
}

function setText(root, name, text) {
  const element = field(root, name);
  const value = text === null || text === undefined ? "" : String(text);
  if (element && element.textContent !== value) element.textContent = value;
}

function show(root, name, shown) {
  for (const element of root.querySelectorAll(`[data-show="${name}"]`)) element.hidden = !shown;
}

function meter(root, name, value, max) {
  const element = field(root, name);
  if (max) element.max = max;
  element.hidden = value === null;
  element.value = value || 0;
}

// Makes the children of a parent those of the items, in order; keeps the ones that stay, so that neither focus
// nor a screen reader's place is lost.
function fillList(parent, items, key, template, fill) {
  if (!parent) return;
  const known = new Map();
  for (const child of [...parent.children]) known.set(child.dataset.key, child);
  let before = parent.firstElementChild;
  for (const item of items) {
    let child = known.get(key(item));
    if (child) {
      known.delete(key(item));
    } else {
      child = byId(template).content.querySelector("[data-key]").cloneNode(true);
      child.dataset.key = key(item);
    }
    fill(child, item);
    if (child === before) before = before.nextElementSibling;
    else parent.insertBefore(child, before);
  }
  for (const child of known.values()) child.remove();
}

// --- sessions --------------------------------------------------------------------------------------------

function fillLease(card, lease) {
  const state = lease.state;
  const active = state === "active";
  card.dataset.state = state;
  setText(card, "title", title(lease.profile));
  for (const name of ["state", "user", "server", "slice", "enforcement", "place", "reason", "doubt", "trouble", "group", "note"])
    setText(card, name, lease[name]);
  setText(card, "wait", lease.wait_words);
  setText(card, "rule", lease.rule_words);
  for (const name of ["group", "note", "borrowed"]) show(card, name, Boolean(lease[name]));
  show(card, "rule", Boolean(lease.rule_words));
  show(card, "ends", Boolean(lease.ends_at));
  showTime(field(card, "ends"), lease.ends_at);
  setText(card, "verdict", lease.warning && lease.warning.reason);
  setText(card, "utilization", percent(lease.utilization));
  meter(card, "utilization-meter", lease.utilization);
  setText(card, "memory-used", memory(lease.memory_used_mib));
  setText(card, "memory", memory(lease.memory_mib));
  meter(card, "memory-meter", lease.memory_used_mib, lease.memory_mib || 1);
  setText(card, "idle", duration(lease.idle_seconds || 0));
  setText(card, "decision", lease.verdict && lease.verdict.decision);
  setText(card, "why", lease.verdict && lease.verdict.reason);
  const decider = lease.verdict && lease.verdict.signal_words;
  for (const name of ["decider", "warned-decider"]) setText(card, name, decider);
  show(card, "decided", Boolean(decider));
  show(card, "judged", active && Boolean(lease.verdict) && !lease.warning);
  show(card, "server", Boolean(lease.server));
  show(card, "queued", state === "queued");
  show(card, "why", Boolean(lease.reason) && (state === "queued" || state === "stopping"));
  show(card, "active", active);
  show(card, "memory", active && lease.memory_mib !== null);
  show(card, "open", ["queued", "starting", "active"].includes(state));
  show(card, "doubt", Boolean(lease.doubt));
  show(card, "trouble", Boolean(lease.trouble));
  fillCheck(card, lease);
  fillButtons(card, lease);
  fillWarning(card, lease);
}

function fillCheck(card, lease) {
  const check = lease.check_words;
  show(card, "image", Boolean(lease.image));
  field(card, "image").title = lease.image || "";
  setText(card, "image", digest(lease.image));
  show(card, "check", Boolean(check));
  if (!check) return;
  setText(card, "check-outcome", check.outcome);
  setText(card, "check-facts", check.facts);
  field(card, "check-at").hidden = !check.at;
  if (check.at) showTime(field(card, "check-at"), check.at);
}

function fillButtons(card, lease) {
  const link = card.querySelector('[data-link="session"]');
  if (link) {
    // The hub leads from here to the session, or to the page that shows its start.
    link.href = `${page.hub}spawn/${encodeURIComponent(lease.user)}/${encodeURIComponent(lease.server)}`;
    link.textContent = lease.state === "active" ? "Open" : "Show the start";
  }
  card.querySelector('[data-link="details"]').href = `${page.prefix}leases/${lease.id}`;
  for (const form of card.querySelectorAll("form")) {
    const wanted = `${page.prefix}leases/${lease.id}/${form.dataset.act}`;
    if (form.getAttribute("action") !== wanted) form.setAttribute("action", wanted);
  }
  const capped = lease.extend_seconds <= 0;
  const extend = card.querySelector('form[data-act="extend"] button');
  extend.disabled = capped || extend.dataset.busy === "yes";
  extend.setAttribute("aria-describedby", `cap-${lease.id}`);
  field(card, "cap").id = `cap-${lease.id}`;
  setText(card, "extend", capped ? "Extend" : `Extend by ${duration(lease.extend_seconds)}`);
  setText(card, "release", lease.state === "queued" ? "Leave the queue" : "Release now");
  setText(card, "cap", lease.extend_words);
}

function fillWarning(card, lease) {
  const countdown = field(card, "countdown");
  const warning = lease.warning;
  const left = warning ? warning.deadline_seconds : null;
  const counts = left !== null;
  // The same verdict again is no news: the countdown goes on where it is.
  const stamp = counts ? `${warning.id} ${warning.delivered_at} ${lease.verdict && lease.verdict.at}` : "";
  if (countdown.dataset.stamp !== stamp) {
    const known = countdown.dataset.stamp !== undefined || !countdown.dataset.left;
    countdown.dataset.stamp = stamp;
    if (counts && known) countdown.dataset.ends = String(Date.now() + left * 1000);
    if (!counts) delete countdown.dataset.ends;
  }
  show(card, "warned", Boolean(warning));
  if (warning) for (const name of ["lost", "kept", "stands"]) setText(card, name, warning[name]);
  const stops = byId("mode").textContent === "reclaim";
  show(card, "stops", stops);
  show(card, "stays", !stops);
  show(card, "counts", counts);
  show(card, "stands", !counts);
  if (!warning) delete countdown.dataset.told;
  tick();
}

// A warning counts as delivered, and its countdown begins, once it is before somebody's eyes.
const acknowledged = new Set();
let ownLeases = [];

async function acknowledge() {
  if (document.visibilityState !== "visible") return;
  for (const { id, warning } of ownLeases) {
    if (!warning || warning.delivered_at || acknowledged.has(warning.id)) continue;
    acknowledged.add(warning.id);
    try {
      const answer = await fetch(`${page.prefix}api/leases/${id}/seen`, {
        method: "POST",
        headers: { "X-XSRFToken": page.xsrf },
        body: JSON.stringify({ warning: warning.id, by: "page" }),
      });
      if (!answer.ok && answer.status !== 409) acknowledged.delete(warning.id);
    } catch {
      acknowledged.delete(warning.id); // with the next news of the stream it is tried again
    }
  }
}

function tick() {
  for (const countdown of document.querySelectorAll('[data-field="countdown"]')) {
    if (!countdown.dataset.ends) continue;
    const left = Math.max(0, (Number(countdown.dataset.ends) - Date.now()) / 1000);
    countdown.textContent = duration(Math.ceil(left));
    announce(countdown, left);
  }
}

function announce(countdown, left) {
  const told = countdown.dataset.told === undefined ? Infinity : Number(countdown.dataset.told);
  const step = COUNTDOWN_STEPS.filter((seconds) => left <= seconds).pop();
  const due = step !== undefined && step < told;
  if (told !== Infinity && !due) return;
  countdown.dataset.told = String(step === undefined ? COUNTDOWN_STEPS[0] + 1 : step);
  const card = countdown.closest("[data-key]");
  const name = field(card, "title").textContent;
  if (byId("mode").textContent !== "reclaim") return;
  byId("announcer").textContent = `Session ${name} will be stopped in ${duration(Math.ceil(left))}.`;
}

function fillLeases(shape) {
  const own = shape.leases.filter((lease) => lease.user === page.user);
  const others = shape.leases.filter((lease) => lease.user !== page.user);
  fillList(list("own"), own, (lease) => lease.id, "lease-own", fillLease);
  fillList(list("others"), others, (lease) => lease.id, "lease-others", fillLease);
  byId("no-own").hidden = own.length > 0;
  if (byId("no-others")) byId("no-others").hidden = others.length > 0;
  const stops = byId("mode").textContent === "reclaim";
  const warned = stops && own.some((lease) => lease.warning);
  ownLeases = own;
  acknowledge();
  document.title = warned ? "(!) GPU pool: a session will be stopped" : "GPU pool";
}

// --- one session's own page ---------------------------------------------------------------------------------

const session = document.querySelector("[data-session]"); // not once it is closed: nothing of it changes any more
const STATES = ["queued", "starting", "active", "stopping", "closed"];
let listed = false;

function fillSession(shape) {
  const lease = shape.leases.find(({ id }) => id === session.dataset.key);
  const moved = lease && STATES.indexOf(lease.state) > STATES.indexOf(session.dataset.session);
  if (moved || (listed && !lease)) {
    window.location.reload(); // there is another story to tell
    return;
  }
  if (!lease) return;
  listed = true;
  setText(session, "verdict", lease.warning && lease.warning.reason);
  setText(session, "rule", lease.rule_words);
  show(session, "rule", Boolean(lease.rule_words));
  fillWarning(session, lease);
  ownLeases = lease.user === page.user ? [lease] : [];
  acknowledge();
}

// --- devices and queue -----------------------------------------------------------------------------------

function bars(cells) {
  return cells.split(",").filter(Boolean).map((part) => {
    const [first, last] = part.split("-").map(Number);
    return { first, count: (last === undefined ? first : last) - first + 1 };
  });
}

function fillCells(svg, device) {
  const made = device.slices.flatMap((slice) =>
    bars(slice.cells).map(({ first, count }) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const kind = slice.own ? "gp-own" : slice.lease ? "gp-held" : "gp-free";
      for (const [name, value] of Object.entries({ x: first, y: 0, width: count, height: 10, class: kind }))
        rect.setAttribute(name, value);
      return rect;
    }),
  );
  svg.setAttribute("viewBox", `0 0 ${device.cells} 10`);
  svg.setAttribute("aria-label", `${device.cells_held} of ${device.cells} cells held`);
  svg.replaceChildren(...made);
}

function condition(device) {
  let text = device.health;
  if (device.health !== "ok" && device.health_reason) text += `: ${device.health_reason}`;
  return device.drained ? `${text}, drained` : text;
}

function fillDevice(card, device) {
  setText(card, "name", `GPU ${device.index}: ${device.model}`);
  show(card, "simulated", device.simulated);
  const well = device.health === "ok" && !device.drained;
  field(card, "health").className = `badge ${well ? "text-bg-success" : "text-bg-danger"}`;
  setText(card, "health", condition(device));
  setText(card, "node", device.node);
  setText(card, "mode", device.mode);
  setText(card, "driver", device.driver);
  show(card, "driver", Boolean(device.driver));
  setText(card, "numa", device.numa ?? "unknown");
  setText(card, "links", device.links_words);
  show(card, "links", Boolean(device.links_words));
  show(card, "drained", device.drained);
  showTime(field(card, "drain-at"), device.drain_at);
  setText(card, "drain-by", device.drain_by && `, by ${device.drain_by}`);
  setText(card, "drain-why", device.drain_why && `: ${device.drain_why}`);
  const drain = card.querySelector('[data-link="drain"]'); // for admins only
  if (drain) {
    drain.href = `${page.prefix}drain?device=${encodeURIComponent(device.id)}`;
    drain.textContent = device.drained ? "Back into service…" : "Take out of service…";
  }
  setText(card, "foreign", device.foreign);
  show(card, "foreign", Boolean(device.foreign));
  setText(card, "held", `${device.cells_held} of ${device.cells}`);
  setText(card, "utilization", percent(device.utilization));
  meter(card, "utilization-meter", device.utilization);
  setText(card, "power", figure(device.power_watts, " W"));
  setText(card, "temperature", figure(device.temperature_celsius, " °C"));
  setText(card, "errors", figure(device.ecc_errors, ""));
  setText(card, "memory-used", memory(device.memory_used_mib));
  setText(card, "memory", memory(device.memory_mib));
  meter(card, "memory-meter", device.memory_used_mib, device.memory_mib || 1);
  fillCells(field(card, "cells"), device);
  const rows = card.querySelector('[data-list="slices"]');
  fillList(rows, device.slices, (slice) => slice.id, "slice", fillSlice);
  show(card, "touched", device.slices.length > 0);
  show(card, "untouched", device.slices.length === 0);
}

function fillSlice(row, slice) {
  setText(row, "kind", slice.kind);
  setText(row, "numbers", `cells ${slice.cells}`);
  setText(row, "memory", memory(slice.memory_mib));
  let holder = "free";
  if (slice.lease) {
    holder = `${slice.user || "somebody"}${slice.own ? " (you)" : ""}: ${title(slice.profile)}`;
    if (slice.state !== "active") holder += `, ${slice.state}`;
  }
  setText(row, "holder", holder);
}

function fillPool(shape) {
  for (const name of ["total", "leased", "free", "unusable"])
    document.querySelector(`[data-gpus="${name}"]`).textContent = gpus(shape.gpus[name]);
  byId("mode").textContent = shape.service.mode || "unknown";
  byId("mode-words").textContent = modes.get(shape.service.mode) || "the service has not made a sweep yet";
  showTime(byId("swept"), shape.service.swept_at);
  byId("unsettled").hidden = shape.service.settled;
  fillList(list("devices"), shape.devices, (device) => device.id, "device", fillDevice);
  byId("no-devices").hidden = shape.devices.length > 0;
}

function fillQueue(shape) {
  fillList(list("queue"), shape.queue, (request) => request.lease, "request", (row, request) => {
    row.classList.toggle("table-active", request.own);
    setText(row, "place", request.place);
    setText(row, "who", `${request.user || "somebody"}${request.own ? " (you)" : ""}`);
    setText(row, "title", title(request.profile));
    showTime(field(row, "since"), request.since);
    setText(row, "wait", request.wait_words);
  });
  byId("queue").hidden = shape.queue.length === 0;
  byId("no-queue").hidden = shape.queue.length > 0;
}

// --- how one stands --------------------------------------------------------------------------------------

function fillMe(shape) {
  const line = byId("budget");
  const budget = shape.budget;
  line.hidden = !budget;
  if (budget) {
    const well = budget.state === "ok";
    for (const name of ["alert-light", "border"]) line.classList.toggle(name, well);
    line.classList.toggle("alert-warning", !well);
    setText(line, "budget-words", budget.words);
    show(line, "lasts", Boolean(budget.lasts_until));
    showTime(field(line, "lasts-until"), budget.lasts_until);
  }
  const told = [...byId("over").children].map((sentence) => sentence.textContent);
  if (told.join("\n") === shape.over.join("\n")) return;
  byId("over").replaceChildren(
    ...shape.over.map((text) => {
      const sentence = document.createElement("p");
      sentence.className = "alert alert-warning py-2 gp-break";
      sentence.textContent = text;
      return sentence;
    }),
  );
}

// --- the stream ------------------------------------------------------------------------------------------

let newsAt = new Date(); // when the page was last known to be right
let broken; // the timer that says so when a stream that ended does not come back

function say(text) {
  const element = byId("connection");
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

function since() {
  return `showing the state of ${newsAt.toLocaleTimeString()}`;
}

function connected() {
  clearTimeout(broken);
  broken = undefined;
  say("");
}

function disconnected(stream) {
  if (stream.readyState === EventSource.CLOSED) {
    // Refused, not broken: EventSource does not say why, so a request of the same kind is asked.
    explain();
  } else if (broken === undefined) {
    broken = setTimeout(() => say(`Not connected, ${since()}. Trying again…`), 3000);
  }
}

async function explain() {
  clearTimeout(broken);
  broken = undefined;
  let refused = false;
  try {
    const answer = await fetch(`${page.prefix}api/queue`, { headers: { "X-XSRFToken": page.xsrf } });
    refused = answer.status === 403;
  } catch {
    refused = false; // no answer at all: the service is away
  }
  if (refused) {
    say(`Not connected, ${since()}. Your login is no longer valid here: reload the page.`);
  } else {
    say(`Not connected, ${since()}. Trying again…`);
    setTimeout(connect, 3000);
  }
}

function connect() {
  const stream = new EventSource(`${page.prefix}api/stream?_xsrf=${encodeURIComponent(page.xsrf)}`);
  const on = (name, fill) =>
    stream.addEventListener(name, (event) => {
      newsAt = new Date();
      fill(JSON.parse(event.data));
      if (byId("as-of")) showTime(byId("as-of"), newsAt.toISOString());
    });
  stream.addEventListener("open", connected);
  stream.addEventListener("error", () => disconnected(stream));
  if (session) {
    on("pool", (shape) => (byId("mode").textContent = shape.service.mode || ""));
    on("leases", fillSession);
  } else {
    on("pool", fillPool);
    on("leases", fillLeases);
    on("queue", fillQueue);
    on("me", fillMe);
  }
  stream.addEventListener("problem", (event) => {
    const problem = JSON.parse(event.data);
    say(problem ? `${problem.message} The page is ${since()}.` : "");
  });
  window.addEventListener("pagehide", () => stream.close(), { once: true });
}

// --- buttons ---------------------------------------------------------------------------------------------

async function act(form) {
  const card = form.closest("[data-key]");
  const button = form.querySelector("button");
  const extend = form.dataset.act === "extend";
  const lease = `${page.prefix}api/leases/${card.dataset.key}`;
  button.dataset.busy = "yes";
  button.disabled = true;
  setText(card, "problem", "");
  let shape;
  let problem = "";
  try {
    const answer = await fetch(extend ? `${lease}/extend` : lease, {
      method: extend ? "POST" : "DELETE",
      headers: { "X-XSRFToken": page.xsrf },
    });
    shape = await answer.json();
    if (!answer.ok) problem = shape.message;
  } catch {
    problem = "The service did not answer. Reload the page to see what became of it.";
  }
  delete button.dataset.busy;
  button.disabled = false;
  setText(card, "problem", problem);
  if (!problem) fillLease(card, shape);
}

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.act) return;
  event.preventDefault();
  act(event.target);
});

// --- start -----------------------------------------------------------------------------------------------

for (const element of document.querySelectorAll("time[datetime]"))
  if (element.getAttribute("datetime")) showTime(element, element.getAttribute("datetime"));

function theme() {
  // The hub's own choice of theme is kept in this browser by its pages.
  const chosen = localStorage.getItem("jupyterhub-bs-theme");
  const dark = chosen ? chosen === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.setAttribute("data-bs-theme", dark ? "dark" : "light");
}

theme();
document.addEventListener("visibilitychange", acknowledge);
if (list("own") || session) {
  for (const countdown of document.querySelectorAll("[data-left]"))
    if (countdown.dataset.left) countdown.dataset.ends = String(Date.now() + Number(countdown.dataset.left) * 1000);
  tick();
  setInterval(tick, 1000);
  connect();
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) connect(); // a page that comes back from the browser's memory has lost its stream
  });
}
