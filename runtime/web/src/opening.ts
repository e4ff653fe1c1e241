/** Open a bundle's graph in onnxruntime, its inputs and outputs checked, and run it. */

import { giveWay, inNode } from "./environment.js";
import { BundleError, InputError, reason, shown } from "./errors.js";
import type { Manifest } from "./manifest.js";
import type { Feeds, Inference, Metadata, OnnxRuntime, Provider, Tensor } from "./onnxruntime.js";
import type { State, StateTable } from "./state.js";

const MOST_THREADS = 1024;
const SPIN = "20"; // microseconds a thread waits busily for work, as in the Python runtime

/** State tensors by name, as the graph takes them. */
export type Tensors = Map<string, Tensor>;

/** Where a graph lies: its bytes and its weights' (name -> content), or a path in Node, beside which its weights lie. */
export interface GraphSource {
  readonly graph: Uint8Array | string;
  readonly weights: ReadonlyMap<string, Uint8Array>;
}

export interface OpeningOptions {
  readonly provider: Provider;
  readonly threads: number | undefined;
  /** Whether the CPU may take what WebGPU cannot run. */
  readonly allowFallback: boolean;
}

/** InputError for a number of threads that cannot be had. */
export function checkThreads(threads: unknown, provider: Provider): void {
  if (threads === undefined) return;
  if (typeof threads !== "number" || !Number.isInteger(threads) || threads < 1 || threads > MOST_THREADS) {
    throw new InputError(`expected threads from 1 to ${MOST_THREADS}, got ${shown(threads)}; leave it out for the default`);
  }
  if (threads > 1 && provider !== "cpu" && inNode()) {
    // Its workers do not start there.
    throw new InputError(`expected one thread for ${provider} in Node, got ${threads}; choose provider "cpu"`);
  }
  if (threads > 1 && provider !== "cpu" && globalThis.crossOriginIsolated !== true) {
    throw new InputError(
      `expected a page that is cross-origin isolated for ${threads} threads, got one that is not; ` +
        "serve it with COOP and COEP headers, or leave threads out",
    );
  }
}

/** The graph of a bundle, ready to run; BundleError if it does not load, or has other inputs and outputs than the manifest. */
export async function openGraph(
  ort: OnnxRuntime,
  manifest: Manifest,
  source: GraphSource,
  options: OpeningOptions,
): Promise<Graph> {
  checkVersion(ort, manifest);
  let inference: Inference;
  try {
    inference = await ort.InferenceSession.create(source.graph, sessionOptions(manifest, source, options));
  } catch (error) {
    if (String(error).includes("fallback to CPU EP")) throw notWhole(error);
    const hint = options.provider === "webgpu" ? "try another provider" : "export the bundle again";
    throw new BundleError(
      `expected a graph that onnxruntime ${versionOf(ort)} loads on ${options.provider}, got ${reason(error)}; ${hint}`,
      { cause: error },
    );
  }
  checkGraph(inference, manifest);
  return new Graph(ort, inference, manifest, options.provider);
}

/** A provider takes the nodes that it can and leaves the others to the CPU: then every token crosses from one to the other. */
function notWhole(cause: unknown): BundleError {
  return new BundleError(
    "expected all of the graph on webgpu, got nodes left to the CPU; export for the target web, or pass allowFallback",
    { cause },
  );
}

function sessionOptions(manifest: Manifest, source: GraphSource, options: OpeningOptions): Record<string, unknown> {
  const { provider, threads, allowFallback } = options;
  const externalData = [...source.weights].map(([path, data]) => ({ path, data }));
  return {
    executionProviders: [provider],
    interOpNumThreads: 1,
    ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
    logSeverityLevel: 4, // what fails is thrown, and told in one sentence
    // Memory is planned per shape after the first run anyway.
    ...(provider === "cpu" ? { enableCpuMemArena: false } : {}),
    ...(externalData.length ? { externalData } : {}),
    ...(provider === "webgpu" ? { preferredOutputLocation: onGpu(manifest.state) } : {}),
    extra: {
      session: {
        // Integers that a graph writes out are computed as written: weights become float at load, which WebAssembly is faster
        // with.
        disable_quant_qdq: "1",
        ...(provider === "cpu" ? { intra_op: { spin_duration_us: SPIN } } : {}),
        ...(provider === "webgpu" && !allowFallback ? { disable_cpu_ep_fallback: "1" } : {}),
      },
    },
  };
}

