// The package across a worker's border: a message channel in Node, a worker in Chromium.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { MessageChannel } from "node:worker_threads";
import { BundleError, CancelledError, InputError, load as loadHere, StateError } from "../dist/index.js";
import { connect, serve } from "../dist/worker.js";
import { openPage, skipped } from "./chromium.mjs";
import { bundle, camel, cases, collect, sentence, snapshot } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const TEXTS = cases("models")["shipped-web"].texts;
const { port1, port2 } = new MessageChannel();
serve({ threads: 1 }, port1);
const { load } = connect(port2);
after(() => port1.close());

test("the same pieces, finish and snapshots as without a worker", async () => {
  const progress = [];
  const model = await load(bundle("shipped-web"), { onProgress: (...numbers) => progress.push(numbers) });
  assert.equal(progress.at(-1)[0], progress.at(-1)[1]);
  for (const { prompt, options, pieces, reason } of TEXTS) {
    const stream = model.stream(prompt, camel(options));
    assert.deepEqual(await collect(stream), pieces);
    assert.equal(stream.finish.reason, reason);
  }
  const here = (await loadHere(bundle("shipped-web"), { threads: 1 })).session();
  const there = await model.session();
  assert.deepEqual(await there.prefill([5, 17, 3]), await here.prefill([5, 17, 3]));
  assert.equal(there.tokens, 3);
  const branch = await there.fork();
  assert.deepEqual(await branch.step(9), await here.step(9));
  assert.deepEqual(await branch.save(), await here.save());
  await there.load(snapshot("shipped-web.float32"));
  assert.ok(there.tokens > 64);
  await there.reset();
  assert.equal(there.tokens, 0);
  const ids = (await collect(branch.generate([1], { maxTokens: 3 }))).filter((e) => e.type === "token").map((e) => e.id);
  assert.equal(ids.length, 3);
  assert.equal(branch.tokens, 8);
  assert.deepEqual(await model.encode("To be"), await here.model.encode("To be"));
  assert.equal(await model.decode(await model.encode("To be")), "To be");
  await Promise.all([there, branch].map((session) => session.dispose()));
});

test("a stream that is left or aborted has read what was seen", async () => {
  const model = await load(bundle("shipped-web"));
  const session = await model.session();
  const prompts = [];
  let seen = 0;
  for await (const event of session.generate([1, 2, 3], { maxTokens: 50, onPrompt: (...n) => prompts.push(n) })) {
    if (event.type === "token" && ++seen === 4) break;
  }
  assert.equal(session.tokens, 7);
  assert.deepEqual(prompts, [
    [0, 3],
    [3, 3],
  ]);
  const abort = new AbortController();
  for await (const event of session.generate([1], { maxTokens: 1e6, ignoreEos: true, signal: abort.signal })) {
    if (event.type === "token" && event.index === 3) abort.abort();
    if (event.type === "finish") assert.equal(event.reason, "cancelled");
  }
  assert.ok(session.tokens >= 12 && session.tokens < 20, `${session.tokens}`);
  await session.step(1);
});

test("what a page's onProgress throws ends the load", async () => {
  const error = new RangeError("mine");
  let calls = 0;
  const onProgress = () => {
    calls++;
    throw error;
  };
  const got = await load(bundle("mixed"), { onProgress }).then(String, (thrown) => thrown);
  assert.deepEqual([got === error, calls], [true, 1]);
});

test("errors keep their class and sentence", async () => {
  const is = (Class) => (error) => error instanceof Class && !!sentence(error);
  await assert.rejects(load("/nowhere"), is(BundleError));
  await assert.rejects(load(bundle("mixed"), { onnxruntime: { create: () => 1 } }), is(InputError));
  await assert.rejects(load(bundle("mixed"), { signal: AbortSignal.abort() }), is(CancelledError));
  for (const options of [null, [], 5, { signal: 1 }, { onProgress: 1 }, { cache: "no" }, { toString: 1 }]) {
    await assert.rejects(load(bundle("mixed"), options), is(InputError), JSON.stringify(options));
  }
  await load(bundle("mixed"), { signal: null, onProgress: null, cache: null });
  const model = await load(bundle("mixed"));
  const session = await model.session();
  await assert.rejects(session.step(97), is(InputError));
  await assert.rejects(session.load(new Uint8Array(9)), is(StateError));
  await assert.rejects(collect(session.generate([1], { temperature: -1 })), is(InputError));
  for (const options of [null, [], { onPrompt: 1 }]) {
    await assert.rejects(collect(session.generate([1], options)), is(InputError));
    await assert.rejects(collect(model.stream("a", options)), is(InputError));
    await assert.rejects(session.save(options), is(InputError));
  }
  await session.dispose();
  await assert.rejects(session.step(1), is(InputError));
});

test("a worker in Chromium leaves the page free", { skip: skipped }, async () => {
  const server = await startServer();
  const browser = await openPage(server.url);
  const { prompt, options, pieces } = TEXTS[0];
  const result = await browser.page.evaluate(
    async ({ prompt, options }) => {
      const { connect } = await import("/dist/worker.js");
      const { load } = connect(new Worker("/worker.js", { type: "module" }));
      const model = await load("/bundles/shipped-web");
      const stream = model.stream(prompt, options);
      let text = "";
      for await (const piece of stream) text += piece;
      return { text, reason: stream.finish.reason };
    },
    { prompt, options: camel(options) },
  );
  await browser.close();
  await server.close();
  assert.deepEqual(result, { text: pieces.join(""), reason: "length" });
  assert.deepEqual(browser.elsewhere, []);
});
