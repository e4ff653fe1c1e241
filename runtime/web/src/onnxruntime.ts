/**
 * As much of onnxruntime's interface as is used: onnxruntime-web and onnxruntime-node have it alike. The packages are optional,
 * so nothing here imports their types.
 */

import { inNode } from "./environment.js";
import { DependencyError, InputError, shown } from "./errors.js";

export type TensorLocation = "none" | "cpu" | "cpu-pinned" | "texture" | "gpu-buffer" | "ml-tensor";

export interface Tensor {
  readonly data: unknown;
  readonly location: TensorLocation;
  getData(releaseData?: boolean): Promise<unknown>;
  dispose(): void;
}

export type Feeds = Record<string, Tensor>;

export interface Metadata {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type?: string;
  readonly shape?: readonly (number | string)[];
}

export interface Inference {
  readonly inputMetadata: readonly Metadata[];
  readonly outputMetadata: readonly Metadata[];
  run(feeds: Feeds, fetches?: Record<string, Tensor | null>): Promise<Feeds>;
  release(): Promise<void>;
}

/** The namespace of onnxruntime-web or onnxruntime-node. */
export interface OnnxRuntime {
  readonly env: {
    readonly versions: { readonly common?: string; readonly web?: string; readonly node?: string };
    logLevel?: string;
    readonly wasm: { numThreads?: number; wasmPaths?: unknown; proxy?: boolean };
  };
  readonly InferenceSession: {
    create(model: string | Uint8Array, options: Record<string, unknown>): Promise<Inference>;
  };
  readonly Tensor: new (type: "float32" | "int64", data: Float32Array | BigInt64Array, dims: readonly number[]) => Tensor;
}

/** What runs a graph: onnxruntime-node's "cpu", onnxruntime-web's "wasm" and "webgpu". */
export type Provider = "cpu" | "wasm" | "webgpu";
export const PROVIDERS: readonly Provider[] = ["cpu", "wasm", "webgpu"];

/** The provider that was asked for, or the one of this place; InputError for one that is none. */
export function chooseProvider(provider: unknown): Provider {
  if (provider === undefined) return inNode() ? "cpu" : "wasm";
  const found = PROVIDERS.find((name) => name === provider);
  if (found === undefined) {
    throw new InputError(`expected a provider of ${PROVIDERS.join(", ")}, got ${shown(provider)}; choose one of these`);
  }
  return found;
}

/** InputError for a module that is no onnxruntime. */
export function checkRuntime(module: unknown): void {
  const { env, InferenceSession, Tensor } = Object(module) as Partial<OnnxRuntime>;
  const whole = env?.versions && env.wasm && typeof InferenceSession?.create === "function" && typeof Tensor === "function";
  if (!whole) {
    throw new InputError(
      `expected onnxruntime as the module onnxruntime-web or onnxruntime-node, got ${shown(module)}; import it`,
    );
  }
}

/** The package for a provider; DependencyError where it is not installed. */
export async function importRuntime(provider: Provider): Promise<OnnxRuntime> {
  const name = { cpu: "onnxruntime-node", wasm: "onnxruntime-web/wasm", webgpu: "onnxruntime-web/webgpu" }[provider];
  try {
    if (provider === "cpu") return await importNode(name);
    const module = provider === "wasm" ? await import("onnxruntime-web/wasm") : await import("onnxruntime-web/webgpu");
    return module as unknown as OnnxRuntime;
  } catch (error) {
    if (!isMissing(error)) throw error;
    const hint =
      provider === "cpu" && !inNode() ? 'choose provider "wasm" or "webgpu" here' : `npm install ${name.split("/")[0]}`;
    throw new DependencyError(`expected the package ${name}, got none; ${hint}`, { cause: error });
  }
}

async function importNode(name: string): Promise<OnnxRuntime> {
  if (!inNode()) throw new Error("Cannot find onnxruntime-node outside of Node");
  // Its library sends telemetry unless told not to when it is loaded; who set the variable decides.
  process.env.ORT_DISABLE_TELEMETRY ??= "1";
  // By a variable, so that bundlers for the web do not look for it.
  const module = await import(/* @vite-ignore */ /* webpackIgnore: true */ name);
  return (module.default ?? module) as OnnxRuntime;
}

/** Whether an import failed because there is nothing by that name, as Node, bundlers and browsers say it. */
function isMissing(error: unknown): boolean {
  const text = error instanceof Error ? `${(error as { code?: string }).code} ${error.message}` : "";
  return /ERR_MODULE_NOT_FOUND|Cannot find|Failed to resolve|Failed to fetch dynamically|specifier|Importing a module/.test(
    text,
  );
}
