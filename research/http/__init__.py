"""How this project talks HTTP as a client: total time-outs, bounded answers, retries by reason, request ids."""
