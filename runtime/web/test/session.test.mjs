import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { BundleError, InputError, load, StateError, streamText } from "../dist/index.js";
import { resolveOptions } from "../dist/options.js";
import { bundle, collect, sentence, snapshot } from "./fixtures.mjs";

const is =
  (Class, words = "") =>
  (error) =>
    error instanceof Class && sentence(error).includes(words);
const mixed = {};
for (const provider of ["cpu", "wasm"]) mixed[provider] = await load(bundle("mixed"), { provider, threads: 1 });

for (const [provider, model] of Object.entries(mixed)) {
  test(`chunks and steps come to the same on ${provider}`, async () => {
    const [chunks, steps] = [model.session(), model.session()];
    const ids = Array.from({ length: 21 }, (_, i) => (i * 5) % 97);
    const whole = await chunks.prefill(ids);
    let last;
    for (const id of ids) last = await steps.step(id);
    assert.ok(whole.every((x, i) => Math.abs(x - last[i]) < 1e-4));
    assert.deepEqual([chunks.tokens, steps.tokens], [21, 21]);
  });

  test(`forks, resets and sessions side by side are independent on ${provider}`, async () => {
    const session = model.session();
    await session.prefill([1, 2, 3]);
    const branch = await session.fork();
    const [ours, theirs] = await Promise.all([session.step(4), branch.step(5)]);
    const before = ours.slice();
    const aside = await session.fork();
    for (const id of [4, 5, 6]) await session.step(id); // over what a fork that shared memory would read
    const kept = await aside.step(9);
    const same = model.session();
    await same.prefill([1, 2, 3]);
    await same.step(4);
    assert.deepEqual(kept, await same.step(9));
    await branch.prefill([7, 8, 9]);
    assert.deepEqual(ours, before);
    assert.notDeepEqual(ours, theirs);
    const again = model.session();
    await again.prefill([1, 2, 3]);
    assert.deepEqual(await again.step(4), ours);
    await session.reset();
    assert.equal(session.tokens, 0);
    await session.prefill([1, 2, 3]);
    assert.deepEqual(await session.step(4), ours);
  });

  test(`memory stays flat over ten thousand tokens on ${provider}`, async () => {
    setFlagsFromString("--expose_gc");
    const gc = runInNewContext("gc");
    const session = model.session();
    const held = async (tokens) => {
      for await (const _ of session.generate([1], { maxTokens: tokens, ignoreEos: true }));
      gc();
      await new Promise((resolve) => setTimeout(resolve, 50)); // buffers that were found to be garbage are given back later
      gc();
      const { rss, arrayBuffers, heapUsed } = process.memoryUsage();
      return { rss, arrayBuffers, heapUsed };
    };
    const before = await held(2000);
    const after = await held(10_000);
    const leak = 10_000 * 4 * model.vocabSize; // of the logits alone
    assert.ok(session.nbytes > 1 << 14 && leak > 3e6);
    assert.ok(after.arrayBuffers - before.arrayBuffers < 100_000, JSON.stringify([before, after]));
    assert.ok(after.heapUsed - before.heapUsed < 500_000, JSON.stringify([before, after]));
    assert.ok(after.rss - before.rss < 32 << 20, JSON.stringify([before, after])); // a state a token would be 600 MB
  });
}

test("bad ids feed nothing", async () => {
  const session = mixed.cpu.session();
  await session.step(3);
  for (const bad of [[], [97], [-1], [1.5], ["1"], [Number.NaN], [1n], 5, "12", null, undefined, {}]) {
    await assert.rejects(session.prefill(bad), is(InputError));
    assert.throws(() => session.generate(bad), is(InputError));
  }
  await assert.rejects(session.step(97), is(InputError));
  assert.equal(session.tokens, 1);
});

test("one call of a session at a time", async () => {
  const session = mixed.cpu.session();
  const first = session.step(1);
  await assert.rejects(session.step(2), is(InputError));
  await assert.rejects(session.fork(), is(InputError));
  assert.throws(() => session.dispose(), is(InputError));
  await first;
  assert.equal(session.tokens, 1);
  await session.step(2);
  session.dispose();
  await assert.rejects(session.step(2), is(InputError));
});

test("a token is fed before it is seen, wherever a stream is left", async () => {
  const session = mixed.cpu.session();
  const seen = [];
  for await (const event of session.generate([1, 2, 3], { maxTokens: 30, ignoreEos: true })) {
    assert.equal(session.tokens, 4 + event.index);
    seen.push(event.id);
    if (event.index === 5) break;
  }
  const other = mixed.cpu.session();
  await other.prefill([1, 2, 3]);
  for (const id of seen) await other.step(id);
  assert.deepEqual(await session.save(), await other.save());
});

