/**
 * Arithmetic in a model's reply, read without eval: integers, + - * / and parentheses, in exact fractions.
 *
 *   sum     = product { (+ | -) product }        product = factor { (* | /) factor }
 *   factor  = integer | ( sum ) | - factor
 *
 * One pass over at most 200 characters; the recursion is no deeper than that.
 */

const MAX_LENGTH = 200;

/** Numerator and denominator. Division by zero makes the numerator NaN, which then stays: it equals no number. */
export type Fraction = readonly [number, number];

export interface Expression {
  readonly value: Fraction;
  /** The integers as they occur, from left to right. */
  readonly numbers: readonly number[];
}

/** The expression that `text` is, or null when it is not one, or too long. White space may stand between symbols. */
export function parseExpression(text: string): Expression | null {
  if (text.length > MAX_LENGTH || !/^[0-9+\-*/()\s]+$/.test(text)) return null;
  const symbols = text.match(/[0-9]+|[+\-*/()]/g) ?? [];
  const numbers: number[] = [];
  let at = 0;

  const accept = (symbol: string): boolean => {
    const found = symbols[at] === symbol;
    if (found) at++;
    return found;
  };
  const sum = (): Fraction | null => {
    let value = product();
    for (;;) {
      const sign = accept("+") ? 1 : accept("-") ? -1 : 0;
      if (sign === 0 || value === null) return value;
      const right = product();
      value = right && [value[0] * right[1] + sign * right[0] * value[1], value[1] * right[1]];
    }
  };
  const product = (): Fraction | null => {
    let value = factor();
    for (;;) {
      const operator = accept("*") ? "*" : accept("/") ? "/" : "";
      if (operator === "" || value === null) return value;
      const right = factor();
      value = right && (operator === "*" ? [value[0] * right[0], value[1] * right[1]] : quotient(value, right));
    }
  };
  const factor = (): Fraction | null => {
    if (accept("-")) {
      const value = factor();
      return value && [-value[0], value[1]];
    }
    if (accept("(")) {
      const value = sum();
      return accept(")") ? value : null;
    }
    const symbol = symbols[at++];
    if (symbol === undefined || !/^[0-9]/.test(symbol)) return null;
    numbers.push(Number(symbol));
    return [Number(symbol), 1];
  };

  const value = sum();
  return value && at === symbols.length ? { value, numbers } : null;
}

function quotient([a, b]: Fraction, [c, d]: Fraction): Fraction {
  return c === 0 || Number.isNaN(c) ? [NaN, 1] : [a * d, b * c];
}
