/**
 * The recurrent state as bytes, in the safetensors format: the Python runtime's `snapshot.py` says what versions 2 and 3 hold.
 * A snapshot belongs to a checkpoint, not to a bundle: it moves between devices, targets, weight precisions and the runtimes of
 * this project, byte by byte. Names, shapes and places are compared with the state table before any data is read.
 */

import { InputError, StateError, shown } from "./errors.js";
import { fromHalf, toHalf } from "./halves.js";
import type { Json } from "./json.js";
import { parseJson, Reader } from "./reading.js";
import { inOtherForm, product, type State, type StateTable, scaled, tensorOf } from "./state.js";

const FORMAT = "xlstm-edge state";
const VERSIONS = { float32: "2", float16: "3" } as const;
/** What matrix memories are stored in. */
export type SnapshotDtype = keyof typeof VERSIONS;
const MATRIX = ".C";
const STABILIZER = ".m";
const SCALE = ".scale";
const OFFSET = ".offset";
// The largest number of a head is stored below 2^15; a scale is no smaller than float32's normal numbers.
const HALF_EXPONENT = 15;
const SMALLEST_EXPONENT = -126;
const METADATA = "__metadata__";
const ENTRY = ["dtype", "shape", "data_offsets"];
const MOST_AXES = 8;
const ALIGNMENT = 8;
const LARGEST_HEADER = 16 << 20;
const COUNT = "0|[1-9][0-9]{0,17}";
/** What COUNT has digits for; numbers are exact only to 2^53. */
export const MOST_TOKENS = 10n ** 18n - 1n;
const ADVICE = "save it again";

interface Stored {
  readonly name: string;
  readonly dtype: "F32" | "F16";
  readonly shape: readonly number[];
  readonly nbytes: number;
}

function stored(name: string, dtype: "F32" | "F16", shape: readonly number[]): Stored {
  return { name, dtype, shape, nbytes: product(shape) * (dtype === "F32" ? 4 : 2) };
}

/** The bytes of a state as a graph of `table` holds it, with the hash of its checkpoint and the tokens that it has seen. */
export function writeSnapshot(
  state: State,
  table: StateTable,
  { source, tokens, dtype = "float32" }: { source: string; tokens: bigint; dtype?: SnapshotDtype },
): Uint8Array<ArrayBuffer> {
  if (typeof dtype !== "string" || !Object.hasOwn(VERSIONS, dtype)) {
    throw new InputError(`expected a snapshot in float32 or float16, got ${shown(dtype)}; choose one of them`);
  }
  const metadata = { format: FORMAT, version: VERSIONS[dtype], source, tokens: `${tokens}` };
  const tensors = tensorsOf(state, table, dtype);
  const header: Record<string, unknown> = { [METADATA]: metadata };
  let end = 0;
  for (const { entry } of tensors) {
    header[entry.name] = { dtype: entry.dtype, shape: entry.shape, data_offsets: [end, end + entry.nbytes] };
    end += entry.nbytes;
  }
  let text = JSON.stringify(header);
  text += " ".repeat((ALIGNMENT - (text.length % ALIGNMENT)) % ALIGNMENT);
  const content = new Uint8Array(8 + text.length + end);
  const view = new DataView(content.buffer);
  view.setBigUint64(0, BigInt(text.length), true);
  content.set(new TextEncoder().encode(text), 8);
  let at = 8 + text.length;
  for (const { entry, array } of tensors) {
    for (let i = 0; i < array.length; i++) {
      if (entry.dtype === "F32") view.setFloat32(at + 4 * i, array[i] as number, true);
      else view.setUint16(at + 2 * i, toHalf(array[i] as number), true);
    }
    at += entry.nbytes;
  }
  return content;
}

