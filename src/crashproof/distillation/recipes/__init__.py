"""Recipes: what is trained, and with which losses.

One file per recipe: `kd`, `process`, `answer_generation`, `tool_select`. Each ends with its `Task`, which `registry`
lists by name. `recipe` and `task` define what a recipe provides; `tool_task` is what the two with tools share.
"""
