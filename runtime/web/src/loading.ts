/**
 * Load a bundle once, make as many sessions of it as memory holds states. Everything about the bundle is checked before the
 * first token: schema, files, sizes, hashes, what the graph reads, and that its inputs and outputs are exactly those of the
 * state table.
 */

import { inNode } from "./environment.js";
import { BundleError, InputError, shown } from "./errors.js";
import { checkSignal, PickedFiles, type Progress, type Source, sha256 } from "./files.js";
import { floatBytes, type GraphFiles, makeFloat } from "./floatGraph.js";
import { Folder } from "./folder.js";
import { checkFlags, checkListening, givenOptions } from "./given.js";
import { checkGraphFile, LARGEST_GRAPH } from "./graphFile.js";
import { HttpBundle } from "./http.js";
import { MANIFEST, weightsOf } from "./layout.js";
import { type Manifest, readManifest } from "./manifest.js";
import { Model } from "./model.js";
import { checkRuntime, chooseProvider, importRuntime, type OnnxRuntime, type Provider } from "./onnxruntime.js";
import { checkThreads, type GraphSource, openGraph } from "./opening.js";
import { checkTokenizers, type TokenizersModule } from "./tokenizer.js";

/** Larger files of a folder are hashed where `hashAll` asks for it: a start must not wait for gigabytes. */
const HASHED_AT_LOAD = 16 << 20;
const LARGEST_FLOAT = 1 << 30; // bytes of weights that are made float unasked
const FLOAT_WEIGHTS = "float.data"; // no file of a bundle has this name

export interface LoadOptions {
  /** What runs the graph: "cpu" in Node (its default there), "wasm" (the default elsewhere), "webgpu". */
  provider?: Provider;
  /** Threads; left out: all cores for "cpu", 1 for the others, which need a page that is cross-origin isolated for more. */
  threads?: number;
  /** Told how many bytes were read, of how many. */
  onProgress?: (loaded: number, total: number) => void;
  /** Ends the load with a CancelledError; what was downloaded is kept for the next time. */
  signal?: AbortSignal;
  /** false: nothing is kept in the browser's Cache, nor taken from it. */
  cache?: boolean;
  /** Where onnxruntime-web's .wasm and .mjs files lie; left out: beside its own module. */
  wasmPaths?: string | { wasm?: string | URL; mjs?: string | URL };
  /** onnxruntime-web or onnxruntime-node as you imported it; left out: imported here. */
  onnxruntime?: OnnxRuntime;
  /** @huggingface/tokenizers as you imported it; left out: imported when text is first needed. */
  tokenizers?: TokenizersModule;
  /** Let the CPU take what WebGPU cannot run; left out, a graph that does not land whole on it is refused. */
  allowFallback?: boolean;
  /**
   * Make integer weights float32 at load, for several times their memory; left out: where WebAssembly runs the graph, which multiplies
   * float32 several times as fast, up to 1 GiB.
   */
  floatWeights?: boolean;
  /** Hash files of more than 16 MiB in a folder too; what comes from elsewhere is always hashed. */
  hashAll?: boolean;
}

const OPTIONS =
  "provider threads onProgress signal cache wasmPaths onnxruntime tokenizers allowFallback floatWeights hashAll".split(" ");

/**
 * Load a bundle from an address, from files that a user picked, or from a folder in Node. BundleError if anything is wrong with
 * it, InputError for a bad option, DependencyError for a package that is not installed, CancelledError after an abort.
 */
