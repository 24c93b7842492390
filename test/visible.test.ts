/** Text of others must not command a terminal, and must stay readable. */
import { expect, test } from "vitest";
import { visible, visibleJson, visibleLine } from "../src/visible.ts";

const text = "naïve\t日本\n\x1b[31m red \x9b31m \x07 \u202eback\u2028next";

test("controls and marks of direction are shown, all else stays", () => {
  expect(visible(text)).toBe("naïve\t日本\n\\x1b[31m red \\x9b31m \\x07 \\u{202e}back\\u{2028}next");
  expect(visibleLine(text)).toBe("naïve 日本 \\x1b[31m red \\x9b31m \\x07 \\u{202e}back\\u{2028}next");
});

test("JSON holds the same value with nothing but visible characters", () => {
  const json = visibleJson({ [text]: [text, 1, null] });
  expect(JSON.parse(json)).toEqual({ [text]: [text, 1, null] });
  expect(visible(json)).toBe(json);
  expect(json).toContain("日本\\n\\u001b[31m red \\u009b31m");
});
