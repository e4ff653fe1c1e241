/** Names of a bundle's files, as the exporter writes them. */

export const MANIFEST = "manifest.json";
export const VECTORS = "vectors.json";
export const FILE_NAME = "[A-Za-z0-9][A-Za-z0-9._\\-]{0,127}";
export const COMPILED = "(model|prompt)\\.[a-z0-9]+(\\.onnx|_qnn\\.bin|\\.xml|\\.bin)|model(\\.mlpackage\\.zip|\\.tflite)";

/** The file of a graph's weights, which lies beside it. */
export function weightsOf(graph: string): string {
  return `${graph}.data`;
}