test("a prompt that is aborted stops after whole chunks", async () => {
  const session = mixed.cpu.session();
  const abort = new AbortController();
  const onPrompt = (done) => done >= 16 && abort.abort();
  const events = await collect(session.generate(Array(40).fill(5), { signal: abort.signal, onPrompt }));
  assert.deepEqual(
    events.map(({ type, reason }) => [type, reason]),
    [["finish", "cancelled"]],
  );
  assert.equal(events[0].usage.promptTokens, 16);
  assert.equal(session.tokens, 16);
});

test("an error out of a caller's function leaves the session after whole chunks", async () => {
  const session = mixed.cpu.session();
  const onPrompt = (done) => {
    if (done === 8) throw new RangeError("mine");
  };
  await assert.rejects(collect(session.generate(Array(40).fill(5), { onPrompt })), RangeError);
  assert.equal(session.tokens, 8);
  await session.step(1);
});

test("options that make no sense are refused at the call", async () => {
  const session = mixed.cpu.session();
  const wrong = [
    { maxTokens: -1 },
    { maxTokens: 1.5 },
    { minTokens: "1" },
    { stopIds: 3 },
    { stopIds: [-1] },
    { stopIds: [1.5] },
    { ignoreEos: 1 },
    { signal: {} },
    { onPrompt: 1 },
    { max_tokens: 5 },
    { temperature: 2e4 },
    { stop: ["a"] },
    { toString: 1 },
    { constructor: 1 },
    [],
    null,
    5,
    { stopIds: "12" },
  ];
  for (const options of wrong) assert.throws(() => session.generate([1], options), is(InputError), JSON.stringify(options));
  assert.throws(() => mixed.cpu.stream("a", { stop: "b" }), is(InputError));
  for (const options of [{ nonsense: 1 }, { toString: 1 }, [], null, 5]) {
    assert.throws(() => streamText(session, "a", options), is(InputError));
    assert.throws(() => mixed.cpu.stream("a", options), is(InputError));
  }
  for (const options of [{ type: "float16" }, { dtype: 5 }, [], null, 5]) {
    await assert.rejects(session.save(options), is(InputError));
    await assert.rejects(mixed.cpu.encode("a", options), is(InputError));
  }
  await assert.rejects(mixed.cpu.encode("a", { start: 1 }), is(InputError, "start"));
  assert.equal(session.tokens, 0);
});

test("null and undefined leave an option out, whichever it is", async () => {
  const names =
    "maxTokens minTokens stopIds ignoreEos temperature topK topP minP seed repetitionPenalty presencePenalty " +
    "frequencyPenalty penaltyWindow logitBias banned onPrompt signal";
  const model = await load(bundle("shipped-web"), { threads: 1 });
  for (const nothing of [null, undefined]) {
    const options = { ...Object.fromEntries(names.split(" ").map((name) => [name, nothing])), maxTokens: 3 };
    assert.equal((await collect(model.session().generate([1], options))).at(-1).usage.generatedTokens, 3);
    await collect(model.stream("a", { ...options, stop: nothing }));
    assert.deepEqual(await model.encode("a", { start: nothing }), await model.encode("a"));
    const session = model.session();
    assert.deepEqual(await session.save({ dtype: nothing }), await session.save());
  }
});

test("a bundle without a tokenizer, and prompts that are no text", async () => {
  await assert.rejects(mixed.cpu.encode("a"), is(InputError));
  const model = await load(bundle("shipped-web"), { threads: 1 });
  await assert.rejects(model.encode("\ud800"), is(InputError));
  await assert.rejects(model.encode(5), is(InputError));
  await assert.rejects(collect(model.stream("")), is(InputError));
  for (const ids of [null, undefined, 5, "12", {}])
    await assert.rejects(model.decode(ids), is(InputError, "list of token ids"));
  assert.equal(await model.decode(Uint16Array.of(5, 6)), await model.decode([5, 6]));
  for (const session of [null, undefined, 5, {}, model]) {
    assert.throws(() => streamText(session, "a"), is(InputError, "expected a session"));
  }
  await model.dispose();
});

test("snapshots of another checkpoint, and what is none", async () => {
  const session = mixed.cpu.session();
  await session.prefill([1, 2]);
  const before = await session.save();
  await assert.rejects(session.load(snapshot("large.float32")), is(StateError));
  await assert.rejects(session.load("path"), is(InputError));
  await assert.rejects(session.load(new Uint8Array()), is(StateError));
  await assert.rejects(session.load(before.subarray(0, -4)), is(StateError));
  await assert.rejects(session.save({ dtype: "int8" }), is(InputError));
  assert.deepEqual(await session.save(), before);
  const shifted = new Uint8Array(before.length + 3);
  shifted.set(before, 3);
  await session.load(shifted.subarray(3)); // at an odd place of its buffer
  await session.load(before.buffer);
  assert.deepEqual(await session.save(), before);
});

