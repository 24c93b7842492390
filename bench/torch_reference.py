"""The benchmarks' operations in PyTorch: eager mode, float32, default threads.

Speaks lines of JSON: first the version, then for each request {"op": .., shapes} the milliseconds of one run, as
{"ms": ..}. The first request of its kind prepares and warms up; short operations repeat for about 10 ms and report the
mean, like kernelTimer of bench/measure.ts.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

from torch_model import Qwen3, decode, training_step


def matmul(m, k, n, layout):
    a = torch.randn((k, m) if layout == "TN" else (m, k))
    b = torch.randn((n, k) if layout == "NT" else (k, n))
    left, right = (a.T if layout == "TN" else a), (b.T if layout == "NT" else b)
    return lambda: left @ right


def attention(batch, queries, keys, heads, kvHeads, headSize, backward):
    heads_first = lambda time, n: torch.randn(batch, time, n, headSize).transpose(1, 2).requires_grad_(backward)
    q, k, v = heads_first(queries, heads), heads_first(keys, kvHeads), heads_first(keys, kvHeads)
    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=queries == keys, enable_gqa=heads != kvHeads)
    return gradient(run, (q, k, v)) if backward else run


def norm(kind, rows, cols, backward):
    x, weight, bias = torch.randn(rows, cols), torch.ones(cols), torch.zeros(cols)
    inputs = [x, weight] if kind == "rms" else [x, weight, bias]
    for value in inputs:
        value.requires_grad_(backward)
    if kind == "rms":
        run = lambda: F.rms_norm(x, (cols,), weight, 1e-6)
    else:
        run = lambda: F.layer_norm(x, (cols,), weight, bias, 1e-6)
    return gradient(run, inputs) if backward else run


def token_log_prob(rows, cols, vocabulary, backward):
    hidden = torch.randn(rows, cols).requires_grad_(backward)
    head = (0.02 * torch.randn(vocabulary, cols)).requires_grad_(backward)
    targets = torch.arange(rows)[:, None] % vocabulary
    run = lambda: F.log_softmax(hidden @ head.T, -1).gather(1, targets)
    return gradient(run, (hidden, head)) if backward else run


def embedding_backward(rows, cols, vocabulary):
    table = torch.randn(vocabulary, cols, requires_grad=True)
    ids = (torch.arange(rows) * 37) % min(vocabulary, 256)
    return gradient(lambda: F.embedding(ids, table), (table,))


def adamw(shapes):
    parameters = [torch.randn(shape) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def run():
        torch.nn.utils.clip_grad_norm_(parameters, 1e30)
        optimizer.step()

    return run


def model_step(config, batch, time):
    model = Qwen3(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = (torch.arange(batch * time) * 37 % 256).view(batch, time)
    return lambda: training_step(model, optimizer, ids)


def model_decode(config, prompts, samples, prompt, tokens):
    model = Qwen3(config)
    ids = torch.stack([(torch.arange(prompt) * 37 + i) % 256 for i in range(prompts)])
    return lambda: decode(model, ids, samples, tokens)


def gradient(forward, inputs):
    """Times the backward pass alone: the forward pass has run, and its graph stays."""
    y = forward()
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


OPERATIONS = {
    "matmul": matmul, "attention": attention, "norm": norm, "tokenLogProb": token_log_prob,
    "embeddingBackward": embedding_backward, "adamw": adamw, "trainingStep": model_step, "decode": model_decode,
}


def milliseconds(run, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return 1000 * (time.perf_counter() - start) / repeats


def main():
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    current, run, repeats = None, None, 1
    for line in sys.stdin:
        try:
            if line != current:
                request = json.loads(line)
                run = OPERATIONS[request.pop("op")](**request)
                current = line
                milliseconds(run, 1)
                repeats = max(1, round(10 / milliseconds(run, 1)))
            reply = {"ms": milliseconds(run, repeats)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


main()
