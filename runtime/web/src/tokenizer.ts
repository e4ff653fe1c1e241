/**
 * Text <-> token ids: raw bytes, and tokenizer.json through @huggingface/tokenizers, which is imported when it is first needed.
 * Only those kinds of tokenizer.json are taken for which that library gave the ids and texts that Python's gives
 * (`tokenizerKinds` says which); `decode` has the streaming side.
 */

import { ByteStream, type DecodeStream, reach, WindowStream } from "./decode.js";
import { BundleError, DependencyError, InputError, reason, shown } from "./errors.js";
import type { Json, JsonObject } from "./json.js";
import { parseJson } from "./reading.js";
import { bytesOf, tokenDecoder } from "./tokenDecoders.js";
import { checkKinds, mendSpaces, plain } from "./tokenizerKinds.js";
import { checkGrowth } from "./tokenizerLimits.js";

const BYTES = 256;
const NAME = "tokenizer.json";

/** Text <-> ids. */
export interface Tokenizer {
  /** Number of ids, added tokens included. */
  readonly vocabSize: number;
  /** Tokens that are found in text before it is cut into others (special or not), and their ids. */
  readonly added: ReadonlyMap<string, number>;
  /** Whether the tokenizer itself puts a special token in front of a text. */
  readonly beginsTexts: boolean;
  /** Ids of a text; `special` false leaves out what the tokenizer puts around a text. */
  encode(text: string, special?: boolean): number[];
  /** Text of ids; special tokens and ids that the tokenizer does not know are left out. */
  decode(ids: readonly number[]): string;
  /** The text of a special token, which `decode` leaves out; nothing for any other id. */
  specialText(id: number): string;
  /** A fresh decoder for what follows these ids. */
  stream(prompt?: readonly number[]): DecodeStream;
}

/** Id = byte of the UTF-8 text. */
export class ByteTokenizer implements Tokenizer {
  readonly vocabSize = BYTES;
  readonly beginsTexts = false;
  readonly added: ReadonlyMap<string, number> = new Map();

  encode(text: string): number[] {
    return [...new TextEncoder().encode(text)];
  }

  decode(ids: readonly number[]): string {
    return decoded(this.stream(), ids);
  }

  specialText(): string {
    return "";
  }

  stream(prompt: readonly number[] = []): DecodeStream {
    return new ByteStream((id) => (id >= 0 && id < BYTES ? [id] : []), prompt);
  }
}

/** As much of the library as is used. */
interface Library {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  id_to_token(id: number): string | undefined;
  get_vocab(withAdded: boolean): Map<string, number>;
  readonly normalizer: ((text: string) => string) | null;
  readonly pre_tokenizer: Parameters<typeof mendSpaces>[0];
}

/** A tokenizer.json of a kind that is known to give the same ids as in Python. */
export class HuggingFaceTokenizer implements Tokenizer {
  readonly added = new Map<string, number>();
  readonly beginsTexts: boolean;
  readonly vocabSize: number;
  readonly #library: Library;
  readonly #special = new Map<number, string>();
  readonly #normalized = new Map<number, string>();
  readonly #decoder: (tokens: string[]) => string;
  readonly #bytewise: boolean;
  readonly #byteFallback: boolean;
  readonly #reach: number;

  constructor(document: JsonObject, library: Library) {
    this.#library = library;
    mendSpaces(library.pre_tokenizer);
    const decoder = document.get("decoder");
    this.#decoder = tokenDecoder(decoder instanceof Map ? decoder : null);
    this.#bytewise = decoder instanceof Map && decoder.get("type") === "ByteLevel";
    this.#byteFallback = JSON.stringify(plain(decoder ?? null)).includes('"ByteFallback"');
    this.#reach = decoder instanceof Map ? reach(decoder) : 0;
    this.vocabSize = library.get_vocab(true).size;
    for (const token of addedTokens(document)) {
      this.added.set(token.content, token.id);
      if (token.special) this.#special.set(token.id, token.content);
      // Python's library knows such a token by what its normalizer makes of it.
      else if (token.normalized && library.normalizer) this.#normalized.set(token.id, library.normalizer(token.content));
    }
    // By a trial: what is in front of the text's own ids came from the post-processor.
    const [own, whole] = [this.encode("a", false), this.encode("a", true)];
    this.beginsTexts = whole[0] !== own[0] && whole.length > own.length;
  }

  encode(text: string, special = true): number[] {
    const ids = this.#ids(text, special);
    if (ids.every(Number.isInteger)) return ids;
    throw new InputError("expected text of characters that the tokenizer knows, got another; leave it out");
  }

