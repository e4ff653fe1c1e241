/**
 * A bundle's graph once more, its quantized products made float: WebAssembly multiplies float32 several times as fast as integers.
 *
 * Every MatMulNBits becomes a MatMul with the float32 numbers that its integers mean, and an Add of its bias, so the outputs are
 * those of the stored weights with float activations. Rows that are only looked up stay as they are stored.
 */

import { BundleError } from "./errors.js";
import { BYTES, Message, member, number } from "./protobuf.js";

// Field numbers of onnx.proto
const MODEL_GRAPH = 7;
const GRAPH_NODE = 1;
const GRAPH_INITIALIZER = 5;
const NODE_INPUT = 1;
const NODE_OUTPUT = 2;
const NODE_NAME = 3;
const NODE_OPERATOR = 4;
const NODE_ATTRIBUTE = 5;
const ATTRIBUTE_NAME = 1;
const ATTRIBUTE_INTEGER = 3;
const TENSOR_DIMS = 1;
const TENSOR_TYPE = 2;
const TENSOR_NAME = 8;
const TENSOR_RAW = 9;
const TENSOR_EXTERNAL = 13;
const TENSOR_PLACE = 14;
const ENTRY_KEY = 1;
const ENTRY_VALUE = 2;
const FLOAT = 1;
const UINT8 = 2;
const EXTERNAL = 1;
const PRODUCT = "MatMulNBits";
const PAGE = 4096;

/** A graph's bytes, and the files that its tensors lie in. */
export interface GraphFiles {
  readonly graph: Uint8Array;
  readonly weights: ReadonlyMap<string, Uint8Array>;
}

/** A MatMulNBits: names of its inputs, and the matrix (rows, columns) of so many bits that it multiplies by. */
interface Product {
  readonly node: Message;
  readonly name: string;
  readonly x: string;
  readonly data: string;
  readonly scales: string;
  readonly bias: string;
  readonly output: string;
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  /** Weights of a row that share a scale. */
  readonly blockSize: number;
}

/** Bytes of the products' weights when they are float32; BundleError for a graph that is not as an export writes it. */
export function floatBytes(graph: Uint8Array): number {
  return asExported(() => {
    const sizes = new Map(productsOf(graphOf(graph)).map((product) => [product.data, 4 * product.rows * product.columns]));
    return [...sizes.values()].reduce((sum, size) => sum + size, 0);
  });
}

/** The same graph in float; what stays as it was stays in the same files. BundleError as of `floatBytes`. */
export function makeFloat(files: GraphFiles, file: string): GraphFiles {
  return asExported(() => new FloatGraph(files, file).files());
}

function asExported<Result>(make: () => Result): Result {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof RangeError)) throw error;
    throw new BundleError(`expected a graph as an export writes it, got ${error.message}; export the bundle again`, {
      cause: error,
    });
  }
}

class FloatGraph {
  readonly #products: readonly Product[];
  readonly #tensors: ReadonlyMap<string, Message>;
  readonly #begins = new Map<string, number>();
  readonly #made: Uint8Array;
  readonly #source: GraphFiles;
  readonly #file: string;