/** What a file holds: the state as users see it, but stabilizers as the graph holds them, each with what it is short of. */
function tensorsOf(state: State, table: StateTable, dtype: SnapshotDtype): { entry: Stored; array: Float32Array }[] {
  return table.rows.flatMap((row) => {
    const held = tensorOf(state, row.name);
    const array = row.offset.length ? held : row.fromGraph(held);
    const shape = [1, ...row.shape];
    const whole = { entry: stored(row.name, "F32", shape), array };
    if (row.offset.length) {
      const offset = Float32Array.from(row.offset);
      return [whole, { entry: stored(row.name + OFFSET, "F32", [1, offset.length]), array: offset }];
    }
    if (dtype !== "float16" || !row.name.endsWith(MATRIX)) return [whole];
    const scales = Float32Array.from(scalesOf(array, row.shape[0] ?? 1));
    const small = scaled(
      array,
      scales.map((scale) => 1 / scale),
    );
    return [
      { entry: stored(row.name, "F16", shape), array: small },
      { entry: stored(row.name + SCALE, "F32", [1, scales.length]), array: scales },
    ];
  });
}

/** For each head a power of two that puts its largest number at the upper end of float16. */
function scalesOf(array: Float32Array, heads: number): number[] {
  const size = array.length / heads;
  return Array.from({ length: heads }, (_, head) => {
    const most = array.subarray(head * size, (head + 1) * size).reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    return 2 ** Math.max(exponentOf(most) - HALF_EXPONENT, SMALLEST_EXPONENT);
  });
}

/** The e of x = f * 2^e with f from 0.5 to 1; 0 for 0. */
function exponentOf(x: number): number {
  if (x === 0) return 0;
  let e = Math.floor(Math.log2(x)) + 1;
  while (x >= 2 ** e) e++; // a logarithm may be rounded over the border
  while (x < 2 ** (e - 1)) e--;
  return e;
}

/**
 * The state as a graph of `table` holds it, and the tokens that it has seen; StateError if it is damaged or of another
 * checkpoint. Bit-equal with what was written where that was float32 and the tables are the same.
 */
export function readSnapshot(content: Uint8Array, table: StateTable, source: string): { state: State; tokens: bigint } {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const length = content.length < 8 ? 0 : Number(view.getBigUint64(0, true));
  if (length < 2 || length > LARGEST_HEADER || length > content.length - 8) {
    throw new StateError(`expected a snapshot, got damaged or foreign bytes; ${ADVICE}`);
  }
  const document = parseJson(content.subarray(8, 8 + length), "the header of a snapshot", ADVICE, StateError);
  const { tokens, tensors, places } = readHeader(document, table, source);
  const size = tensors.reduce((sum, tensor) => sum + tensor.nbytes, 0);
  const got = content.length - 8 - length;
  if (got !== size) throw new StateError(`expected ${size} bytes of state in a snapshot, got ${got}; ${ADVICE}`);
  const arrays: State = new Map();
  for (const tensor of tensors) {
    arrays.set(tensor.name, readArray(view, 8 + length + (places.get(tensor.name) as number), tensor));
  }
  const state = held(arrays, table);
  for (const array of state.values()) {
    if (!array.every(Number.isFinite)) {
      throw new StateError(`expected a finite state in a snapshot, got NaN or infinity; ${ADVICE}`);
    }
  }
  return { state, tokens };
}

/** Tokens seen, the tensors, and where each begins; StateError unless the header is that of this table and source. */
function readHeader(document: Json, table: StateTable, source: string) {
  const header = new Reader(document, "a snapshot's header", null, [], { error: StateError, advice: ADVICE });
  const metadata = header.section(METADATA, ["format", "version", "source", "tokens"]);
  const version = metadata.text("version");
  const dtype = (Object.keys(VERSIONS) as SnapshotDtype[]).find((name) => VERSIONS[name] === version);
  if (metadata.text("format") !== FORMAT || dtype === undefined) {
    throw new StateError(`expected a snapshot of version 2 or 3, got other bytes; ${ADVICE}`);
  }
  if (metadata.text("source") !== source) {
    throw new StateError("expected a snapshot of this model's checkpoint, got one of another; load the matching bundle");
  }
  const tensors = wantedTensors(header, table, dtype);
  const places = new Map(tensors.map((tensor) => [tensor.name, placeOf(header.section(tensor.name, ENTRY), tensor)]));
  const inOrder = [...tensors].sort((a, b) => (places.get(a.name) as number) - (places.get(b.name) as number));
  let end = 0;
  for (const tensor of inOrder) {
    if (places.get(tensor.name) !== end) {
      throw new StateError(`expected tensors side by side in a snapshot, got a gap or overlap; ${ADVICE}`);
    }
    end += tensor.nbytes;
  }
  return { tokens: BigInt(metadata.text("tokens", COUNT)), tensors, places };
}

