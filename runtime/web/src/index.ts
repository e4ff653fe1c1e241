/**
 * Stream xLSTM bundles in browsers and Node.
 *
 *     const model = await load("https://host/bundle/");
 *     for await (const piece of model.stream("To be", { maxTokens: 64 })) out(piece);
 */

export {
  BundleError,
  CancelledError,
  DependencyError,
  InputError,
  StateError,
  VerificationError,
  XlstmEdgeError,
} from "./errors.js";
export type { Finish, FinishReason, Timings, Token, TokenEvent, Usage } from "./generate.js";
export { type LoadOptions, load } from "./loading.js";
export type { Manifest } from "./manifest.js";
export type { Model } from "./model.js";
export type { OnnxRuntime, Provider } from "./onnxruntime.js";
export type { GenerationOptions } from "./options.js";
export { Sampler, type SamplingOptions } from "./sampling.js";
export type { Session } from "./session.js";
export type { SnapshotDtype } from "./snapshot.js";
export { type Piece, streamText, type TextEvent, type TextOptions, type TextStream } from "./text.js";
export type { Tokenizer, TokenizersModule } from "./tokenizer.js";
