// The house in a browser: the list of guests, what can be done to them, one console or screen at a time.
// Text of guests and of `guests` reaches the page as text nodes alone.

const byId = (id) => document.getElementById(id);
const busy = new Map(); // guest → what is being done to it

function made(tag, text, kind) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function lasted(secs) {
  if (secs === null || secs === undefined) return "-";
  if (secs < 120) return `${secs} s`;
  if (secs < 7200) return `${Math.floor(secs / 60)} min`;
  return `${Math.floor(secs / 3600)} h ${Math.floor((secs % 3600) / 60)} min`;
}

function trouble(text) {
  byId("trouble").textContent = text || "";
  byId("trouble").hidden = !text;
}

// What can be done in which state: the word in the address, and on the button.
function acts(guest) {
  const runs = guest["domain-id"] !== null || ["up", "starting", "running"].includes(guest.state);
  if (guest.state === "saved") return [["restore", "Restore"]];
  if (!runs) return [["start", "Start"]];
  return [["stop", "Stop"], ["restart", "Restart"], ["save", "Save"]];
}

async function act(name, word) {
  busy.set(name, word);
  trouble("");
  paint();
  try {
    const answer = await fetch(`/api/guests/${name}/${word}`, { method: "POST" });
    if (answer.status === 401) return leave();
    const told = await answer.json().catch(() => ({ error: answer.statusText }));
    if (told.error) trouble(`${name}: ${told.error}`);
  } catch (error) {
    trouble(`${name}: ${error.message}`);
  } finally {
    busy.delete(name);
    look();
  }
}

let last = null;

// Rows by the guests' names, with what they were made of: one of which nothing changed but its age stays as it is, so that a button
// is not exchanged for its like while somebody presses it.
const rows = new Map();

function row(guest) {
  const of = JSON.stringify([{ ...guest, "for-secs": 0 }, busy.get(guest.name)]);
  const known = rows.get(guest.name);
  const line = known?.of === of ? known.line : build(guest);
  line.querySelector("[data-age]").textContent = lasted(guest["for-secs"]);
  rows.set(guest.name, { of, line });
  return line;
}

function build(guest) {
  const line = made("tr");
  line.dataset.guest = guest.name;
  const who = made("td", guest.name);
  who.append(made("small", guest.description));
  const doing = busy.get(guest.name);
  const state = made("td");
  state.append(made("span", doing ? `${guest.state}: ${doing} …` : guest.state, `state ${doing ? "busy" : guest.state}`));
  if (guest.restarts) state.append(made("small", `started again ${guest.restarts} times`));
  for (const why of [guest.trouble, guest.reason]) if (why) state.append(made("small", why, "why"));
  const buttons = made("td", undefined, "do");
  const button = (kind, word, does, enabled) => {
    const made_ = made("button", word);
    made_.type = "button";
    made_.dataset.act = kind;
    made_.setAttribute("aria-label", `${word} ${guest.name}`);
    made_.disabled = !enabled;
    made_.addEventListener("click", does);
    buttons.append(made_, " ");
  };
  for (const [kind, word] of acts(guest)) button(kind, word, () => act(guest.name, kind), !doing);
  button("console", "Console", () => openConsole(guest.name), true);
  if (guest["has-screen"]) button("screen", "Screen", () => openScreen(guest.name), true);
  const age = made("td");
  age.dataset.age = "";
  line.append(who, state, made("td", guest.mode || "-"), made("td", guest.address || "-"), made("td", guest["lan-address"] || "-"),
    made("td", `${guest["memory-mib"]} MiB`), age, buttons);
  return line;
}

function paint() {
  if (!last) return;
  const { house, guests, error } = last;
  byId("house").textContent = `${house.name}, build ${house.build || "unknown"}, up for ${lasted(house["uptime-secs"])}`;
  if (error) trouble(error);
  // Whoever is about to press a button finds it again.
  const at = document.activeElement?.closest?.("tr[data-guest] button");
  const held = at && [at.closest("tr").dataset.guest, at.dataset.act];
  const place = byId("guests");
  guests.map(row).forEach((line, index) => {
    const there = place.children[index];
    if (!there) place.append(line);
    else if (there !== line) there.replaceWith(line);
  });
  while (place.children.length > guests.length) place.lastChild.remove();
  if (held) byId("guests").querySelector(`tr[data-guest="${held[0]}"] button[data-act="${held[1]}"]`)?.focus();
}

function leave() {
  location.assign("/login");
}

async function look() {
  const answer = await fetch("/api/guests").catch(() => null);
  if (answer?.status === 401) return leave();
  if (!answer?.ok) return;
  last = await answer.json();
  paint();
}

const events = new EventSource("/api/events");
events.onmessage = (event) => {
  last = JSON.parse(event.data);
  paint();
};
events.onopen = () => document.body.classList.add("live");
// The browser tries again by itself; whether the session is over, it does not say.
events.onerror = look;
look();

// One line at a time: `end` closes what is open.
let end = () => {};

function openLine(name, what, isScreen) {
  end();
  byId("line").hidden = false;
  byId("line-name").textContent = `${name}: ${what}`;
  byId("line-state").textContent = "connecting …";
  const place = byId("line-place");
  place.replaceChildren();
  place.className = isScreen ? "screen" : "";
  byId("line").scrollIntoView({ block: "nearest" });
  return place;
}

byId("line-close").addEventListener("click", () => {
  end();
  end = () => {};
  byId("line").hidden = true;
});

function address(kind, name) {
  return `wss://${location.host}/ws/${kind}/${name}`;
}

function openConsole(name) {
  const place = openLine(name, "console", false);
  const terminal = new Terminal({ cols: 80, rows: 25, scrollback: 2000, fontFamily: "ui-monospace, monospace", fontSize: 15 });
  terminal.open(place);
  terminal.focus();
  const socket = new WebSocket(address("console", name));
  socket.binaryType = "arraybuffer";
  const bytes = new TextEncoder();
  let open = true;
  socket.onopen = () => { byId("line-state").textContent = "open"; };
  socket.onmessage = (event) => terminal.write(new Uint8Array(event.data));
  socket.onclose = (event) => {
    if (open) byId("line-state").textContent = `closed ${event.reason}`;
  };
  terminal.onData((text) => { if (socket.readyState === 1) socket.send(bytes.encode(text)); });
  terminal.onBinary((text) => { if (socket.readyState === 1) socket.send(Uint8Array.from(text, (c) => c.charCodeAt(0))); });
  end = () => {
    open = false;
    socket.close();
    terminal.dispose();
  };
}

async function openScreen(name) {
  const place = openLine(name, "screen", true);
  const { default: RFB } = await import("/vendor/novnc/core/rfb.js");
  const screen = new RFB(place, address("screen", name));
  let open = true;
  screen.scaleViewport = true;
  screen.addEventListener("connect", () => {
    byId("line-state").textContent = "open";
    screen.focus(); // what is typed is the guest's, as on a console
  });
  screen.addEventListener("disconnect", () => { if (open) byId("line-state").textContent = "closed"; });
  end = () => {
    open = false;
    screen.disconnect();
  };
}
