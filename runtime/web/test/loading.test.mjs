import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { pathToFileURL } from "node:url";
import { BundleError, CancelledError, InputError, load, streamText } from "../dist/index.js";
import { bundle, collect, sentence } from "./fixtures.mjs";
import { startServer } from "./server.mjs";

const is =
  (Class, words = "") =>
  (error) =>
    error instanceof Class && sentence(error).includes(words);
const SCRATCH = mkdtempSync(join(tmpdir(), "xlstm-edge-test-"));
after(() => rmSync(SCRATCH, { recursive: true }));
let copies = 0;

/** A bundle of one's own, to be spoiled. */
function copy(name = "mixed") {
  const folder = join(SCRATCH, `${copies++}`);
  cpSync(bundle(name), folder, { recursive: true });
  return folder;
}

test("damaged, missing and foreign files, in one sentence", async () => {
  const spoil = [
    [(f) => truncateSync(join(f, "model.onnx.data"), 100), "with"],
    [(f) => rmSync(join(f, "vectors.json")), "vectors.json"],
    [(f) => rmSync(join(f, "manifest.json")), "manifest.json"],
    [(f) => flip(join(f, "model.onnx")), "sha256"],
    [(f) => flip(join(f, "model.onnx.data")), "sha256"],
    [(f) => rmSync(join(f, "model.onnx")) || mkdirSync(join(f, "model.onnx")), "regular"],
    [
      (f) =>
        renameSync(join(f, "model.onnx"), join(SCRATCH, "out")) || symlinkSync(join(SCRATCH, "out"), join(f, "model.onnx")),
      "link",
    ],
  ];
  for (const [change, words] of spoil) {
    const folder = copy();
    change(folder);
    await assert.rejects(load(folder), is(BundleError, words), `${change}`);
    rmSync(join(SCRATCH, "out"), { force: true });
  }
  await assert.rejects(load(join(SCRATCH, "nowhere")), is(BundleError, "nothing"));
  await assert.rejects(load("a\0b"), is(InputError));
  await assert.rejects(load(bundle("vectors")), is(BundleError, "float vectors"));
});

function flip(path) {
  const content = readFileSync(path);
  content[content.length >> 1] ^= 1;
  writeFileSync(path, content);
}

test("links as the cache of the Hugging Face hub has them", async () => {
  const root = join(SCRATCH, "models--x");
  cpSync(bundle("mixed"), join(root, "blobs"), { recursive: true });
  const snapshot = join(root, "snapshots", "main");
  mkdirSync(snapshot, { recursive: true });
  for (const name of ["manifest.json", "model.onnx", "model.onnx.data", "vectors.json"]) {
    symlinkSync(join("../../blobs", name), join(snapshot, name));
  }
  assert.equal((await load(snapshot, { provider: "wasm" })).vocabSize, 97);
  renameSync(join(root, "blobs", "model.onnx"), join(root, "elsewhere.onnx"));
  rmSync(join(snapshot, "model.onnx"));
  symlinkSync(join("../../elsewhere.onnx"), join(snapshot, "model.onnx"));
  await assert.rejects(load(snapshot), is(BundleError, "a link out of the folder"));
});

test("a graph whose states are of other shapes than the manifest's", async () => {
  for (const change of [
    (d) => (d.graph.input = "ids"),
    (d) => (d.graph.all_logits = true),
    (d) => (d.model.vocab_size = 98),
    (d) => d.state.tensors.reverse() && (d.state.tensors[0].shape[0] *= 2) && (d.state.bytes_per_session = bytesOf(d)),
    (d) => d.state.tensors.pop() && (d.state.bytes_per_session = bytesOf(d)),
    (d) => (d.minimum_runtime.onnxruntime = "9.9"),
  ]) {
    const folder = copy();
    const document = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
    change(document);
    writeFileSync(join(folder, "manifest.json"), JSON.stringify(document));
    await assert.rejects(load(folder), is(BundleError), `${change}`);
  }
});

function bytesOf(document) {
  return document.state.tensors.reduce((sum, row) => sum + 4 * row.shape.reduce((a, b) => a * b, 1), 0);
}

/** Change a bundle's manifest, and agree with its files again as a forger would. */
function forge(folder, change) {
  const document = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  change(document);
  const content = readFileSync(join(folder, "model.onnx"));
  document.files["model.onnx"] = { bytes: content.length, sha256: createHash("sha256").update(content).digest("hex") };
  writeFileSync(join(folder, "manifest.json"), JSON.stringify(document));
}

