// Against the Python runtime, on onnxruntime-node and on WebAssembly in Node.
import assert from "node:assert/strict";
import { test } from "node:test";
import { floatBytes, makeFloat } from "../dist/floatGraph.js";
import { BundleError, load, streamText } from "../dist/index.js";
import { member, number } from "../dist/protobuf.js";
import { bundle, camel, cases, collect, difference, floats, sentence, snapshot } from "./fixtures.mjs";

const MODELS = cases("models");
// onnxruntime-node has Python's kernels; the bits are equal where the versions compute alike, as 1.30 and 1.32 do.
// WebAssembly has
// kernels of its own, with sums in other orders. Measured, as a share of the range: 8.9e-7, quantized 8.9e-3.
// Quantized products round their inputs, where one step other is a larger one.
const TOLERANCE = { cpu: 1e-6, wasm: 3e-6 };
const QUANTIZED = { cpu: 1e-6, wasm: 2e-2 };
// The same graph and kernels as in Python, down to the last bit; the others read prompts by a second graph there.
const SAME_BITS = ["shipped-web", "shipped-cpu", "shipped-int8", "mixed", "large"];

for (const provider of ["cpu", "wasm"]) {
  for (const [name, expected] of Object.entries(MODELS)) {
    if (provider === "wasm" && name === "shipped-cpu") continue; // as shipped-web, and slow there
    test(`${name} on ${provider}`, async () => {
      // Integers as they are stored, which both multiply; made float they are compared below.
      const model = await load(bundle(name), { provider, threads: 1, floatWeights: false });
      const session = model.session();
      const differences = [];
      for (const [index, count] of expected.counts.entries()) {
        const ids = Array.from({ length: count }, (_, i) => (i * 7) % model.vocabSize);
        differences.push(difference(await session.prefill(ids), floats(expected.logits[index])));
      }
      const again = await session.save();
      assert.equal(again.length, snapshot(`${name}.float32`).length);
      for (const dtype of ["float32", "float16"]) {
        const there = model.session();
        await there.load(snapshot(`${name}.${dtype}`));
        const fork = await there.fork();
        const logits = await there.prefill([6, 7]);
        differences.push(difference(logits, floats(expected[`after ${dtype}`])));
        assert.deepEqual(await fork.prefill([6, 7]), logits);
      }
      const most = Math.max(...differences);
      const quantized = model.manifest.quantized;
      assert.ok(most <= (quantized ? QUANTIZED : TOLERANCE)[provider], `${most}`);
      if (provider === "cpu" && SAME_BITS.includes(name)) assert.equal(most, 0);
      if (provider === "wasm" && quantized) return; // other roundings take another likeliest token some time
      for (const { options, ids, reason, stop_id: stopId } of expected.generations) {
        const events = await collect(model.session().generate([5, 17, 3], camel(options)));
        const finish = events.pop();
        assert.deepEqual(
          events.map((e) => e.id),
          ids,
          JSON.stringify(options),
        );
        assert.deepEqual([finish.reason, finish.stopId], [reason, stopId]);
      }
      for (const { prompt, options, pieces, reason, usage } of expected.texts) {
        const events = await collect(streamText(model.session(), prompt, camel(options)));
        const finish = events.pop();
        assert.deepEqual(
          events.map((e) => e.text),
          pieces,
        );
        assert.deepEqual([finish.reason, finish.usage.promptTokens, finish.usage.generatedTokens], [reason, ...usage]);
      }
    });
  }
}

test("snapshots of one bundle in another of its checkpoint", async () => {
  for (const { writer, reader, logits } of cases("moves")) {
    const model = await load(bundle(reader), { provider: "cpu", threads: 1 });
    const session = model.session();
    await session.load(snapshot(`${writer}.float32`));
    const off = difference(await session.prefill([6, 7]), floats(logits));
    // Between memories with and without a stabilizer go logarithms of float32, which the languages round otherwise.
    assert.ok(off <= 1e-6, `${writer} in ${reader}: ${off}`);
  }
});

