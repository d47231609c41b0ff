"""Built-in demo dataset: prompts with verifiable instructions, responses that follow or break them."""
