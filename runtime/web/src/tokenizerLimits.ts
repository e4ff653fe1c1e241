/**
 * How much longer a tokenizer.json may make a text: a small file must not turn a prompt into gigabytes. The steps that lengthen
 * a text are walked and multiplied out; tokenizers that people use come to 20 or so, a file made to fill memory to millions.
 */

import { BundleError } from "./errors.js";
import type { Json, JsonObject } from "./json.js";

const MOST_GROWTH = 1000; // times as many characters
const MOST_ADDED = 10_000; // characters or ids beside those of the text
const LONGEST_MARK = 256; // characters of a prefix or suffix that a model adds to each piece
const LONGEST_WORD = 100_000; // characters that WordPiece tries as one word
const MARKS = ["continuing_subword_prefix", "end_of_word_suffix", "unk_token"];
const SEQUENCES = ["normalizers", "decoders", "pretokenizers", "processors"];

/** BundleError for a tokenizer.json that could make a text, or a text's ids, very much longer. */
export function checkGrowth(document: JsonObject): void {
  for (const section of ["normalizer", "decoder"]) {
    let scale = 1;
    let added = 0;
    for (const step of steps(document.get(section))) {
      const [factor, more] = growth(step);
      scale *= factor;
      added = added * factor + more;
      if (scale > MOST_GROWTH || added > MOST_ADDED) {
        throw refused(`a ${section} that makes texts at most ${MOST_GROWTH} times as long`);
      }
    }
  }
  const ids = [...steps(document.get("post_processor"))].reduce((sum, step) => sum + templateIds(step), 0);
  if (ids > MOST_ADDED) throw refused(`a post_processor of at most ${MOST_ADDED} ids`);
  const model = document.get("model");
  if (!(model instanceof Map)) return;
  if (MARKS.some((key) => lengthOf(model.get(key)) > LONGEST_MARK)) {
    throw refused(`marks of at most ${LONGEST_MARK} characters in its model`);
  }
  const longest = model.get("max_input_chars_per_word");
  if ((typeof longest === "number" || typeof longest === "bigint") && longest > LONGEST_WORD) {
    throw refused(`words of at most ${LONGEST_WORD} characters`);
  }
}

/** The innermost steps of a section of a tokenizer.json, sequences of sequences included. */
export function* steps(section: Json | undefined): Generator<JsonObject> {
  if (!(section instanceof Map)) return;
  const inner = SEQUENCES.map((key) => section.get(key)).filter((steps) => Array.isArray(steps));
  if (!inner.length) yield section;
  for (const step of inner.flat()) yield* steps(step);
}

/** The string that a Replace looks for; nothing where it looks for an expression. */
export function replacedString(step: JsonObject): string {
  const pattern = step.get("pattern");
  const string = pattern instanceof Map ? pattern.get("String") : undefined;
  return typeof string === "string" ? string : "";
}

/** How many times as long, and how many characters more. */
function growth(step: JsonObject): [factor: number, more: number] {
  const content = step.get("content");
  if (step.get("type") === "Replace" && typeof content === "string") {
    const replaced = replacedString(step);
    const length = lengthOf(content);
    if (replaced) return [Math.max(1, length / lengthOf(replaced)), 0];
    return [1 + length, length]; // an expression may match nothing, before every character
  }
  return step.get("type") === "Prepend" ? [1, lengthOf(step.get("prepend"))] : [1, 0];
}

/** Ids that a template puts around a text. */
function templateIds(step: JsonObject): number {
  const named = step.get("special_tokens");
  const single = step.get("single");
  if (!(named instanceof Map) || !Array.isArray(single)) return 0;
  let count = 0;
  for (const part of single) {
    const word = part instanceof Map ? part.get("SpecialToken") : undefined;
    const id = word instanceof Map ? word.get("id") : undefined;
    const token = typeof id === "string" ? named.get(id) : undefined;
    const ids = token instanceof Map ? token.get("ids") : undefined;
    count += Array.isArray(ids) ? ids.length : 0;
  }
  return count;
}

function lengthOf(value: Json | undefined): number {
  return typeof value === "string" ? [...value].length : 0;
}

function refused(wanted: string): BundleError {
  return new BundleError(`expected a tokenizer with ${wanted}, got one with more; do not trust this bundle`);
}
