// In Chromium, on WebAssembly, over HTTP.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { openPage, skipped } from "./chromium.mjs";
import { camel, cases, difference, floats, snapshot } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const MODELS = cases("models");
const SEEDED = MODELS["shipped-web"].texts[0];
let server;
let browser;

before(async () => {
  if (skipped) return;
  server = await startServer();
  browser = await openPage(server.url);
});
after(async () => {
  await browser?.close();
  await server?.close();
});

/** Run in the page, with the package as `xe`. */
function inPage(work, argument) {
  return browser.page.evaluate(
    async ([source, argument]) => {
      const xe = await import("/dist/index.js");
      // biome-ignore lint/security/noGlobalEval: the work comes from this file
      return await globalThis.eval(source)(xe, argument);
    },
    [`(${work})`, argument],
  );
}

test("the text of a seed is Python's, nothing is asked that is not needed, and progress is told", {
  skip: skipped,
}, async () => {
  server.state.asked.length = 0;
  const { text, reason, progress } = await inPage(
    async (xe, { prompt, options }) => {
      const progress = [];
      const model = await xe.load("/bundles/shipped-web", { onProgress: (...numbers) => progress.push(numbers) });
      const stream = model.stream(prompt, options);
      let text = "";
      for await (const piece of stream) text += piece;
      return { text, reason: stream.finish.reason, progress };
    },
    { prompt: SEEDED.prompt, options: camel(SEEDED.options) },
  );
  assert.deepEqual([text, reason], [SEEDED.pieces.join(""), SEEDED.reason]);
  const asked = server.state.asked.filter((path) => path.startsWith("/bundles"));
  const names = ["manifest.json", "model.onnx", "model.onnx.data", "tokenizer.json"];
  assert.deepEqual(
    asked,
    names.map((name) => `/bundles/shipped-web/${name}`),
  );
  assert.ok(progress.length > 3 && progress.every(([loaded, total]) => loaded <= total));
  assert.equal(progress.at(-1)[0], progress.at(-1)[1]);
  assert.deepEqual(browser.elsewhere, []);
});

test("logits are within rounding of Python's", { skip: skipped }, async () => {
  for (const name of ["shipped-web", "mixed", "large", "large-openvino"]) {
    const logits = await inPage(
      async (xe, { name, counts }) => {
        const model = await xe.load(`/bundles/${name}`);
        const session = model.session();
        const rows = [];
        for (const count of counts) {
          rows.push(Array.from(await session.prefill(Array.from({ length: count }, (_, i) => (i * 7) % model.vocabSize))));
        }
        return rows;
      },
      { name, counts: MODELS[name].counts },
    );
    logits.forEach((row, i) => {
      const off = difference(row, floats(MODELS[name].logits[i]));
      assert.ok(off < 3e-6, `${name} ${off}`);
    });
  }
});

test("a snapshot of Python goes on here, and what is saved here goes on in Node", { skip: skipped }, async () => {
  const { load } = await import("../dist/index.js");
  const { bundle } = await import("./fixtures.mjs");
  const { logits, saved } = await inPage(
    async (xe, bytes) => {
      const session = (await xe.load("/bundles/shipped-web")).session();
      await session.load(new Uint8Array(bytes));
      const logits = await session.prefill([6, 7]);
      return { logits: Array.from(logits), saved: Array.from(await session.save()) };
    },
    Array.from(snapshot("shipped-web.float32")),
  );
  assert.ok(difference(logits, floats(MODELS["shipped-web"]["after float32"])) < 3e-6);
  const [here, there] = await both(load, bundle("shipped-web"), Uint8Array.from(saved));
  assert.ok(difference(here, there) < 3e-6);
});

/** The logits of one more token: after the snapshot of the page, and after the same tokens here. */
async function both(load, folder, saved) {
  const model = await load(folder, { threads: 1 });
  const [first, second] = [model.session(), model.session()];
  await first.load(saved);
  await second.load(snapshot("shipped-web.float32"));
  await second.prefill([6, 7]);
  assert.equal(first.tokens, second.tokens);
  return [await first.step(9), await second.step(9)];
}

