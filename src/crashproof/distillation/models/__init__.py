"""Causal language models: how they are made, read, split and saved.

`causal_lm` makes, reads and writes them; `model_folder` says before that what a folder holds, and `config_file`
before PyTorch is imported; `text_model` is the part of a model that reads text; `layers` and `lora` change what is
trained and how; `split_model` separates body and head; `model_answers` lets one answer as a paid teacher would.
"""
