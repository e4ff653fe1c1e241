/** The page: what the buttons do. The model is in a worker (`worker.js`), which answers calls by their number. */

import { Chart } from "./chart.js";
import { keep, kept } from "./keep.js";

const BRANCHES = 2;
const ADDRESS = new URL("bundle/", location.href).href;
const worker = new Worker(new URL("worker.js", location.href), { type: "module" });
const open = new Map(); // call -> what waits for it
const at = (id) => document.getElementById(id);
const chart = new Chart(at("chart"), at("chart-caption"));
let calls = 0;
let busy = true;
let saved = false;
let provider;

// A worker that cannot start answers nothing.
worker.onerror = () => say("expected the worker to start, got an error; reload the page", true);
worker.onmessage = ({ data: { call, progress, piece, error, done } }) => {
  const { resolve, reject, onEvent } = open.get(call);
  if (progress || piece) return onEvent?.(progress ?? piece);
  open.delete(call);
  if (error === undefined) resolve(done);
  else reject(new Error(error));
};

/** Ask the worker; `onEvent` is told what comes before the result. */
function ask(method, given = {}, onEvent = undefined) {
  return new Promise((resolve, reject) => {
    open.set(++calls, { resolve, reject, onEvent });
    worker.postMessage({ call: calls, method, given });
  });
}

/** One thing at a time, and what fails is said. */
async function alone(work) {
  setBusy(true);
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  } finally {
    setBusy(false);
  }
}

function setBusy(now) {
  busy = now;
  const loaded = provider !== undefined;
  for (const id of ["generate", "branch", "save", "new"]) at(id).disabled = busy || !loaded;
  for (const radio of document.querySelectorAll('[name="provider"]')) radio.disabled = busy;
  at("restore").disabled = busy || !loaded || !saved;
  at("stop").disabled = !busy || !loaded;
  for (const button of document.querySelectorAll("#branches button")) button.disabled = busy;
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

/** Load on another provider; the text goes on there from the same state. */
async function loadOn(name) {
  say(`Loading for ${name} ...`);
  const bar = at("progress");
  bar.hidden = false;
  try {
    const state = provider === undefined ? undefined : await ask("save", { name: "text" });
    const facts = await ask("load", { address: ADDRESS, provider: name }, ({ loaded, total }) => {
      bar.value = total ? loaded / total : 0;
    });
    if (state) await ask("restore", { name: "text", bytes: state.bytes });
    provider = name;
    at("state").textContent = `${(facts.stateBytes / 1e6).toFixed(2)} MB`;
    at("branches").hidden = true;
    say("Ready.");
  } catch (error) {
    const other = document.querySelector(`[name="provider"][value="${provider ?? "wasm"}"]`);
    other.checked = true;
    throw error;
  } finally {
    bar.hidden = true;
  }
}

function options() {
  const number = (id) => at(id).valueAsNumber;
  return { maxTokens: number("tokens"), temperature: number("temperature"), seed: number("seed") };
}

/** Continue a session with a prompt, into an element. */
async function write(name, prompt, settings, element) {
  const given = show(element, prompt, "given");
  const target = show(element, "", "written");
  let [begin, first, tokens] = [0, 0, 0];
  const { reason, memory, ...end } = await ask("generate", { name, prompt, options: settings }, (piece) => {
    target.append(piece.text);
    element.scrollTop = element.scrollHeight;
    begin ||= performance.now();
    first ||= piece.tokens;
    tokens = piece.tokens;
    const seconds = (performance.now() - begin) / 1000;
    if (tokens > first) at("speed").textContent = ((tokens - first) / seconds).toFixed(0);
    at("count").textContent = tokens;
    if (piece.memory !== undefined) measured(tokens, piece.memory);
  }).catch((error) => {
    if (!tokens) given.remove(); // nothing was read
    throw error;
  });
  at("count").textContent = end.tokens;
  at("speed").textContent = (end.usage.generatedTokens / end.timings.generateSeconds).toFixed(0);
  measured(end.tokens, memory);
  return reason;
}

function measured(tokens, bytes) {
  at("memory").textContent = `${(bytes / 1e6).toFixed(1)} MB`;
  chart.add(tokens, bytes);
}

function show(element, text, kind) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  element.append(span);
  return span;
}

