/**
 * The contract between the exporter that writes a bundle and the runtime that reads it: manifest.json, which names every
 * other file with its size and sha256. Another schema, and keys that nobody knows, are refused.
 */

import { BundleError, shown } from "./errors.js";
import { Fraction, type Json } from "./json.js";
import { MANIFEST, VECTORS, weightsOf } from "./layout.js";
import {
  type Dimensions,
  type FileEntry,
  type GraphInfo,
  HASH,
  readCompiled,
  readDimensions,
  readFiles,
  readGraph,
  readQuantization,
  readSampling,
  readSpecial,
  readState,
  readTokenizer,
  SAMPLING_KEYS,
  type SpecialTokens,
  type TokenizerInfo,
} from "./manifestSections.js";
import { parseJson, Reader } from "./reading.js";
import type { SamplingOptions } from "./sampling.js";
import type { StateTable } from "./state.js";

const FORMAT = "xlstm-edge";
const SCHEMA = 5;
export const LARGEST_MANIFEST = 8 << 20;
// A state is about as large as the weights that move it; what asks for far more memory is no bundle of ours.
const STATE_PER_BYTE = 64;
const SMALL_STATE = 64 << 20;
// Every block has a matrix of about width times width numbers, of 2 bits at least.
const WIDTH_PER_ROOT = 16;
const SMALL_WIDTH = 1 << 13;
const VERSION = "[0-9]{1,4}(\\.[0-9]{1,4}){1,3}";
const WORD = "[ -~]{1,100}";
const SECTIONS = [
  ..."format schema producer family minimum_runtime source model graph tokenizer special_tokens sampling".split(" "),
  ..."quantization compiled state files".split(" "),
];
const DIMENSIONS = ["width", "vocab_size", "blocks", "parameters", "tied", "context_length"];
const GRAPH = ["file", "target", "opset", "input", "output", "chunk", "all_logits", "prompt"];

/** Everything a runtime must know before it touches the graph. */
export interface Manifest {
  readonly family: string;
  readonly producer: string;
  /** The oldest onnxruntime that runs the graph. */
  readonly onnxruntime: string;
  /** Hash of the checkpoint: snapshots belong to it. */
  readonly source: string;
  readonly model: Dimensions;
  readonly graph: GraphInfo;
  readonly tokenizer: TokenizerInfo;
  readonly specialTokens: SpecialTokens;
  readonly sampling: Partial<SamplingOptions>;
  readonly quantized: boolean;
  readonly state: StateTable;
  readonly files: ReadonlyMap<string, FileEntry>;
}

/** Parse and check the bytes of manifest.json; BundleError names the first thing that is wrong. */
export function readManifest(content: Uint8Array | string): Manifest {
  const document = parseJson(content, MANIFEST, "export the bundle again");
  checkSchema(document);
  const root = new Reader(document, MANIFEST, SECTIONS);
  const model = readDimensions(root.section("model", DIMENSIONS));
  const manifest: Manifest = {
    family: root.text("family", WORD),
    producer: root.text("producer", WORD),
    onnxruntime: root.section("minimum_runtime", ["onnxruntime"]).text("onnxruntime", VERSION),
    source: root.section("source", ["sha256"]).text("sha256", HASH),
    model,
    graph: readGraph(root.section("graph", GRAPH)),
    tokenizer: readTokenizer(root.section("tokenizer", ["kind", "file"])),
    specialTokens: readSpecial(root.section("special_tokens", ["bos", "pad", "stop", "add_bos"]), model.vocabSize),
    state: readState(root.section("state", ["dtype", "bytes_per_session", "tensors"])),
    files: readFiles(root.section("files", null)),
    sampling: readSampling(root.section("sampling", [], SAMPLING_KEYS)),
    quantized: readQuantization(root.section("quantization", [], ["recipe", "tensors"])),
  };
  checkReferences(manifest, readCompiled(root.section("compiled", null)));
  return manifest;
}

/** Before the keys, which another schema may have others of. */
function checkSchema(document: Json): void {
  const root = new Reader(document, MANIFEST, null);
  const format = root.value.get("format");
  const schema = root.value.get("schema");
  if (format !== FORMAT || schema !== SCHEMA) {
    const got = schema instanceof Fraction ? `${schema.value}` : shown(schema);
    throw new BundleError(
      `expected a bundle of format ${FORMAT}, schema ${SCHEMA}, got ${shown(format)}, ${got}; ` +
        "export the checkpoint again with this version",
    );
  }
}

function checkReferences(manifest: Manifest, compiled: readonly string[]): void {
  const { graph, tokenizer, files } = manifest;
  const needed = [graph.file, graph.prompt, weightsOf(graph.file), VECTORS, tokenizer.file, ...compiled];
  const missing = needed.find((name) => name !== null && !files.has(name));
  if (missing) {
    throw new BundleError(`expected ${missing} among the bundle's files, got a list without it; export the bundle again`);
  }
  const total = [...files.values()].reduce((sum, entry) => sum + entry.bytes, 0);
  if (manifest.state.nbytes > Math.max(SMALL_STATE, STATE_PER_BYTE * total)) {
    throw new BundleError(
      `expected a state that fits a bundle of ${total} bytes, got one of ${manifest.state.nbytes}; do not trust this bundle`,
    );
  }
  if (manifest.model.width > Math.max(SMALL_WIDTH, WIDTH_PER_ROOT * Math.floor(Math.sqrt(total)))) {
    throw new BundleError(
      `expected a width that fits a bundle of ${total} bytes, got ${manifest.model.width}; do not trust this bundle`,
    );
  }
}
