"""Files that other programs read: checkpoints and PEFT adapters."""