/** States stay in the GPU's memory from one token to the next. */
function onGpu(table: StateTable): Record<string, string> {
  return Object.fromEntries(table.rows.map((row) => [row.outputName, "gpu-buffer"]));
}

function versionOf(ort: OnnxRuntime): string {
  const { versions } = ort.env;
  return versions.node ?? versions.web ?? versions.common ?? "0";
}

function checkVersion(ort: OnnxRuntime, manifest: Manifest): void {
  const numbers = (version: string) => version.split(".").slice(0, 2).map(Number);
  const [major = 0, minor = 0] = numbers(versionOf(ort));
  const [wantedMajor = 0, wantedMinor = 0] = numbers(manifest.onnxruntime);
  if (major < wantedMajor || (major === wantedMajor && minor < wantedMinor)) {
    throw new BundleError(
      `expected onnxruntime ${manifest.onnxruntime} or newer for this bundle, got ${versionOf(ort)}; ` +
        "upgrade onnxruntime-web or onnxruntime-node",
    );
  }
}

/** BundleError unless inputs and outputs are those of the manifest, in name, type and shape. */
function checkGraph(inference: Inference, manifest: Manifest): void {
  const { graph, model, state } = manifest;
  const inputs = new Map<string, [type: string, shape: (number | null)[]]>();
  const outputs = new Map<string, [type: string, shape: (number | null)[]]>();
  inputs.set(graph.input, ["int64", [null, null]]);
  outputs.set(graph.output, ["float32", graph.allLogits ? [null, null, model.vocabSize] : [null, model.vocabSize]]);
  for (const row of state.rows) {
    inputs.set(row.inputName, ["float32", [null, ...row.graphShape]]);
    outputs.set(row.outputName, ["float32", [null, ...row.graphShape]]);
  }
  checkNodes("input", inputs, inference.inputMetadata);
  checkNodes("output", outputs, inference.outputMetadata);
  const tokens = inference.inputMetadata.find((node) => node.name === graph.input)?.shape?.[1];
  const wanted = graph.prompt === null ? graph.chunk : 1;
  if (typeof tokens === "number" && tokens !== wanted) {
    throw new BundleError(`expected a chunk of ${tokens} as in the graph, got ${wanted}; export the bundle again`);
  }
}

function checkNodes(
  kind: string,
  wanted: ReadonlyMap<string, [type: string, shape: (number | null)[]]>,
  nodes: readonly Metadata[],
): void {
  for (const [name, [type, shape]] of wanted) {
    const node = nodes.find((node) => node.name === name);
    if (node?.type !== type || node.shape?.length !== shape.length) {
      throw new BundleError(`expected the graph to have the ${kind} ${name}, got a graph without it; export the bundle again`);
    }
    // A graph may leave the sizes of its outputs open, and never those of states that it takes.
    const open = kind === "output" && name.startsWith("present.");
    const odd = shape.findIndex((size, axis) => size !== null && node.shape?.[axis] !== size);
    if (odd >= 0 && !(open && typeof node.shape[odd] === "string")) {
      throw new BundleError(
        `expected the ${kind} ${name} with ${shape[odd]} on axis ${odd}, got ${shown(node.shape[odd])}; export it again`,
      );
    }
  }
  const extra = nodes.find((node) => !wanted.has(node.name));
  if (extra) {
    throw new BundleError(`expected only ${kind}s of the state table, got ${shown(extra.name)}; export the bundle again`);
  }
}

