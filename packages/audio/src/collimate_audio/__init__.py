"""Audio methods: BEATs with its tokenizer iterations, audio-text contrast."""
