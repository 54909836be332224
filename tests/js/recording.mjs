// What Python recorded for these tests: $NBSGL_RECORDINGS/<name>.json (tests/unit/test_widgets_js.py writes them).
import { readFileSync } from "node:fs";

export function recording(name) {
  return JSON.parse(readFileSync(`${process.env.NBSGL_RECORDINGS}/${name}.json`, "utf8"));
}

export const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64"));
