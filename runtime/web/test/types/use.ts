// What an app in TypeScript writes; `types.test.mjs` compiles it.
import * as tokenizers from "@huggingface/tokenizers";
import * as onnxruntimeNode from "onnxruntime-node";
import * as onnxruntime from "onnxruntime-web/wasm";
import { load, type Session, streamText, type TextStream, XlstmEdgeError } from "xlstm-edge";
import { connect, serve } from "xlstm-edge/worker";

export async function page(files: FileList, signal: AbortSignal): Promise<string> {
  const model = await load(files, {
    provider: "webgpu",
    onnxruntime,
    tokenizers,
    signal,
    onProgress: (a, b) => console.log(a / b),
  });
  const stream: TextStream = model.stream("To be", { maxTokens: 3, stop: ["\n"], logitBias: { 3: 2 }, seed: 5n, signal });
  let text = "";
  for await (const piece of stream) text += piece;
  return text + (stream.finish?.usage.generatedTokens ?? 0);
}

export async function node(): Promise<Float32Array> {
  const session: Session = (await load("bundle", { onnxruntime: onnxruntimeNode })).session();
  for await (const event of streamText(session, "x")) console.log(event.type === "finish" ? event.reason : event.text.length);
  for await (const event of session.generate([1])) console.log(event.type === "finish" ? event.reason : event.id + event.index);
  const bytes: Uint8Array = await session.save({ dtype: "float16" });
  await session.load(bytes);
  return session.step(4);
}

export async function worker(): Promise<void> {
  serve({ onnxruntime, tokenizers });
  const session = await (await connect(new Worker("x")).load("/bundle/")).session();
  const logits: Float32Array = await session.prefill([1, 2]);
  console.log(logits.length, XlstmEdgeError.name);
  // @ts-expect-error: options are closed, for types too
  session.generate([1], { max_tokens: 3 });
}