test("a second load takes files from the cache; a damaged one is fetched again", { skip: skipped }, async () => {
  const loadOnce = () => inPage(async (xe) => (await xe.load("/bundles/shipped-cpu")).vocabSize);
  await loadOnce();
  server.state.asked.length = 0;
  await loadOnce();
  assert.deepEqual(bundles(), ["/bundles/shipped-cpu/manifest.json"]);
  for (const damage of ["flip", "cut", "empty", "longer"]) {
    server.state.asked.length = 0;
    await inPage(async (_, damage) => {
      const cache = await caches.open("xlstm-edge");
      for (const request of await cache.keys()) {
        const content = new Uint8Array(await (await cache.match(request)).arrayBuffer());
        content[content.length >> 1] ^= 1;
        const sizes = { flip: content.length, cut: content.length - 1, empty: 0 };
        const spoiled = damage === "longer" ? [content, "x"] : [content.subarray(0, sizes[damage])];
        await cache.put(request, new Response(new Blob(spoiled)));
      }
    }, damage);
    await loadOnce();
    assert.equal(bundles().filter((path) => path.endsWith("model.onnx.data")).length, 1, damage);
    server.state.asked.length = 0;
    await loadOnce();
    assert.deepEqual(bundles(), ["/bundles/shipped-cpu/manifest.json"], damage);
  }
});

function bundles() {
  return server.state.asked.filter((path) => path.startsWith("/bundles"));
}

test("a download that breaks off goes on where it stopped, with ranges and without", { skip: skipped }, async () => {
  for (const ranges of [true, false]) {
    server.state.asked.length = 0;
    server.state.ranges = ranges;
    server.state.breakAfter = 5 << 20;
    const work = inPage(async (xe) => (await xe.load("/bundles/shipped-web", { cache: false })).vocabSize);
    if (!ranges) setTimeout(() => (server.state.breakAfter = null), 1000);
    assert.equal(await work, 2048);
    const asked = bundles().filter((path) => path.includes(".data"));
    assert.ok(asked.length > 1);
    if (ranges)
      assert.ok(
        asked.slice(1).every((path) => /bytes=[1-9]/.test(path)),
        asked.join(),
      );
  }
  server.state.ranges = true;
  server.state.breakAfter = null;
});

test("another origin, where a page cannot see which range an answer is", { skip: skipped }, async () => {
  const other = await startServer({ shared: true });
  other.state.breakAfter = 7 << 20;
  try {
    const load = () =>
      inPage(async (xe, url) => (await xe.load(url, { cache: false })).vocabSize, `${other.url}bundles/shipped-web`);
    assert.equal(await load(), 2048);
    const asked = other.state.asked.filter((path) => path.includes(".data"));
    assert.ok(asked.length === 2 && / bytes=[1-9]/.test(asked[1]), asked.join());
  } finally {
    await other.close();
    browser.elsewhere.length = 0;
  }
});

test("an answer that is another range than was asked for is not put behind what is there", { skip: skipped }, async () => {
  server.state.asked.length = 0;
  Object.assign(server.state, { breakAfter: 7 << 20, wrongRanges: true });
  const work = inPage(async (xe) => (await xe.load("/bundles/shipped-web", { cache: false })).vocabSize);
  setTimeout(() => (server.state.breakAfter = null), 700);
  assert.equal(await work, 2048);
  Object.assign(server.state, { breakAfter: null, wrongRanges: false });
  assert.ok(bundles().filter((path) => path.endsWith(".data")).length > 1);
});

test("an abort keeps what came, for the next load", { skip: skipped }, async () => {
  await inPage(async () => caches.delete("xlstm-edge"));
  server.state.breakAfter = 5 << 20;
  const name = await inPage(async (xe) => {
    const abort = new AbortController();
    const onProgress = (loaded) => loaded > 3e6 && abort.abort();
    return xe.load("/bundles/shipped-web", { signal: abort.signal, onProgress }).catch((error) => error.name);
  });
  assert.equal(name, "CancelledError");
  server.state.breakAfter = null;
  server.state.asked.length = 0;
  assert.equal(await inPage(async (xe) => (await xe.load("/bundles/shipped-web")).vocabSize), 2048);
  const asked = bundles().filter((path) => path.includes(".data"));
  assert.match(asked.join(), /^\/bundles\/shipped-web\/model.onnx.data bytes=[1-9][0-9]*-$/);
});

test("parts that do not belong together are fetched again, once", { skip: skipped }, async () => {
  server.state.breakAfter = 11 << 20;
  server.state.spoilRanges = true;
  server.state.asked.length = 0;
  const work = (cache) =>
    inPage(
      async (xe, cache) =>
        xe.load("/bundles/shipped-cpu", { cache }).then(
          (model) => model.vocabSize,
          (e) => e.message,
        ),
      cache,
    );
  setTimeout(() => (server.state.breakAfter = null), 1500);
  const got = await work(false);
  server.state.spoilRanges = false;
  server.state.breakAfter = null;
  assert.ok(got === 2048 || /sha256/.test(got), got);
  const whole = bundles().filter((path) => path.endsWith(".data"));
  assert.ok(whole.length === 2, bundles().join());
});

