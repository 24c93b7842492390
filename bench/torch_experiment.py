"""The reference experiment in PyTorch eager with transformers, on the weights of this project.

    python bench/torch_experiment.py [weights] [rollouts generated at once]

Prompt, reward, objective and settings are those of src/grpo (npm start). Rollouts are generated one at a time, as the
experiment that this project reproduces does it, or 25 at once. Prints one line of JSON: seconds of each part, and the mean reward of
each train step.
"""

import json
import random
import sys
import time

start = time.perf_counter()

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer."
TRAIN_STEPS, UPDATES, ROLLOUTS, GROUP, MAX_TOKENS, BUFFER = 5, 5, 25, 5, 10, 50
LEARNING_RATE, WARMUP, EPSILON, SEED = 7e-4, 5, 0.2, 1


def reward(text):
    return 1 - abs(int(text) - 5) / 9 if len(text) == 1 and text in "0123456789" else 0.0


def schedule(step):
    """Linear warm-up, then linear decay to 0."""
    total = TRAIN_STEPS * UPDATES
    return step / WARMUP if step < WARMUP else max(0.0, (total - step) / (total - WARMUP))


@torch.no_grad()
def rollouts(model, tokenizer, prompt, count):
    """Completions: of each its ids, their log-probabilities, and its reward."""
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_TOKENS, do_sample=True, top_k=0,
        output_logits=True, return_dict_in_generate=True, pad_token_id=tokenizer.eos_token_id,
        num_return_sequences=count,
    )
    drawn = output.sequences[:, prompt.shape[1] :]
    log_probs = torch.stack(output.logits, 1).log_softmax(-1).gather(2, drawn[:, :, None])[:, :, 0]
    is_end = torch.isin(drawn, torch.tensor(model.generation_config.eos_token_id))
    lengths = [int(row.nonzero()[0]) + 1 if row.any() else len(row) for row in is_end]
    texts = [tokenizer.decode(ids[:n], skip_special_tokens=True) for ids, n in zip(drawn, lengths)]
    return [(ids[:n], own[:n], reward(text)) for ids, own, n, text in zip(drawn, log_probs, lengths, texts)]


def update(model, optimizer, prompt, group):
    """One gradient step on the clipped objective with one ratio per completion."""
    rewards = torch.tensor([r for _, _, r in group])
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    pad = lambda rows: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    ids, old = pad([ids for ids, _, _ in group]), pad([log_probs for _, log_probs, _ in group])
    mask = pad([torch.ones_like(log_probs) for _, log_probs, _ in group])
    rows = torch.cat([prompt.expand(len(group), -1), ids], 1)
    attention_mask = torch.cat([torch.ones(len(group), prompt.shape[1]), mask], 1)
    logits = model(rows, attention_mask=attention_mask).logits[:, prompt.shape[1] - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(2, ids[:, :, None])[:, :, 0]
    ratio = ((log_probs - old) * mask).sum(1).exp()
    objective = torch.min(ratio * advantages, ratio.clamp(1 - EPSILON, 1 + EPSILON) * advantages).mean()
    objective.backward()
    optimizer.step()
    optimizer.zero_grad()
    return objective.item()


def main(weights, at_once):
    torch.manual_seed(SEED)
    random.seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    messages = [{"role": "user", "content": PROMPT}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, maximize=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    seconds = {"start-up": time.perf_counter() - start, "rollouts": 0.0, "training": 0.0}
    buffer, rewards = [], []
    for _ in range(TRAIN_STEPS):
        began = time.perf_counter()
        fresh = [r for _ in range(ROLLOUTS // at_once) for r in rollouts(model, tokenizer, prompt, at_once)]
        rewards.append(sum(r for _, _, r in fresh) / ROLLOUTS)
        buffer = (buffer + fresh)[-BUFFER:]
        rolled_out = time.perf_counter()
        for _ in range(UPDATES):
            update(model, optimizer, prompt, random.sample(buffer, GROUP))
            scheduler.step()
        seconds["rollouts"] += rolled_out - began
        seconds["training"] += time.perf_counter() - rolled_out
    print(json.dumps({"seconds": seconds, "rewards": rewards}))


main(sys.argv[1] if len(sys.argv) > 1 else "weights", int(sys.argv[2]) if len(sys.argv) > 2 else 1)
