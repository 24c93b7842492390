"""The Qwen3 architecture as a plain PyTorch module: what src/model/gpt.ts computes, in eager mode and float32.

Departs from transformers' own: weights are random, the KV cache is preallocated, and nothing is configurable that the
benchmarks do not use.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.size = c["heads"], c["kvHeads"], c["headSize"]
        self.q = nn.Linear(c["hiddenSize"], self.heads * self.size, bias=False)
        self.k = nn.Linear(c["hiddenSize"], self.kv_heads * self.size, bias=False)
        self.v = nn.Linear(c["hiddenSize"], self.kv_heads * self.size, bias=False)
        self.out = nn.Linear(self.heads * self.size, c["hiddenSize"], bias=False)
        self.q_norm = nn.RMSNorm(self.size, eps=c["normEps"])
        self.k_norm = nn.RMSNorm(self.size, eps=c["normEps"])

    def forward(self, x, cos, sin, cache, start):
        batch, time, _ = x.shape
        split = lambda y: y.view(batch, time, -1, self.size)
        q = rotate(self.q_norm(split(self.q(x))).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(split(self.k(x))).transpose(1, 2), cos, sin)
        v = split(self.v(x)).transpose(1, 2)
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + time] = k
            values[:, :, start : start + time] = v
            k, v = keys[:, :, : start + time], values[:, :, : start + time]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=time > 1, enable_gqa=self.heads != self.kv_heads)
        return self.out(y.transpose(1, 2).reshape(batch, time, -1))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention_norm = nn.RMSNorm(c["hiddenSize"], eps=c["normEps"])
        self.attention = Attention(c)
        self.mlp_norm = nn.RMSNorm(c["hiddenSize"], eps=c["normEps"])
        self.gate = nn.Linear(c["hiddenSize"], c["mlpSize"], bias=False)
        self.up = nn.Linear(c["hiddenSize"], c["mlpSize"], bias=False)
        self.down = nn.Linear(c["mlpSize"], c["hiddenSize"], bias=False)

    def forward(self, x, cos, sin, cache=None, start=0):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, start)
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Qwen3(nn.Module):
    """Ids [batch, time] -> hidden states after the final norm; the head is the embedding table."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embedding = nn.Embedding(c["vocabSize"], c["hiddenSize"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["hiddenSize"], eps=c["normEps"])
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)
        frequencies = c["rope"]["theta"] ** (-torch.arange(0, c["headSize"], 2) / c["headSize"])
        angles = torch.outer(torch.arange(c["maxPositions"]), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, caches=None, start=0):
        cos, sin = (table[start : start + ids.shape[1]] for table in (self.cos, self.sin))
        x = self.embedding(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, caches[i] if caches else None, start)
        return self.norm(x)

    def new_caches(self, batch, capacity):
        c = self.config
        shape = (batch, c["kvHeads"], capacity, c["headSize"])
        return [(torch.empty(shape), torch.empty(shape)) for _ in self.layers]


def rotate(x, cos, sin):
    """Rotary embedding of [batch, heads, time, size]: pairs (i, i + size / 2) turn by the position's angle."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def training_step(model, optimizer, ids):
    """Mean next-token cross-entropy, backward, gradient norm clipped to 1, AdamW, as bench/model.ts does it."""
    logits = model(ids) @ model.embedding.weight.T
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), norm.item()


@torch.no_grad()
def decode(model, prompts, samples, tokens):
    """Samples from [prompts, length] ids: each prompt is run once, its cache copied to all of its samples."""
    length = prompts.shape[1]
    prompt_caches = model.new_caches(prompts.shape[0], length)
    last = model(prompts, prompt_caches)[:, -1].repeat_interleave(samples, 0)
    caches = model.new_caches(prompts.shape[0] * samples, length + tokens)
    for whole, part in zip(caches, prompt_caches):
        for to, source in zip(whole, part):
            to[:, :, :length] = source.repeat_interleave(samples, 0)
    ids, log_probs = [], []
    for step in range(tokens):
        if step > 0:
            last = model(ids[-1], caches, length + step - 1)[:, -1]
        distribution = F.log_softmax(last @ model.embedding.weight.T, dim=-1)
        ids.append(torch.multinomial(distribution.exp(), 1))
        log_probs.append(distribution.gather(1, ids[-1]))
    return torch.cat(ids, 1).tolist(), torch.cat(log_probs, 1).tolist()
