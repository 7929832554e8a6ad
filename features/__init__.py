"""What a feature is: exact time, clips, stream specs, the store, decoding, tokens, mel."""
