/**
 * The sections of a manifest: what each holds, and how it is read from JSON that nobody trusts. `manifest` puts them
 * together. Each reader takes a `Reader` whose keys are checked already and throws BundleError.
 */

import { BundleError, InputError, StateError, shown } from "./errors.js";
import { Fraction, type Json } from "./json.js";
import { COMPILED, FILE_NAME, MANIFEST } from "./layout.js";
import type { Reader } from "./reading.js";
import { resolveSampling, type SamplingOptions } from "./sampling.js";
import { SLSTM_INITIAL_M, SMALL_INITIAL_M, StateSpec, StateTable } from "./state.js";

const LARGEST_DIMENSION = 2 ** 31;
const LARGEST_CHUNK = 4096;
const MOST_HEADS = 1 << 16;
const LARGEST_OFFSET = 1e6;
const MOST_COMPILED = 32;
const MOST_FILES = 64;
const MOST_BLOCKS = 1 << 14;
const MOST_TENSORS = 1 << 17;
const MOST_STOPS = 1024;
const MOST_AXES = 8;
const TENSOR_NAME = "[A-Za-z0-9._]{1,200}";
const CHIP = /^[a-z0-9]{1,20}$/;
export const HASH = "[0-9a-f]{64}";
const TARGETS = ["cpu", "portable", "web", "coreml", "qnn", "openvino", "litert", "genai"] as const;
const LOADERS = ["qnn", "coreml", "openvino", "litert", "genai"] as const;
const STORED = ["float32", "float16", "int8", "int4", "a16w8"] as const;
const KINDS = ["byte", "huggingface", "none"] as const;
const RECIPE: Record<string, "text" | "flag" | "integer" | "number" | "object"> = {
  target: "text",
  soc: "text",
  ahead_of_time: "flag",
  chunk: "integer",
  all_logits: "flag",
  quantize: "text",
  method: "text",
  calibrate: "text",
  calibration_tokens: "integer",
  block_size: "integer",
  embedding_bits: "integer",
  head_bits: "integer",
  target_mb: "number",
  target_bpw: "number",
  keep: "object",
  tokenizer: "text",
};
export const RECIPE_KEYS = Object.keys(RECIPE);
/** A bundle's defaults, by their names in the file and in options. */
const SAMPLING = {
  temperature: "temperature",
  top_k: "topK",
  top_p: "topP",
  min_p: "minP",
  repetition_penalty: "repetitionPenalty",
  penalty_window: "penaltyWindow",
} as const;
export const SAMPLING_KEYS = Object.keys(SAMPLING);

/** Size in bytes and hex sha256 of one file. */
export interface FileEntry {
  readonly bytes: number;
  readonly sha256: string;
}

/** What the model is; `vocabSize` null means float vectors in and out. */
export interface Dimensions {
  readonly width: number;
  readonly vocabSize: number | null;
  readonly blocks: readonly string[];
  readonly parameters: number;
  readonly tied: boolean;
  readonly contextLength: number | null;
}

/** How to call the graph; `prompt` names a second one for calls of exactly `chunk` tokens, where `file` takes one. */
export interface GraphInfo {
  readonly file: string;
  readonly target: (typeof TARGETS)[number];
  readonly opset: number;
  readonly input: string;
  readonly output: string;
  readonly chunk: number;
  readonly allLogits: boolean;
  readonly prompt: string | null;
}

/** `file` is null where the kind needs none. */
export interface TokenizerInfo {
  readonly kind: (typeof KINDS)[number];
  readonly file: string | null;
}

/** Ids; `stop` ends a generation, `bos` is put before a prompt if `addBos`. */
export interface SpecialTokens {
  readonly bos: number | null;
  readonly pad: number | null;
  readonly stop: readonly number[];
  readonly addBos: boolean;
}

