/**
 * The kinds of tokenizer.json that are taken: those for which @huggingface/tokenizers 0.2 gives the ids of Python's library,
 * as the tests show on each. Anything else is refused by name; decoders are written out in `tokenDecoders`.
 */

import { BundleError, shown } from "./errors.js";
import { Fraction, type Json, type JsonObject } from "./json.js";
import { steps } from "./tokenizerLimits.js";

const MODELS = ["BPE", "Unigram"];
const NORMALIZERS = ["NFC", "NFD", "NFKC", "NFKD", "Replace", "Prepend", "Sequence"];
const PRE_TOKENIZERS = ["ByteLevel", "Metaspace", "Split", "Sequence"];
const POST_PROCESSORS = ["ByteLevel", "TemplateProcessing", "Sequence"];
const DECODERS = ["ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace", "BPEDecoder", "Sequence"];
const MARK = "\u2581";

/** BundleError for a tokenizer.json that would give other ids or texts than in Python. */
export function checkKinds(document: JsonObject): void {
  checkModel(document.get("model") as JsonObject);
  checkSteps(document, "normalizer", NORMALIZERS);
  checkSteps(document, "pre_tokenizer", PRE_TOKENIZERS);
  checkSteps(document, "post_processor", POST_PROCESSORS);
  checkSteps(document, "decoder", DECODERS);
  for (const step of steps(document.get("pre_tokenizer"))) checkPreTokenizer(step, document.get("model") as JsonObject);
  for (const step of steps(document.get("decoder"))) {
    const pattern = step.get("pattern");
    if (step.get("type") === "Replace" && !(pattern instanceof Map && typeof pattern.get("String") === "string")) {
      throw refused("a decoder that replaces strings", "one of expressions");
    }
  }
  checkAdded(document);
}

function checkModel(model: JsonObject): void {
  const type = model.get("type");
  if (!MODELS.includes(type as string)) throw refused(`a model of ${MODELS.join(", ")}`, shown(type));
  const bytes = model.get("byte_fallback") === true;
  if (type === "Unigram" && (bytes || typeof model.get("unk_id") !== "number")) {
    throw refused("a Unigram model with an unknown token and without bytes", "another");
  }
  for (const key of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model.get(key)) throw refused(`a model without ${key}`, "one with it");
  }
}

function checkSteps(document: JsonObject, section: string, known: readonly string[]): void {
  for (const step of steps(document.get(section))) {
    const type = step.get("type");
    if (!known.includes(type as string)) throw refused(`a ${section} of ${known.join(", ")}`, shown(type));
  }
}

function checkPreTokenizer(step: JsonObject, model: JsonObject): void {
  const type = step.get("type");
  if (type === "Split") {
    const how = `${step.get("behavior")} ${step.get("invert")}`;
    if (!["Isolated false", "Removed false", "Removed true"].includes(how)) {
      throw refused("a pre_tokenizer that splits into isolated or removed parts", shown(how));
    }
  }
  // The library does not cut a text at the marks of its words: the same where no token reaches over one.
  if (type === "Metaspace" && step.get("split") !== false && words(model).some((word) => word.indexOf(MARK, 1) > 0)) {
    throw refused("a Metaspace whose tokens are parts of words", "tokens that reach over a space");
  }
  if (type === "Metaspace" && step.get("replacement") !== MARK) {
    throw refused(`a Metaspace that writes ${MARK}`, shown(step.get("replacement")));
  }
}

function words(model: JsonObject): string[] {
  const vocabulary = model.get("vocab");
  if (vocabulary instanceof Map) return [...vocabulary.keys()];
  return (Array.isArray(vocabulary) ? vocabulary : []).map((entry) => (Array.isArray(entry) ? String(entry[0]) : ""));
}

function checkAdded(document: JsonObject): void {
  const tokens = document.get("added_tokens");
  for (const token of Array.isArray(tokens) ? tokens : []) {
    if (!(token instanceof Map)) continue; // refused where they are read
    const odd = ["single_word", "lstrip", "rstrip"].find((key) => token.get(key) === true);
    if (odd !== undefined) throw refused(`added tokens without ${odd}`, shown(token.get("content")));
  }
}

function refused(wanted: string, got: string): BundleError {
  return new BundleError(
    `expected a tokenizer that gives the same ids as in Python, with ${wanted}, got ${got}; ` +
      "encode the text with the Python runtime",
  );
}

/** A document as plain objects, for a library that takes those. */
export function plain(value: Json): unknown {
  if (value instanceof Fraction) return value.value;
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "bigint") return Number(value);
  if (!(value instanceof Map)) return value;
  return Object.fromEntries(Array.from(value, ([key, member]) => [key, plain(member)]));
}

/** What a pre-tokenizer of the library looks like from here. */
interface PreTokenizer {
  pattern?: RegExp;
  use_regex?: boolean;
  tokenizers?: PreTokenizer[];
}

/**
 * The library cuts byte-level texts with JavaScript's \s, which has U+FEFF and lacks U+0085; the pattern of the training has
 * Unicode's white space.
 */
export function mendSpaces(preTokenizer: PreTokenizer | null | undefined): void {
  if (!preTokenizer) return;
  if (preTokenizer.use_regex === true && preTokenizer.pattern) preTokenizer.pattern = BYTE_LEVEL;
  preTokenizer.tokenizers?.forEach(mendSpaces);
}

const WORDS = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+`;
const SPACES = String.raw`\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`;
const BYTE_LEVEL = new RegExp(`${WORDS}|${SPACES}`, "gu");
