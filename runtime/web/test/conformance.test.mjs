// The conformance files, on onnxruntime-node and onnxruntime-web; every case runs, or is counted as left out with its reason.
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { SplitMix64, weight } from "../dist/exactMath.js";
import {
  BundleError,
  InputError,
  load,
  Sampler,
  StateError,
  streamText,
  VerificationError,
  XlstmEdgeError,
} from "../dist/index.js";
import { readManifest } from "../dist/manifest.js";
import { StopMatcher } from "../dist/text.js";
import { loadTokenizer } from "../dist/tokenizer.js";
import {
  CHECKS,
  editedSnapshot,
  editedText,
  editFile,
  editOf,
  FOLDER,
  fileBytes,
  manifestText,
  tensors,
} from "./conformanceFiles.mjs";
import { camel, collect, difference, sentence } from "./fixtures.mjs";

const ERRORS = { input: InputError, bundle: BundleError, state: StateError, verification: VerificationError };
const VECTORS = "stacks of float vectors are refused";
const TOKENIZERS = "tokenizers that give other ids or texts in JavaScript are refused";
// What README.md says is not here, and how many cases that is.
const LEFT_OUT = {
  cpu: { [VECTORS]: 2, [TOKENIZERS]: 72 },
  wasm: { [VECTORS]: 2 },
};
const SCRATCH = mkdtempSync(join(tmpdir(), "xlstm-edge-conformance-"));
after(() => rmSync(SCRATCH, { recursive: true }));

const models = new Map();

function modelOf(bundle, provider) {
  const key = `${bundle} ${provider}`;
  if (!models.has(key)) models.set(key, load(`${FOLDER}bundles/${bundle}`, { provider, threads: 1 }));
  return models.get(key);
}

/** The class of error that a call ends in, by the name that the files use; null for none. */
async function verdict(call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof XlstmEdgeError, error.stack);
    sentence(error);
    return Object.keys(ERRORS).find((name) => error instanceof ERRORS[name]) ?? error.name;
  }
  return null;
}

function agrees(got, { error, lenient, ...edit }) {
  if (!lenient || got !== null) assert.equal(got, error, JSON.stringify(edit).slice(0, 500));
}

const MEASURES = {
  range: difference,
  "root mean square": (got, expected) => {
    const squares = (numbers) => numbers.reduce((sum, x) => sum + x * x, 0);
    return Math.sqrt(squares(Array.from(expected, (x, i) => x - got[i])) / squares(expected));
  },
};

function near(got, { file, measure, tolerance }, row) {
  const expected = tensors(file).get("logits")[row];
  assert.equal(got.length, expected.length);
  const off = MEASURES[measure](got, expected);
  assert.ok(off <= tolerance, `${file} ${row} is off by ${off}`);
}

async function logits({ bundle, calls, ...expected }, provider) {
  const session = (await modelOf(bundle, provider)).session();
  for (const [row, call] of calls.entries()) near(await session.prefill(call), expected, row);
  assert.equal(session.tokens, calls.flat().length);
}

async function vectors({ bundle }, provider) {
  assert.equal(await verdict(() => modelOf(bundle, provider)), "bundle");
  return VECTORS;
}

async function bundles({ bundle }, provider) {
  if (CHECKS.vectors.some((other) => other.bundle === bundle)) return vectors({ bundle }, provider);
  assert.ok((await modelOf(bundle, provider)).vocabSize > 0);
}

/** Options by their names here; seeds are text in JSON. */
function optionsOf({ seed, ...options }) {
  return { ...camel(options), seed: BigInt(seed) };
}

async function generations({ bundle, prompt, options, ids, reason }, provider) {
  const session = (await modelOf(bundle, provider)).session();
  const events = await collect(session.generate(prompt, optionsOf(options)));
  const finish = events.pop();
  assert.deepEqual([events.map(({ id }) => id), finish.reason], [ids, reason]);
}

async function texts({ bundle, prompt, prompt_ids, options, stop, text, reason }, provider) {
  const model = await modelOf(bundle, provider);
  assert.deepEqual(await model.encode(prompt), prompt_ids);
  const events = await collect(streamText(model.session(), prompt, { ...optionsOf(options), stop }));
  const finish = events.pop();
  assert.deepEqual([events.map((piece) => piece.text).join(""), finish.reason], [text, reason]);
}

async function snapshots(given, provider) {
  const model = await modelOf(given.bundle, provider);
  const [session, live] = [model.session(), model.session()];
  const stored = fileBytes(given.snapshot);
  await session.load(stored);
  assert.deepEqual([session.tokens, given.before.length], [given.tokens, given.tokens]);
  if (given.again) {
    const dtype = given.snapshot.includes("float16") ? "float16" : "float32";
    assert.deepEqual(await session.save({ dtype }), stored);
  }
  await live.prefill(given.before);
  for (const [row, call] of given.calls.entries()) {
    near(await session.prefill(call), given, row);
    const uninterrupted = await live.prefill(call);
    if (given.uninterrupted) near(uninterrupted, given, row);
  }
}

/** A double as C's `%a` writes it. */
function fromHex(text) {
  const [, sign, whole, fraction = "", exponent] = /^(-?)0x([01])(?:\.([0-9a-f]*))?p([-+]\d+)$/.exec(text);
  const mantissa = Number(whole) + Number.parseInt(fraction || "0", 16) / 16 ** fraction.length;
  return (sign ? -1 : 1) * mantissa * 2 ** Number(exponent);
}

