/** Names on a benchmark's command line. */
import { InvalidArgumentError } from "commander";
import { nearestName } from "../src/cli.ts";

/** Parses a flag's value as some of these names, with commas between them. */
export function someOf<Name extends string>(names: readonly Name[]): (text: string) => Name[] {
  return (text) =>
    text.split(",").map((word) => {
      const name = names.find((known) => known === word);
      if (name !== undefined) return name;
      const nearest = nearestName(word, names);
      throw new InvalidArgumentError(`unknown name "${word}"${nearest ? `. Did you mean ${nearest}?` : ""}`);
    });
}
