// What Python made for these tests, and small helpers to read it.
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const FOLDER = process.env.XLSTM_EDGE_FIXTURES
  ? `${process.env.XLSTM_EDGE_FIXTURES}/`
  : fileURLToPath(new URL("../.fixtures/", import.meta.url));

export function cases(kind) {
  if (!existsSync(`${FOLDER}${kind}.json`)) throw new Error("expected fixtures, got none; run `npm run fixtures`");
  return JSON.parse(readFileSync(`${FOLDER}${kind}.json`, "utf8"));
}

export function bundle(name) {
  return `${FOLDER}bundles/${name}`;
}

export function snapshot(name) {
  return new Uint8Array(readFileSync(`${FOLDER}snapshots/${name}`));
}

export function bytes(text) {
  return new Uint8Array(Buffer.from(text, "base64"));
}

export function floats(text) {
  return new Float32Array(bytes(text).buffer);
}

/** Python's names of options as TypeScript's. */
export function camel(options) {
  return Object.fromEntries(
    Object.entries(options).map(([name, value]) => [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), value]),
  );
}

export async function collect(events) {
  const found = [];
  for await (const event of events) found.push(event);
  return found;
}

/** The largest difference, as a share of the range of what was expected. */
export function difference(got, expected) {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY;
  let most = 0;
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  expected.forEach((x, i) => {
    most = Math.max(most, Math.abs(x - got[i]));
    low = Math.min(low, x);
    high = Math.max(high, x);
  });
  return most / (high - low);
}

/** The message of an error of ours: one sentence, printable. */
export function sentence(error) {
  const { message } = error;
  const good = /expected .*got .*; /s.test(message) && message.length <= 1003 && !/[\p{C}\p{Zl}\p{Zp}]/u.test(message);
  if (!good) throw new Error(`expected one sentence, got ${JSON.stringify(message)}`, { cause: error });
  return message;
}