/** What the user typed, or a new line. */
function promptText() {
  return at("prompt").value || "\n";
}

/** The next text, unless something else was typed meanwhile. */
function clearPrompt(used) {
  if (at("prompt").value === used) at("prompt").value = "";
}

const ENDS = { length: "Done.", eos: "The text is at its end.", stop: "Done.", cancelled: "Stopped." };

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (busy) return;
  alone(async () => {
    closeBranches();
    say("Writing ...");
    const prompt = promptText();
    say(ENDS[await write("text", prompt, options(), at("text"))]);
    clearPrompt(prompt);
  });
});

at("stop").addEventListener("click", () => worker.postMessage({ method: "stop" }));

at("branch").addEventListener("click", () =>
  alone(async () => {
    say("Writing two continuations of the same state ...");
    const [settings, prompt] = [options(), promptText()];
    at("branches").replaceChildren();
    at("branches").hidden = false;
    for (let index = 0; index < BRANCHES; index++) {
      const name = `branch ${index + 1}`;
      await ask("fork", { name: "text", to: name });
      const element = branchElement(name);
      const reason = await write(name, prompt, { ...settings, seed: settings.seed + index }, element);
      if (reason === "cancelled") break;
    }
    clearPrompt(prompt);
    say("Keep one of them, or go on without.");
  }),
);

function branchElement(name) {
  const place = document.createElement("div");
  const text = document.createElement("div");
  text.className = "text";
  text.tabIndex = 0;
  text.setAttribute("role", "log");
  text.setAttribute("aria-live", "off");
  text.setAttribute("aria-label", name);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = `Keep ${name}`;
  button.addEventListener("click", () =>
    alone(async () => {
      await ask("rename", { name, to: "text" });
      at("text").append(...text.childNodes);
      closeBranches();
      say(`The text goes on from ${name}.`);
    }),
  );
  place.append(text, button);
  at("branches").append(place);
  return text;
}

function closeBranches() {
  for (let index = 0; index < BRANCHES; index++) ask("drop", { name: `branch ${index + 1}` });
  at("branches").replaceChildren();
  at("branches").hidden = true;
}

at("save").addEventListener("click", () =>
  alone(async () => {
    const { bytes, tokens } = await ask("save", { name: "text" });
    await keep({ bytes, text: at("text").textContent });
    saved = true;
    say(`Saved: ${(bytes.length / 1e6).toFixed(2)} MB after ${tokens} tokens.`);
  }),
);

at("restore").addEventListener("click", () =>
  alone(async () => {
    const found = await kept();
    if (!found) throw new Error("expected a saved state, got none; save one first");
    const { bytes, text } = found;
    const { tokens } = await ask("restore", { name: "text", bytes });
    closeBranches();
    at("text").replaceChildren();
    show(at("text"), text, "written");
    at("count").textContent = tokens;
    say(`Restored the state after ${tokens} tokens.`);
  }),
);

at("new").addEventListener("click", () =>
  alone(async () => {
    await ask("reset", { name: "text" });
    closeBranches();
    at("text").replaceChildren();
    at("count").textContent = 0;
    chart.clear();
    say("Ready.");
  }),
);

for (const radio of document.querySelectorAll('[name="provider"]')) {
  radio.addEventListener("change", () => alone(() => loadOn(radio.value)));
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("stop").disabled) at("stop").click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});

// For the next time, without a network.
navigator.serviceWorker?.register("offline.js").catch(() => {}); // the page works without
alone(async () => {
  saved = await kept().then((found) => found !== undefined, () => false); // a browser may keep nothing
  await loadOn("wasm");
});
