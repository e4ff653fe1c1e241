/** Where this runs, and giving way to others there. Nothing here needs a window or a document. */

/** Whether this is Node (or what has its built-in modules), where files have paths. */
export function inNode(): boolean {
  return typeof process === "object" && typeof process.getBuiltinModule === "function";
}

let channel: MessageChannel | undefined;
const waiting: (() => void)[] = [];

/**
 * Let events through (clicks, an abort, messages to a worker): a graph in WebAssembly runs on the caller's thread, and promises
 * alone would never let it go. Not by a timer, which browsers hold back.
 */
export function giveWay(): Promise<void> {
  if (typeof setImmediate === "function") return new Promise((resolve) => setImmediate(resolve));
  channel ??= openChannel();
  const { port2 } = channel;
  return new Promise((resolve) => {
    waiting.push(resolve);
    port2.postMessage(null);
  });
}

function openChannel(): MessageChannel {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => waiting.shift()?.();
  return channel;
}
