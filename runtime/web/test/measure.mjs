// Tokens a second over a bundle: node measure.mjs BUNDLE cpu|wasm|wasm-stored|bare TOKENS. `bare` is onnxruntime-web alone, in a loop
// that hands its outputs on and does nothing else.
import { readFileSync } from "node:fs";
import { load } from "../dist/index.js";

const [bundle, how, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const WARM = 16;

async function ours(provider, options) {
  const model = await load(bundle, { provider, threads: 1, ...options });
  const session = model.session();
  return (id) => session.step(id);
}

/** Every input but the ids is a state, which begins with zeros; what it gives is taken as it comes. */
async function bare() {
  const ort = await import("onnxruntime-web/wasm");
  ort.env.wasm.numThreads = 1;
  const file = "model.onnx.data";
  const externalData = [{ path: file, data: new Uint8Array(readFileSync(`${bundle}/${file}`)) }];
  const inference = await ort.InferenceSession.create(new Uint8Array(readFileSync(`${bundle}/model.onnx`)), { externalData });
  let states = {};
  for (const { name, shape } of inference.inputMetadata.filter(({ name }) => name.startsWith("past."))) {
    const dims = shape.map((size) => (typeof size === "number" ? size : 1));
    states[name] = new ort.Tensor("float32", new Float32Array(dims.reduce((product, size) => product * size, 1)), dims);
  }
  return async (id) => {
    const input = new ort.Tensor("int64", BigInt64Array.from([BigInt(id)]), [1, 1]);
    const { logits, ...present } = await inference.run({ input_ids: input, ...states });
    states = Object.fromEntries(Object.entries(present).map(([name, tensor]) => [name.replace("present.", "past."), tensor]));
    return logits.data;
  };
}

const MAKERS = {
  cpu: () => ours("cpu"),
  wasm: () => ours("wasm"),
  "wasm-stored": () => ours("wasm", { floatWeights: false }),
  bare,
};
const step = await MAKERS[how]();
for (let id = 0; id < WARM; id++) await step(id);
const begin = performance.now();
for (let id = 0; id < count; id++) await step(id % 100);
console.log((count / (performance.now() - begin)) * 1000);
process.exit(0); // onnxruntime's threads wait for nothing