export async function load(bundle: string | URL | Iterable<File>, given: LoadOptions = {}): Promise<Model> {
  const options = checkOptions(given);
  const provider = chooseProvider(options.provider);
  checkThreads(options.threads, provider);
  if (options.floatWeights && provider === "cpu") {
    throw new InputError("expected floatWeights with wasm or webgpu, got cpu, which is fast with integers; leave it out");
  }
  const source = sourceOf(bundle, options);
  checkSignal(options.signal);
  const manifest = readManifest(await source.manifest());
  if (manifest.model.vocabSize === null) {
    throw new BundleError("expected a bundle that takes tokens, got a stack of float vectors; run it with the Python runtime");
  }
  await source.checkSizes(manifest.files);
  const reading = new Reading(source, manifest, options);
  const { graph: info, tokenizer } = manifest;
  const files = await reading.all(provider);
  const graphFile = files.get(info.file) as Uint8Array;
  checkGraphFile(graphFile, info.file, manifest.files, info.chunk);
  checkSignal(options.signal);
  const ort = options.onnxruntime ?? (await importRuntime(provider));
  configure(ort, provider, options);
  const weights = files.get(weightsOf(info.file));
  const path = weights ? null : source.path(info.file);
  const stored: GraphFiles = { graph: graphFile, weights: new Map(weights ? [[weightsOf(info.file), weights]] : []) };
  const graphSource: GraphSource =
    path === null ? floatOrStored(stored, manifest, provider, options) : { ...stored, graph: path };
  const { threads, allowFallback = false } = options;
  const graph = await openGraph(ort, manifest, graphSource, { provider, threads, allowFallback });
  const document = tokenizer.file === null ? null : (files.get(tokenizer.file) as Uint8Array);
  return new Model(manifest, graph, document, options.tokenizers);
}

/** The graph as it is stored, or with float weights in the place of integers. */
function floatOrStored(files: GraphFiles, manifest: Manifest, provider: Provider, { floatWeights }: LoadOptions): GraphFiles {
  if (!manifest.quantized || !(floatWeights ?? provider === "wasm")) return files;
  const bytes = floatBytes(files.graph);
  return bytes && (floatWeights || bytes <= LARGEST_FLOAT) ? makeFloat(files, FLOAT_WEIGHTS) : files;
}

/** Those that are given, checked but for provider and threads. */
function checkOptions(given: LoadOptions): LoadOptions {
  const options = givenOptions(given, OPTIONS);
  checkFlags(options, "cache", "allowFallback", "floatWeights", "hashAll");
  checkListening(options, ["onProgress"]);
  checkWasmPaths(options.wasmPaths);
  if (options.onnxruntime !== undefined) checkRuntime(options.onnxruntime);
  if (options.tokenizers !== undefined) checkTokenizers(options.tokenizers);
  return options;
}

function checkWasmPaths(paths: unknown): void {
  if (paths === undefined || typeof paths === "string") return;
  const entries = typeof paths === "object" && paths !== null && !(paths instanceof URL) ? Object.entries(paths) : [];
  const good = ([name, path]: [string, unknown]) =>
    (name === "wasm" || name === "mjs") && (path === undefined || typeof path === "string" || path instanceof URL);
  if (!entries.length || !entries.every(good)) {
    throw new InputError(`expected wasmPaths as a text, or as an object with wasm or mjs, got ${shown(paths)}; correct it`);
  }
}

function sourceOf(bundle: unknown, { signal, cache = true }: LoadOptions): Source {
  if (bundle instanceof URL) return sourceOf(bundle.href, { ...(signal ? { signal } : {}), cache });
  if (typeof bundle === "string") {
    if (/^https?:/i.test(bundle)) return new HttpBundle(addressOf(bundle), signal, cache);
    if (/^file:/i.test(bundle) && inNode()) return new Folder(pathOf(bundle));
    if (inNode()) return new Folder(bundle);
    return new HttpBundle(addressOf(bundle), signal, cache);
  }
  const files =
    typeof bundle === "object" && bundle !== null && Symbol.iterator in bundle ? [...(bundle as Iterable<unknown>)] : [];
  if (!files.length || !files.every((file) => file instanceof File)) {
    throw new InputError(`expected a bundle's address, folder or files, got ${shown(bundle)}; pass one of these`);
  }
  return new PickedFiles(files as File[]);
}

