// The conformance files of ../../../tests/golden/conformance, and the edits that its README defines.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const FOLDER = fileURLToPath(new URL("../../../tests/golden/conformance/", import.meta.url));
const NUMBER = "\u0001"; // in front of a number that is kept as it was written
const NAMES = ["bundle", "snapshot", "file", "name", "error", "lenient", "alone"];
const EDITS = "set remove replace text times hex data length cut append missing replace_hex rehash".split(" ");

const text = readFileSync(`${FOLDER}conformance.json`, "utf8");

/** Kind of check -> its cases. */
export const CHECKS = JSON.parse(text).checks;
const WRITTEN = parseWritten(text).checks;

/** JSON whose numbers are text behind a mark: 64 and 64.0 differ, and numbers of more than 53 bits are whole. */
function parseWritten(document) {
  const tokens = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
  return JSON.parse(document.replace(tokens, (token) => (token[0] === '"' ? token : `"\\u0001${token}"`)));
}

function writtenText(document) {
  return JSON.stringify(document).replace(/"\\u0001([^"]*)"/g, "$1");
}

/** A file of the folder as bytes. */
export function fileBytes(name) {
  return new Uint8Array(readFileSync(FOLDER + name));
}

/** Every tensor of a safetensors file of float32: name -> rows. */
export function tensors(name) {
  const content = fileBytes(name);
  const length = Number(new DataView(content.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(content.subarray(8, 8 + length)));
  const found = new Map();
  for (const [key, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (key === "__metadata__") continue;
    const kind = { F32: Float32Array, F64: Float64Array }[dtype];
    assert.ok(kind && shape.length === 2, `${name} ${key} ${dtype} ${shape}`);
    const numbers = new kind(content.slice(8 + length + data_offsets[0], 8 + length + data_offsets[1]).buffer);
    const row = (_, i) => numbers.slice(i * shape[1], (i + 1) * shape[1]);
    found.set(key, Array.from({ length: shape[0] }, row));
  }
  return found;
}

/** Number `index` of the cases of `kind`, with the numbers of its `set` and `length` as they are written. */
export function editOf(kind, index) {
  const edit = CHECKS[kind][index];
  for (const key of Object.keys(edit)) assert.ok(NAMES.includes(key) || EDITS.includes(key), `an edit without meaning: ${key}`);
  const written = WRITTEN[kind][index];
  const set = edit.set?.map(([path], i) => [path, written.set[i][1]]);
  return { ...edit, set, length: written.length?.slice(NUMBER.length) };
}

function parentOf(document, path) {
  return path.slice(0, -1).reduce((place, key) => place[key], document);
}

/** A JSON document after `set`, `remove`, `replace`, or another one, as bytes. */
export function editedText(document, edit) {
  if (edit.hex !== undefined) return Buffer.from(edit.hex, "hex");
  if (edit.text !== undefined) return Buffer.from(edit.text.repeat(edit.times ?? 1));
  if (edit.replace) {
    assert.ok(document.includes(edit.replace[0]), edit.name);
    return Buffer.from(document.replace(edit.replace[0], () => edit.replace[1]));
  }
  const parsed = parseWritten(document);
  for (const [path, value] of edit.set ?? []) put(parentOf(parsed, path), path.at(-1), value);
  for (const path of edit.remove ?? []) take(parentOf(parsed, path), path.at(-1));
  return Buffer.from(writtenText(parsed));
}

function put(place, key, value) {
  Object.defineProperty(place, key, { value, writable: true, enumerable: true, configurable: true }); // also `__proto__`
}

function take(place, key) {
  assert.ok(Object.hasOwn(place, key), key);
  if (Array.isArray(place)) place.splice(key, 1);
  else delete place[key];
}

/** The manifest of a bundle as it is stored. */
export function manifestText(bundle) {
  return readFileSync(`${FOLDER}bundles/${bundle}/manifest.json`, "utf8");
}

/** A snapshot with an edited header, with other bytes in its data, cut, longer, or another file. */
export function editedSnapshot(content, edit) {
  if (edit.hex !== undefined) return Buffer.from(edit.hex, "hex");
  const end = 8 + Number(Buffer.from(content).readBigUInt64LE(0));
  let header = Buffer.from(content.slice(8, end));
  const data = Buffer.from(content.slice(end));
  if (edit.set || edit.remove || edit.replace) header = editedText(header.toString(), edit);
  for (const [tensor, at, numbers] of edit.data ?? []) {
    data.write(numbers, JSON.parse(header.toString())[tensor].data_offsets[0] + at, "hex");
  }
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(edit.length ?? header.length));
  return changedEnd(Buffer.concat([length, header, data]), edit);
}

function changedEnd(content, { cut = 0, append = "" }) {
  const kept = content.subarray(0, Math.max(0, content.length - cut));
  return Buffer.concat([kept, Buffer.from(append, "hex")]);
}

/** A file of a bundle's copy missing, cut, longer, or with other bytes in one place; `rehash` makes the manifest agree again. */
export function editFile(bundle, edit) {
  const path = `${bundle}/${edit.file}`;
  if (edit.missing) return rmSync(path);
  let content = changedEnd(readFileSync(path), edit);
  if (edit.replace_hex) {
    const [old, other] = edit.replace_hex.map((hex) => Buffer.from(hex, "hex"));
    const at = content.indexOf(old);
    assert.ok(at >= 0, edit.name);
    content = Buffer.concat([content.subarray(0, at), other, content.subarray(at + old.length)]);
  }
  writeFileSync(path, content);
  if (!edit.rehash) return;
  const document = parseWritten(readFileSync(`${bundle}/manifest.json`, "utf8"));
  const sha256 = createHash("sha256").update(content).digest("hex");
  document.files[edit.file] = { bytes: `${NUMBER}${content.length}`, sha256 };
  writeFileSync(`${bundle}/manifest.json`, writtenText(document));
}
