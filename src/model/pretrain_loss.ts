/** The loss of pretraining. */
import * as ops from "../autograd/ops.ts";
import type { Variable } from "../autograd/variable.ts";
import { IGNORE } from "../tensor/cross_entropy.ts";
import { tokenIds } from "../tensor/embedding.ts";
import { tensor } from "../tensor/tensor.ts";
import { arangePositions, hiddenStates, logits, type Gpt } from "./gpt.ts";

/** Mean next-token cross-entropy (nats) of rows of ids [batch, rowLength]; the last token of a row has no successor. */
export function nextTokenLoss(model: Gpt, ids: Uint32Array, batch: number, rowLength: number): Variable {
  const targets = ids.map((_, i) => ((i + 1) % rowLength === 0 ? IGNORE : ids[i + 1]!));
  const hidden = hiddenStates(model, tokenIds(ids, [batch, rowLength]), {
    positions: arangePositions(batch, rowLength),
  });
  const losses = ops.crossEntropy(logits(model, hidden), tensor(targets));
  return ops.mulScalar(ops.sum(losses), 1 / (batch * (rowLength - 1)));
}
