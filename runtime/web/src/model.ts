/** The model that users hold: weights loaded once, any number of streams made of it. */

import { InputError, typeName } from "./errors.js";
import { checkFlags, givenOptions } from "./given.js";
import type { Manifest } from "./manifest.js";
import type { Graph } from "./opening.js";
import { type GenerationOptions, type ResolvedOptions, resolveOptions } from "./options.js";
import { Session } from "./session.js";
import { type TextOptions, TextStream, textRun } from "./text.js";
import { encodeText, loadTokenizer, type Tokenizer, type TokenizersModule } from "./tokenizer.js";

/** A loaded bundle; made by `load`. Any number of its sessions may be in use side by side. */
export class Model {
  readonly vocabSize: number;
  /** Number of tokens of one call of the graph while prefilling. */
  readonly chunk: number;
  /** Whether the graph takes one token a call: a second graph for prompts is not used here. */
  readonly singly: boolean;
  #tokenizer: Promise<Tokenizer> | undefined;
  readonly #document: Uint8Array | null;

  /** `document` is the content of the tokenizer's file, where there is one. */
  constructor(
    readonly manifest: Manifest,
    readonly graph: Graph,
    document: Uint8Array | null,
    readonly tokenizers?: TokenizersModule,
  ) {
    this.vocabSize = manifest.model.vocabSize as number;
    this.chunk = manifest.graph.chunk;
    this.singly = manifest.graph.prompt !== null;
    this.#document = document;
  }

  /** A new stream in the zero state. */
  session(): Session {
    this.graph.checkHeld();
    return new Session(this);
  }

  /**
   * Text pieces that continue a prompt, from a fresh session; `stream.finish` says how it ended. Bad options throw here, a bad
   * prompt at the first piece. Greedy unless the bundle or you say otherwise.
   */
  stream(prompt: string, options: TextOptions = {}): TextStream {
    this.graph.checkHeld();
    const run = textRun(this, options);
    return new TextStream(alone(this, (session) => run(session, prompt)));
  }

  /** The bundle's tokenizer, made when it is first asked for; InputError if it has none. */
  async tokenizer(): Promise<Tokenizer> {
    const { kind } = this.manifest.tokenizer;
    if (kind === "none") {
      throw new InputError("expected a bundle with a tokenizer, got one without; pass token ids to session.generate");
    }
    this.#tokenizer ??= loadTokenizer(kind, this.#document, this.tokenizers);
    return this.#tokenizer;
  }

  /**
   * Token ids of a prompt, special tokens of the tokenizer's post-processor included; a model that wants a bos token which its
   * tokenizer does not add gets it. `start` false is for text in the middle of a stream: nothing is added.
   */
  async encode(prompt: string, options: { start?: boolean } = {}): Promise<number[]> {
    const given = givenOptions(options, ["start"]);
    checkFlags(given, "start");
    const { start = true } = given;
    if (typeof prompt !== "string" || /\p{Cs}/u.test(prompt)) {
      const got = typeof prompt === "string" ? "half of one" : typeName(prompt);
      throw new InputError(`expected a prompt of whole characters, got ${got}; pass text`);
    }
    const { bos, addBos } = this.manifest.specialTokens;
    return encodeText(await this.tokenizer(), prompt, this.vocabSize, { bos: addBos ? bos : null, start });
  }

  /** Text of ids; special tokens and ids that the tokenizer does not know are left out. */
  async decode(ids: readonly number[]): Promise<string> {
    if (typeof ids !== "object" || ids === null || !(Symbol.iterator in ids)) {
      throw new InputError(`expected a list of token ids to decode, got ${typeName(ids)}; pass integers`);
    }
    return (await this.tokenizer()).decode([...ids]);
  }

  /** Options over the bundle's sampling defaults and stop ids; InputError for bad ones. */
  resolve(options: GenerationOptions): ResolvedOptions {
    return resolveOptions(options, this.manifest.sampling, this.manifest.specialTokens.stop);
  }

  /**
   * Give the weights' memory back, after what a session is just computing; no session of this model can be used any more. A second
   * time does nothing.
   */
  async dispose(): Promise<void> {
    await this.graph.release();
  }
}

/** Events of a session that nobody else holds; made when the first one is asked for, as a stream may be left before it. */
async function* alone<Event>(
  model: Model,
  run: (session: Session) => AsyncGenerator<Event, void, undefined>,
): AsyncGenerator<Event, void, undefined> {
  const session = model.session();
  try {
    yield* run(session);
  } finally {
    session.dispose();
  }
}