test("damaged and missing files, in one sentence", { skip: skipped }, async () => {
  const refused = (address) =>
    inPage(
      async (xe, address) => xe.load(address, { cache: false }).then(String, (error) => `${error.name}: ${error.message}`),
      address,
    );
  server.state.damage = "model.onnx.data";
  assert.match(
    await refused("/bundles/mixed"),
    /^BundleError: expected model.onnx.data with sha256 .*, got .*; the file is damaged/,
  );
  server.state.damage = null;
  assert.match(await refused("/bundles/nowhere"), /^BundleError: expected a bundle with manifest.json at .*, got 404; check/);
  const node = await inPage(async (xe) =>
    xe.load("/bundles/mixed", { provider: "cpu" }).catch((error) => `${error.name}: ${error.message}`),
  );
  assert.match(
    node,
    /^DependencyError: expected the package onnxruntime-node, got none; choose provider "wasm" or "webgpu" here$/,
  );
  const threads = await inPage(async (xe) => xe.load("/bundles/mixed", { threads: 1 }).then((model) => model.vocabSize));
  assert.equal(threads, 97);
  assert.match(await refused("/bundles/vectors"), /^BundleError: expected a bundle that takes tokens, got a stack/);
  assert.match(await refused("http://127.0.0.1:9/"), /^BundleError: expected an answer from .*, got .*; check the address/);
  browser.elsewhere.length = 0;
});

test("files that a user picked", { skip: skipped }, async () => {
  const names = ["manifest.json", "model.onnx", "model.onnx.data", "vectors.json"];
  const [size, message] = await inPage(async (xe, names) => {
    const files = [];
    for (const name of names) files.push(new File([await (await fetch(`/bundles/mixed/${name}`)).blob()], name));
    const tuned = new File(["{}"], "manifest.json");
    Object.defineProperty(tuned, "webkitRelativePath", { value: "bundle/tuned/manifest.json" });
    const message = await xe.load(files.slice(0, 2)).catch((error) => error.message);
    return [(await xe.load([tuned, ...files])).vocabSize, message];
  }, names);
  assert.equal(size, 97);
  assert.match(message, /^expected the bundle's file .*, got none; copy the whole folder$/);
});

test("an abort ends a stream at a token, and lets the page answer", { skip: skipped }, async () => {
  const { reason, tokens, pieces, after } = await inPage(async (xe) => {
    const model = await xe.load("/bundles/shipped-web");
    const session = model.session();
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 50); // a timer: it fires only if the page is let go
    let [pieces, finish] = [0];
    for await (const event of xe.streamText(session, "To be", { maxTokens: 100000, ignoreEos: true, signal: abort.signal })) {
      if (event.type === "piece") pieces++;
      else finish = event;
    }
    return {
      reason: finish.reason,
      tokens: session.tokens - finish.usage.promptTokens,
      pieces,
      after: (await session.step(5)).length,
    };
  });
  assert.equal(reason, "cancelled");
  assert.ok(tokens > 0 && tokens < 5000 && pieces <= tokens, `${tokens}`);
  assert.equal(after, 2048);
});

test("threads need a page that is cross-origin isolated", { skip: skipped }, async () => {
  const work = async ({ prompt, options }) => {
    const xe = await import("/dist/index.js");
    try {
      const model = await xe.load("/bundles/shipped-web", { threads: 2 });
      let text = "";
      for await (const piece of model.stream(prompt, options)) text += piece;
      return text;
    } catch (error) {
      return `${error.name}: ${error.message}`;
    }
  };
  const argument = { prompt: SEEDED.prompt, options: camel(SEEDED.options) };
  assert.match(
    await browser.page.evaluate(work, argument),
    /^InputError: expected a page that is cross-origin isolated for 2 threads, got/,
  );
  const isolated = await startServer({ isolated: true });
  const there = await openPage(isolated.url);
  try {
    assert.equal(await there.page.evaluate(work, argument), SEEDED.pieces.join(""));
    const other = await there.page.evaluate(async () => {
      const xe = await import("/dist/index.js");
      const size = (await xe.load("/bundles/mixed")).vocabSize; // as many as it began with
      return [size, await xe.load("/bundles/mixed", { threads: 3 }).catch((error) => `${error.name}: ${error.message}`)];
    });
    assert.equal(other[0], 97);
    assert.match(other[1], /^InputError: expected the threads that onnxruntime-web began with here, 2, got 3; /);
    assert.deepEqual(there.elsewhere, []);
  } finally {
    await there.close();
    await isolated.close();
  }
});