export function readDimensions(reader: Reader): Dimensions {
  return {
    width: reader.integer("width", 1, LARGEST_DIMENSION),
    vocabSize: reader.isNull("vocab_size") ? null : reader.integer("vocab_size", 1, LARGEST_DIMENSION),
    blocks: reader.texts("blocks", MOST_BLOCKS, "mlstm|slstm"),
    parameters: reader.integer("parameters", 0),
    tied: reader.flag("tied"),
    contextLength: reader.isNull("context_length") ? null : reader.integer("context_length", 1),
  };
}

export function readGraph(reader: Reader): GraphInfo {
  const info: GraphInfo = {
    file: reader.text("file", FILE_NAME),
    target: reader.among("target", TARGETS),
    opset: reader.integer("opset", 1, 1000),
    input: reader.text("input", TENSOR_NAME),
    output: reader.text("output", TENSOR_NAME),
    chunk: reader.integer("chunk", 1, LARGEST_CHUNK),
    allLogits: reader.flag("all_logits"),
    prompt: reader.isNull("prompt") ? null : reader.text("prompt", FILE_NAME),
  };
  if (info.prompt !== null && info.chunk === 1) {
    throw reader.refuse(`${reader.where} prompt`, "no graph for prompts of one token", info.prompt);
  }
  return info;
}

/** The files of forms made ahead of time, which this runtime checks and does not use. */
export function readCompiled(reader: Reader): string[] {
  const names = [...reader.value.keys()];
  if (names.length > MOST_COMPILED || !names.every((name) => CHIP.test(name))) {
    throw reader.refuseWords(reader.where, `at most ${MOST_COMPILED} forms by short names`, `${names.length} of them`);
  }
  return names.flatMap((name) => {
    const entry = reader.section(name, ["file", "provider", "weights", "prompt"]);
    const file = entry.text("file", COMPILED);
    entry.among("provider", LOADERS);
    entry.among("weights", STORED);
    return entry.isNull("prompt") ? [file] : [file, entry.text("prompt", COMPILED)];
  });
}

export function readTokenizer(reader: Reader): TokenizerInfo {
  const kind = reader.among("kind", KINDS);
  const file = reader.isNull("file") ? null : reader.text("file", FILE_NAME);
  if ((file === null) !== (kind !== "huggingface")) {
    throw reader.refuse(`${reader.where} file`, `what a tokenizer of kind ${kind} needs`, file);
  }
  return { kind, file };
}

export function readSpecial(reader: Reader, vocabSize: number | null): SpecialTokens {
  const last = (vocabSize ?? 0) - 1;
  return {
    bos: reader.isNull("bos") ? null : reader.integer("bos", 0, last),
    pad: reader.isNull("pad") ? null : reader.integer("pad", 0, last),
    stop: reader.integers("stop", MOST_STOPS, 0, last),
    addBos: reader.flag("add_bos"),
  };
}

/** Defaults that sampling accepts, by the names of options. */
export function readSampling(reader: Reader): Partial<SamplingOptions> {
  const defaults: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(SAMPLING)) {
    if (!reader.value.has(name)) continue;
    const value = reader.value.get(name);
    const whole = option === "topK" || option === "penaltyWindow";
    if (value === null || (whole && value instanceof Fraction)) {
      throw reader.refuse(`${reader.where} ${name}`, whole ? "an integer" : "a number", value);
    }
    defaults[option] = value instanceof Fraction ? value.value : value;
  }
  try {
    resolveSampling(defaults);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    throw new BundleError(`in ${reader.where}: ${error.message}`, { cause: error });
  }
  return defaults;
}

/** Whether weights are quantized; what the recipe says is checked and not used. */
export function readQuantization(reader: Reader): boolean {
  if (!reader.value.size) return false;
  const recipe = reader.section("recipe", [], RECIPE_KEYS);
  for (const [key, value] of recipe.value) {
    if (!isOf(value, RECIPE[key])) throw recipe.refuse(`${recipe.where} ${key}`, "another type", value);
  }
  if (recipe.value.has("keep")) {
    const keep = recipe.section("keep", null);
    for (const pattern of keep.value.keys()) keep.integer(pattern, 2, 32);
  }
  const tensors = reader.section("tensors", null);
  if (tensors.value.size < 1 || tensors.value.size > MOST_TENSORS) {
    throw tensors.refuseWords(tensors.where, "one tensor or more", `${tensors.value.size} of them`);
  }
  for (const name of tensors.value.keys()) {
    const scheme = tensors.section(name, ["bits", "block_size"]);
    scheme.integer("bits", 2, 8);
    if (scheme.integer("block_size", 0, 256) !== 0) scheme.integer("block_size", 16, 256);
  }
  return true;
}