/** What the file must hold: the tensors of the table, or of its other form, whichever its names are. */
function wantedTensors(header: Reader, table: StateTable, dtype: SnapshotDtype): Stored[] {
  const given = new Set([...header.value.keys()].filter((name) => name !== METADATA));
  const fits = (tensors: Stored[]) => tensors.length === given.size && tensors.every(({ name }) => given.has(name));
  const other = storedTensors(table.otherForm(), dtype, given);
  const tensors = fits(other) ? other : storedTensors(table, dtype, given);
  if (fits(tensors)) return tensors;
  const names = new Set(tensors.map(({ name }) => name));
  const odd = [...names].find((name) => !given.has(name)) ?? [...given].find((name) => !names.has(name));
  throw new StateError(
    `expected the ${names.size} state tensors of this model in a snapshot, got a difference at ${shown(odd)}; ${ADVICE}`,
  );
}

/** What a file of this table holds; stabilizers may be given with what they are short of. */
function storedTensors(table: StateTable, dtype: SnapshotDtype, given: ReadonlySet<string>): Stored[] {
  return table.rows.flatMap((row) => {
    const half = dtype === "float16" && row.name.endsWith(MATRIX);
    const tensors = [stored(row.name, half ? "F16" : "F32", [1, ...row.shape])];
    if (half) tensors.push(stored(row.name + SCALE, "F32", [1, row.shape[0] ?? 1]));
    if (row.name.endsWith(STABILIZER) && given.has(row.name + OFFSET)) {
      tensors.push(stored(row.name + OFFSET, "F32", [1, row.shape.at(-1) ?? 1]));
    }
    return tensors;
  });
}

/** Where this tensor begins. */
function placeOf(entry: Reader, tensor: Stored): number {
  const offsets = entry.integers("data_offsets", 2, 0);
  const dtype = entry.text("dtype");
  const shape = entry.integers("shape", MOST_AXES, 0);
  const [begin = 0, end = -1] = offsets;
  const fits = dtype === tensor.dtype && shape.join() === tensor.shape.join();
  if (!fits || offsets.length !== 2 || end - begin !== tensor.nbytes) {
    const wanted = `${tensor.dtype} of shape (${tensor.shape.join(", ")})`;
    throw entry.refuseWords(entry.where, wanted, `${shown(dtype)} of shape (${shape.join(", ")})`);
  }
  return begin;
}

function readArray(view: DataView, begin: number, tensor: Stored): Float32Array {
  const array = new Float32Array(product(tensor.shape));
  for (let i = 0; i < array.length; i++) {
    array[i] = tensor.dtype === "F32" ? view.getFloat32(begin + 4 * i, true) : fromHalf(view.getUint16(begin + 2 * i, true));
  }
  return array;
}

/** What is stored, as a graph of `table` holds it. */
function held(arrays: State, table: StateTable): State {
  const state: State = new Map();
  const kept: State = new Map();
  for (const [name, array] of arrays) {
    if (name.endsWith(SCALE) || name.endsWith(OFFSET)) continue;
    const scale = arrays.get(name + SCALE);
    const offset = arrays.get(name + OFFSET);
    const whole = scale ? scaled(array, scale) : array;
    state.set(name, offset ? whole.map((x, i) => x + (offset[i % offset.length] as number)) : whole);
    const own = table.rows.find((row) => row.name === name)?.offset ?? [];
    if (offset && own.length === offset.length && own.every((x, i) => Math.fround(x) === offset[i])) kept.set(name, whole);
  }
  const whole = table.rows.length === state.size && table.rows.every((row) => state.has(row.name));
  return new Map([...table.toGraph(whole ? state : inOtherForm(state, table)), ...kept]);
}