function exact({ kind, x, weight: weights, seed, next, limits, below }) {
  if (kind === "weight") {
    assert.deepEqual(
      x.map((number) => `${weight(fromHex(number))}`),
      weights,
    );
    return;
  }
  assert.equal(kind, "random");
  const [random, again] = [new SplitMix64(BigInt(seed)), new SplitMix64(BigInt(seed))];
  assert.deepEqual(
    next.map(() => `${random.next()}`),
    next,
  );
  assert.deepEqual(
    limits.map((limit) => `${again.below(Number(limit))}`),
    below,
  );
}

async function sampling({ vocab, options, seed, prompt, tensor, file, ids, error }) {
  const rows = tensor === undefined ? [new Float32Array(vocab)] : tensors(file).get(tensor);
  let got = [];
  const draw = () => {
    const sampler = new Sampler(optionsOf({ ...options, seed }), vocab, { prompt });
    got = rows.map((row) => sampler.sample(row));
  };
  assert.equal(await verdict(draw), error);
  if (error === null) assert.deepEqual(got, ids);
}

async function decode({ kind, file, prompt, ids, pieces, rest }) {
  assert.equal(kind, file === null ? "byte" : "huggingface");
  const open = () => loadTokenizer(kind, file === null ? null : fileBytes(file));
  if (["tokenizers/word-piece.json", "tokenizers/suffix.json"].includes(file)) {
    assert.equal(await verdict(open), "bundle");
    return TOKENIZERS;
  }
  const stream = (await open()).stream(prompt);
  assert.deepEqual([ids.map((id) => stream.push(id)), stream.flush()], [pieces, rest]);
}

function stops({ stop, pieces, shown, rest, hit }) {
  const matcher = new StopMatcher(stop);
  assert.deepEqual(
    pieces.map(([text, visible]) => matcher.push(text, visible)),
    shown,
  );
  assert.deepEqual([matcher.flush(), matcher.hit], [rest, hit]);
}

/** A bundle's copy, as it was. */
function copyOf(bundle) {
  const folder = join(SCRATCH, bundle);
  rmSync(folder, { recursive: true, force: true });
  cpSync(`${FOLDER}bundles/${bundle}`, folder, { recursive: true });
  return folder;
}

/** Loads once; what did load gives its memory back. */
async function loaded(folder, provider) {
  return verdict(async () => (await load(folder, { provider, threads: 1 })).dispose());
}

async function manifests({ bundle, alone, error }, provider, index) {
  const edit = editOf("manifests", index);
  const content = editedText(manifestText(bundle), edit);
  agrees(await verdict(() => readManifest(content)), { ...edit, error: alone ? "bundle" : null });
  const folder = copyOf(bundle);
  writeFileSync(join(folder, "manifest.json"), content);
  agrees(await loaded(folder, provider), { ...edit, error });
}

async function snapshotEdits({ bundle, snapshot }, provider, index) {
  const edit = editOf("snapshot_edits", index);
  const session = (await modelOf(bundle, provider)).session();
  await session.prefill([1, 2, 3]);
  const before = await session.save();
  const got = await verdict(() => session.load(editedSnapshot(fileBytes(snapshot), edit)));
  agrees(got, edit);
  if (got !== null) assert.deepEqual([await session.save(), session.tokens], [before, 3]);
}

async function files({ bundle }, provider, index) {
  const edit = editOf("files", index);
  const folder = copyOf(bundle);
  editFile(folder, edit);
  agrees(await loaded(folder, provider), edit);
}

// What a graph runs goes through every provider; the others through one.
const GRAPH = { bundles, logits, vectors, generations, texts, snapshots, snapshot_edits: snapshotEdits, manifests, files };
const ALONE = { exact, sampling, decode, stops };
const ran = { cpu: {}, wasm: {} };
const leftOut = { cpu: {}, wasm: {} };

function count(counts, key) {
  counts[key] = (counts[key] ?? 0) + 1;
}

for (const [provider, runners] of [
  ["cpu", { ...GRAPH, ...ALONE }],
  ["wasm", GRAPH],
]) {
  for (const [kind, run] of Object.entries(runners)) {
    test(`${kind} on ${provider}`, async () => {
      for (const [index, given] of CHECKS[kind].entries()) {
        const work = async () => run(given, provider, index);
        const reason = await work().catch((error) => {
          error.message = `${kind} ${index} ${JSON.stringify(given).slice(0, 300)}: ${error.message}`;
          throw error;
        });
        if (reason === undefined) count(ran[provider], kind);
        else count(leftOut[provider], reason);
      }
    });
  }
}

test("every kind of case has its runner, every case ran or was left out for a reason", (t) => {
  assert.deepEqual(Object.keys(CHECKS).sort(), Object.keys({ ...GRAPH, ...ALONE }).sort());
  assert.deepEqual(leftOut, LEFT_OUT);
  const sum = (counts) => Object.values(counts).reduce((total, n) => total + n, 0);
  for (const [provider, kinds] of [
    ["cpu", Object.keys(CHECKS)],
    ["wasm", Object.keys(GRAPH)],
  ]) {
    assert.equal(sum(ran[provider]) + sum(leftOut[provider]), sum(kinds.map((kind) => CHECKS[kind].length)));
    for (const [reason, n] of Object.entries(leftOut[provider])) t.diagnostic(`${provider}: ${n} left out, ${reason}`);
  }
});
