import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fromHalf, toHalf } from "../dist/halves.js";
import { StateError } from "../dist/index.js";
import { readManifest } from "../dist/manifest.js";
import { readSnapshot, writeSnapshot } from "../dist/snapshot.js";
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