  /** `file` is the name that the float weights get. */
  constructor(source: GraphFiles, file: string) {
    this.#source = source;
    this.#file = file;
    const graph = graphOf(source.graph);
    this.#products = productsOf(graph);
    this.#tensors = new Map([...graph.children(GRAPH_INITIALIZER)].map((tensor) => [one(tensor, TENSOR_NAME), tensor]));
    let end = 0;
    for (const { data, rows, columns } of this.#products) {
      if (this.#begins.has(data)) continue;
      this.#begins.set(data, end);
      end = Math.ceil((end + 4 * rows * columns) / PAGE) * PAGE;
    }
    this.#made = new Uint8Array(end);
  }

  files(): GraphFiles {
    const parts: Uint8Array[] = [];
    for (const { number: field, form, content, whole } of new Message(this.#source.graph).members()) {
      parts.push(...(field === MODEL_GRAPH && form === BYTES ? member(field, this.#graph(content)) : [whole]));
    }
    return { graph: joined(parts), weights: new Map([...this.#source.weights, [this.#file, this.#made]]) };
  }

  /** The parts of the new graph. */
  #graph(graph: Message): Uint8Array[] {
    const byStart = new Map(this.#products.map((product) => [product.node.start, product]));
    const spent = this.#spent(graph);
    const parts: Uint8Array[] = [];
    for (const { number: field, form, content, whole } of graph.members()) {
      const product = field === GRAPH_NODE && form === BYTES ? byStart.get(content.start) : undefined;
      if (product) parts.push(...nodes(product));
      else if (field !== GRAPH_INITIALIZER || !spent.has(one(content, TENSOR_NAME))) parts.push(whole);
    }
    const matrices = new Map(this.#products.map((product) => [product.data, product]));
    for (const product of matrices.values()) parts.push(...member(GRAPH_INITIALIZER, this.#matrix(product)));
    return parts;
  }

  /** Integers and scales that nothing else reads. */
  #spent(graph: Message): Set<string> {
    const spent = new Set(this.#products.flatMap(({ data, scales }) => [data, scales]));
    const starts = new Set(this.#products.map(({ node }) => node.start));
    for (const node of graph.children(GRAPH_NODE)) {
      if (starts.has(node.start)) continue;
      for (const input of node.children(NODE_INPUT)) spent.delete(input.text);
    }
    return spent;
  }

  /** The tensor (columns, rows) of a product's weights, whose numbers are made here. */
  #matrix(product: Product): Uint8Array[] {
    const { data, rows, columns } = product;
    const begin = this.#begins.get(data) as number;
    this.#fill(new Float32Array(this.#made.buffer, begin, rows * columns), product);
    const place = { location: this.#file, offset: `${begin}`, length: `${4 * rows * columns}` };
    return [
      ...number(TENSOR_DIMS, columns),
      ...number(TENSOR_DIMS, rows),
      ...number(TENSOR_TYPE, FLOAT),
      ...member(TENSOR_NAME, weightOf(data)),
      ...Object.entries(place).flatMap(([key, value]) =>
        member(TENSOR_EXTERNAL, [...member(ENTRY_KEY, key), ...member(ENTRY_VALUE, value)]),
      ),
      ...number(TENSOR_PLACE, EXTERNAL),
    ];
  }

  /** Each weight is scale * (integer - 2^(bits - 1)); a row of integers is padded to whole blocks. */
  #fill(made: Float32Array, { data, scales, rows, columns, bits, blockSize }: Product): void {
    const integers = this.#content(data, UINT8);
    const factors = new Float32Array(this.#content(scales, FLOAT).slice().buffer);
    const perByte = 8 / bits;
    const blocks = Math.ceil(columns / blockSize);
    const width = (blocks * blockSize) / perByte; // bytes of a row
    if (!Number.isInteger(width) || factors.length !== rows * blocks || integers.length !== rows * width) {
      throw new SyntaxError(`a ${PRODUCT} of other sizes than its weights`);
    }
    const mask = 2 ** bits - 1;
    const zero = 2 ** (bits - 1);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const byte = integers[row * width + Math.floor(column / perByte)] as number;
        const integer = (byte >> ((column % perByte) * bits)) & mask;
        const scale = factors[row * blocks + Math.floor(column / blockSize)] as number;
        made[column * rows + row] = scale * (integer - zero);
      }
    }
  }

  /** A tensor's bytes, a view of the file that they lie in. */
  #content(name: string, type: number): Uint8Array {
    const tensor = this.#tensors.get(name);
    if (!tensor) throw new SyntaxError(`a ${PRODUCT} without its weights`);
    const [kind] = tensor.integers(TENSOR_TYPE);
    if (kind !== type) throw new SyntaxError("a tensor of another type");
    const size = [...tensor.integers(TENSOR_DIMS)].reduce((product, dim) => product * dim, type === FLOAT ? 4 : 1);
    const entries = [...tensor.children(TENSOR_EXTERNAL)];
    const place = Object.fromEntries(entries.map((entry) => [one(entry, ENTRY_KEY), one(entry, ENTRY_VALUE)]));
    const bytes = entries.length ? this.#external(place) : tensor.children(TENSOR_RAW).next().value?.bytes;
    if (bytes?.length !== size) throw new SyntaxError("a tensor of another size");
    return bytes;
  }

  #external(place: Record<string, string>): Uint8Array | undefined {
    const [offset, length] = [Number(place.offset), Number(place.length)];
    return this.#source.weights.get(`${place.location}`)?.subarray(offset, offset + length);
  }
}

function graphOf(data: Uint8Array): Message {
  const [graph, another] = new Message(data).children(MODEL_GRAPH);
  if (!graph || another) throw new SyntaxError("another number of graphs than one");
  return graph;
}

function productsOf(graph: Message): Product[] {
  const products = [...graph.children(GRAPH_NODE)].filter((node) => one(node, NODE_OPERATOR) === PRODUCT).map(productOf);
  const matrices = new Map<string, string>();
  for (const product of products) {
    const meaning = JSON.stringify([product.scales, product.rows, product.columns, product.bits, product.blockSize]);
    // One float matrix is made for the integers of one name.
    if ((matrices.get(product.data) ?? meaning) !== meaning) {
      throw new SyntaxError(`integers that two ${PRODUCT} take for other weights`);
    }
    matrices.set(product.data, meaning);
  }
  return products;
}

function productOf(node: Message): Product {
  const [x = "", data = "", scales = "", ...more] = [...node.children(NODE_INPUT)].map((input) => input.text);
  const numbers = new Map<string, number>();
  for (const attribute of node.children(NODE_ATTRIBUTE)) {
    for (const value of attribute.integers(ATTRIBUTE_INTEGER)) numbers.set(one(attribute, ATTRIBUTE_NAME), value);
  }
  const [rows = 0, columns = 0, bits = 0, blockSize = 0] = ["N", "K", "bits", "block_size"].map((name) => numbers.get(name));
  const known = rows > 0 && columns > 0 && blockSize > 0 && [2, 4, 8].includes(bits) && data !== "" && scales !== "";
  if (!known || more[0] || more[1] || more.length > 3) throw new SyntaxError(`a ${PRODUCT} in a form of its own`); // zero points
  const [name, output] = [one(node, NODE_NAME), one(node, NODE_OUTPUT)];
  return { node, name, x, data, scales, bias: more[2] ?? "", output, rows, columns, bits, blockSize };
}

/** The same in float. */
function nodes({ name, x, data, bias, output }: Product): Uint8Array[] {
  const product = bias ? `${output}.product` : output;
  const first = node("MatMul", name, [x, weightOf(data)], product);
  return bias ? [...first, ...node("Add", `${name}.bias`, [product, bias], output)] : first;
}

function node(operator: string, name: string, inputs: readonly string[], output: string): Uint8Array[] {
  return member(GRAPH_NODE, [
    ...inputs.flatMap((input) => member(NODE_INPUT, input)),
    ...member(NODE_OUTPUT, output),
    ...member(NODE_NAME, name),
    ...member(NODE_OPERATOR, operator),
  ]);
}

function weightOf(data: string): string {
  return `${data}.float`;
}

/** The only text of one number. */
function one(message: Message, field: number): string {
  const [text, another] = message.children(field);
  if (!text || another) throw new SyntaxError("a name that is not there once");
  return text.text;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
