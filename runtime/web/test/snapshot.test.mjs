import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fromHalf, toHalf } from "../dist/halves.js";
import { InputError, load, StateError } from "../dist/index.js";
import { readManifest } from "../dist/manifest.js";
import { readSnapshot, writeSnapshot } from "../dist/snapshot.js";
import { StateSpec } from "../dist/state.js";
import { bundle, bytes, cases, sentence, snapshot } from "./fixtures.mjs";

function manifestOf(name) {
  return readManifest(readFileSync(`${bundle(name)}/manifest.json`));
}

test("the same snapshots are refused as in Python", () => {
  const found = cases("snapshots");
  for (const { bundle: name, content, refused } of found) {
    const { state, source } = manifestOf(name);
    let got = false;
    try {
      readSnapshot(bytes(content), state, source);
    } catch (error) {
      assert.ok(error instanceof StateError, error.stack);
      sentence(error);
      got = true;
    }
    assert.equal(got, refused, `${name} ${Buffer.from(content, "base64").subarray(0, 3000)}`);
  }
  assert.ok(found.filter((c) => !c.refused).length > 20);
});

test("written as Python writes them, byte by byte", () => {
  for (const name of Object.keys(cases("models"))) {
    const { state: table, source } = manifestOf(name);
    for (const dtype of ["float32", "float16"]) {
      const { state, tokens } = readSnapshot(snapshot(`${name}.float32`), table, source);
      assert.deepEqual(
        Buffer.from(writeSnapshot(state, table, { source, tokens, dtype })),
        Buffer.from(snapshot(`${name}.${dtype}`)),
      );
    }
  }
});

test("tensors that overlap, though their sizes fit the file", () => {
  const { state: table, source } = manifestOf("large");
  const content = snapshot("large.float32");
  const length = Number(new DataView(content.buffer).getBigUint64(0, true));
  const header = new TextDecoder().decode(content.subarray(8, 8 + length));
  const [first, second] = table.rows
    .filter((row) => row.name.endsWith(".C"))
    .map((row) => JSON.parse(header)[row.name].data_offsets.join());
  assert.equal(header.split(second).length, 2);
  let changed = header.replace(second, first);
  changed += " ".repeat(length - changed.length);
  content.set(new TextEncoder().encode(changed), 8);
  assert.throws(
    () => readSnapshot(content, table, source),
    (e) => e instanceof StateError && /gap or overlap/.test(sentence(e)),
  );
});

/** A snapshot that has seen so many tokens, its data as they were. */
function counted(content, tokens) {
  const length = Number(new DataView(content.buffer).getBigUint64(0, true));
  const header = new TextDecoder().decode(content.subarray(8, 8 + length)).replace(/"tokens":"[0-9]+"/, `"tokens":"${tokens}"`);
  const changed = new Uint8Array(8 + header.length + content.length - 8 - length);
  new DataView(changed.buffer).setBigUint64(0, BigInt(header.length), true);
  changed.set(new TextEncoder().encode(header), 8);
  changed.set(content.subarray(8 + length), 8 + header.length);
  return changed;
}

test("counts of tokens come back exactly, to the last one that a snapshot can tell", async () => {
  const session = (await load(bundle("mixed"), { threads: 1 })).session();
  const told = (content) => /"tokens":"([0-9]+)"/.exec(new TextDecoder("latin1").decode(content))[1];
  const numbers = ["0", "9007199254740991", "9007199254740993", "123456789012345677", "999999999999999998"];
  for (const tokens of numbers) {
    await session.load(counted(snapshot("mixed.float32"), tokens));
    assert.equal(session.tokens, Number(tokens));
    assert.equal(told(await session.save()), tokens);
    const branch = await session.fork();
    await branch.step(1);
    assert.equal(told(await branch.save()), `${BigInt(tokens) + 1n}`);
    await session.load(await branch.save());
  }
  const last = await session.save();
  await assert.rejects(session.step(1), (e) => e instanceof InputError && /at most 9{18} tokens/.test(sentence(e)));
  assert.deepEqual(await session.save(), last);
});

test("a graph's own form: less a constant, not below a start of float16, heads split", () => {
  const stabilizer = new StateSpec("m", [1, 2], -1e4, 1, [0.5, -3]);
  assert.deepEqual([...stabilizer.toGraph(Float32Array.of(-1e30, 1))], [-1e4, 4]);
  assert.deepEqual([...stabilizer.fromGraph(Float32Array.of(-1e4, 4))], [-9999.5, 1]);
  const memory = new StateSpec("C", [1, 2, 4], 0, 2);
  assert.deepEqual(memory.graphShape, [2, 2, 2]);
  const split = memory.toGraph(Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7));
  assert.deepEqual([...split], [0, 1, 4, 5, 2, 3, 6, 7]);
  assert.deepEqual([...memory.fromGraph(split)], [0, 1, 2, 3, 4, 5, 6, 7]);
});

test("halves are rounded to the nearest, ties to even", () => {
  for (let half = 0; half < 0x10000; half++) {
    const value = fromHalf(half);
    if (!Number.isFinite(value)) continue;
    assert.equal(toHalf(value), half);
    const next = fromHalf(half + 1);
    if (!Number.isFinite(next) || (half & 0x7fff) > 0x7bfe) continue;
    const middle = (value + next) / 2;
    assert.equal(toHalf(middle), half % 2 ? half + 1 : half, `${half}`);
  }
});
