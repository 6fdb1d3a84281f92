"""Are the tokens still right? Fixed prompts, answered greedily one at a time, with log-probabilities."""