test("a graph that was changed together with its hash", async () => {
  const folder = copy();
  // A member of the model that onnxruntime ignores, and that holds the word.
  writeFileSync(
    join(folder, "model.onnx"),
    Buffer.concat([readFileSync(join(folder, "model.onnx")), Buffer.from("\x32\x08location", "latin1")]),
  );
  forge(folder, () => undefined);
  await assert.rejects(load(folder, { threads: 1 }), is(BundleError, "external data in a place of its own"));
});

test("a bos token that the bundle wants and its tokenizer does not add", async () => {
  const folder = copy("shipped-web");
  forge(folder, (document) => Object.assign(document.special_tokens, { bos: 7, add_bos: true }));
  const model = await load(folder, { threads: 1 });
  const plain = await model.encode("To be", { start: false });
  assert.deepEqual(await model.encode("To be"), [7, ...plain]);
  const session = model.session();
  await collect(streamText(session, "To be", { maxTokens: 0 }));
  assert.equal(session.tokens, 1 + plain.length);
  await collect(streamText(session, "To be", { maxTokens: 0 })); // in the middle of a stream: no second one
  assert.equal(session.tokens, 1 + 2 * plain.length);
});

test("a bundle of bytes", async () => {
  const folder = copy("large");
  forge(folder, (document) => Object.assign(document.tokenizer, { kind: "byte" }));
  const model = await load(folder, { threads: 1 });
  assert.deepEqual(await model.encode("To"), [84, 111]);
  assert.equal(await model.decode([84, 111, 300, -1]), "To");
  await assert.rejects(model.encode("é"), is(InputError, "the tokenizer's id 195"));
  assert.equal((await collect(model.stream("To", { maxTokens: 9 }))).join("").length > 0, true);
});

test("what onnxruntime is asked for", async () => {
  const asked = [];
  const fake = () => ({
    env: { versions: { web: "1.30.0" }, wasm: {} },
    Tensor: class {},
    InferenceSession: { create: async (_, options) => asked.push(options) && Promise.reject(new Error("enough")) },
  });
  const wasm = fake();
  const seen = is(BundleError, "enough");
  await assert.rejects(load(bundle("mixed"), { provider: "wasm", onnxruntime: wasm, wasmPaths: "/here/" }), seen);
  await assert.rejects(load(bundle("mixed"), { provider: "webgpu", onnxruntime: fake() }), seen);
  await assert.rejects(load(bundle("mixed"), { provider: "webgpu", onnxruntime: fake(), allowFallback: true }), seen);
  await assert.rejects(load(bundle("mixed"), { provider: "cpu", onnxruntime: fake(), threads: 3 }), seen);
  assert.deepEqual(wasm.env.wasm, { numThreads: 1, wasmPaths: "/here/" });
  assert.deepEqual(
    asked.map(({ extra }) => extra.session.disable_quant_qdq),
    ["1", "1", "1", "1"],
  );
  assert.deepEqual(
    asked.map(({ extra }) => extra.session.disable_cpu_ep_fallback),
    [undefined, "1", undefined, undefined],
  );
  assert.deepEqual(
    asked.map(({ intraOpNumThreads }) => intraOpNumThreads),
    [undefined, undefined, undefined, 3],
  );
  assert.ok(
    Object.entries(asked[1].preferredOutputLocation).every(
      ([name, place]) => name.startsWith("present.") && place === "gpu-buffer",
    ),
  );
  assert.deepEqual(
    asked.map(({ externalData }) => externalData?.[0].path),
    ["model.onnx.data", "model.onnx.data", "model.onnx.data", undefined],
  );
});

test("large files are hashed where it is asked for", async () => {
  const folder = copy();
  const document = JSON.parse(readFileSync(join(folder, "manifest.json"), "utf8"));
  const content = new Uint8Array(17 << 20);
  document.files["large.bin"] = { bytes: content.length, sha256: "0".repeat(64) };
  writeFileSync(join(folder, "large.bin"), content);
  writeFileSync(join(folder, "manifest.json"), JSON.stringify(document));
  assert.equal((await load(folder, { threads: 1 })).vocabSize, 97);
  await assert.rejects(load(folder, { hashAll: true }), is(BundleError, "large.bin with sha256"));
});