/** The path of a file address, in Node. */
function pathOf(address: string): string {
  try {
    return process.getBuiltinModule("node:url").fileURLToPath(address);
  } catch (error) {
    throw new InputError(`expected the address of a folder here, got ${shown(address)}; pass its path`, { cause: error });
  }
}

/** An address beside the page or the worker, below which there can be files. */
function addressOf(text: string): URL {
  try {
    const address = new URL(text, globalThis.location?.href);
    new URL(MANIFEST, address);
    return address;
  } catch (error) {
    throw new InputError(`expected a bundle's address, got ${shown(text)}; pass one that begins with https://`, {
      cause: error,
    });
  }
}

/** The number of threads of an onnxruntime-web, for as long as the page lives. */
const started = new WeakMap<OnnxRuntime, number>();

function configure(ort: OnnxRuntime, provider: Provider, { threads, wasmPaths }: LoadOptions): void {
  if (provider === "cpu") return;
  // onnxruntime-web reads these when it starts, once.
  const began = started.get(ort);
  if (began !== undefined && threads !== undefined && threads !== began) {
    throw new InputError(
      `expected the threads that onnxruntime-web began with here, ${began}, got ${threads}; leave threads out`,
    );
  }
  started.set(ort, began ?? threads ?? 1);
  ort.env.wasm.numThreads = began ?? threads ?? 1;
  if (wasmPaths !== undefined) ort.env.wasm.wasmPaths = wasmPaths;
}

/** The files that a load reads, with what it tells of them. */
class Reading implements Progress {
  readonly signal: AbortSignal | undefined;
  #loaded = 0;
  #total = 0;

  constructor(
    readonly source: Source,
    readonly manifest: Manifest,
    readonly options: LoadOptions,
  ) {
    this.signal = options.signal;
  }

  add(bytes: number): void {
    this.#loaded += bytes;
    this.options.onProgress?.(this.#loaded, this.#total);
  }

  /** What is read into memory, each with its hash compared: the weights too unless onnxruntime reads them from their path. */
  async all(provider: Provider): Promise<Map<string, Uint8Array>> {
    const { graph, tokenizer, files } = this.manifest;
    const byPath = provider === "cpu" && this.source.path(graph.file) !== null;
    const needed = new Set([graph.file, weightsOf(graph.file), ...(tokenizer.file === null ? [] : [tokenizer.file])]);
    const hashed = [...files].filter(([, { bytes }]) => bytes <= HASHED_AT_LOAD || this.options.hashAll);
    const names = byPath ? new Set([...hashed.map(([name]) => name), graph.file]) : needed;
    const large = (files.get(graph.file)?.bytes ?? 0) > LARGEST_GRAPH;
    if (large)
      throw new BundleError(`expected ${graph.file} of at most ${LARGEST_GRAPH} bytes, got more; export the bundle again`);
    this.#total = [...names].reduce((sum, name) => sum + (files.get(name)?.bytes ?? 0), 0);
    const contents = new Map<string, Uint8Array>();
    for (const name of names) {
      const content = await this.#one(name);
      if (needed.has(name) && !(byPath && name === weightsOf(graph.file))) contents.set(name, content);
    }
    return contents;
  }

  /** A file whose hash is right; a second time where the first was a damaged copy of the cache. */
  async #one(name: string): Promise<Uint8Array> {
    const entry = this.manifest.files.get(name);
    if (!entry) throw new BundleError(`expected ${name} among the bundle's files, got a list without it; export it again`);
    for (let first = true; ; first = false) {
      const content = await this.source.read(name, entry, this);
      const got = await sha256(content);
      if (got === entry.sha256) {
        await this.source.accepted(entry, content);
        return content;
      }
      if (!((await this.source.damaged(entry)) && first)) {
        throw new BundleError(
          `expected ${name} with sha256 ${entry.sha256.slice(0, 12)}..., got ${got.slice(0, 12)}...; ` +
            "the file is damaged, copy it again",
        );
      }
      this.add(-content.length);
    }
  }
}
