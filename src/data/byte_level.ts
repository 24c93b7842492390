// The byte-level alphabet of GPT-2 (Radford et al. 2019), shared by every tokenizer of the GPT-2, Llama 3 and Qwen
// families: each of the 256 byte values is written as one printable character, so that any text becomes a string of
// printable characters and no text is out of vocabulary. Printable ASCII and Latin-1 bytes stand for themselves; the
// other 68 (controls, space, soft hyphen...) take the characters from U+0100 on. A space becomes "Ġ" (U+0120).

function isPrintable(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/** The character that stands for each byte value; 256 entries. */
export const BYTE_TO_CHAR: readonly string[] = byteCharacters();

/** The inverse of BYTE_TO_CHAR. */
export const CHAR_TO_BYTE: ReadonlyMap<string, number> = new Map(BYTE_TO_CHAR.map((char, byte) => [char, byte]));

function byteCharacters(): string[] {
  let nextSubstitute = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : nextSubstitute++));
}
