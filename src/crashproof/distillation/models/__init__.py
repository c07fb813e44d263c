"""Causal language models: how they are made, read, split and saved.

`causal_lm` makes, reads and writes them; `layers` and `lora` change what is trained and how; `split_model` separates
body and head; `model_answers` lets one answer as a paid teacher would.
"""