/** One run after another: WebAssembly and WebGPU have one machine for all sessions of a page. */
let queue: Promise<unknown> = Promise.resolve();

/** A loaded graph: a state and ids in, a new state and logits out. */
export class Graph {
  /** Whether new states are written into tensors that the caller holds. */
  readonly reuses: boolean;
  readonly #running = new Set<Promise<unknown>>();
  #released: Promise<void> | undefined;

  constructor(
    readonly ort: OnnxRuntime,
    readonly inference: Inference,
    readonly manifest: Manifest,
    readonly provider: Provider,
  ) {
    // onnxruntime-node writes into output tensors that it is given; WebAssembly and WebGPU hand out tensors of their own.
    this.reuses = provider === "cpu" && inNode();
  }

  /** InputError once it was released. */
  checkHeld(): void {
    if (this.#released) throw new InputError("expected a model to use, got a disposed one; load it again");
  }

  /** Give its memory back, once: calls that run end first, later ones are refused. */
  release(): Promise<void> {
    this.#released ??= Promise.allSettled(this.#running).then(() => this.inference.release());
    return this.#released;
  }

  /** A state as tensors, which keep its arrays. */
  tensors(state: State): Tensors {
    const { Tensor } = this.ort;
    return new Map(
      this.manifest.state.rows.map((row) => {
        const array = state.get(row.name) as Float32Array;
        return [row.name, new Tensor("float32", array, [1, ...row.graphShape])];
      }),
    );
  }

  /**
   * One call for 1 to `chunk` ids: the logits (V,) after the last, an array of the caller's, and the new state, which is
   * `target` where the graph reuses tensors. `past` is only read. BundleError if the graph fails, InputError once it was released.
   */
  async run(
    ids: readonly number[],
    past: Tensors,
    target: Tensors | null,
  ): Promise<{ logits: Float32Array; present: Tensors }> {
    const { graph, state, model } = this.manifest;
    const input = new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const feeds: Feeds = { [graph.input]: input };
    const fetches: Record<string, Tensor | null> = { [graph.output]: null };
    for (const row of state.rows) {
      feeds[row.inputName] = past.get(row.name) as Tensor;
      fetches[row.outputName] = target?.get(row.name) ?? null;
    }
    const results = await this.#called(feeds, fetches);
    const output = (results[graph.output] as Tensor).data as Float32Array;
    const width = model.vocabSize as number;
    const logits = output.length === width ? output : output.slice(-width);
    if (target) return { logits, present: target };
    return { logits, present: new Map(state.rows.map((row) => [row.name, results[row.outputName] as Tensor])) };
  }

  async #called(feeds: Feeds, fetches: Record<string, Tensor | null>): Promise<Feeds> {
    this.checkHeld();
    const call = () => this.inference.run(feeds, fetches);
    const result = this.provider === "cpu" ? call() : queue.then(giveWay).then(call);
    if (this.provider !== "cpu") queue = result.catch(() => undefined);
    this.#running.add(result);
    try {
      return await result;
    } catch (error) {
      throw new BundleError(`expected a graph that runs, got ${reason(error)}; export the bundle again`, { cause: error });
    } finally {
      this.#running.delete(result);
    }
  }
}

/** Give back what is not garbage by itself: buffers of the GPU. */
export function disposeTensors(tensors: Tensors): void {
  for (const tensor of tensors.values()) {
    if (tensor.location === "gpu-buffer") tensor.dispose();
  }
}

/** A copy of a state as the graph holds it, from wherever it lies. */
export async function arraysOf(tensors: Tensors): Promise<State> {
  const state: State = new Map();
  for (const [name, tensor] of tensors) {
    const data = tensor.location === "gpu-buffer" ? await tensor.getData() : tensor.data;
    state.set(name, (data as Float32Array).slice());
  }
  return state;
}
