/**
 * What a graph file reads besides itself, what it computes with, and how many tokens of one call it is exact for.
 *
 * ONNX keeps large tensors in other files, named by `external_data` entries with the key `location`. Every name must be a
 * file of the manifest. The message is walked as far as the initializers, and then counted: the word `location` may stand in
 * the file nowhere else. Operators come from a closed list.
 */

import { BundleError, shown } from "./errors.js";
import { BYTES, indexOf, Message } from "./protobuf.js";

export const LARGEST_GRAPH = 64 << 20;
const WORD = ascii("location");
const ENTRY = ascii("\n\u0008location\u0012"); // key = "location", then the tag of the value
const KERNEL = ascii("kernel_shape");
const POOL = ascii("MaxPool");
const LONGEST_NAME = 127; // of which the length is one byte
// Field numbers of onnx.proto
const MODEL_GRAPH = 7;
const MODEL_FUNCTION = 25;
const GRAPH_NODE = 1;
const GRAPH_INITIALIZER = 5;
const TENSOR_EXTERNAL = 13;
const NODE_OPERATOR = 4;
const NODE_ATTRIBUTE = 5;
const ATTRIBUTE_NAME = 1;
const ATTRIBUTE_INTS = 8;
const ATTRIBUTE_GRAPHS = [6, 11];
const DEEPEST = 4;
const OPERATORS = new Set(
  `Abs Add CausalConvWithState Concat Conv CumSum DequantizeLinear Div Erf Exp FusedMatMul Gather GatherBlockQuantized
  GatherND Gelu Gemm Identity LayerNormalization LinearAttention Log MatMul MatMulNBits Max MaxPool Mul Neg Pow
  QuantizeLinear QuickGelu RMSNormalization ReduceMax ReduceMean Relu Reshape Scan Selu Sigmoid SkipLayerNormalization
  SkipSimplifiedLayerNormalization Slice Softplus Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze BiasGelu Cast Clip FastGelu
  FusedConv FusedGemm HardSigmoid LeakyRelu NhwcFusedConv NhwcMaxPool ReorderInput ReorderOutput SimplifiedLayerNormalization
  Softmax`.split(/\s+/),
);

/** BundleError unless the graph reads only `files` beside it and takes calls of `chunk` tokens. */
export function checkGraphFile(data: Uint8Array, name: string, files: ReadonlyMap<string, unknown>, chunk: number): void {
  const { locations, operators, windows } = parts(data, name);
  const unlisted = locations.filter((file) => !files.has(file)).sort()[0];
  if (unlisted !== undefined) {
    throw new BundleError(
      `expected ${name} to read only files that are listed, got ${shown(unlisted)}; do not trust this bundle`,
    );
  }
  const unknown = operators.filter((operator) => !OPERATORS.has(operator)).sort()[0];
  if (unknown !== undefined) {
    throw new BundleError(
      `expected ${name} to compute with an xLSTM's operators, got ${shown(unknown)}; do not trust this bundle`,
    );
  }
  const exact = Math.min(...windows) - 1;
  if (exact < chunk) {
    throw new BundleError(
      `expected a chunk of at most ${exact} tokens, which the graph is exact for, got ${chunk}; export the bundle again`,
    );
  }
}

function parts(data: Uint8Array, name: string): { locations: string[]; operators: string[]; windows: number[] } {
  try {
    const model = new Message(data);
    return { locations: externalFiles(model), operators: operatorsOf(model), windows: [...windowsOf(model)] };
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new BundleError(`expected ${name} to be an ONNX graph, got ${error.message}; export the bundle again`);
  }
}

/** Names of the files that the tensors lie in; SyntaxError if that cannot be said for certain. */
function externalFiles(model: Message): string[] {
  const names: string[] = [];
  for (const graph of model.children(MODEL_GRAPH)) {
    for (const tensor of graph.children(GRAPH_INITIALIZER, WORD)) {
      for (const entry of tensor.children(TENSOR_EXTERNAL, WORD)) names.push(location(entry.bytes));
    }
  }
  let words = 0;
  for (let at = indexOf(model.data, WORD); at >= 0; at = indexOf(model.data, WORD, at + WORD.length)) words++;
  if (words !== names.length) throw new SyntaxError("external data in a place of its own");
  return names;
}

/** The value of an entry that holds the key, the value and nothing else. */
function location(entry: Uint8Array): string {
  const value = entry.subarray(ENTRY.length + 1);
  const begins = ENTRY.every((byte, i) => entry[i] === byte);
  if (!begins || value.length > LONGEST_NAME || entry[ENTRY.length] !== value.length) {
    throw new SyntaxError("external data in a form of its own");
  }
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
}

/** The operators, those of graphs inside attributes too; SyntaxError for functions of the model's own. */
function operatorsOf(model: Message): string[] {
  const names: string[] = [];
  for (const { number, form, content } of model.members()) {
    if (number === MODEL_FUNCTION) throw new SyntaxError("functions of its own");
    if (number === MODEL_GRAPH && form === BYTES) operatorsOfGraph(content, DEEPEST, names);
  }
  return names;
}

function operatorsOfGraph(graph: Message, depth: number, names: string[]): void {
  if (!depth) throw new SyntaxError("graphs in graphs in graphs");
  for (const node of graph.children(GRAPH_NODE)) {
    for (const { number, form, content } of node.members()) {
      if (form !== BYTES) continue;
      if (number === NODE_OPERATOR) names.push(content.text.slice(0, LONGEST_NAME));
      if (number !== NODE_ATTRIBUTE) continue;
      for (const inner of content.members()) {
        if (ATTRIBUTE_GRAPHS.includes(inner.number) && inner.form === BYTES) operatorsOfGraph(inner.content, depth - 1, names);
      }
    }
  }
}

/** How many tokens back each MaxPool, which is a running maximum here, reaches, itself included. */
function* windowsOf(model: Message): Generator<number> {
  for (const graph of model.children(MODEL_GRAPH)) {
    for (const node of graph.children(GRAPH_NODE, POOL)) {
      const operators = [...node.children(NODE_OPERATOR)].map((operator) => operator.text);
      for (const attribute of node.children(NODE_ATTRIBUTE, KERNEL)) {
        const names = [...attribute.children(ATTRIBUTE_NAME)].map((name) => name.text);
        if (operators.join() !== "MaxPool" || names.join() !== "kernel_shape") continue;
        for (const size of attribute.integers(ATTRIBUTE_INTS)) {
          yield size;
          break;
        }
      }
    }
  }
}

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}
