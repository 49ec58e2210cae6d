"""From an answer to a number: reward, evaluation of a question set, confidence intervals."""