test("options that make no sense", async () => {
  const wrong = [
    { provider: "tpu" },
    { provider: 5 },
    { threads: 0 },
    { threads: 1.5 },
    { threads: "2" },
    { signal: 1 },
    { onProgress: 1 },
    { thread: 1 },
    { toString: 1 },
    { cache: "no" },
    { hashAll: "x" },
    { allowFallback: 1 },
    { floatWeights: "x", provider: "wasm" },
    { wasmPaths: 5 },
    { wasmPaths: {} },
    { wasmPaths: { wasm: 5 } },
    { onnxruntime: {} },
    { onnxruntime: 5 },
    { onnxruntime: { env: { versions: {} }, InferenceSession: {}, Tensor: 1 } },
    { tokenizers: {} },
    { tokenizers: "x" },
    [],
    null,
    7,
  ];
  for (const options of wrong) await assert.rejects(load(bundle("mixed"), options), is(InputError), JSON.stringify(options));
  const names =
    "provider threads onProgress signal cache wasmPaths onnxruntime tokenizers allowFallback floatWeights hashAll".split(" ");
  for (const nothing of [null, undefined]) {
    const options = Object.fromEntries(names.map((name) => [name, nothing]));
    assert.equal((await load(bundle("mixed"), options)).vocabSize, 97); // left out
  }
  await assert.rejects(load(bundle("mixed"), { provider: "wasm", threads: 2 }), is(InputError, "one thread"));
  for (const source of [null, 5, {}, [], [1], new Blob()]) await assert.rejects(load(source), is(InputError));
  for (const address of ["http://", "https://[", "file:///%zz", "file://host/x"]) {
    await assert.rejects(load(address), is(InputError, address), address);
  }
  await assert.rejects(load(new URL("file:///%zz")), is(InputError));
  await assert.rejects(load(bundle("mixed"), { signal: AbortSignal.abort() }), is(CancelledError));
});

test("addresses in Node, and of files", async () => {
  const server = await startServer();
  const ids = [5, 17, 3];
  const here = await (await load(bundle("mixed"), { threads: 1 })).session().prefill(ids);
  for (const options of [{ threads: 1 }, { provider: "wasm" }]) {
    const there = await (await load(`${server.url}bundles/mixed`, options)).session().prefill(ids);
    assert.ok(there.every((x, i) => Math.abs(x - here[i]) < 1e-4));
  }
  const files = await load(pathToFileURL(bundle("mixed")), { threads: 1 });
  assert.deepEqual(await files.session().prefill(ids), here);
  server.state.damage = "model.onnx";
  await assert.rejects(load(`${server.url}bundles/mixed`), is(BundleError, "sha256"));
  await server.close();
});

test("what an app's onProgress throws ends a load at once", async () => {
  const server = await startServer();
  try {
    for (const place of [`${server.url}bundles/mixed`, bundle("mixed")]) {
      for (const error of [new RangeError("mine"), new TypeError("fetch failed"), undefined]) {
        let calls = 0;
        server.state.asked.length = 0;
        const onProgress = (loaded) => {
          if (!loaded) return;
          calls++;
          throw error;
        };
        const got = await load(place, { provider: "wasm", onProgress }).then(String, (thrown) => ({ thrown }));
        assert.deepEqual([got, calls], [{ thrown: error }, 1]);
        assert.ok(server.state.asked.length <= 2, server.state.asked.join());
      }
    }
  } finally {
    await server.close();
  }
});

test("onnxruntime-node sends nothing home: its telemetry is off before it is loaded", () => {
  const script = `
    import { load } from ${JSON.stringify(new URL("../dist/index.js", import.meta.url).href)};
    await (await load(${JSON.stringify(bundle("mixed"))})).session().step(1);
    await new Promise((resolve) => setTimeout(resolve, 2000)); // when it is on, it has a file in the home folder by then
    console.log(process.env.ORT_DISABLE_TELEMETRY);
    process.exit();`;
  const home = join(SCRATCH, "home");
  mkdirSync(home);
  // Without the variables of test runs, by which onnxruntime keeps silent by itself.
  const environment = { PATH: process.env.PATH, HOME: home, XDG_CACHE_HOME: join(home, ".cache") };
  const result = spawnSync(process.execPath, ["--input-type=module", "-e", script], { env: environment, encoding: "utf8" });
  assert.equal(result.stdout.trim(), "1", result.stderr);
  assert.deepEqual(readdirSync(home), []);
});

test("without the packages, one sentence says which to install", () => {
  const place = join(SCRATCH, "bare");
  cpSync(new URL("../dist", import.meta.url), join(place, "dist"), { recursive: true });
  writeFileSync(join(place, "package.json"), '{"type": "module"}');
  const script = `
    import { load } from ${JSON.stringify(pathToFileURL(join(place, "dist/index.js")).href)};
    for (const provider of ["cpu", "wasm", "webgpu"]) {
      await load(${JSON.stringify(bundle("mixed"))}, { provider }).catch((e) => console.log(e.name + ": " + e.message));
    }`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
    cwd: place,
    encoding: "utf8",
  });
  const lines = stdout.trim().split("\n");
  assert.equal(lines.length, 3, stderr);
  for (const line of lines)
    assert.match(line, /^DependencyError: expected the package onnxruntime-.*, got none; npm install onnxruntime-/);
});