test("the state as users see it has the shapes of the table", async () => {
  const model = await load(bundle("shipped-cpu"), { threads: 1 }); // its heads are split in the graph
  const session = model.session();
  await session.prefill([1, 2, 3]);
  const state = await session.state();
  assert.deepEqual(
    [...state.keys()],
    model.manifest.state.rows.map((row) => row.name),
  );
  assert.equal(
    [...state.values()].reduce((sum, array) => sum + array.byteLength, 0),
    session.nbytes,
  );
  const other = await load(bundle("shipped-web"), { threads: 1 });
  const whole = other.session();
  await whole.prefill([1, 2, 3]);
  for (const [name, array] of await whole.state()) {
    assert.ok(
      array.every((x, i) => Math.abs(x - state.get(name)[i]) < 1e-4),
      name,
    );
  }
});

for (const provider of ["cpu", "wasm"]) {
  test(`a model that is gone takes no other with it on ${provider}`, async () => {
    const model = await load(bundle("mixed"), { provider, threads: 1 });
    const session = model.session();
    await session.step(2);
    await Promise.all([model.dispose(), model.dispose()]);
    await model.dispose();
    const disposed = is(InputError, "a disposed one; load it again");
    await assert.rejects(session.step(1), disposed);
    await assert.rejects(session.prefill([1]), disposed);
    for (const call of ["fork", "save", "reset", "state"]) await assert.rejects(session[call](), disposed, call);
    await assert.rejects(collect(session.generate([1])), disposed);
    assert.throws(() => model.session(), disposed);
    assert.throws(() => model.stream("a"), disposed);
    assert.equal(session.tokens, 1);
    session.dispose();
    assert.equal((await mixed[provider].session().step(1)).length, 97);
  });
}

for (const provider of ["cpu", "wasm"]) {
  test(`a model that goes during a call lets the graph end first on ${provider}`, async () => {
    const model = await load(bundle("mixed"), { provider, threads: 1 });
    const session = model.session();
    const work = assert.rejects(session.prefill(Array(40).fill(5)), is(InputError, "a disposed one"));
    await model.dispose();
    await work;
    assert.equal(session.tokens, model.chunk);
  });
}

test("a stream's session is gone with it, wherever the stream is left", async () => {
  const model = await load(bundle("shipped-web"), { threads: 1 });
  const made = [];
  const make = model.session.bind(model);
  model.session = () => made[made.push(make()) - 1];
  model.stream("To be"); // never asked for a piece
  await model.stream("To be").return();
  for await (const _ of model.stream("To be", { maxTokens: 9 })) break;
  await collect(model.stream("To be", { maxTokens: 2 }));
  assert.equal(made.length, 2);
  for (const session of made) await assert.rejects(session.step(1), is(InputError, "a disposed one; make another"));
});

test("a state that cannot be made leaves the session as it was", async () => {
  const model = await load(bundle("mixed"), { threads: 1 });
  const { graph } = model;
  let disposed = 0;
  graph.tensors = (state) =>
    new Map(
      [...state].map(([name, data]) => [
        name,
        { location: "gpu-buffer", getData: async () => data, dispose: () => disposed++ },
      ]),
    );
  const session = model.session();
  await session.load(snapshot("mixed.float32"));
  const [before, { tokens }] = [await session.state(), session];
  disposed = 0;
  const { tensors } = graph;
  graph.tensors = () => {
    throw new RangeError("no room");
  };
  await assert.rejects(session.reset(), RangeError);
  await assert.rejects(session.load(snapshot("mixed.float16")), RangeError);
  graph.run = async () => ({ logits: new Float32Array(5), present: new Map() });
  await assert.rejects(session.step(1), is(BundleError, "got 5"));
  assert.deepEqual([await session.state(), session.tokens, disposed], [before, tokens, 0]);
  graph.tensors = tensors;
  await session.reset();
  assert.deepEqual([session.tokens, disposed], [0, before.size]);
});

test("stop ids come on top of the bundle's, which ignoreEos leaves out", () => {
  assert.deepEqual([...resolveOptions({ stopIds: [5] }, {}, [7]).stopIds].sort(), [5, 7]);
  assert.deepEqual([...resolveOptions({ stopIds: [5], ignoreEos: true }, {}, [7]).stopIds], [5]);
  const { sampling, maxTokens } = resolveOptions(
    { topK: 3, topP: undefined, minP: null },
    { topK: 9, topP: 0.5, temperature: 0.7 },
  );
  assert.deepEqual([sampling.topK, sampling.topP, sampling.minP, sampling.temperature, maxTokens], [3, 0.5, 0, 0.7, 256]);
});
