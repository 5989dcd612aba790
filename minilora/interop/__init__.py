"""Files that other programs read and write: checkpoints, PEFT's adapters, GPT-2."""
