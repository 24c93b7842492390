// Loops in Jinja templates. @huggingface/jinja differs from Python's jinja2 in two points, without a word:
//   - a variable that one iteration sets is still there in the next. So every iteration is made a macro and its call,
//     which is the library's only construct that has a scope and lets {% break %} and {% continue %} through;
//   - what an iteration writes before {% break %} or {% continue %} is lost. Templates that do so are refused.

import { Template } from "@huggingface/jinja";

/** A node of the library's syntax tree (version 0.5.11), narrowed: what holds blocks, and what is needed to call. */
interface Statement {
  readonly type: string;
  readonly value?: unknown;
  readonly alternate?: readonly Statement[];
  readonly defaultBlock?: readonly Statement[];
  body?: readonly Statement[];
}

const ITERATION = { type: "Identifier", value: "this iteration" }; // with a space: no template has that name
const CALL_ITERATION = { type: "CallExpression", callee: ITERATION, args: [] };

/** Throws Error when the template cannot be parsed, or would lose text. */
export function parseTemplate(source: string): Template {
  const template = new Template(source);
  const program = template.parsed as Statement;
  checkLoopControls(program.body!, false);
  giveIterationsScope(program.body!);
  return template;
}

/** Whether a block may have written something, in the same iteration, when it comes to its end. */
function checkLoopControls(block: readonly Statement[] = [], hadWritten: boolean): boolean {
  let hasWritten = hadWritten;
  for (const { type, value, body, alternate, defaultBlock } of block) {
    const startsAnew = type === "For" || type === "Macro";
    const inner = [
      checkLoopControls(body, !startsAnew && hasWritten),
      checkLoopControls(alternate, hasWritten),
      checkLoopControls(defaultBlock, hasWritten),
    ].includes(true);
    if (type === "Break" || type === "Continue") {
      const tag = `{% ${type.toLowerCase()} %}`;
      if (hasWritten) throw new Error(`${tag} after text of the same iteration is not supported. Fix: use {% if %}`);
    } else if (type === "If" || type === "For") {
      hasWritten ||= inner;
    } else if (type === "StringLiteral") {
      hasWritten ||= value !== "";
    } else {
      hasWritten ||= !["Set", "Macro", "Comment"].includes(type);
    }
  }
  return hasWritten;
}

function giveIterationsScope(block: readonly Statement[] = []): void {
  for (const statement of block) {
    [statement.body, statement.alternate, statement.defaultBlock].forEach((inner) => giveIterationsScope(inner));
    if (statement.type === "For" && setsVariable(statement.body)) {
      const macro = { type: "Macro", name: ITERATION, args: [], body: statement.body! };
      statement.body = [macro, CALL_ITERATION];
    }
  }
}

/** Within this block's own scope: loops and macros have one of their own. */
function setsVariable(block: readonly Statement[] = []): boolean {
  return block.some(({ type, body, alternate }) => {
    if (["For", "Macro", "CallStatement"].includes(type)) return type === "Macro";
    return type === "Set" || setsVariable(body) || setsVariable(alternate);
  });
}
