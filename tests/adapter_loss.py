"""The loss that `peft` and `transformers` give an exported adapter or model: run as a process of its own.

    python tests/adapter_loss.py MODEL BASE [ADAPTER] < TOKENS.npy

MODEL: a folder in Hugging Face's layout. BASE: what its linear layers are held in, or `as it is`. Prints nats a label
token over the rows of TOKENS, int [rows, length + 1].
"""

import io
import sys

import numpy as np
import torch
from swarm_peer.swarm.model.as_trained import open_model, use_base
from torch.nn import functional
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, base, *adapter = sys.argv[1:]
    if base == "as it is":
        model = open_model(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        use_base(model, base)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter[0])
    model.eval()
    rows = torch.from_numpy(np.load(io.BytesIO(sys.stdin.buffer.read())).astype(np.int64))
    total = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(row[None, :-1]).logits.float()
            total += functional.cross_entropy(logits[0], row[1:], reduction="sum").item()
    print(total / rows[:, 1:].numel())


if __name__ == "__main__":
    main()