function isOf(value: Json, kind: string | undefined): boolean {
  const integer = typeof value === "number" || typeof value === "bigint";
  if (kind === "text") return typeof value === "string";
  if (kind === "flag") return typeof value === "boolean";
  if (kind === "object") return value instanceof Map;
  return integer || (kind === "number" && value instanceof Fraction);
}

export function readState(reader: Reader): StateTable {
  reader.among("dtype", ["float32"]);
  const keys = ["name", "input", "output", "shape", "head_splits", "offset", "initial"];
  const table = tableOf(reader.sections("tensors", MOST_TENSORS, keys).map(stateRow));
  for (const row of table.rows) {
    const wanted = table.wantedInitial(row);
    const small = wanted === SLSTM_INITIAL_M ? SMALL_INITIAL_M : wanted;
    if (row.initial !== wanted && row.initial !== small) {
      throw reader.refuse(`${reader.where} ${row.name}`, `${wanted} at first`, row.initial);
    }
  }
  if (reader.integer("bytes_per_session", 0) !== table.nbytes) {
    const value = reader.value.get("bytes_per_session");
    throw reader.refuse(`${reader.where} bytes_per_session`, `${table.nbytes} for this table`, value);
  }
  return table;
}

function tableOf(rows: StateSpec[]): StateTable {
  try {
    return new StateTable(rows);
  } catch (error) {
    if (!(error instanceof StateError)) throw error;
    throw new BundleError(error.message, { cause: error });
  }
}

function stateRow(row: Reader): StateSpec {
  const initial = row.number("initial", SLSTM_INITIAL_M, 0);
  const shape = row.integers("shape", MOST_AXES, 1, LARGEST_DIMENSION);
  const splits = row.integer("head_splits", 1, LARGEST_DIMENSION);
  if (splits !== 1 && (shape.length !== 3 || (shape[2] as number) % splits !== 0)) {
    throw row.refuse(`${row.where} head_splits`, `a number that divides the last axis of (${shape.join(", ")})`, splits);
  }
  const offset = row.numbers("offset", MOST_HEADS, -LARGEST_OFFSET, LARGEST_OFFSET);
  const name = row.text("name", TENSOR_NAME);
  const width = shape.at(-1) ?? 0;
  if (offset.length && (!name.endsWith(".m") || offset.length !== width || splits !== 1)) {
    throw row.refuseWords(`${row.where} offset`, `${width} numbers for a stabilizer whole`, `${offset.length}`);
  }
  const spec = new StateSpec(name, shape, initial, splits, offset);
  if (row.text("input") !== spec.inputName || row.text("output") !== spec.outputName) {
    throw row.refuse(row.where, `a tensor that goes through ${spec.inputName}`, row.value.get("input"));
  }
  return spec;
}

export function readFiles(reader: Reader): Map<string, FileEntry> {
  const names = [...reader.value.keys()];
  if (names.length > MOST_FILES) {
    throw reader.refuseWords(reader.where, `at most ${MOST_FILES} files`, `${names.length} of them`);
  }
  const pattern = new RegExp(`^${FILE_NAME}$`);
  return new Map(
    names.map((name) => {
      if (!pattern.test(name) || name === MANIFEST) {
        throw new BundleError(`expected plain file names, got ${shown(name)}; do not trust this bundle`);
      }
      const entry = reader.section(name, ["bytes", "sha256"]);
      return [name, { bytes: entry.integer("bytes", 0), sha256: entry.text("sha256", HASH) }];
    }),
  );
}
