"""Train the embedded tiny model: a synthetic closed world, a tokenizer, a 7M-parameter Llama, and its evaluation.

Run it with `python -m tools.train_tiny --out DIR`; `--help` lists the settings.
"""
