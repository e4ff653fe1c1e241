/**
 * The model, in a worker: the page stays free. One message in, some out, each with the `call` that it answers:
 * { progress }, { piece }, and at last { done } with the result, or { error } with one sentence.
 */

import { load, streamText } from "xlstm-edge";

// WebAssembly's memories, to show that they do not grow.
const memories = [];
const { Memory } = WebAssembly;
WebAssembly.Memory = class extends Memory {
  constructor(limits) {
    super(limits);
    memories.push(this);
  }
};

const MEASURED_EVERY = 16; // pieces
const sessions = new Map(); // name -> session
let model;
let abort = new AbortController();

const calls = {
  /** Load the bundle at `address` on `provider`; what the page wants to know of it. */
  async load({ address, provider }, tell) {
    const onProgress = (loaded, total) => tell({ progress: { loaded, total } });
    const wasmPaths = new URL("ort/", self.location.href).href;
    const next = await load(address, { provider, wasmPaths, onProgress });
    dropAll();
    await model?.dispose();
    model = next;
    sessions.set("text", model.session());
    return { stateBytes: sessions.get("text").nbytes, memory: memoryBytes() };
  },

  /** Continue a session with a text; every piece, how it ended, and how many tokens the session has seen. */
  async generate({ name, prompt, options }, tell) {
    const session = session_(name);
    let pieces = 0;
    for await (const event of streamText(session, prompt, { ...options, signal: abort.signal })) {
      if (event.type === "finish") {
        const { reason, usage, timings } = event;
        return { reason, usage, timings, tokens: session.tokens, memory: memoryBytes() };
      }
      const memory = pieces++ % MEASURED_EVERY ? undefined : memoryBytes();
      tell({ piece: { text: event.text, tokens: session.tokens, memory } });
    }
  },

  /** An independent copy of a session under another name. */
  async fork({ name, to }) {
    const branch = await session_(name).fork();
    drop(to);
    sessions.set(to, branch);
  },

  /** Give a session another name, in the place of who had it. */
  async rename({ name, to }) {
    const session = session_(name);
    sessions.delete(name);
    drop(to);
    sessions.set(to, session);
  },

  async drop({ name }) {
    drop(name);
  },

  async reset({ name }) {
    await session_(name).reset();
  },

  /** A snapshot: bytes that any runtime of this model reads. */
  async save({ name }) {
    return { bytes: await session_(name).save(), tokens: session_(name).tokens };
  },

  async restore({ name, bytes }) {
    await session_(name).load(bytes);
    return { tokens: session_(name).tokens };
  },
};

self.onmessage = async ({ data: { call, method, given } }) => {
  const tell = (message) => self.postMessage({ call, ...message });
  if (method === "stop") {
    abort.abort();
    abort = new AbortController();
    return;
  }
  try {
    tell({ done: await calls[method](given, tell) });
  } catch (error) {
    tell({ error: error.message });
  }
};

function session_(name) {
  const session = sessions.get(name);
  if (!session) throw new Error(`expected the session ${name}, got none; load the model first`);
  return session;
}

function drop(name) {
  sessions.get(name)?.dispose();
  sessions.delete(name);
}

function dropAll() {
  for (const name of [...sessions.keys()]) drop(name);
}

function memoryBytes() {
  return memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
}
