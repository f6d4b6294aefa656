"""Config, schedule, model, tokenizer, cache, decoding, checkpoints, media and the command line."""