  #ids(text: string, special: boolean): number[] {
    try {
      return this.#library.encode(text, { add_special_tokens: special }).ids;
    } catch (error) {
      throw new BundleError(`expected ${NAME} to encode any text, got ${reason(error)}; use the one of the training`, {
        cause: error,
      });
    }
  }

  decode(ids: readonly number[]): string {
    return this.#bytewise ? decoded(this.stream(), ids) : this.#decode(ids.filter((id) => this.#textOf(id) !== null));
  }

  specialText(id: number): string {
    return this.#special.get(id) ?? "";
  }

  stream(prompt: readonly number[] = []): DecodeStream {
    if (this.#bytewise) return new ByteStream((id) => bytesOf(this.#textOf(id) ?? ""), prompt);
    const options = { byteFallback: this.#byteFallback, reach: this.#reach };
    return new WindowStream(
      (id) => this.#textOf(id),
      (ids) => this.#decode(ids),
      prompt,
      options,
    );
  }

  #decode(ids: readonly number[]): string {
    return this.#decoder(ids.map((id) => this.#textOf(id) ?? ""));
  }

  /** A token's own text; null if text leaves it out. */
  #textOf(id: number): string | null {
    return this.#special.has(id) ? null : (this.#normalized.get(id) ?? this.#library.id_to_token(id) ?? null);
  }
}

interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly normalized: boolean;
}

function addedTokens(document: JsonObject): AddedToken[] {
  const tokens: Json = document.get("added_tokens") ?? [];
  return (Array.isArray(tokens) ? tokens : []).map((token) => {
    const [id, content, special] = token instanceof Map ? ["id", "content", "special"].map((key) => token.get(key)) : [];
    if (typeof id !== "number" || typeof content !== "string" || typeof special !== "boolean") {
      throw new BundleError(`expected added tokens with id, content and special in ${NAME}, got others; copy it again`);
    }
    return { id, content, special, normalized: (token as JsonObject).get("normalized") === true };
  });
}

function decoded(stream: DecodeStream, ids: readonly number[]): string {
  return ids.map((id) => stream.push(id)).join("") + stream.flush();
}

/**
 * Ids for a model: the tokenizer's, with `bos` in front where the tokenizer puts nothing there itself. `start` false is for
 * text in the middle of a stream: nothing is added. InputError for an id the model does not have.
 */
export function encodeText(
  tokenizer: Tokenizer,
  text: string,
  vocabSize: number,
  { bos = null, start = true }: { bos?: number | null; start?: boolean } = {},
): number[] {
  const ids = tokenizer.encode(text, start);
  if (start && bos !== null && ids[0] !== bos && !tokenizer.beginsTexts) ids.unshift(bos);
  const outside = ids.find((id) => id >= vocabSize);
  if (outside !== undefined) {
    throw new InputError(
      `expected text of the model's ${vocabSize} tokens, got the tokenizer's id ${outside}, which the model does not have; ` +
        "leave that token out",
    );
  }
  return ids;
}

/** Make the tokenizer of this kind; BundleError for a damaged file, DependencyError without the library. */
export async function loadTokenizer(
  kind: "byte" | "huggingface",
  content: Uint8Array | null,
  tokenizers?: TokenizersModule,
): Promise<Tokenizer> {
  if (kind === "byte") return new ByteTokenizer();
  const document = parseJson(content ?? "", NAME, "copy it again");
  if (!(document instanceof Map) || !(document.get("model") instanceof Map)) {
    throw new BundleError(`expected ${NAME} with a model, got none; use the tokenizer of the training`);
  }
  checkGrowth(document);
  checkKinds(document);
  const { Tokenizer: Library } = tokenizers ?? (await importLibrary());
  try {
    return new HuggingFaceTokenizer(document, new Library(plain(document) as object, {}) as unknown as Library);
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError(`expected ${NAME} to be a tokenizer, got ${reason(error)}; use the one of the training`, {
      cause: error,
    });
  }
}

/** The namespace of @huggingface/tokenizers. */
export interface TokenizersModule {
  readonly Tokenizer: new (document: object, config: object) => unknown;
}

/** InputError for a module that is not it. */
export function checkTokenizers(module: unknown): void {
  if (typeof (Object(module) as Partial<TokenizersModule>).Tokenizer !== "function") {
    throw new InputError(`expected tokenizers as the module @huggingface/tokenizers, got ${shown(module)}; import it`);
  }
}

async function importLibrary(): Promise<TokenizersModule> {
  try {
    return await import("@huggingface/tokenizers");
  } catch (error) {
    throw new DependencyError(
      "expected the package @huggingface/tokenizers for this bundle's text, got none; npm install @huggingface/tokenizers",
      { cause: error },
    );
  }
}
