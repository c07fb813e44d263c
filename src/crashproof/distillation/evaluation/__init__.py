"""Measures of a student on held-out data.

`evaluator` holds the protocol and the perplexity; `held_out_answers` and `held_out_calls` measure generated text,
with the scores of `answer_scores` and `call_scores`.
"""