for (const [name, expected] of Object.entries(MODELS).filter(([, { "float logits": floats }]) => floats)) {
  test(`${name} with float weights on wasm`, async () => {
    const model = await load(bundle(name), { provider: "wasm" });
    const session = model.session();
    for (const [index, count] of expected.counts.entries()) {
      const ids = Array.from({ length: count }, (_, i) => (i * 7) % model.vocabSize);
      const got = difference(await session.prefill(ids), floats(expected["float logits"][index]));
      assert.ok(got <= TOLERANCE.wasm, `${got}`);
    }
  });
}

test("float weights are not for integers that the CPU is fast with", async () => {
  const failed = await load(bundle("shipped-int8"), { provider: "cpu", floatWeights: true }).catch((error) => error);
  assert.match(failed.message, /^expected floatWeights with wasm or webgpu, got cpu/);
});

// Field numbers of onnx.proto, as in floatGraph.ts.
function tensor(name, dims, type, array) {
  const sizes = dims.flatMap((dim) => number(1, dim));
  return member(5, [...sizes, ...number(2, type), ...member(8, name), ...member(9, new Uint8Array(array.buffer))]);
}

/** y = x W, W of 2 rows of 32 numbers: 4 bits each in two blocks of 16. */
function product({ scales = "scales", N = 2, K = 32, bits = 4, block_size = 16 } = {}, output = "y") {
  const attributes = Object.entries({ N, K, bits, block_size }).flatMap(([name, value]) =>
    member(5, [...member(1, name), ...number(3, value)]),
  );
  const inputs = ["x", "integers", scales].flatMap((name) => member(1, name));
  return member(1, [...inputs, ...member(2, output), ...member(3, output), ...member(4, "MatMulNBits"), ...attributes]);
}

function graphOf(...products) {
  const integers = Uint8Array.from({ length: 32 }, (_, i) => 17 * (i % 16));
  const scales = Float32Array.of(1, 2, 4, 8);
  const tensors = [
    tensor("integers", [2, 2, 8], 2, integers),
    tensor("scales", [4], 1, scales),
    tensor(
      "others",
      [4],
      1,
      scales.map((x) => -x),
    ),
  ];
  return { graph: new Uint8Array(Buffer.concat(member(7, [...products, ...tensors].flat()))), weights: new Map() };
}

test("products that share integers share all that these mean", () => {
  const files = graphOf(product(), product({}, "z"));
  assert.equal(floatBytes(files.graph), 4 * 64);
  const made = new Float32Array(makeFloat(files, "float.data").weights.get("float.data").buffer, 0, 64);
  const wanted = Array.from({ length: 64 }, (_, i) => {
    const [column, row] = [i >> 1, i & 1];
    return [1, 2, 4, 8][2 * row + (column >> 4)] * (((row * 16 + (column >> 1)) % 16) - 8);
  });
  assert.deepEqual([...made], wanted);
  const refused = (words) => (e) => e instanceof BundleError && sentence(e).includes(words);
  const others = [{ scales: "others" }, { N: 1 }, { K: 31 }, { bits: 2 }, { block_size: 32 }];
  for (const other of others) {
    const two = graphOf(product(), product(other, "z"));
    for (const call of [() => floatBytes(two.graph), () => makeFloat(two, "float.data")]) {
      assert.throws(call, refused("two MatMulNBits"), JSON.stringify(other));
    }
  }
  // Of one product alone: what does not follow from its tensors.
  for (const wrong of [
    { block_size: 32 },
    { block_size: 8 },
    { block_size: 64 },
    { N: 1 },
    { K: 33 },
    { K: 16 },
    { bits: 8 },
  ]) {
    const one = graphOf(product(wrong));
    assert.throws(() => makeFloat(one, "float.data"), refused("other sizes than its weights"), JSON.stringify(wrong));
  }
  assert.throws(() => floatBytes(graphOf(product({ block_size: 0 })).graph), refused("a form of its own"));
});
