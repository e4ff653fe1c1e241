import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { InputError, Sampler, VerificationError } from "../dist/index.js";
import { camel, cases, floats, sentence } from "./fixtures.mjs";

const GOLDEN = JSON.parse(readFileSync(new URL("../../../tests/golden/sampling.json", import.meta.url), "utf8")).cases;

function options({ seed, ...others }) {
  return { ...camel(others), seed: BigInt(seed) };
}

test("golden ids", () => {
  for (const { vocab, salt, options: given, prompt, ids } of GOLDEN) {
    const sampler = new Sampler(options(given), vocab, { prompt });
    ids.forEach((id, t) => {
      const word = (i) => Number(((BigInt(i) * 2654435761n + BigInt(salt) * 40503n + BigInt(t) * 97n) % (1n << 32n)) >> 16n);
      assert.equal(sampler.sample(Float32Array.from({ length: vocab }, (_, i) => word(i) / 4096 - 8)), id);
    });
  }
});

test("random options over random logits sample as Python does", () => {
  for (const { vocab, options: given, prompt, logits, ids } of cases("sampling")) {
    const sampler = new Sampler(options(given), vocab, { prompt });
    const rows = floats(logits);
    const got = ids.map((_, t) => sampler.sample(rows.slice(t * vocab, (t + 1) * vocab)));
    assert.deepEqual(got, ids, JSON.stringify(given));
  }
});

test("logits that are no numbers, and logits that are left as they were", () => {
  for (const row of [
    [Number.NaN, 1],
    [1, Number.NaN],
    [Number.POSITIVE_INFINITY, 1],
    [-Infinity, -Infinity],
  ]) {
    const sampler = new Sampler({ temperature: 1 }, 2);
    assert.throws(
      () => sampler.sample(Float32Array.from(row)),
      (e) => e instanceof VerificationError && !!sentence(e),
    );
  }
  const logits = Float32Array.of(1, 2, 3);
  assert.equal(new Sampler({ banned: [2], repetitionPenalty: 2 }, 3, { prompt: [1] }).sample(logits), 0);
  assert.deepEqual([...logits], [1, 2, 3]);
});

test("ids that are held back for a while", () => {
  const sampler = new Sampler({}, 3, { late: [2] });
  const logits = Float32Array.of(1, 2, 3);
  assert.deepEqual([sampler.sample(logits, true), sampler.sample(logits, false)], [1, 2]);
});

test("options that make no sense", () => {
  const wrong = [
    { temperature: -1 },
    { temperature: "hot" },
    { temperature: Number.NaN },
    { topP: 0 },
    { topP: 1.1 },
    { minP: 2 },
    { topK: 1.5 },
    { topK: -1 },
    { penaltyWindow: 2 ** 20 },
    { repetitionPenalty: 0 },
    { seed: -1 },
    { seed: 1.5 },
    { seed: 2 ** 53 },
    { seed: 1n << 64n },
    { seed: -1n },
    { logitBias: { 9: 1 } },
    { logitBias: { a: 1 } },
    { logitBias: [1] },
    { logitBias: { 0: 2e6 } },
    { logitBias: { 0: "1" } },
    { banned: [3] },
    { banned: "12" },
    { banned: [0, 1, 2] },
    { top_k: 3 },
    { presencePenalty: 1e9 },
    { toString: 1 },
    { constructor: 1 },
    [],
    null,
    5,
  ];
  for (const options of wrong) {
    assert.throws(
      () => new Sampler(options, 3),
      (e) => e instanceof InputError && !!sentence(e),
      JSON.stringify(Object.keys(options ?? {})),
    );
  }
  const logits = Float32Array.of(1, 3, 2);
  assert.equal(new Sampler({ frequencyPenalty: null, topK: undefined }, 3).sample(logits), 1); // left out
});
